"""Counts of one feature's values by bins, and which of them may be told: none that rests on few examples."""

import numpy as np
import numpy.typing as npt

from worker.site.sums import Values

Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_CHUNK = 2**20


def count(values: Values, edges: npt.NDArray[np.float64]) -> tuple[Counts, Mask]:
    """How many values lie in each bin, and which examples have one there.

    Args:
        values: Of one feature, shape (n, values of an example).
        edges: Rising, shape (bins + 1,). A bin holds its lower edge, the last one its upper edge, too.

    Returns:
        Counts of shape (bins + 1,), the last of what lies in no bin; and (n, bins + 1), whether an example is in it.
    """
    bins = len(edges) - 1
    counts, has = np.zeros(bins + 1, np.int64), np.zeros((len(values), bins + 1), bool)
    rows = max(1, _CHUNK // max(1, values.shape[1]))
    for begin in range(0, len(values), rows):
        chunk = values[begin : begin + rows]
        places = _bins_of(chunk, edges) + np.arange(len(chunk))[:, None] * (bins + 1)
        found = np.bincount(places.ravel(), minlength=len(chunk) * (bins + 1)).reshape(-1, bins + 1)
        counts += found.sum(axis=0)
        has[begin : begin + rows] = found > 0
    return counts, has


def _bins_of(values: Values, edges: npt.NDArray[np.float64]) -> Counts:
    """Each value's bin; the number of bins where it lies in none."""
    if values.dtype == np.uint8:
        return _bins_of(np.arange(256, dtype=np.float32), edges)[values]
    bins = len(edges) - 1
    found = np.searchsorted(edges, values.astype(np.float64), side="right") - 1
    found[values == edges[-1]] = bins - 1
    return np.where((found < 0) | (found >= bins), bins, found).astype(np.int64)


def tellable(counts: Counts, has: Mask, floor: int) -> Counts:
    """The counts of those bins that may be told, shape (bins,), and 0 for the others.

    A bin with fewer examples than the floor isn't told. What isn't told could be worked out from the number of all
    examples: so as many more bins are left out, the emptiest first, until that rests on the floor, too. A higher floor
    leaves out the same bins and perhaps others: asking again with another one tells nothing more.

    Args:
        counts: From `count`.
        has: The same.
        floor: In examples.
    """
    holders = has[:, :-1].sum(axis=0)
    told, untold = counts[:-1].copy(), has[:, -1].copy()
    for place in np.argsort(holders, kind="stable"):
        rest = np.count_nonzero(untold)
        if holders[place] >= floor and (rest == 0 or rest >= floor):
            break
        told[place] = 0
        untold |= has[:, place]
    return told
