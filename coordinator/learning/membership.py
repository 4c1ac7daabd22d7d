"""Who joined, who is away, and who is selected for a round."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from broker.wire import names
from broker.wire.messages import Joined, RoundKey
from broker.wire.settings import Held
from broker.wire.tensors import InputFacts

_MOST_TIMES_MEDIAN = 1024

Readers = dict[str, list[str]]  #: workers by the process that each is a worker of


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayShare:
    """What a relay was counted with in a round: its sum is of no more.

    Attributes:
        num_workers: That are behind it.
        weight: Of all their updates, in examples.
    """

    num_workers: int
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One worker as it described itself.

    Attributes:
        reader: The process that it is a worker of, by which the queues are called; of a swarm it has many.
        announced: The upload_id of its update for the round that it holds, once announced.
        token: Of its newest `joined`.
        has_trainer: It trains models of named arrays, and none of Keras's.
        pause: Why it takes no round for now; empty: it does.
        release: The Warren that it runs; empty of one that does not say so.
        is_present: It said it is there, and nobody found its queue without a reader since.
        behind: Of a relay the examples of each worker behind it.
        is_forgotten: It left for good, and what was here for it is removed: it is shown no longer.
    """

    worker: str
    reader: str
    classes: tuple[str, ...]
    num_examples: int
    examples_per_class: tuple[int, ...]
    num_test_examples: int
    evaluate_only: bool
    task: str | None
    held: RoundKey | None
    announced: str | None = None
    token: str = ""
    is_present: bool = True
    is_forgotten: bool = False
    inputs: InputFacts | None = None
    holds: tuple[Held, ...] = ()
    trusts: tuple[str, ...] = ()
    has_trainer: bool = False
    pause: str = ""
    release: str = ""
    behind: tuple[int, ...] = ()

    @property
    def is_alone(self) -> bool:
        """Whether its queues are its own; the first part of a swarm is called like a worker, and serves others, too."""
        return self.worker == self.reader == names.swarm_of(self.worker)

    @property
    def takes_rounds(self) -> bool:
        """Whether it is there, and would answer."""
        return self.is_present and not self.pause

    @property
    def declared(self) -> tuple[int, ...]:
        """The examples of each worker that its update would rest on: its own, or those behind a relay."""
        return self.behind or (self.num_examples,)

    def weight(self, most: int) -> int:
        """What its update would weigh where no worker's weighs more than `most`."""
        return sum(min(number, most) for number in self.declared)

    def share(self, most: int) -> RelayShare | None:
        """What it is counted with if it is a relay."""
        return RelayShare(num_workers=len(self.behind), weight=self.weight(most)) if self.behind else None


class Roster:
    """Everyone who joined this federation since the coordinator started.

    Attributes:
        members: By worker.
        models: The digest of the newest global model that each process has, or has before it in its queue, by its name.
    """

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.models: dict[str, str] = {}
        self._of_reader: dict[str, set[str]] = {}

    def join(self, joined: Joined, reader: str | None = None) -> Member:
        """Note what a worker says of itself; its newest word counts.

        Args:
            joined: Its word.
            reader: The process that it is a worker of, if that is called otherwise.
        """
        member = Member(
            worker=joined.worker,
            reader=reader or joined.worker,
            classes=joined.classes,
            num_examples=joined.num_examples,
            examples_per_class=joined.examples_per_class,
            num_test_examples=joined.num_test_examples,
            evaluate_only=joined.evaluate_only,
            task=joined.task,
            held=joined.held,
            announced=joined.announced,
            inputs=joined.inputs,
            token=joined.token,
            holds=joined.holds,
            trusts=joined.trusts,
            has_trainer=joined.has_trainer,
            pause=joined.pause,
            release=joined.release,
            behind=joined.behind,
        )
        self.models[member.reader] = joined.model
        self.add(member)
        return member

    def add(self, member: Member) -> None:
        """Note a worker, in place of what was known of it."""
        former = self.members.get(member.worker)
        if former is not None and former.reader != member.reader:
            self._of_reader[former.reader].discard(member.worker)
        self.members[member.worker] = member
        self._of_reader.setdefault(member.reader, set()).add(member.worker)

    def set_present(self, worker: str, *, is_present: bool) -> None:
        """Note that a worker was found there, or away."""
        member = self.members.get(worker)
        if member is not None and member.is_present != is_present:
            self.members[worker] = replace(member, is_present=is_present)

    def forget(self, worker: str) -> None:
        """Note that a worker is gone for good; one that joins again is there again."""
        if worker in self.members:
            self.members[worker] = replace(self.members[worker], is_present=False, is_forgotten=True)

    def knows(self, joined: Joined) -> bool:
        """Whether this very process of the worker has joined before."""
        member = self.members.get(joined.worker)
        return member is not None and member.token == joined.token

    def is_present(self, worker: str) -> bool:
        """Whether a worker has joined, and is not known to be away."""
        member = self.members.get(worker)
        return member is not None and member.is_present

    def is_alone(self, worker: str) -> bool:
        """Whether it has joined, and nothing but its own updates is in its upload queue."""
        member = self.members.get(worker)
        return member is not None and member.is_alone

    def of_reader(self, reader: str) -> list[Member]:
        """Whom a process has spoken for."""
        return [self.members[worker] for worker in self._of_reader.get(reader, ())]

    def num_of_reader(self, worker: str) -> int:
        """How many workers have the process of this one."""
        member = self.members.get(worker)
        return len(self._of_reader[member.reader]) if member else 1

    def by_reader(self, workers: Iterable[str]) -> Readers:
        """These workers by the process that each is a worker of; one that has not said so is its swarm's."""
        readers: Readers = {}
        for worker in workers:
            member = self.members.get(worker)
            readers.setdefault(member.reader if member else names.swarm_of(worker), []).append(worker)
        return readers


def num_selected(fraction: float, num_workers: int) -> int:
    """How many of so many workers a fraction invites: C · K, at least one (McMahan et al. 2017, algorithm 1)."""
    return max(1, math.floor(fraction * num_workers + 1e-9))


def most_weight(num_examples: Sequence[int], most: int, share: float) -> int:
    """The most that one update may weigh, so that none has more than a share of all; 1 where all must weigh the same.

    Nor is it beyond 1,024 times the median: the sum has so many bits, and a claim of 2^40 would leave none for others.

    Args:
        num_examples: What each invited worker declared.
        most: In examples; no weight is above it.
        share: Of the sum of all weights, above 0 and up to 1.
    """
    median = sorted(num_examples)[(len(num_examples) - 1) // 2] if num_examples else 1
    low, high = 1, max(1, min(most, _MOST_TIMES_MEDIAN * median, max(num_examples, default=1)))
    while low < high:
        middle = (low + high + 1) // 2
        fits = middle <= share * sum(min(number, middle) for number in num_examples)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def select(workers: list[str], fraction: float, seed: tuple[int, int, int]) -> tuple[str, ...]:
    """Select a random fraction of sorted workers by (run seed, round, attempt); all when the fraction is 1."""
    if fraction >= 1 or not workers:
        return tuple(workers)
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(workers), num_selected(fraction, len(workers)), replace=False)
    return tuple(workers[index] for index in sorted(chosen))
