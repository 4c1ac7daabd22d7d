"""A swarm is one reader: what its process says for many workers, and what it hears for some of them."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.rabbitmq.consuming import Outstanding
from broker.link.seam import coordinator_queue, dead_queue, outgoing, upload_queue, worker_queue
from broker.wire import names
from broker.wire.limits import MOST_WORD_BYTES
from broker.wire.messages import (
    Joined,
    Message,
    Part,
    RoundClosed,
    RoundKey,
    RoundStart,
    SwarmJoined,
    SwarmLeft,
    UploadAgain,
    decode,
    encode,
)
from broker.wire.swarms import each_joined, swarm_words
from broker.wire.transfer import Digest
from coordinator.learning.membership import Roster
from coordinator.play.open_round.round_start import each_addressed
from coordinator.presence.session import Session, WorkersCame
from tests.faults.actors import StandInData
from tests.unit.test_messages import EXAMPLES
from worker.rounds.hand_over import HandOver, RoundJob
from worker.rounds.listener import Listener
from worker.rounds.participant import Participant

SIZE = 20_000
BODY = np.arange(SIZE, dtype="<f4").tobytes()
STEP = 64 * 1024
PIECES = [BODY[begin : begin + STEP] for begin in range(0, len(BODY), STEP)]


def start_of(*numbers: int) -> RoundStart:
    """A round start in two parts, for these workers of the swarm."""
    digest = Digest()
    for index, piece in enumerate(PIECES):
        digest.add(index, piece)
    example = next(message for message in EXAMPLES if isinstance(message, RoundStart))
    layout = (replace(example.layout[0], shape=(SIZE,)),)
    return replace(
        example, layout=layout, parts=len(PIECES), part_bytes=STEP, weights=None, digest=digest.hex(),
        numbers=names.pack_numbers(numbers),
    )  # fmt: skip


def parts_of(start: RoundStart) -> list[Part]:
    return [
        Part(
            run_id=start.run_id, round_number=start.round_number, transfer_id=start.transfer_id, index=index,
            count=len(PIECES), data=piece,
        )
        for index, piece in enumerate(PIECES)
    ]  # fmt: skip


class Swarm:
    """Three workers s.1 to s.3 of one process, its receiving side, and the coordinator's link."""

    def __init__(self) -> None:
        broker = MemoryBroker()
        self.coordinator, self.link = MemoryLink(broker, "coordinator"), MemoryLink(broker, "s")
        self.coordinator.declare([coordinator_queue(), dead_queue()])
        self.link.declare([worker_queue("s"), upload_queue("s")])
        self.link.consume(["worker.s"], prefetch=0)
        self.hand_over = HandOver()
        data: Any = StandInData(10)
        workers = {name: Participant(name=name, data=data) for name in ("s.1", "s.2", "s.3")}
        self.listener = Listener(self.link, workers, self.hand_over, threading.Event(), task=None, swarm="s")
        self.listener._single_reader.begin(0)

    def hear(self, *messages: Message) -> list[Any]:
        """What is to be done after these came in."""
        self.coordinator.publish([outgoing(message, "worker.s") for message in messages])
        while not self.link._events.empty():
            self.listener._turn()
        jobs = []
        while not self.hand_over.jobs.empty():
            jobs.append(self.hand_over.jobs.get_nowait())
        return jobs


def test_the_weights_come_once_and_are_everybodys() -> None:
    """Two workers are invited in one word, and train from the same memory; the third is invited later, and the weights
    that are here already are not waited for. All is acknowledged."""
    swarm, start = Swarm(), start_of(1, 3)
    first = swarm.hear(start, *parts_of(start))
    assert [job.worker for job in first] == ["s.1", "s.3"]
    assert first[0].weights is first[1].weights
    assert first[0].weights.tobytes() == BODY
    (later,) = swarm.hear(start_of(1, 2))
    assert (later.worker, later.weights) == ("s.2", first[0].weights)
    assert not swarm.link._held


def test_a_word_for_some_workers_concerns_no_others() -> None:
    """A round that has closed for one, and an update that one is asked for again."""
    swarm, start = Swarm(), start_of(1, 2, 3)
    jobs = {job.worker: job for job in swarm.hear(start, *parts_of(start)) if isinstance(job, RoundJob)}
    closed = RoundClosed(run_id="r", round_number=1, numbers=names.pack_numbers([2]))
    assert swarm.hear(closed, UploadAgain(run_id="r", round_number=1, worker="s.3", upload_id="u")) == []
    assert {worker for worker, job in jobs.items() if job.stop.is_set()} == {"s.2"}
    assert swarm.hand_over.held_in("s.1")[0] == start.held


def test_what_comes_together_is_completed_together() -> None:
    """A second word for others comes before the last part: they share what is on its way."""
    swarm, start = Swarm(), start_of(1)
    first, last = parts_of(start)
    jobs = swarm.hear(start, first, start_of(2), last)
    assert [job.worker for job in jobs] == ["s.1", "s.2"]


def joined(number: int, *, announced: str | None = None, held: RoundKey | None = None) -> Joined:
    return Joined(
        worker=f"s.{number}", classes=("a", "b"), num_examples=number, examples_per_class=(), held=held,
        num_test_examples=number % 3, token="t", announced=announced,
    )  # fmt: skip


@given(
    st.dictionaries(
        st.integers(1, 400), st.tuples(st.booleans(), st.sampled_from([None, "u1", "u2"])), min_size=1
    )
)
def test_each_worker_says_what_it_would_say_alone(workers: dict[int, tuple[bool, str | None]]) -> None:
    """Whoever differs in more than numbers is in another group; nothing gets lost or mixed up."""
    key = RoundKey(run_id="r", round_number=1, attempt=1)
    said = [
        joined(number, announced=announced, held=key if has_round else None)
        for number, (has_round, announced) in sorted(workers.items())
    ]
    heard = [each for word in swarm_words("s", said) for each in each_joined(_travelled(word))]
    assert sorted(heard, key=lambda each: each.num_examples) == said


def _travelled(word: SwarmJoined) -> SwarmJoined:
    message = decode(encode(word))
    assert isinstance(message, SwarmJoined)
    return message


def test_twenty_thousand_join_in_one_word() -> None:
    """No longer than the coordinator takes; with what each has announced it is a few."""
    alone = swarm_words("s", [joined(number) for number in range(1, 20_001)])
    assert len(alone) == 1
    uploads = swarm_words("s", [joined(number, announced=f"{number:016x}") for number in range(1, 20_001)])
    assert len(uploads) == 2
    assert all(len(encode(word)) <= MOST_WORD_BYTES for word in (*alone, *uploads))


def test_a_smaller_swarm_of_the_name_takes_the_place_of_the_former() -> None:
    """Started again with fewer workers: the others are gone, though the queue has a reader. It leaves in one word."""
    link = MemoryLink(MemoryBroker(), "coordinator")
    link.declare([coordinator_queue(), dead_queue()])
    session = Session(link, stop=threading.Event())
    session.begin()

    def hear(message: Message) -> WorkersCame | None:
        link.publish([outgoing(message, "coordinator")])
        came = [session.next_event(0) for _ in range(link._events.qsize())]
        return next((each for each in came if isinstance(each, WorkersCame)), None)

    (three,) = swarm_words("s", [joined(number) for number in (1, 2, 3)])
    (one,) = swarm_words("s", [replace(joined(1), token="t2")])
    came = hear(three)
    assert came is not None
    assert came.news == {"s.1", "s.2", "s.3"}
    assert session.roster.by_reader(["s.2", "s.9", "w"]) == {"s": ["s.2", "s.9"], "w": ["w"]}
    came = hear(one)
    assert came is not None
    assert came.news == frozenset()
    assert [each.worker for each in session.roster.members.values() if each.is_present] == ["s.1"]
    hear(SwarmLeft(worker="s"))
    assert not any(each.is_present for each in session.roster.members.values())


class Channel:
    """Notes what is acknowledged."""

    def __init__(self) -> None:
        self.acks: list[tuple[int, bool]] = []

    def basic_ack(self, tag: int, multiple: bool = False) -> None:
        self.acks.append((tag, multiple))


def test_many_are_acknowledged_in_one_word_and_none_besides() -> None:
    """All up to a tag, only if all up to it are meant; what is unknown or was acknowledged is left out."""
    outstanding, channel = Outstanding(), Channel()
    for tag in range(1, 8):
        outstanding.add(tag)
    outstanding.settle({1, 2, 3, 5, 99}, channel)
    assert channel.acks == [(3, True), (5, False)]
    outstanding.settle({3, 4, 6}, channel)
    assert channel.acks[2:] == [(6, True)]


@pytest.mark.parametrize(
    ("worker", "reader", "is_alone"),
    [("w", "w", True), ("lab.1", "lab.1", False), ("lab.3", "lab.1", False), ("lab.1", "lab", False)],
)
def test_the_first_part_of_a_swarm_is_no_worker_of_its_own(worker: str, reader: str, is_alone: bool) -> None:
    """It is called like one, NAME.1: what was for that one alone came to all of the part, whose queue was emptied."""
    roster = Roster()
    roster.join(
        Joined(worker=worker, classes=("no", "yes"), num_examples=1, examples_per_class=(1, 0)), reader
    )
    assert roster.is_alone(worker) is is_alone
    assert not roster.is_alone("nobody")
    closed = RoundClosed(run_id="r", round_number=1)
    (sent,) = each_addressed(closed, roster.by_reader([worker]))
    message = decode(sent.encoded())
    assert isinstance(message, RoundClosed)
    assert bool(message.numbers) is not is_alone
