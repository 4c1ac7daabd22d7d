"""What the sites tell of their examples, judged and put together: whole numbers, so that no order of the sites shows.

Mean and variance are worked out from the sums as fractions, and rounded once: the variance is (N Σx² − (Σx)²) / N².
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from broker.wire.settings import Held, Role
from broker.wire.statistics import (
    FRACTION_BITS,
    MOST_BINS,
    MOST_COUNTS,
    Column,
    StatisticsAsked,
    StatisticsTold,
    columns_of,
    from_bytes,
    values_per_example,
)

Edges = tuple[int, tuple[float, ...], tuple[float, ...]]
Form = tuple[tuple[int, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature of all sites together.

    Attributes:
        name: "feature 1" in rows, "channel 1" in images; of data without classes see `columns_of`.
        low: All values lie from here to `high`; both are rounded outwards by the sites.
        edges_low: The histogram's lower end; its bins have one width.
        edges_high: Its upper end.
        counts: Values in each bin, as far as they are told.
        untold: Values that no bin tells of, for too few examples of one site were in theirs.
        role: Whether it is known beforehand, or learned.
        array: Of data without classes the array that it is of.
    """

    name: str
    mean: float
    variance: float
    std: float
    low: float
    high: float
    edges_low: float
    edges_high: float
    counts: tuple[int, ...]
    untold: int
    role: Role = "input"
    array: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What one site holds.

    Attributes:
        examples_per_class: By class, where the site shares it; else empty.
    """

    worker: str
    num_examples: int
    examples_per_class: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """All sites together.

    Attributes:
        shape: Of one example.
        num_examples: Of all sites.
        num_values: Of each feature: the pixels of all images, for images.
        floor: Examples of a site that each count rests on, at least.
        left_out: Why a site that was there has no part in these, by its name.
    """

    shape: tuple[int, ...]
    num_examples: int
    num_values: int
    floor: int
    features: tuple[Feature, ...]
    sites: tuple[Site, ...]
    left_out: dict[str, str]

    @property
    def edges(self) -> Edges:
        """What was counted by."""
        lows = tuple(feature.edges_low for feature in self.features)
        return len(self.features[0].counts), lows, tuple(feature.edges_high for feature in self.features)


def flaw_in(told: StatisticsTold, asked: StatisticsAsked, most_examples: int) -> str | None:
    """Why an answer can't be; None if it can.

    Args:
        told: A worker's answer.
        asked: To this.
        most_examples: How many the worker said that it has.
    """
    if told.step != asked.step:
        return f"the answer to {told.step}, not to {asked.step}"
    if not told.shape or (asked.shape and told.shape != asked.shape):
        return f"examples of shape {told.shape}, asked for {asked.shape}"
    if not asked.floor <= told.num_examples <= most_examples:
        return f"{told.num_examples} examples, of {most_examples} that it told of when it joined"
    return _flaw_in_sums(told) if told.step == "range" else _flaw_in_counts(told, asked)


def flaw_in_columns(told: StatisticsTold, holds: Sequence[Held]) -> str | None:
    """Why an answer is none of the arrays that its worker joined with; None if it is, or these are not named."""
    if not holds or told.shape == (len(columns_of(holds)),):
        return None
    return f"examples of shape {told.shape}, of arrays with {len(columns_of(holds))} numbers"


def _num_values(told: StatisticsTold) -> int:
    return told.num_examples * values_per_example(told.shape)


def _flaw_in_sums(told: StatisticsTold) -> str | None:
    if {*map(len, (told.lows, told.highs, told.sums, told.squares))} != {told.shape[-1]}:
        return f"no range and sums of {told.shape[-1]} features"
    number = _num_values(told)
    for low, high, *sums in zip(told.lows, told.highs, told.sums, told.squares, strict=True):
        total, squares = map(from_bytes, sums)
        largest = max(abs(low), abs(high))
        fits = (
            low <= high
            and number * Fraction(low) <= Fraction(total, 2**FRACTION_BITS) <= number * Fraction(high)
            and 0 <= Fraction(squares, 2 ** (2 * FRACTION_BITS)) <= number * Fraction(largest) ** 2
            and total**2 <= number * squares
        )
        if not fits:
            return f"sums that no {number} values from {low:g} to {high:g} have"
    return None


def _flaw_in_counts(told: StatisticsTold, asked: StatisticsAsked) -> str | None:
    counts, form = told.counts, (len(asked.lows), asked.bins)
    if counts is None or counts.shape != form or counts.dtype != np.int64 or told.shape[-1] != form[0]:
        return f"no counts of {form[0]} features in {form[1]} bins"
    number = _num_values(told)
    if counts.min() < 0 or max(map(sum, counts.tolist())) > number:
        return f"counts that {number} values can't have"
    return None


def form_of(told: StatisticsTold, columns: Sequence[Column]) -> Form:
    """What a site's features are: the shape of an example, and of data without classes the names of its columns."""
    return told.shape, tuple(column.name for column in columns)


def commonest(forms: Iterable[Form]) -> Form:
    """The form that most sites' examples have; of two that as many have the lesser one."""
    every = list(forms)
    return min(set(every), key=lambda form: (-every.count(form), form))


def common_edges(ranges: Sequence[StatisticsTold], bins: int) -> Edges:
    """How many bins, and each feature's lowest and highest edge, so that all sites' values lie between."""
    lows = tuple(min(each) for each in zip(*(told.lows for told in ranges), strict=True))
    highs = tuple(max(each) for each in zip(*(told.highs for told in ranges), strict=True))
    ends = [
        (low, high if high > low else low + (abs(low) or 1.0)) for low, high in zip(lows, highs, strict=True)
    ]
    number = max(1, min(bins, MOST_BINS, MOST_COUNTS // len(ends)))
    return number, tuple(low for low, _ in ends), tuple(high for _, high in ends)


def put_together(
    ranges: Mapping[str, StatisticsTold],
    histograms: Mapping[str, StatisticsTold],
    asked: StatisticsAsked,
    sites: Sequence[Site],
    left_out: Mapping[str, str],
    columns: Sequence[Column] = (),
) -> Statistics:
    """The figures of all sites together.

    Args:
        ranges: The answers to the first step, by worker.
        histograms: To the second one, of the same workers.
        asked: The second question.
        sites: What each holds.
        left_out: Who was there and has no part in it, and why.
        columns: Of data without classes, the same at every site.
    """
    told = list(ranges.values())
    shape, number = told[0].shape, sum(map(_num_values, told))
    counts = sum(np.asarray(each.counts) for each in histograms.values())
    named = columns or _numbered(shape)
    features = []
    for index in range(shape[-1]):
        total = sum(from_bytes(each.sums[index]) for each in told)
        squares = sum(from_bytes(each.squares[index]) for each in told)
        variance = (number * squares - total**2) / (number**2 << 2 * FRACTION_BITS)
        its = tuple(map(int, np.atleast_2d(counts)[index]))
        features.append(
            Feature(
                name=named[index].name,
                role=named[index].role,
                array=named[index].array,
                mean=total / (number << FRACTION_BITS),
                variance=variance,
                std=math.sqrt(variance),
                low=min(each.lows[index] for each in told),
                high=max(each.highs[index] for each in told),
                edges_low=asked.lows[index],
                edges_high=asked.highs[index],
                counts=its,
                untold=number - sum(its),
            )
        )
    return Statistics(
        shape=shape,
        num_examples=sum(each.num_examples for each in told),
        num_values=number,
        floor=asked.floor,
        features=tuple(features),
        sites=tuple(sites),
        left_out=dict(left_out),
    )


def _numbered(shape: tuple[int, ...]) -> list[Column]:
    """The features of labelled examples."""
    word = "channel" if len(shape) > 1 else "feature"
    return [Column(role="input", array="", name=f"{word} {index + 1}") for index in range(shape[-1])]
