"""Who joined, who is away, and who is selected for a round."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from broker.wire.messages import Joined, RoundKey
from broker.wire.needs import Held
from broker.wire.tensors import InputFacts

_MOST_TIMES_MEDIAN = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One worker as it described itself.

    Attributes:
        announced: The upload_id of its update for the round that it holds, once announced.
        token: Of its newest `joined`.
        is_present: It said it is there, and nobody found its queue without a reader since.
    """

    worker: str
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
    inputs: InputFacts | None = None
    holds: tuple[Held, ...] = ()


class Roster:
    """Everyone who joined this federation since the coordinator started."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    def join(self, joined: Joined) -> Member:
        """Note what a worker says of itself; its newest word counts."""
        member = Member(
            worker=joined.worker,
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
        )
        self.add(member)
        return member

    def add(self, member: Member) -> None:
        """Note a worker, in place of what was known of it."""
        self.members[member.worker] = member

    def set_present(self, worker: str, *, is_present: bool) -> None:
        """Note that a worker was found there, or away."""
        if worker in self.members:
            self.members[worker] = replace(self.members[worker], is_present=is_present)


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
