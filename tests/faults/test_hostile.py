"""Hostile input on every queue: never a crash, never any part of it in the mean, each in `dead` or discarded.

The bulk runs over the in-memory link, one step at a time, so that every case is seen to have been judged.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Link, Outgoing, upload_queue, worker_queue
from broker.link.single_reader import SingleReader
from broker.link.validator import may_send_to_coordinator
from broker.logs import LogContext
from broker.wire.messages import Joined, Launch, Message, Part, RoundKey, UpdateAnnounced, decode, encode
from broker.wire.transfer import Digest
from coordinator.learning.aggregation import UpdateSum
from coordinator.learning.rounds import Verdict
from coordinator.learning.strategies.mean import MeanAggregate
from coordinator.options import RunOptions
from coordinator.play import attempts
from coordinator.play.open_round import fetching
from coordinator.play.run import Run, _building
from tests.faults.actors import (
    CLASSES,
    TASK,
    StandInData,
    StandInModels,
    layout_of_size,
    undisturbed,
    update_of,
    worker_seed,
)
from tests.unit.test_messages import EXAMPLES
from worker.rounds.hand_over import DeclineJob, HandOver
from worker.rounds.listener import Listener
from worker.rounds.participant import Participant

SIZE = 20_000  #: floats: 5 parts of 16 KiB, too large to ride inside an announcement
PART_BYTES = 16 * 1024
WORKERS = {"w1": 100, "w2": 110}

#: No shrinking and no database: a failure is told as it came, and 10,000 cases take seconds.
many = settings(
    max_examples=1300,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
few = settings(many, max_examples=300)


# --- cases -----------------------------------------------------------------------------------------------------

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9)
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)
_lengths = st.sampled_from([kind + b"\xff\xff\xff\xff" for kind in (b"\xdd", b"\xdf", b"\xc6", b"\xdb")])
#: Bodies that are nobody's message.
junk = st.one_of(
    st.binary(max_size=200),
    _values.map(msgpack.packb),
    st.integers(1, 100_000).map(lambda depth: b"\x91" * depth + b"\xc0"),  # deep nesting
    st.integers(1, 20_000).map(lambda depth: b"\x81\xa1a" * depth + b"\xc0"),
    st.tuples(_lengths, st.binary(max_size=50)).map(b"".join),  # lengths that nothing follows
)
accounts = st.sampled_from(["w1", "w2", "w3", "coordinator", "evil", None])


@st.composite
def flipped(draw: st.DrawFn, bodies: list[bytes]) -> bytes:
    """A real message with some bits the other way."""
    body = bytearray(draw(st.sampled_from(bodies)))
    for position in draw(st.lists(st.integers(0, 8 * len(body) - 1), min_size=1, max_size=4)):
        body[position // 8] ^= 1 << position % 8
    return bytes(body)


@st.composite
def refitted(draw: st.DrawFn, bodies: list[bytes]) -> bytes:
    """A real message with a field of another value, without one, or with one more."""
    content = msgpack.unpackb(draw(st.sampled_from(bodies)), strict_map_key=True)
    name = draw(st.sampled_from(sorted(content)))
    change = draw(st.sampled_from(["set", "set", "set", "remove", "add"]))
    if change == "remove":
        del content[name]
    else:
        content[name if change == "set" else "extra"] = draw(_values)
    return bytes(msgpack.packb(content))


# --- a coordinator, one step at a time -------------------------------------------------------------------------


def deliver(broker: MemoryBroker, account: str | None, key: str, body: bytes) -> None:
    MemoryLink(broker, account).publish(  # type: ignore[arg-type]
        [Outgoing(key=key, body=body, message_type="?", is_mandatory=False)]
    )


class OpenRound:
    """A coordinator in round 1 with w1 and w2 invited; w2 is the enemy, w1 is honest."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker()
        self.link = MemoryLink(self.broker, "coordinator")
        folder.mkdir()
        options = RunOptions(task=TASK, out=folder, workers=2, rounds=1, grace_seconds=0.0)
        models: Any = StandInModels(SIZE)
        self.run = Run(self.link, options, models, stop=threading.Event(), log=LogContext())
        self.folder = folder
        for name in WORKERS:
            there = MemoryLink(self.broker, name)
            there.declare([worker_queue(name), upload_queue(name)])
            there.consume([f"worker.{name}"], prefetch=1)
        self.run._session.begin()
        built = _building(models, options)
        for name, num_examples in WORKERS.items():
            self.say(name, joined(name, num_examples))
        self.run._wait_until(lambda: self.run._session.is_ready)
        self.run._begin_with(built)
        opened = self.run._live = self.run._attempts.first("train")
        self.opened = opened
        self.record = opened.round.record
        self.base = self.run._committed.present.vector
        assert isinstance(opened.aggregate, MeanAggregate)
        self.total = opened.aggregate.total
        self.total.values[:] = 0  # it begins in used memory

    def say(self, account: str, message: Message) -> None:
        deliver(self.broker, account, "coordinator", encode(message))

    def take_all(self) -> None:
        """Let the coordinator judge all that has come."""
        while not self.link._events.empty():
            self.run._decide(self.run._session.next_event(0))
        assert self.broker.depth("coordinator") == 0
        assert self.run._live is self.opened

    def update(self, worker: str, upload_id: str = "u1") -> tuple[UpdateAnnounced, list[Part]]:
        """What an honest worker sends."""
        vector = update_of(self.base, worker_seed(0, 1, worker))
        digest, parts = Digest(), []
        step = PART_BYTES // 4
        count = -(-SIZE // step)
        for index in range(count):
            data = vector[index * step : (index + 1) * step].tobytes()
            digest.add(index, data)
            parts.append(
                Part(
                    run_id=self.record.run_id, round_number=1, transfer_id=upload_id, index=index, count=count,
                    precision="float32", data=data,
                )
            )  # fmt: skip
        announced = UpdateAnnounced(
            worker=worker, run_id=self.record.run_id, round_number=1, attempt=1, upload_id=upload_id,
            num_examples=WORKERS[worker], metrics={"loss": 1.0}, states={}, global_metrics={"loss": 1.0},
            global_states={}, counts=None, num_test_examples=10,
            precision="float32", scales=(), parts=count, update=None, digest=digest.hex(), seconds=1.0,
        )  # fmt: skip
        return announced, parts

    def send(self, worker: str, announced: UpdateAnnounced, parts: list[Part]) -> None:
        for part in parts:
            deliver(self.broker, worker, f"upload.{worker}", encode(part))
        self.say(worker, announced)

    def assert_unmoved(self) -> None:
        """Nothing is in the mean but what w2 could have sent honestly, with as many examples as it declared."""
        expected = UpdateSum(layout_of_size(SIZE), self.record.scale_exponent)
        for worker in self.opened.round.accepted:
            assert worker == "w2"
            answer = self.opened.round.answers[worker]
            assert 1 <= answer.num_examples <= WORKERS[worker]
            expected.add(update_of(self.base, worker_seed(0, 1, worker)), answer.num_examples)
        assert self.total.num_examples == expected.num_examples
        assert np.array_equal(self.total.values, expected.values)

    def forget(self) -> None:
        """As if nothing had been sent."""
        self.opened.round.answers.clear()
        self.total.values[:] = 0
        self.total.num_examples = 0
        self.run._tools.unacknowledged.release()
        for name in WORKERS:
            self.link.purge(f"upload.{name}")
            self.link.purge(f"worker.{name}")

    def finish(self) -> None:
        """Both workers answer honestly; the round closes with the bits of an undisturbed run."""
        self.forget()
        for name in WORKERS:
            self.send(name, *self.update(name, f"honest-{name}"))
        self.take_all()
        assert sorted(self.opened.round.accepted) == sorted(WORKERS)
        self.run._close(self.opened)
        expected = undisturbed(WORKERS, rounds=1, size=SIZE)
        assert np.array_equal(self.run._committed.present.vector.view(np.uint32), expected.view(np.uint32))


def joined(name: str, num_examples: int) -> Joined:
    return Joined(
        worker=name, classes=CLASSES, num_examples=num_examples, examples_per_class=(1, 1), num_test_examples=10,
        evaluate_only=False, task=None, held=None, token="t",
    )  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenRound]:
    """A round under attack; whatever came, it can still be finished with the right bits."""
    monkeypatch.setattr(attempts, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(fetching, "_EMPTY_SECONDS", 0.0)
    monkeypatch.setattr(fetching, "_PATIENCE_SECONDS", 0.03)
    the_round = OpenRound(tmp_path / "run")
    yield the_round
    the_round.finish()


def dead_of(opened: OpenRound) -> int:
    return opened.run._session.validator.num_dead


def test_junk_in_the_coordinators_queue_is_dead(opened: OpenRound) -> None:
    """1,300 bodies that are no message: each is counted and copied to `dead` with its reason."""

    @given(body=junk, account=accounts)
    @many
    def judged(body: bytes, account: str | None) -> None:
        before = dead_of(opened)
        deliver(opened.broker, account, "coordinator", body)
        opened.take_all()
        assert dead_of(opened) == before + 1
        opened.assert_unmoved()

    judged()
    assert opened.broker.stores["dead"].ready[-1].headers["reason"]


def test_real_messages_with_flipped_bits_change_nothing(opened: OpenRound) -> None:
    """1,300 real messages of the enemy with some bits the other way: what is no longer right is dead; what still is
    says no more than the enemy may say for itself."""
    announced, parts = opened.update("w2")
    bodies = [encode(replace_names(each)) for each in EXAMPLES] + 5 * [
        encode(announced),
        encode(joined("w2", 110)),
    ]

    @given(body=flipped(bodies), account=accounts)
    @many
    def judged(body: bytes, account: str | None) -> None:
        for part in parts[: len(body) % 6]:
            deliver(opened.broker, "w2", "upload.w2", encode(part))
        deliver(opened.broker, account, "coordinator", body)
        opened.take_all()
        if account not in ("coordinator", "w1"):
            opened.assert_unmoved()
        assert "w1" not in opened.opened.round.accepted
        opened.forget()

    judged()


def replace_names(message: Message) -> Message:
    """The example's worker is w2."""
    return replace(message, worker="w2") if hasattr(message, "worker") else message  # type: ignore[type-var]


def test_real_messages_with_changed_fields_change_nothing(opened: OpenRound) -> None:
    """1,300 real messages with a field of another type or value, without one, or with one too many."""
    announced, parts = opened.update("w2")
    bodies = [encode(replace_names(each)) for each in EXAMPLES] + 5 * [
        encode(announced),
        encode(joined("w2", 110)),
    ]

    @given(body=refitted(bodies), account=st.sampled_from(["w2", "evil", None]), num_parts=st.integers(0, 5))
    @many
    def judged(body: bytes, account: str | None, num_parts: int) -> None:
        for part in parts[:num_parts]:
            deliver(opened.broker, "w2", "upload.w2", encode(part))
        deliver(opened.broker, account, "coordinator", body)
        opened.take_all()
        opened.assert_unmoved()
        opened.forget()

    judged()


def test_a_wrong_run_round_attempt_or_sender_never_counts(opened: OpenRound) -> None:
    """1,300 whole updates whose run, round, attempt, worker or account is drawn: only w2 speaking for itself in the
    open round counts. A forged name is dead, another round's update is discarded."""
    announced, parts = opened.update("w2")

    @given(
        account=accounts,
        worker=st.sampled_from(["w1", "w2", "w3", "w2.1", "coordinator", "../w2", "W2"]),
        run_id=st.sampled_from([announced.run_id, "other", ""]),
        round_number=st.sampled_from([1, 1, 0, 2, -1, 2**53]),
        attempt=st.sampled_from([1, 1, 0, 7]),
    )
    @many
    def judged(account: str | None, worker: str, run_id: str, round_number: int, attempt: int) -> None:
        forged = replace(announced, worker=worker, run_id=run_id, round_number=round_number, attempt=attempt)
        before = dead_of(opened)
        for part in parts:
            deliver(opened.broker, "w2", "upload.w2", encode(part))
        deliver(opened.broker, account, "coordinator", encode(forged))
        opened.take_all()
        is_own = account == worker == "w2" or (account == "w2" and worker == "w2.1")
        is_trusted = account == "coordinator"
        if not is_own and not is_trusted and account != worker:
            assert dead_of(opened) == before + 1
        is_right = (run_id, round_number) == (announced.run_id, 1) and attempt >= 1
        assert opened.opened.round.accepted == (
            ["w2"] if is_right and worker == "w2" and (is_own or is_trusted) else []
        )
        opened.assert_unmoved()
        opened.forget()

    judged()


def test_parts_in_any_disorder_count_whole_or_not_at_all(opened: OpenRound) -> None:
    """1,300 uploads with parts missing, repeated, in any order, of another upload, of another size, or of flipped bits,
    and junk between them: the update counts if all its parts are there as announced, is asked for again if some are
    missing, and is rejected if one is wrong."""
    announced, parts = opened.update("w2")
    _, others = opened.update("w2", "another")
    right = [encode(part) for part in parts]
    foreign = [encode(part) for part in others]
    wrong = [
        encode(replace(parts[0], data=parts[0].data[:-4])),
        encode(replace(parts[1], index=0)),
        encode(replace(parts[2], count=9)),
        encode(replace(parts[3], precision="int8")),
        encode(replace(parts[3], precision="float16")),
        encode(replace(parts[4], data=np.full(len(parts[4].data) // 4, np.nan, "<f4").tobytes())),
    ]
    pool = [*right, *foreign, *wrong, b"junk", b"\x91" * 2000]
    any_of = st.integers(0, len(pool) - 1)
    good = st.integers(0, len(right) - 1)

    @given(indices=st.lists(good | good | any_of, max_size=14) | st.permutations(range(len(right) + 3)))
    @many
    def judged(indices: list[int]) -> None:
        bodies = [pool[index] for index in indices]
        for each in bodies:
            deliver(opened.broker, "w2", "upload.w2", each)
        opened.say("w2", announced)
        opened.take_all()
        is_whole = set(right) <= set(bodies)
        if not set(bodies) & set(wrong):
            assert opened.opened.round.accepted == (["w2"] if is_whole else [])
        opened.assert_unmoved()
        opened.forget()

    judged()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**17, 1e30])
def test_values_that_cannot_be_averaged_are_rejected_with_the_reason(opened: OpenRound, value: float) -> None:
    """A NaN or a giant in a well-formed update poisons other systems' models for ever; here history says whose it was
    and why it is not in."""
    announced, parts = opened.update("w2")
    values = np.frombuffer(parts[0].data, "<f4").copy()
    values[7] = value
    parts[0] = replace(parts[0], data=values.tobytes())
    digest = Digest()
    for part in parts:
        digest.add(part.index, part.data)
    opened.send("w2", replace(announced, digest=digest.hex()), parts)
    opened.take_all()
    assert opened.opened.round.answers["w2"].verdict is Verdict.REJECTED
    assert "expected finite values" in opened.opened.round.rejected["w2"]
    assert dead_of(opened) == 1
    opened.assert_unmoved()


def test_a_flood_of_metrics_is_rejected(opened: OpenRound) -> None:
    """A thousand metrics in one update would be kept in every later checkpoint."""
    announced, parts = opened.update("w2")
    opened.send("w2", replace(announced, metrics={f"m{number}": 1.0 for number in range(1000)}), parts)
    opened.take_all()
    assert "metrics" in opened.opened.round.rejected["w2"]


def test_only_the_coordinators_account_launches() -> None:
    """A worker's account can't start a run."""
    assert not may_send_to_coordinator(Launch(task="mnist", options={}, reply_to=None), "w1")


# --- a worker, one step at a time ------------------------------------------------------------------------------


class Listening:
    """A worker's receiving side."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.link = MemoryLink(self.broker, "w1")
        coordinator: Link = MemoryLink(self.broker, "coordinator")
        coordinator.declare([replace(worker_queue("dead"), name="dead", keys=("dead",))])
        self.link.declare([worker_queue("w1"), upload_queue("w1")])
        self.link.consume(["worker.w1"], prefetch=0)
        self.hand_over = HandOver()
        data: Any = StandInData(10)
        participants = {"w1": Participant(name="w1", data=data)}
        self.listener = Listener(self.link, participants, self.hand_over, threading.Event(), task=None)
        self.listener._single_reader = SingleReader(self.link, "worker.w1")

    def take_all(self) -> None:
        while not self.link._events.empty():
            self.listener._on_delivery(self.link._events.get_nowait())  # type: ignore[arg-type]

    def jobs(self) -> list[Any]:
        found = []
        while True:
            try:
                found.append(self.hand_over.jobs.get_nowait())
            except queue.Empty:
                return found


def examples_for_worker() -> list[bytes]:
    bodies = [encode(each) for each in EXAMPLES]
    wanted = ("round-start", "part", "round-closed", "run-finished")
    return [body for body in bodies if decode(body).TYPE in wanted] + bodies


@pytest.mark.parametrize(
    "make",
    [lambda: junk, lambda: flipped(examples_for_worker()), lambda: refitted(examples_for_worker())],
    ids=["junk", "flipped", "changed"],
)
def test_whatever_comes_to_a_worker_it_goes_on_listening(
    make: Callable[[], st.SearchStrategy[bytes]],
) -> None:
    """1,300 bodies in a worker's queue, half of them under the coordinator's own account: none ends it, and nothing
    is trained that another account sent."""
    listening = Listening()

    @given(body=make(), account=st.sampled_from(["coordinator", "coordinator", "w2", "evil", None]))
    @many
    def judged(body: bytes, account: str | None) -> None:
        before = listening.listener._validator.num_dead
        deliver(listening.broker, account, "worker.w1", body)
        listening.take_all()
        if account != "coordinator":
            assert listening.listener._validator.num_dead == before + 1
            assert not listening.jobs()
        listening.jobs()
        assert listening.broker.depth("worker.w1") == 0

    judged()


@pytest.mark.parametrize("shape", [(2**40,), (2**31, 2**31), (2**20, 2**20, 2**20)])
def test_a_round_start_of_absurd_size_is_refused_before_memory_is_asked_for(shape: tuple[int, ...]) -> None:
    """The header alone would make a worker reserve terabytes: it is dead, the coordinator is told, and the worker goes
    on."""
    listening = Listening()
    (start,) = (each for each in EXAMPLES if each.TYPE == "round-start")
    size = int(np.prod([float(each) for each in shape]))
    absurd: Any = replace(  # type: ignore[type-var]
        start,
        layout=(replace(start.layout[0], shape=shape),),  # type: ignore[attr-defined]
        weights=None,
        part_bytes=4 * 2**20,
        parts=min(-(-size * 4 // (4 * 2**20)), 2**52),
    )
    deliver(listening.broker, "coordinator", "worker.w1", encode(absurd))
    listening.take_all()
    assert listening.listener._validator.num_dead == 1
    assert "a model of at most" in str(listening.broker.stores["dead"].ready[-1].headers["reason"])
    (job,) = listening.jobs()
    assert isinstance(job, DeclineJob)
    assert (job.worker, job.key) == ("w1", absurd.held)
    assert "a model of at most" in job.reason


def test_memory_that_is_not_there_is_told_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model within the limits, but larger than this machine: dead with the reason, declined, and the worker goes
    on."""
    listening = Listening()
    (start,) = (each for each in EXAMPLES if each.TYPE == "round-start")

    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(np, "empty", no_memory)
    deliver(listening.broker, "coordinator", "worker.w1", encode(start))
    listening.take_all()
    monkeypatch.undo()
    assert "memory" in str(listening.broker.stores["dead"].ready[-1].headers["reason"])
    (job,) = listening.jobs()
    assert isinstance(job, DeclineJob)
    assert "memory" in job.reason


def test_a_held_round_of_a_forged_run_does_not_confuse(opened: OpenRound) -> None:
    """A worker that claims to hold a round nobody opened is sent the open one, and nothing else happens."""
    opened.say(
        "w2", replace(joined("w2", 110), held=RoundKey(run_id="x", round_number=9, attempt=9), announced="u9")
    )
    opened.take_all()
    opened.assert_unmoved()


def test_a_repeat_of_an_answer_that_is_not_on_disk_is_not_acknowledged(opened: OpenRound) -> None:
    """After a dropped connection an accepted update comes again: until a checkpoint covers it, the broker keeps it."""
    announced, parts = opened.update("w2")
    opened.send("w2", announced, parts)
    opened.take_all()
    opened.say("w2", announced)
    opened.take_all()
    held = [delivery.queue for delivery in opened.run._tools.unacknowledged._deliveries]
    assert held.count("coordinator") == 2
    opened.opened.keep()
    opened.run._tools.unacknowledged.release()
    opened.say("w2", announced)
    opened.take_all()
    assert opened.run._tools.unacknowledged._deliveries == []


def test_an_update_from_other_weights_is_not_added(opened: OpenRound) -> None:
    """It was trained in the same round of a run that was restored from a copy since."""
    announced, parts = opened.update("w2")
    opened.send("w2", replace(announced, base="0" * 32), parts)
    opened.take_all()
    assert opened.opened.round.answers == {}
