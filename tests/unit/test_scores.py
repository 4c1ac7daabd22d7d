"""Counts that add up over workers, against scikit-learn on all examples together."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.scores import AnswerCounts, count_answers, flaw_in_counts, pooled_measures


def two_classes(scores: np.ndarray) -> np.ndarray:
    return np.stack([1 - scores, scores], axis=1)


def site(seed: int, count: int, spread: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """A hospital's scores of class 1, and the truth: how far apart the classes are, and how biased the scores."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    odds = rng.normal(spread * (y - 0.5) + shift, 1.5)
    return 1 / (1 + np.exp(-odds)), y


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0])
def test_the_pooled_auc_is_that_of_all_examples_together(sharpness: float) -> None:
    """Within 0.001, for flat scores and for ones near 0 and 1; the mean of the sites' AUCs is another figure."""
    from sklearn.metrics import roc_auc_score  # late: it takes a second

    sites = [site(1, 500, 2.0 * sharpness, -2.0), site(2, 900, 1.0, 1.0), site(3, 40, 3.0, 0.0)]
    scores, y = (np.concatenate(each) for each in zip(*sites, strict=True))
    exact = roc_auc_score(y, scores)
    found = pooled_measures(count_answers(two_classes(each), truth) for each, truth in sites)
    assert found["auc"] == pytest.approx(exact, abs=1e-3)
    mean = sum(len(truth) * roc_auc_score(truth, each) for each, truth in sites) / len(y)
    assert abs(mean - exact) > 0.01


def test_the_pooled_balanced_accuracy_is_that_of_all_examples_together() -> None:
    """Five classes at three sites, one of which lacks two of them."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    rng = np.random.default_rng(0)
    sites = [(rng.dirichlet(np.ones(5), n), rng.integers(0, k, n)) for n, k in ((50, 5), (70, 5), (30, 3))]
    probabilities, y = (np.concatenate(each) for each in zip(*sites, strict=True))
    found = pooled_measures(count_answers(each, truth) for each, truth in sites)
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(y, probabilities.argmax(axis=1)),
            "balanced_accuracy": balanced_accuracy_score(y, probabilities.argmax(axis=1)),
        }
    )


def test_without_both_classes_there_is_no_auc() -> None:
    """Nor is there anything to say of nothing."""
    scores = two_classes(np.array([0.2, 0.7]))
    assert "auc" not in pooled_measures([count_answers(scores, np.array([1, 1]))])
    one, other = (count_answers(scores, np.array([label, label])) for label in (0, 1))
    assert pooled_measures([one, other])["auc"] == 0.5
    assert pooled_measures([]) == {}


def test_certain_answers_have_a_bin() -> None:
    """Scores of exactly 0 and 1 are scores."""
    counts = count_answers(two_classes(np.array([0.0, 1.0, 1.0])), np.array([0, 1, 0]))
    assert pooled_measures([counts])["auc"] == 0.75
    assert flaw_in_counts(counts, 2, 3) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_true_counts_are_always_believed(rows: list[tuple[float, int]]) -> None:
    """Whatever the scores are."""
    scores, y = np.array([score for score, _ in rows]), np.array([label for _, label in rows])
    assert flaw_in_counts(count_answers(two_classes(scores), y), 2, len(rows)) is None


COUNTS = count_answers(two_classes(np.array([0.2, 0.7, 0.9])), np.array([0, 1, 0]))


@pytest.mark.parametrize(
    ("counts", "num_examples"),
    [
        (COUNTS, 4),
        (replace(COUNTS, per_class=COUNTS.per_class.astype(np.int32)), 3),
        (replace(COUNTS, per_class=COUNTS.per_class[:, :1]), 3),
        (replace(COUNTS, per_class=-COUNTS.per_class), 3),
        (replace(COUNTS, bins=COUNTS.bins[:2]), 3),
        (replace(COUNTS, bins=COUNTS.bins + 1), 3),
        (replace(COUNTS, bins=COUNTS.bins + np.array([[4096], [0], [0]], np.int32)), 3),
        (replace(COUNTS, bins=COUNTS.bins[:, [0, 0, 0]]), 3),
        (replace(COUNTS, bins=COUNTS.bins[:, :0]), 3),
        (replace(COUNTS, per_class=np.array([[2**62] * 4 + [3], [0] * 5]), bins=COUNTS.bins[:, :0]), 3),
    ],
)
def test_counts_that_can_not_be_are_found(counts: AnswerCounts, num_examples: int) -> None:
    """Each would spoil the sum, or be of no example."""
    num_classes = max(counts.per_class.shape[1], 2)
    assert flaw_in_counts(counts, num_classes, num_examples) is not None
