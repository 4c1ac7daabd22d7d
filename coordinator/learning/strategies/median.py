"""The coordinate-wise median: fewer than half of the workers can't move it beyond what the others sent."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.learning.exact_sum import Doubles
from coordinator.learning.strategies.side_by_side import SideBySide


@dataclass(frozen=True, slots=True)
class Median(SideBySide):
    """w + med(Δ_1, …, Δ_k), coordinate by coordinate.

    Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", algorithm 1, option I.

    Each worker counts once, whatever its number of examples. Statistics take the median, too.
    """

    def combine(self, values: NDArray[np.float32]) -> Doubles:
        """The middle value, or the mean of the two in the middle."""
        count = len(values)
        middle = [(count - 1) // 2, count // 2]
        ordered = np.partition(values, sorted(set(middle)), axis=0)
        return np.asarray((ordered[middle[0]].astype(np.float64) + ordered[middle[1]]) / 2)
