"""What a worker hears: refusals of its own, and messages that can't be taken; over the in-memory link."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.audit import AuditLog
from broker.errors import DataError
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import coordinator_queue, dead_queue, outgoing, upload_queue, worker_queue
from broker.wire.fields import Binary
from broker.wire.messages import Joined, Message, Part, Refused, RollCall, RoundStart, RunFinished, decode
from broker.wire.settings import Precision
from broker.wire.tensors import Vector
from broker.wire.transfer import Digest, Encoding, Writing, slices
from tests.faults.actors import StandInData
from tests.unit.test_messages import EXAMPLES
from worker.rounds.hand_over import DeclineJob, HandOver, RoundJob
from worker.rounds.listener import Listener
from worker.rounds.participant import Participant
from worker.rounds.round_starts import Incoming
from worker.rounds.site_rules import SiteRules
from worker.site.resting import PauseSwitch, Resting

_DIGEST = Digest()
_DIGEST.add(0, bytes(8))
START = replace(
    next(message for message in EXAMPLES if isinstance(message, RoundStart)), digest=_DIGEST.hex()
)


class Hearing:
    """A worker's receiving side, one step at a time."""

    def __init__(self, rules: SiteRules | None = None, resting: Resting | None = None) -> None:
        broker = MemoryBroker()
        self.broker = broker
        self.coordinator, self.link = MemoryLink(broker, "coordinator"), MemoryLink(broker, "w")
        self.coordinator.declare([coordinator_queue(), dead_queue()])
        self.link.declare([worker_queue("w"), upload_queue("w")])
        self.link.consume(["worker.w"], prefetch=0)
        self.hand_over = HandOver()
        data: Any = StandInData(10)
        participants = {"w": Participant(name="w", data=data, rules=rules or SiteRules())}
        self.listener = Listener(
            self.link, participants, self.hand_over, threading.Event(), task=None, resting=resting
        )
        self.listener._single_reader.begin(0)
        self.take_all()

    def say(self, message: Message) -> None:
        self.coordinator.publish([outgoing(message, "worker.w")])

    def take_all(self) -> None:
        while not self.link._events.empty():
            self.listener._turn()

    def joined(self) -> Joined:
        """What the worker says of itself next."""
        self.say(RollCall())
        self.take_all()
        self.listener._join()
        *_, last = self.coordinator.fetch("coordinator", 100)
        message = decode(last.body)
        assert isinstance(message, Joined)
        return message

    @property
    def is_all_acknowledged(self) -> bool:
        return not self.link._held and not self.broker.depth("worker.w")


@pytest.fixture
def hearing() -> Hearing:
    return Hearing()


def test_a_refusal_of_this_process_is_acknowledged_and_ends_it(hearing: Hearing) -> None:
    """It carries the token that this process joined with; nothing of it is left for the next one."""
    token = hearing.joined().token
    hearing.say(Refused(worker="w", reason="other classes", token=token))
    with pytest.raises(DataError, match="other classes"):
        hearing.take_all()
    assert hearing.is_all_acknowledged


def test_a_refusal_of_another_process_is_acknowledged_and_ignored(hearing: Hearing) -> None:
    """It answers a `joined` of before the data were mended."""
    hearing.say(Refused(worker="w", reason="other classes", token="0123456789abcdef"))
    hearing.take_all()
    assert hearing.is_all_acknowledged
    assert Hearing().joined().token != hearing.joined().token


@pytest.mark.parametrize("error", [ValueError("no such dtype\nat all"), RecursionError(), OSError(5, "x")])
def test_a_message_that_can_not_be_taken_is_put_away_and_its_round_declined(
    hearing: Hearing, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Left unacknowledged it would end this worker at every start; left unanswered the coordinator would wait."""

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Incoming, "_take_inline", fail)
        hearing.say(START)
        hearing.take_all()
    assert hearing.is_all_acknowledged
    assert hearing.broker.depth("dead") == 1
    job = hearing.hand_over.jobs.get_nowait()
    assert isinstance(job, DeclineJob)
    assert (job.worker, job.key) == ("w", START.held)
    assert job.reason.startswith(type(error).__name__)
    assert "at all" not in job.reason
    hearing.say(START)
    hearing.take_all()
    assert isinstance(hearing.hand_over.jobs.get_nowait(), RoundJob)  # it goes on


def test_a_part_that_can_not_be_taken_declines_the_round_that_it_belongs_to(hearing: Hearing) -> None:
    """What came before of the same round start is acknowledged, too."""
    start = replace(
        START,
        layout=(replace(START.layout[0], shape=(20_000,)),),
        parts=2,
        part_bytes=64 * 1024,
        weights=None,
    )
    part = Part(
        run_id="r", round_number=1, transfer_id="attempt-1", index=0, count=2, precision="float32",
        data=bytes(64 * 1024),
    )  # fmt: skip
    hearing.say(start)
    hearing.say(part)
    hearing.take_all()
    assert not hearing.is_all_acknowledged
    hearing.say(replace(part, index=1, data=b"abc"))
    hearing.take_all()
    assert hearing.is_all_acknowledged
    job = hearing.hand_over.jobs.get_nowait()
    assert isinstance(job, DeclineJob)
    assert job.key == start.held


def test_a_failure_of_the_receiving_thread_ends_the_training_too(
    hearing: Hearing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread raises it at once, and not after an hour of training for nobody."""
    hearing.say(START)
    hearing.take_all()
    job = hearing.hand_over.jobs.get_nowait()
    assert isinstance(job, RoundJob)

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(hearing.listener, "_turn", fail)
    hearing.listener.run()
    assert job.stop.is_set()
    assert isinstance(hearing.hand_over.failure, ZeroDivisionError)


# Sessions


def test_a_round_start_of_an_earlier_session_is_void(hearing: Hearing) -> None:
    """Replayed, or left from before a restart: the newest start of the coordinator counts, whatever the round."""
    hearing.say(replace(START, session=20))
    hearing.take_all()
    assert hearing.hand_over.held_in("w")[1] == 20
    hearing.say(replace(START, session=10, round_number=START.round_number + 5))
    hearing.take_all()
    assert hearing.hand_over.held("w") == START.held
    assert hearing.is_all_acknowledged


def test_a_newer_session_counts_although_its_round_is_an_earlier_one(hearing: Hearing) -> None:
    """The run was restored from an older copy."""
    later = replace(START, session=10, round_number=START.round_number + 5)
    hearing.say(later)
    hearing.take_all()
    hearing.say(replace(START, session=20))
    hearing.take_all()
    assert hearing.hand_over.held("w") == START.held


def test_the_roll_calls_session_counts_also_if_it_is_lower(hearing: Hearing) -> None:
    """The coordinator moved to a machine whose clock is behind: the roll call can't be old, so it is believed."""
    hearing.say(replace(START, session=20))
    hearing.say(RollCall(session=10))
    hearing.say(replace(START, session=10, attempt=START.attempt + 1))
    hearing.take_all()
    held = hearing.hand_over.held("w")
    assert held is not None
    assert held.attempt == START.attempt + 1


def test_a_run_that_has_ended_begins_no_more_in_the_same_session(hearing: Hearing) -> None:
    """Replayed round starts of it are void; a coordinator that is started again with more rounds goes on with it."""
    hearing.say(replace(START, session=20))
    hearing.say(RunFinished(run_id=START.run_id, rounds=1, outcome="done", session=20))
    hearing.say(replace(START, session=20))
    hearing.take_all()
    assert hearing.hand_over.held("w") is None
    hearing.say(replace(START, session=30))
    hearing.take_all()
    assert hearing.hand_over.held("w") == START.held


def test_the_end_of_an_earlier_session_does_not_end_the_run_that_goes_on(hearing: Hearing) -> None:
    """Who was away hears the new roll call first in one queue, and the old end in another one."""
    hearing.say(RollCall(session=30))
    hearing.say(RunFinished(run_id=START.run_id, rounds=1, outcome="failed", session=20))
    hearing.say(replace(START, session=30))
    hearing.take_all()
    assert hearing.hand_over.held("w") == START.held


def test_an_end_that_seems_to_be_later_is_forgotten_with_the_roll_call(hearing: Hearing) -> None:
    """The coordinator's clock was set back between two of its starts."""
    hearing.say(RunFinished(run_id=START.run_id, rounds=1, outcome="failed", session=90))
    hearing.say(RollCall(session=30))
    hearing.say(replace(START, session=30))
    hearing.take_all()
    assert hearing.hand_over.held("w") == START.held


def test_the_end_of_a_run_is_heard_at_once() -> None:
    """The thread that trains does not wait out its half second: it is woken."""
    hearing = Hearing()
    hearing.say(RunFinished(run_id="r", rounds=1, outcome="done", session=1))
    hearing.take_all()
    assert hearing.hand_over.jobs.get(timeout=5) is None
    assert hearing.hand_over.is_run_over.is_set()


def test_the_end_of_a_run_is_not_forgotten_with_the_start_of_the_next(hearing: Hearing) -> None:
    """The thread that trains may look up late, and one that takes part in one run alone has to leave then."""
    older, newer = replace(START, run_id="older"), START
    for message in (older, RunFinished(run_id="older", rounds=1, outcome="done", session=1), newer):
        hearing.say(message)
    hearing.take_all()
    assert hearing.hand_over.held("w") == START.held
    assert hearing.hand_over.is_run_over.is_set()


def test_a_run_that_this_process_took_no_part_in_is_none_that_has_ended(hearing: Hearing) -> None:
    """The word of its end may have waited in the queue; a worker that takes part in one run alone takes the next."""
    hearing.say(RunFinished(run_id="older", rounds=1, outcome="done", session=1))
    hearing.say(START)
    hearing.take_all()
    assert not hearing.hand_over.is_run_over.is_set()


# A site's say

LARGE = replace(
    START,
    layout=(replace(START.layout[0], shape=(20_000,)),),
    parts=2,
    part_bytes=64 * 1024,
    weights=None,
)
FIRST_PART = Part(
    run_id="r",
    round_number=1,
    transfer_id="attempt-1",
    index=0,
    count=2,
    precision="float32",
    data=bytes(64 * 1024),
)


def declined(hearing: Hearing) -> DeclineJob:
    job = hearing.hand_over.jobs.get_nowait()
    assert isinstance(job, DeclineJob)
    return job


def test_a_round_outside_the_rules_is_declined_before_its_weights_are_taken() -> None:
    """All of it is acknowledged, its parts, too; the worker goes on, and holds nothing of it."""
    hearing = Hearing(SiteRules(allow_tasks=("other",)))
    hearing.say(LARGE)
    hearing.say(FIRST_PART)
    hearing.take_all()
    assert "--allow-task" in declined(hearing).reason
    assert hearing.listener._incoming is None
    assert hearing.is_all_acknowledged
    assert hearing.joined().held is None


def test_a_pause_ends_what_is_under_way_and_is_told_until_it_is_taken_back(tmp_path: Path) -> None:
    """The round that is trained is declined, so is the next; resumed, the worker takes the same attempt again."""
    switch = PauseSwitch(tmp_path, "w")
    hearing = Hearing(resting=Resting(switch))
    hearing.hand_over.audit = AuditLog(tmp_path / "audit.jsonl")
    hearing.say(START)
    hearing.take_all()
    job = hearing.hand_over.jobs.get_nowait()
    assert isinstance(job, RoundJob)
    switch.set()
    assert hearing.joined().pause == "paused by its operator"
    assert job.stop.is_set()
    assert declined(hearing).key == START.held
    assert hearing.hand_over.jobs.empty()
    hearing.say(replace(START, attempt=2))
    hearing.take_all()
    assert declined(hearing).reason == "paused by its operator"
    switch.clear()
    assert hearing.joined().pause == ""
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    told = [(each["event"], each.get("reason")) for each in lines if each["event"] in ("paused", "resumed")]
    assert told == [("paused", "paused by its operator"), ("resumed", None)]
    hearing.say(replace(START, attempt=3))
    hearing.take_all()
    assert isinstance(hearing.hand_over.jobs.get_nowait(), RoundJob)


def test_a_pause_declines_what_has_come_in_half(tmp_path: Path) -> None:
    """Its second part would else begin a training at a site that is paused."""
    switch = PauseSwitch(tmp_path, "w")
    hearing = Hearing(resting=Resting(switch))
    hearing.say(LARGE)
    hearing.say(FIRST_PART)
    hearing.take_all()
    switch.set()
    hearing.say(replace(FIRST_PART, index=1, data=bytes(80_000 - 64 * 1024)))
    hearing.take_all()
    assert declined(hearing).key == LARGE.held
    assert hearing.hand_over.jobs.empty()
    assert hearing.is_all_acknowledged


_LAYOUT = (replace(START.layout[0], shape=(20_000,)),)
_ROUND = replace(
    START, layout=_LAYOUT, part_bytes=64 * 1024, weights=None, parts=2, download_precision="int8"
)


def _digest_of(vector: Vector) -> str:
    digest = Digest()
    for index, span in enumerate(slices(vector.size, 64 * 1024)):
        digest.add(index, vector[span].tobytes())
    return digest.hex()


def whole(vector: Vector, attempt: int = 1, round_number: int = 1) -> list[Message]:
    """A round start with all weights."""
    start = replace(_ROUND, round_number=round_number, attempt=attempt, digest=_digest_of(vector))
    return [start, *_parts(start, [vector[span].tobytes() for span in slices(20_000, 64 * 1024)], "float32")]


def step(base: Vector, seed: int, round_number: int = 2) -> tuple[list[Message], Vector]:
    """A round start with a step on from a model, and what it leads to."""
    moved = np.random.default_rng(seed).standard_normal(20_000, np.float32)
    encoding, spans, vector = (
        Encoding.of(moved, _LAYOUT, "int8"),
        list(slices(20_000, 64 * 1024)),
        base.copy(),
    )
    written = Writing(moved, encoding, spans, seed).all_parts()
    for span, data in zip(spans, written, strict=True):
        encoding.follow(data, span, base, vector[span])
    start = replace(
        _ROUND,
        round_number=round_number,
        base=_digest_of(base),
        digest=_digest_of(vector),
        scales=encoding.scales,
    )
    return [start, *_parts(start, written, "int8")], vector


def _parts(start: RoundStart, written: Sequence[Binary], precision: Precision) -> list[Message]:
    return [
        Part(
            run_id=start.run_id, round_number=start.round_number, transfer_id=start.transfer_id, index=index,
            count=len(written), precision=precision, data=bytes(data),
        )
        for index, data in enumerate(written)
    ]  # fmt: skip


FIRST = np.random.default_rng(0).standard_normal(20_000, np.float32)


def next_job(hearing: Hearing, messages: list[Message]) -> RoundJob | None:
    """What is to be trained once these have come."""
    for message in messages:
        hearing.say(message)
    hearing.take_all()
    job = None if hearing.hand_over.jobs.empty() else hearing.hand_over.jobs.get_nowait()
    assert job is None or isinstance(job, RoundJob)
    assert job is None or hearing.is_all_acknowledged
    return job


def test_a_step_leads_on_from_the_model_that_is_kept(hearing: Hearing) -> None:
    """The second round's weights are what its step makes of the first one's, which are not changed for whoever still
    trains from them; `joined` tells which model is here."""
    first = next_job(hearing, whole(FIRST))
    messages, vector = step(FIRST, 1)
    second = next_job(hearing, messages)
    assert first is not None
    assert second is not None
    assert first.weights.tobytes() == FIRST.tobytes()
    assert second.weights.tobytes() == vector.tobytes()
    assert hearing.joined().model == _digest_of(vector)


def test_a_step_from_a_model_that_is_not_here_is_passed_over_and_said_so(hearing: Hearing) -> None:
    """A process that was started anew holds none: what comes of the step is acknowledged, `joined` tells that it has
    no model and no round, and the same round with all weights is taken."""
    messages, vector = step(FIRST, 1)
    assert next_job(hearing, messages) is None
    assert hearing.is_all_acknowledged
    assert hearing.listener._is_to_join
    assert (hearing.joined().model, hearing.joined().held) == ("", None)
    taken = next_job(hearing, whole(vector, round_number=2))
    assert taken is not None
    assert taken.weights.tobytes() == vector.tobytes()


def test_a_whole_copy_takes_the_place_of_a_step_that_did_not_come_whole(hearing: Hearing) -> None:
    """Parts of both are under way for one attempt: none of the one is taken for the other's."""
    next_job(hearing, whole(FIRST))
    messages, vector = step(FIRST, 1)
    assert next_job(hearing, messages[:2]) is None
    taken = next_job(hearing, whole(vector, round_number=2) + messages[2:])
    assert taken is not None
    assert taken.weights.tobytes() == vector.tobytes()


def test_a_further_attempt_needs_no_weights(hearing: Hearing) -> None:
    """Its model is here already, whatever the coordinator believes: a header alone, a step from the model before, or
    all weights."""
    next_job(hearing, whole(FIRST))
    messages, vector = step(FIRST, 1)
    second = next_job(hearing, messages)
    assert second is not None
    header = replace(messages[0], attempt=2, base=_digest_of(vector), parts=0, scales=())  # type: ignore[call-arg]
    again = [
        replace(message, attempt=3) if isinstance(message, RoundStart) else message for message in messages
    ]
    for attempt, coming in ((2, [header]), (3, again), (4, whole(vector, attempt=4, round_number=2))):
        assert next_job(hearing, coming) is None, "it is trained already"
        assert second.key.attempt == attempt
        assert hearing.is_all_acknowledged


def test_a_model_is_kept_where_steps_are_told_alone_and_no_longer_than_its_run(hearing: Hearing) -> None:
    """By default a worker's memory holds no more than ever."""
    plain = [
        replace(message, download_precision="float32") if isinstance(message, RoundStart) else message
        for message in whole(FIRST)
    ]
    next_job(hearing, plain)
    assert hearing.joined().model == ""
    next_job(hearing, whole(FIRST, round_number=2))
    assert hearing.joined().model == _digest_of(FIRST)
    hearing.say(RunFinished(run_id="r", rounds=2, outcome="done"))
    hearing.take_all()
    assert hearing.joined().model == ""
