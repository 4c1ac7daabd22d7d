"""Large arrays of one round, used again in the next: with 100 MB, fresh pages cost a third of a second a round."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Spares:
    """Arrays that nobody needs any more, at most one of each number type."""

    def __init__(self) -> None:
        self._arrays: dict[np.dtype[Any], NDArray[Any]] = {}

    def give(self, array: NDArray[Any]) -> None:
        """Hand over an array; whoever did must not use it again."""
        self._arrays[array.dtype] = array

    def take(self, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array of shape (size,) with whatever values."""
        kind = np.dtype(dtype)
        if kind in self._arrays and self._arrays[kind].shape == (size,):
            return self._arrays.pop(kind)
        return np.empty(size, kind)
