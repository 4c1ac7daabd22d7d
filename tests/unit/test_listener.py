"""What a worker hears: refusals of its own, and messages that can't be taken; over the in-memory link."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.audit import AuditLog
from broker.errors import DataError
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import coordinator_queue, dead_queue, outgoing, upload_queue, worker_queue
from broker.wire.messages import Joined, Message, Part, Refused, RollCall, RoundStart, RunFinished, decode
from broker.wire.transfer import Digest
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
