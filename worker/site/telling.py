"""What one site has told of its examples, and will tell: one shape and one set of edges while its process lives.

Two histograms of the same examples by different edges, taken from each other, leave the few between two edges. So the
first edges that are asked for stay the only ones, until the operator starts the worker anew; a repeat is answered.
"""

import math
from dataclasses import replace
from functools import cached_property

import numpy as np

from broker.errors import DataError
from broker.wire.statistics import (
    LEAST_FLOOR,
    MOST_FEATURES,
    StatisticsAsked,
    StatisticsTold,
    edges_of,
    to_bytes,
)
from worker.data.data_set import Dataset
from worker.site.bins import count, tellable
from worker.site.sums import Values, exact_sums
from worker.tables.table_set import TableSet

_STEPS = 4  #: a told end of a range is 1, 1.25, 1.5 or 1.75 times a power of two

Shape = tuple[int, ...]
Edges = tuple[int, tuple[float, ...], tuple[float, ...]]


class SiteStatistics:
    """The answers of one worker.

    Args:
        worker: Its name.
        data: Its examples; those to train on count.
        least_examples: What its operator wants everything to rest on; never fewer than `LEAST_FLOOR`.
    """

    def __init__(self, worker: str, data: Dataset | TableSet, least_examples: int) -> None:
        self._worker = worker
        self._data = data
        self._least = max(LEAST_FLOOR, least_examples)
        self._range: StatisticsTold | None = None
        self._edges: Edges | None = None
        self._counted: tuple[int, StatisticsTold] | None = None

    def answer(self, asked: StatisticsAsked) -> StatisticsTold:
        """The figures that are asked for.

        Raises:
            DataError: They would rest on too few examples, another shape or other edges were told before, or the
                examples are no numbers of one shape.
        """
        shape = self._shape_for(asked)
        floor = max(self._least, asked.floor)
        if self._data.num_train_examples < floor:
            raise DataError(f"This site has fewer than the {floor} examples that statistics rest on here.")
        if self._range is not None and self._range.shape != shape:
            raise self._told_already(f"the shape {self._range.shape}")
        if asked.step == "range":
            told = self._range = self._range or self._ranged(shape)
        else:
            told = self._histogram(asked, shape, floor)
        return replace(told, asked=asked.asked)

    def _shape_for(self, asked: StatisticsAsked) -> Shape:
        shape = self._own_shape(asked)
        if not shape:
            raise DataError(
                "The examples are images of many sizes. Ask with a shape, e.g. --shape 224,224,1."
            )
        if shape[-1] > MOST_FEATURES:
            raise DataError(
                f"The examples have {shape[-1]} features, and at most {MOST_FEATURES} are told of."
            )
        return tuple(shape)

    def _own_shape(self, asked: StatisticsAsked) -> Shape | None:
        """That of the examples, or of what is asked for; None where both say nothing."""
        if not isinstance(self._data, TableSet):
            return asked.shape or self._data.inputs.shape
        shape: Shape = self._columns.shape[1:]
        if asked.shape not in ((), shape):
            raise DataError(
                f"This site's data names no classes and has {shape[0]} numbers an example. Ask without a shape."
            )
        return shape

    @cached_property
    def _columns(self) -> Values:
        assert isinstance(self._data, TableSet)  # noqa: S101 - its caller has looked
        return self._data.columns()

    def _told_already(self, what: str) -> DataError:
        return DataError(
            f"This site has told statistics by {what}, and tells no others: their difference could show single "
            "examples. Ask the same again, or have its operator start the worker anew."
        )

    def _values(self, shape: Shape) -> Values:
        """All examples to train on, shape (n, values of an example, features)."""
        x = self._columns if isinstance(self._data, TableSet) else self._data.train(shape).x
        values: Values = x.reshape(len(x), -1, shape[-1])
        return values

    def _ranged(self, shape: Shape) -> StatisticsTold:
        values = self._values(shape)
        features = range(values.shape[-1])
        ends = [outward(float(values[..., i].min()), float(values[..., i].max())) for i in features]
        sums = [exact_sums(values[..., i].ravel()) for i in features]
        return StatisticsTold(
            worker=self._worker,
            asked="",
            step="range",
            shape=shape,
            num_examples=len(values),
            lows=tuple(low for low, _ in ends),
            highs=tuple(high for _, high in ends),
            sums=tuple(to_bytes(total) for total, _ in sums),
            squares=tuple(to_bytes(squares) for _, squares in sums),
        )

    def _histogram(self, asked: StatisticsAsked, shape: Shape, floor: int) -> StatisticsTold:
        edges = (asked.bins, asked.lows, asked.highs)
        if self._range is None:
            self._range = self._ranged(shape)  # whoever asks for this first has fixed the shape, too
        if self._edges not in (None, edges):
            raise self._told_already("other edges")
        if len(asked.lows) != shape[-1]:
            raise DataError(
                f"Edges of {len(asked.lows)} features were asked for; the examples have {shape[-1]}."
            )
        self._edges = edges
        if self._counted is None or self._counted[0] != floor:
            self._counted = (floor, self._counts(asked, shape, floor))
        return self._counted[1]

    def _counts(self, asked: StatisticsAsked, shape: Shape, floor: int) -> StatisticsTold:
        values = self._values(shape)
        told = [
            tellable(*count(values[..., i], edges_of(low, high, asked.bins)), floor)
            for i, (low, high) in enumerate(zip(asked.lows, asked.highs, strict=True))
        ]
        return StatisticsTold(
            worker=self._worker,
            asked="",
            step="histogram",
            shape=shape,
            num_examples=len(values),
            counts=np.stack(told),
        )


def outward(low: float, high: float) -> tuple[float, float]:
    """A range around another, each end 1, 1.25, 1.5 or 1.75 times a power of two: an extreme value is hidden in that.

    The steps are the same everywhere, so that the range of all sites is the same however the examples are divided.

    Raises:
        DataError: One of them is no number.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("The examples hold NaN or infinity. Remove or replace these.")
    return 0.0 - _upward(-low), _upward(high)


def _upward(value: float) -> float:
    fraction, exponent = math.frexp(value)
    return math.ldexp(math.ceil(fraction * 2 * _STEPS), exponent - _STEPS.bit_length())
