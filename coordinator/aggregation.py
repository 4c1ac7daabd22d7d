"""The exact weighted sum of updates: int64 fixed point, so that the order in which they arrive changes nothing.

FedAvg (McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", algorithm 1):
w(t+1) = w(t) + Σ n_k · Δ_k / Σ n_k, with Δ_k = w_k − w(t). Integer addition has no rounding, so the same set of
updates gives the same bits, before or after a crash.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.tensors import Vector

Sum = NDArray[np.int64]
Doubles = NDArray[np.float64]

LIMIT = 2.0**16  #: the largest |value| of an update
RESERVE_BITS = 2  #: how much more than the examples invited at first a round can take, as a power of two
_SUM_BITS = 44
_CHUNK = 1 << 16  #: values at a time: the scratch arrays stay in the processor's cache


def scale_exponent(num_examples_invited: int) -> int:
    """The exponent e of a round's scale 2^e = 2^(44 − ⌈log2 Σ n⌉).

    With |Δ| ≤ 2^16 and Σ n within 2^2 times the invited, no sum passes 2^(16 + 44 + 2) = 2^62.
    """
    return _SUM_BITS - math.ceil(math.log2(max(num_examples_invited, 1)))


def capacity(exponent: int) -> int:
    """The largest Σ n that a sum of this scale can take without passing 2^62."""
    return 1 << (_SUM_BITS + RESERVE_BITS - exponent)


def flaw_in(update: Vector) -> str | None:
    """Why an update's values can't be accepted, or None. NaN fails both comparisons."""
    for chunk in _chunks(update):
        low, high = float(np.min(chunk)), float(np.max(chunk))
        if not (low >= -LIMIT and high <= LIMIT):
            return f"expected finite values within ±{LIMIT:g}, got values from {low:g} to {high:g}"
    return None


class FixedPointSum:
    """Σ n_k · Δ_k, scaled by 2^exponent and rounded once per update.

    Attributes:
        values: int64, shape (P,); what they hold before anything was added does not count.
        num_examples: Σ n_k of what was added.
    """

    def __init__(self, size: int, exponent: int, values: Sum | None = None, num_examples: int = 0) -> None:
        self.exponent = exponent
        self.values: Sum = np.zeros(size, np.int64) if values is None else values
        self.num_examples = num_examples

    def add(self, update: Vector, num_examples: int) -> None:
        """Add one judged update, float32 of shape (P,), with its weight."""
        if self.num_examples + num_examples > capacity(self.exponent):
            raise OverflowError("the sum's bounds were not kept")
        is_first = self.num_examples == 0
        factor = math.ldexp(num_examples, self.exponent)
        doubles = np.empty(min(_CHUNK, update.size), np.float64)
        integers = np.empty(doubles.shape, np.int64)
        for begin in range(0, update.size, _CHUNK):
            piece, place = update[begin : begin + _CHUNK], self.values[begin : begin + _CHUNK]
            product, rounded = doubles[: piece.size], integers[: piece.size]
            np.multiply(piece, factor, out=product, dtype=np.float64)
            np.rint(product, out=product)
            np.copyto(place if is_first else rounded, product, casting="unsafe")
            if not is_first:
                place += rounded
        self.num_examples += num_examples

    def mean_chunks(self) -> Iterator[tuple[slice, Doubles]]:
        """The mean update Σ n_k Δ_k / Σ n_k in float64, chunk by chunk, each with its place."""
        if self.num_examples == 0:
            raise ValueError("there is no mean of no updates")
        divisor = math.ldexp(self.num_examples, self.exponent)
        for begin in range(0, self.values.size, _CHUNK):
            place = slice(begin, begin + _CHUNK)
            yield place, self.values[place] / divisor


def _chunks(vector: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (vector[begin : begin + _CHUNK] for begin in range(0, vector.size, _CHUNK))
