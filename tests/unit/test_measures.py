"""What several workers measured, put together as one measurement of all their examples."""

from collections.abc import Mapping

import numpy as np
import pytest

from broker.wire.scores import count_answers
from broker.wire.tensors import Array
from coordinator.learning.measures import Measurement, pooled


def measurement(
    num_examples: int, states: Mapping[str, Array] | None = None, **metrics: float
) -> Measurement:
    return Measurement(num_examples=num_examples, metrics=metrics, states=states or {})


def precision(sums: Mapping[str, Array]) -> dict[str, float]:
    """As Keras's metric does: right positives by all positives."""
    return {name: float(state[0] / state.sum()) for name, state in sums.items()}


def nothing(_sums: Mapping[str, Array]) -> dict[str, float]:
    raise AssertionError("there is nothing to work out")


def test_means_are_weighted_by_examples() -> None:
    """(1 · 0.5 + 3 · 0.9) / 4 = 0.8; a metric that one worker lacks is the mean of the others."""
    found = pooled([measurement(1, accuracy=0.5), measurement(3, accuracy=0.9, mae=0.7)], nothing)
    assert found == pytest.approx({"accuracy": 0.8, "mae": 0.7})


def test_a_metric_that_is_no_mean_is_worked_out_from_all_sums() -> None:
    """1 of 2 and 90 of 100 positives are right: 91 / 102, and not the mean of 0.5 and 0.9."""
    found = pooled(
        [
            measurement(50, {"precision": np.array([1.0, 1.0])}, precision=0.5),
            measurement(50, {"precision": np.array([90.0, 10.0])}, precision=0.9),
        ],
        precision,
    )
    assert found == pytest.approx({"precision": 91 / 102})


def test_what_one_worker_measured_is_taken_as_it_is() -> None:
    """And one that measured nothing does not count."""
    assert pooled([measurement(7, auc=0.123456), measurement(0)], nothing) == {"auc": 0.123456}
    assert pooled([measurement(0)], nothing) == {}


def test_a_compiled_metric_keeps_its_name() -> None:
    """A person's own "accuracy" is theirs; ours fills what they have not named."""
    counts = count_answers(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    own = Measurement(num_examples=2, metrics={"accuracy": 0.25}, states={}, counts=counts)
    assert pooled([own, own], nothing) == {"accuracy": 0.25, "balanced_accuracy": 0.5}
    assert own.figures == {"accuracy": 0.25, "balanced_accuracy": 0.5}
