"""The exact weighted sum of updates: integers, so that the order in which they arrive changes nothing.

FedAvg (McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", algorithm 1):
w(t+1) = w(t) + Σ n_k · Δ_k / Σ n_k, with Δ_k = w_k − w(t). Integer addition has no rounding, so the same set of
updates gives the same bits, before or after a crash.

That is for the trainable weights. Statistics s (BatchNormalization's moving averages) are no weights: they travel as
they are, and the next ones are Σ n_k · s_k / Σ n_k. A variance is pooled as of all examples together: the mean of the
workers' variances, and the variance of their means besides (the law of total variance).
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.wire.settings import Summed
from broker.wire.tensors import Layout, Sections, Values, sections_of
from coordinator.learning.exact_sum import (
    LARGEST_PIECES,
    NUM_PIECES,
    Doubles,
    ExactSum,
    Integers,
    two_product,
)

LIMIT = 2.0**16  #: the largest |value| of a trainable weight's update
#: The largest |statistic|: its square times 2^40 examples is within ExactSum's reach.
STATISTIC_LIMIT = 2.0**63
RESERVE_BITS = 2  #: how much more than the examples invited at first a round can take, as a power of two
_SUM_BITS = 44
_LOW_BITS = 32  #: below the sum's last bit, of updates that come in float64
_CHUNK = 1 << 16  #: values at a time: the scratch arrays stay in the processor's cache


def scale_exponent(num_examples_invited: int) -> int:
    """The exponent e of a round's scale 2^e = 2^(44 − ⌈log2 Σ n⌉).

    With |Δ| ≤ 2^16 and Σ n within 2^2 times the invited, no sum passes 2^(16 + 44 + 2) = 2^62.
    """
    return _SUM_BITS - math.ceil(math.log2(max(num_examples_invited, 1)))


def capacity(exponent: int) -> int:
    """The largest Σ n that a sum of this scale can take without passing 2^62."""
    return 1 << (_SUM_BITS + RESERVE_BITS - exponent)


def examine(update: Values, layout: Layout) -> tuple[float, str | None]:
    """The largest |Δ| of an update, and why its values can't be accepted, or None. NaN fails every comparison."""
    sections = sections_of(layout)
    trainable, statistics = update[: sections.num_trainable], update[sections.num_trainable :]
    largest = 0.0
    for chunk in _chunks(trainable):
        low, high = _range(chunk)
        if not (low >= -LIMIT and high <= LIMIT):
            return 0.0, f"expected finite values within ±{LIMIT:g}, got values from {low:g} to {high:g}"
        largest = max(largest, -low, high)
    return largest, _flaw_in_statistics(statistics, sections)


def num_integers(layout: Layout, *, is_fine: bool = False) -> int:
    """How many integers the sum of a model of this layout holds; `is_fine` where updates in float64 are in it."""
    sections = sections_of(layout)
    return (1 + is_fine) * sections.num_trainable + NUM_PIECES * _num_summed(sections)


def _num_summed(sections: Sections) -> int:
    """How many statistics are summed, and squares for their variances."""
    return sections.num_up - sections.num_trainable + _num_variances(sections)


def _num_variances(sections: Sections) -> int:
    return sum(span.stop - span.start for _, span in sections.variances)


def flaw_in_sum(integers: Integers, layout: Layout, exponent: int, summed: Summed) -> str | None:
    """Why the sum of a relay's workers can't be accepted, or None: no sum of updates that were judged is beyond this.

    Args:
        integers: int64, shape (`num_integers`,), as `UpdateSum.as_one`.
        layout: Of the model.
        exponent: Of the round's scale.
        summed: What is said of it.
    """
    sections = sections_of(layout)
    middle = num_integers(layout)
    values, pieces, lows = (
        integers[: sections.num_trainable],
        integers[sections.num_trainable : middle],
        integers[middle:],
    )
    for part, most in (
        (values, math.ldexp(LIMIT * summed.weight, exponent) + summed.num_workers),
        (lows, math.ldexp(summed.num_workers, _LOW_BITS)),
    ):
        low, high = _range(part)
        if not (low >= -most and high <= most):
            return f"expected sums within ±{most:g}, got ones from {low:g} to {high:g}"
    return _flaw_in_pieces(pieces.reshape(NUM_PIECES, -1), sections, summed)


def _flaw_in_pieces(pieces: Integers, sections: Sections, summed: Summed) -> str | None:
    if not pieces.size:
        return None
    bounds = np.array([2 * most * summed.num_workers for most in LARGEST_PIECES])
    if (pieces.max(axis=1) > bounds).any() or (pieces.min(axis=1) < -bounds).any():  # |-2^63| is no int64
        return "expected sums of statistics, got numbers beyond them"
    totals, num_statistics = (
        ExactSum(pieces.shape[1], pieces).total(),
        sections.num_up - sections.num_trainable,
    )
    most = 2 * STATISTIC_LIMIT * summed.weight  # rounded up: each is checked once more as float32
    if np.abs(totals[:num_statistics]).max() > most:
        return f"expected sums of statistics within ±{most:g}, got {np.abs(totals[:num_statistics]).max():g}"
    positive = [totals[num_statistics:], *(totals[span] for _, span in sections.variances)]
    lowest = min((float(np.min(each)) for each in positive if each.size), default=0.0)
    return None if lowest >= 0 else f"expected sums of variances and squares of at least 0, got {lowest:g}"


def _flaw_in_statistics(statistics: Values, sections: Sections) -> str | None:
    low, high = _range(statistics)
    if not (low >= -STATISTIC_LIMIT and high <= STATISTIC_LIMIT):
        return f"expected finite statistics within ±{STATISTIC_LIMIT:g}, got ones from {low:g} to {high:g}"
    lowest = min((_range(statistics[span])[0] for _, span in sections.variances), default=0.0)
    return None if lowest >= 0 else f"expected variances of at least 0, got {lowest:g}"


def _range(values: NDArray[Any]) -> tuple[float, float]:
    return (float(np.min(values)), float(np.max(values))) if values.size else (0.0, 0.0)


class UpdateSum:
    """Σ n_k · Δ_k of the trainable weights, scaled by 2^exponent and rounded once per update; Σ n_k · s_k beside it.

    An update in float64 is rounded at 2^-32 of that: what the first rounding cuts off is added up beside it. So a
    result is as exact as float64 goes, also where weights cancel.

    Attributes:
        values: int64, shape (T,), for T trainable values; what they hold before anything was added does not count.
        lows: int64, shape (T,), of what the first rounding cuts off; (0,) as long as nothing came in float64.
        statistics: The sums of S statistics, and of a square for each of V variances.
        num_examples: Σ n_k of what was added.
    """

    def __init__(self, layout: Layout, exponent: int, values: Integers | None = None) -> None:
        """Begin a sum.

        Args:
            layout: Of the model.
            exponent: The scale is 2^exponent.
            values: Memory to use again for the trainable values' sum.
        """
        self.layout = layout
        self.exponent = exponent
        self.num_examples = 0
        self._sections = sections = sections_of(layout)
        self.values: Integers = np.zeros(sections.num_trainable, np.int64) if values is None else values
        self.lows: Integers = np.empty(0, np.int64)
        self.statistics = ExactSum(_num_summed(sections))

    @property
    def integers(self) -> list[Integers]:
        """All that it holds, as it is written."""
        return [self.values, self.statistics.pieces, self.lows]

    @property
    def as_one(self) -> Integers:
        """The same in one vector, which is the sum's own memory where that will do."""
        parts = [part.ravel() for part in self.integers if part.size]
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.int64)])

    def restore(self, integers: Integers, num_examples: int) -> bool:
        """Go on with a sum as it was written; False where that is none of this size."""
        middle = self.values.size + self.statistics.pieces.size
        if integers.size not in (middle, middle + self.values.size):
            return False
        self.lows = integers[middle:]
        self.values = integers[: self.values.size]
        self.statistics.pieces = integers[self.values.size : middle].reshape(self.statistics.pieces.shape)
        self.num_examples = num_examples
        return True

    def add(self, update: Values, num_examples: int) -> None:
        """Add one judged update, float32 or float64 of shape (T + S,), with its weight."""
        self._check_room(num_examples)
        self._add_trainable(update[: self.values.size], num_examples)
        self._add_statistics(update[self.values.size :].astype(np.float64), num_examples)
        self.num_examples += num_examples

    def add_sum(self, integers: Integers, num_examples: int) -> None:
        """Add the judged sum of other updates, of the same scale, with its weight: the bits of adding each of them.

        Args:
            integers: As `as_one`.
            num_examples: Its weight.
        """
        self._check_room(num_examples)
        size, middle = self.values.size, self.values.size + self.statistics.pieces.size
        values, pieces, lows = integers[:size], integers[size:middle], integers[middle:]
        np.copyto(self.values, values if self.num_examples == 0 else self.values + values)
        self.statistics.pieces += pieces.reshape(self.statistics.pieces.shape)
        if lows.size:
            self.lows = lows.copy() if not self.lows.size else self.lows + lows
        self.num_examples += num_examples

    def _check_room(self, num_examples: int) -> None:
        if self.num_examples + num_examples > capacity(self.exponent):
            raise OverflowError("the sum's bounds were not kept")

    def _add_trainable(self, update: Values, num_examples: int) -> None:
        is_first, is_fine = self.num_examples == 0, update.dtype == np.float64
        if is_fine and not self.lows.size:
            self.lows = np.zeros_like(self.values)
        factor = math.ldexp(num_examples, self.exponent)
        doubles = np.empty(min(_CHUNK, update.size), np.float64)
        integers = np.empty(doubles.shape, np.int64)
        for begin in range(0, update.size, _CHUNK):
            piece, total = update[begin : begin + _CHUNK], self.values[begin : begin + _CHUNK]
            product, rounded = doubles[: piece.size], integers[: piece.size]
            np.multiply(piece, factor, out=product, dtype=np.float64)
            if is_fine:
                rest = np.ldexp(product - np.rint(product), _LOW_BITS)
                self.lows[begin : begin + _CHUNK] += np.rint(rest).astype(np.int64)
            np.rint(product, out=product)
            np.copyto(total if is_first else rounded, product, casting="unsafe")
            if not is_first:
                total += rounded

    def _add_statistics(self, statistics: Doubles, num_examples: int) -> None:
        squares = [
            statistics[mean] ** 2 for mean, _ in self._sections.variances
        ]  # exact: float32 has 24 bits
        self.statistics.add_product(float(num_examples), np.concatenate([statistics, *squares]))

    def mean_chunks(self) -> Iterator[tuple[slice, Doubles]]:
        """The mean update Σ n_k Δ_k / Σ n_k of the trainable values in float64, chunk by chunk, each with its span."""
        if self.num_examples == 0:
            raise ValueError("there is no mean of no updates")
        divisor = math.ldexp(self.num_examples, self.exponent)
        for begin in range(0, self.values.size, _CHUNK):
            span = slice(begin, min(begin + _CHUNK, self.values.size))
            yield span, self._scaled(span) / divisor

    def _scaled(self, span: slice) -> Integers | Doubles:
        return (
            self.values[span] + np.ldexp(self.lows[span], -_LOW_BITS) if self.lows.size else self.values[span]
        )

    def mean_statistics(self) -> Doubles:
        """The next statistics, float64 of shape (S,).

        A variance is Σ n v / Σ n + Σ n (m − m̄)² / Σ n, with m̄ = Σ n m / Σ n: as if all examples had been in one place.
        """
        if not self.statistics.pieces.size:
            return np.empty(0)  # most models have none
        total, rest = self.statistics.total_and_rest()
        size = total.size - _num_variances(self._sections)
        result = total[:size] / self.num_examples
        begin = size
        for mean, span in self._sections.variances:
            end = begin + span.stop - span.start
            squares = ExactSum(end - begin, self.statistics.pieces[:, begin:end].copy())
            result[span] += self._spread(squares, total[mean], rest[mean])
            begin = end
        return result

    def _spread(self, squares: ExactSum, total: Doubles, rest: Doubles) -> Doubles:
        """Σ n (m − c)² / Σ n with c ≈ m̄: Σ n m² − 2 c Σ n m + c² Σ n, where nearly everything cancels, exactly."""
        centre = total / self.num_examples
        for part in (total, rest):
            squares.add_product(-2 * centre, part)
        for part in two_product(centre, centre):
            squares.add_product(float(self.num_examples), part)
        return np.maximum(squares.total() / self.num_examples, 0)


def _chunks(vector: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (vector[begin : begin + _CHUNK] for begin in range(0, vector.size, _CHUNK))
