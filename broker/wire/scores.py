"""Counts of a classifier's answers that add up over workers: the pooled figures of all their examples together.

A mean of the workers' AUCs is not the AUC of their examples, nor is that of their balanced accuracies. So a worker
counts its right answers class by class, and for two classes how its scores are spread over fixed bins; sums of these
give the figures of all examples as if they lay in one place. No count belongs to a single example.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.wire.tensors import Array

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

NUM_BINS = 4096  #: equally wide in the log-odds of class 1, the outermost ones without end
_LARGEST_LOG_ODDS = 16.0
_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerCounts:
    """What one worker counted.

    Attributes:
        per_class: int64, shape (2, classes): the examples of each class, and how many of them were answered right.
        bins: int32, shape (3, m): for two classes the bins that hold a score, in order; the scores of class 0 in
            each, and of class 1. Otherwise m is 0.
    """

    per_class: Array
    bins: Array


def count_answers(probabilities: Floats, y: Labels) -> AnswerCounts:
    """Count a model's answers.

    Args:
        probabilities: (n, classes).
        y: (n,) true classes.
    """
    num_classes = probabilities.shape[1]
    is_right = probabilities.argmax(axis=1) == y
    per_class = np.stack(
        [np.bincount(y, minlength=num_classes), np.bincount(y[is_right], minlength=num_classes)]
    )
    bins = _binned(probabilities, y) if num_classes == 2 else np.empty((3, 0), np.int32)
    return AnswerCounts(per_class=per_class.astype(np.int64), bins=bins)


def _binned(probabilities: Floats, y: Labels) -> Array:
    odds = np.log(probabilities[:, 1].clip(_TINY)) - np.log(probabilities[:, 0].clip(_TINY))
    width = 2 * _LARGEST_LOG_ODDS / NUM_BINS
    number = np.floor((odds + _LARGEST_LOG_ODDS) / width).clip(0, NUM_BINS - 1).astype(np.int64)
    used, position = np.unique(number, return_inverse=True)
    negatives, positives = (np.bincount(position[y == label], minlength=len(used)) for label in (0, 1))
    return np.stack([used, negatives, positives]).astype(np.int32)


def merged(counts: Sequence[AnswerCounts]) -> AnswerCounts:
    """The counts of several workers as one would have counted all their examples."""
    bins = np.zeros((2, NUM_BINS), np.int64)
    for each in counts:
        bins[:, each.bins[0]] += each.bins[1:]
    used = np.flatnonzero(bins.any(axis=0))
    per_class: Labels = np.sum([each.per_class for each in counts], axis=0)
    return AnswerCounts(per_class=per_class, bins=np.stack([used, *bins[:, used]]).astype(np.int32))


def flaw_in_counts(counts: AnswerCounts, num_classes: int, num_examples: int) -> str | None:
    """Why counts that came over the wire can't be believed, or None."""
    shapes = counts.per_class.shape == (2, num_classes) and counts.bins.ndim == 2 and len(counts.bins) == 3
    if not shapes or counts.bins.shape[1] > NUM_BINS or not _are_integers(counts):
        return f"expected counts of {num_classes} classes, got shapes {counts.per_class.shape}, {counts.bins.shape}"
    examples, right = counts.per_class
    used, *binned = counts.bins
    is_possible = (
        (counts.per_class >= 0).all() and (right <= examples).all()
        and (examples <= num_examples).all() and examples.sum() == num_examples  # a sum alone may wrap
        and (counts.bins >= 0).all() and (used < NUM_BINS).all() and len(np.unique(used)) == len(used)
        and (np.array_equal(np.sum(binned, axis=1), examples) if num_classes == 2 else not used.size)
    )  # fmt: skip
    return None if is_possible else f"expected counts of {num_examples} test examples, got others"


def _are_integers(counts: AnswerCounts) -> bool:
    return counts.per_class.dtype == np.int64 and counts.bins.dtype == np.int32


def pooled_measures(counts: Iterable[AnswerCounts]) -> dict[str, float]:
    """The measures of all counted examples together.

    Returns:
        accuracy, balanced_accuracy (mean recall of the classes present), and for two classes auc: exact but for ties
        within a bin, which count half; empty if nothing was counted.
    """
    every = list(counts)
    if not every:
        return {}
    examples, right = np.sum([each.per_class for each in every], axis=0)
    is_present = examples > 0
    if not is_present.any():
        return {}
    measures = {
        "accuracy": float(right.sum() / examples.sum()),
        "balanced_accuracy": float((right[is_present] / examples[is_present]).mean()),
    }
    auc = _pooled_auc(every)
    return measures if auc is None else measures | {"auc": auc}


def _pooled_auc(every: list[AnswerCounts]) -> float | None:
    """The area under the ROC curve of the summed bins (Hanley and McNeil 1982); None where a class is missing."""
    negatives, positives = np.zeros((2, NUM_BINS))
    for each in every:
        used, of_0, of_1 = each.bins
        negatives[used] += of_0
        positives[used] += of_1
    pairs = negatives.sum() * positives.sum()
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)
