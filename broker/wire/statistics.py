"""What is asked and told of the sites' data before a training: sums as whole numbers, so that no order of sites shows.

Two steps: every site tells the range and the sums of each feature; then all count by the same edges, which the
coordinator has made of their ranges. A feature is a place on the last axis: a column of rows, a channel of images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from broker.envelope import Message
from broker.wire.fields import require
from broker.wire.limits import require_amount, require_short
from broker.wire.settings import TEXT, Held, Role
from broker.wire.tensors import Array

MOST_FEATURES = 2_000
MOST_BINS = 200
MOST_COUNTS = 40_000  #: of all features together: 320 kB, which a word to the coordinator holds
LEAST_FLOOR = 10  #: examples that whatever is told of a site rests on, whoever asks for less
FRACTION_BITS = 149  #: x · 2^149 is whole for every float32 x; its square is by 2^298

_MOST_SUM_BYTES = 100  #: of a square: 2 · 277 bits, and 60 for how many
_MOST_AXES = 6
_LONGEST_AXIS = 65_536
_LARGEST = 2.0**129  #: float32's largest number, rounded up
_LONGEST_REASON = 2_000

Step = Literal["range", "histogram"]
WORDS: dict[Step, str] = {"range": "count, mean, spread and range", "histogram": "histogram"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsAsked(Message):
    """Coordinator to the workers, with no run under way: what are your examples like? A repeat is answered again.

    Attributes:
        asked: Random, in every answer.
        session: As in `RoundStart`.
        step: *range* asks for ranges and sums, *histogram* for counts.
        shape: What images are decoded for, and examples held against; empty takes them as they are.
        floor: Examples that each count rests on; a site may raise it.
        bins: How many of the same width each feature's edges cut, from its low to its high.
        lows: Of each feature, for *histogram*.
        highs: The same.
    """

    TYPE: ClassVar[str] = "statistics-asked"
    asked: str
    session: int = 0
    step: Step
    shape: tuple[int, ...] = ()
    floor: int = LEAST_FLOOR
    bins: int = 0
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_short(asked=self.asked)
        require_amount("examples", self.floor)
        _require_shape(self.shape)
        if self.step == "histogram":
            require(0 < self.bins <= MOST_BINS, f"1 to {MOST_BINS} bins", self.bins)
            _require_edges(self.lows, self.highs)
            num_counts = len(self.lows) * self.bins
            require(num_counts <= MOST_COUNTS, f"at most {MOST_COUNTS} counts", num_counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsTold(Message):
    """Worker to coordinator: its answer to one step. A repeat says the same.

    Attributes:
        shape: Of one example.
        num_examples: How many these figures rest on.
        lows: A bound below each feature's values, for *range*; see `worker.site.telling`.
        highs: A bound above them.
        sums: Σ x · 2^149 of each feature, as `to_bytes` writes it.
        squares: Σ x² · 2^298.
        counts: For *histogram*, int64 of shape (features, bins): the values of each bin, 0 where that isn't told.
    """

    TYPE: ClassVar[str] = "statistics-told"
    worker: str
    asked: str
    step: Step
    shape: tuple[int, ...]
    num_examples: int
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    sums: tuple[bytes, ...] = ()
    squares: tuple[bytes, ...] = ()
    counts: Array | None = None

    def __post_init__(self) -> None:
        require_short(asked=self.asked)
        require_amount("examples", self.num_examples)
        _require_shape(self.shape)
        for each in (self.lows, self.highs, self.sums, self.squares):
            require(len(each) <= MOST_FEATURES, f"at most {MOST_FEATURES} features", len(each))
        for end in self.lows + self.highs:
            _require_end(end)
        for total in self.sums + self.squares:
            require(len(total) <= _MOST_SUM_BYTES, "sums that can be", len(total))


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRefused(Message):
    """Worker to coordinator: its operator does not allow this, or its data can't be counted."""

    TYPE: ClassVar[str] = "statistics-refused"
    worker: str
    asked: str
    reason: str

    def __post_init__(self) -> None:
        require_short(asked=self.asked)
        require(len(self.reason) <= _LONGEST_REASON, "a short reason", len(self.reason))


def _require_edges(lows: tuple[float, ...], highs: tuple[float, ...]) -> None:
    require(0 < len(lows) <= MOST_FEATURES, f"1 to {MOST_FEATURES} features", len(lows))
    require(len(lows) == len(highs), "a low and a high for each feature", (len(lows), len(highs)))
    for low, high in zip(lows, highs, strict=True):
        _require_end(low)
        _require_end(high)
        require(low < high, "edges from low to high", (low, high))


def _require_end(end: float) -> None:
    require(-_LARGEST <= end <= _LARGEST, "a number that float32 holds", end)


def _require_shape(shape: tuple[int, ...]) -> None:
    fits = len(shape) <= _MOST_AXES and all(0 < size <= _LONGEST_AXIS for size in shape)
    require(fits, "the shape of an example", shape[: 2 * _MOST_AXES])


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A feature of data without classes: one number of one of its arrays.

    Attributes:
        role: Whether it is known beforehand, or learned.
        array: The array's name.
        name: What a person calls it.
    """

    role: Role
    array: str
    name: str


def columns_of(holds: Sequence[Held]) -> tuple[Column, ...]:
    """What is told of data without classes: each number of each array of rows, inputs first; of texts nothing is.

    Args:
        holds: What a site has, as it joins with it; of more than `MOST_FEATURES` numbers there are no columns.
    """
    rows = sorted(filter(is_row, holds), key=lambda each: each.role)
    if sum(_size(each) for each in rows) > MOST_FEATURES:
        return ()
    roles = [each.role for each in holds]
    return tuple(
        Column(role=each.role, array=each.name, name=name)
        for each in rows
        for name in _names_of(each, has_name=roles.count(each.role) > 1 or each.name != "0")
    )


def is_row(held: Held) -> bool:
    """Whether an array is one of numbers, one or some an example."""
    return held.dtype != TEXT and len(held.shape) <= 1


def _size(held: Held) -> int:
    return math.prod(size or 0 for size in held.shape)


def _names_of(held: Held, *, has_name: bool) -> list[str]:
    """Those of an array's numbers: age.0 and "target price", or "feature 1" and "target" where it has no name."""
    is_target = held.role == "target"
    if has_name:
        stem, joint, first = f"target {held.name}" if is_target else held.name, ".", 0
    else:
        stem, joint, first = "target" if is_target else "feature", " ", 1
    return [f"{stem}{joint}{first + place}" for place in range(_size(held))] if held.shape else [stem]


def edges_of(low: float, high: float, bins: int) -> npt.NDArray[np.float64]:
    """The edges of so many bins of one width, float64 of shape (bins + 1,); the same to the bit at every site."""
    edges: npt.NDArray[np.float64] = np.linspace(low, high, bins + 1)
    return edges


def values_per_example(shape: tuple[int, ...]) -> int:
    """How many values of each feature an example of this shape has: 1 in a row, its pixels in an image."""
    return math.prod(shape[:-1])


def to_bytes(whole: int) -> bytes:
    """A whole number of any size in as few bytes as hold it, with its sign."""
    return whole.to_bytes(whole.bit_length() // 8 + 1, "little", signed=True)


def from_bytes(data: bytes) -> int:
    """What `to_bytes` wrote."""
    return int.from_bytes(data, "little", signed=True)
