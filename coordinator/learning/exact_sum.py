"""A sum of doubles without rounding: statistics may be tiny or huge, and no order of the workers may show.

Each double is cut into pieces of 32 bits, each piece is added to an int64 of its own weight (a superaccumulator:
Kulisch 1971; Collange et al. 2015, "Numerical reproducibility for the parallel reduction"). Integer addition has no
rounding. There are few statistics, so that seven integers for each cost nothing.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

_PIECE_BITS = 32
_LOWEST_BITS = -64  #: nothing below 2^-64 counts
NUM_PIECES = 7
_BASE = 1 << _PIECE_BITS
_SPLITTER = 2.0**27 + 1  #: cuts a double's 53 bits into two halves (Veltkamp 1968)
#: A value up to 2^168 takes 40 bits of the highest piece, so that four million of them fit.
LARGEST = math.ldexp(1.0, 168)
#: What one vector adds to each piece at most.
LARGEST_PIECES = (*(_BASE for _ in range(NUM_PIECES - 1)), 1 << 40)


class ExactSum:
    """Σ x for vectors x of doubles.

    Attributes:
        pieces: int64, shape (7, S): the total is Σ_k pieces[k] · 2^(32 k − 64).
    """

    def __init__(self, size: int, pieces: Integers | None = None) -> None:
        self.pieces: Integers = np.zeros((NUM_PIECES, size), np.int64) if pieces is None else pieces

    def add(self, values: Doubles) -> None:
        """Add a vector, shape (S,), of values up to ±2^168."""
        rest = np.array(values, np.float64)
        for index in reversed(range(NUM_PIECES)):
            weight = _weight(index)
            piece = np.trunc(rest / weight) if index else np.rint(rest / weight)
            self.pieces[index] += piece.astype(np.int64)
            rest -= piece * weight  # both exact: what is left is the lower bits

    def add_product(self, factor: float | Doubles, values: Doubles) -> None:
        """Add factor · values, shape (S,), without rounding the products (Dekker 1971, "TwoProduct")."""
        if not values.size:
            return  # most models have no statistics
        product, error = two_product(factor, values)
        self.add(product)
        self.add(error)

    def total(self) -> Doubles:
        """The sum, float64 of shape (S,), rounded once or twice in its last bit."""
        negative = self._carried(self.pieces)[-1] < 0
        carried = self._carried(np.where(negative, -self.pieces, self.pieces))
        total = np.zeros(self.pieces.shape[1], np.float64)
        for index in range(NUM_PIECES):  # all of one sign now: from the smallest up nothing cancels
            total += carried[index] * _weight(index)
        return np.where(negative, -total, total)

    def total_and_rest(self) -> tuple[Doubles, Doubles]:
        """The sum as a double, and what that rounds away, as another."""
        total, rest = self.total(), ExactSum(self.pieces.shape[1], self.pieces.copy())
        rest.add(-total)
        return total, rest.total()

    def _carried(self, pieces: Integers) -> Integers:
        """The same total with every piece but the highest from 0 to 2^32 − 1."""
        carried = pieces.copy()
        for index in range(NUM_PIECES - 1):
            carry = carried[index] >> _PIECE_BITS
            carried[index] -= carry * _BASE
            carried[index + 1] += carry
        return carried


def two_product(a: float | Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """The rounded product and its error: both together are exactly a · b."""
    product = np.asarray(a * b)
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, np.asarray(error)


def _halves(value: float | Doubles) -> tuple[Any, Any]:
    scaled = _SPLITTER * value
    high = scaled - (scaled - value)
    return high, value - high


def _weight(index: int) -> float:
    return math.ldexp(1.0, _PIECE_BITS * index + _LOWEST_BITS)
