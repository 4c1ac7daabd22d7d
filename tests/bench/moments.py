"""Seconds a round, told alike for all systems, so that their figures can be compared."""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def tell(moments: Sequence[float]) -> dict[str, Any]:
    """The figures of a run of two rounds or more.

    Args:
        moments: When the first process was started, and when each round ended, in seconds; so whatever lies between
            two rounds counts, and the start to the first.

    Returns:
        first_seconds, median_seconds (from the second round on) and round_seconds.
    """
    seconds = [round(later - sooner, 4) for sooner, later in pairwise(moments)]
    return {
        "first_seconds": seconds[0],
        "median_seconds": round(statistics.median(seconds[1:]), 4),
        "round_seconds": seconds,
    }
