"""Exact sums of float32 values and of their squares, as whole numbers: the same bits in any order.

A float32 is a mantissa of 24 bits times a power of two. Mantissas of one power are added up as whole numbers, which
float64 holds; what comes of each power is shifted to its place in one whole number of Python's, which has no end.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32] | npt.NDArray[np.uint8]

_MANTISSA_BITS = 24
_LOWEST = -148  #: the exponent that numpy.frexp gives float32's smallest step, 2^-149
_NUM_EXPONENTS = 128 - _LOWEST + 1
_CHUNK = 2**20  #: so many mantissas of 24 bits stay below 2^53, where float64 is exact
_FRACTION_BITS = 149


def exact_sums(values: Values) -> tuple[int, int]:
    """Σ x · 2^149 and Σ x² · 2^298.

    Args:
        values: Finite ones, of shape (n,).
    """
    if values.dtype == np.uint8:
        return _sums_of_bytes(values)
    total = squares = 0
    for chunk in _chunks(values):
        more, more_squares = _sums_of_chunk(chunk)
        total, squares = total + more, squares + more_squares
    return total, squares


def _chunks(values: Values) -> Iterator[npt.NDArray[np.float32]]:
    for begin in range(0, len(values), _CHUNK):
        yield values[begin : begin + _CHUNK].astype(np.float32)


def _sums_of_bytes(values: Values) -> tuple[int, int]:
    counts = np.bincount(values, minlength=256).tolist()
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    return total << _FRACTION_BITS, squares << 2 * _FRACTION_BITS


def _sums_of_chunk(values: npt.NDArray[np.float32]) -> tuple[int, int]:
    fractions, exponents = np.frexp(values)
    mantissas = np.ldexp(fractions, _MANTISSA_BITS).astype(np.int64)
    powers = np.where(mantissas == 0, 0, exponents - _LOWEST)
    squares = mantissas * mantissas
    high, low = squares >> _MANTISSA_BITS, squares & (2**_MANTISSA_BITS - 1)
    total = _shifted(powers, mantissas, 1)
    total_of_squares = (_shifted(powers, high, 2) << _MANTISSA_BITS) + _shifted(powers, low, 2)
    # The lowest bit of a mantissa at the lowest power is 2^-172; nothing is below 2^-149.
    too_low = _MANTISSA_BITS - 1
    return total >> too_low, total_of_squares >> 2 * too_low


def _shifted(powers: npt.NDArray[np.int64], wholes: npt.NDArray[np.int64], step: int) -> int:
    """Σ whole · 2^(step · power)."""
    by_power = np.bincount(powers, weights=wholes, minlength=_NUM_EXPONENTS)
    return sum(int(by_power[power]) << step * int(power) for power in np.flatnonzero(by_power))
