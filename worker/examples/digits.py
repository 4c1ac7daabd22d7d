"""What the examples train on: some of scikit-learn's digits, others for each worker's name; or an .npz of one's own."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.trainer import Evaluated

NUM_PIXELS, NUM_CLASSES = 64, 10
_NUM_TEST = 297
_FEWEST, _MOST = 200, 600  # examples of one worker

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One worker's examples: x (n, 64) from 0 to 1, y (n,) from 0 to 9; the test examples are the same for all."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array

    def measure(self, log_probabilities: Any) -> Evaluated:
        """What a model's logarithms of probabilities, shape (n, 10), are worth on the test examples."""
        told = np.asarray(log_probabilities)
        loss = -told[np.arange(len(self.y_test)), self.y_test].mean()
        accuracy = (told.argmax(axis=1) == self.y_test).mean()
        metrics = {"loss": float(loss), "accuracy": float(accuracy)}
        return Evaluated(num_examples=len(self.y_test), metrics=metrics)


def open_site(data: str | None, worker: str) -> Site:
    """A worker's examples.

    Args:
        data: An .npz with x_train, y_train, x_test and y_test; None takes the digits.
        worker: Its name chooses which of them, and how many.
    """
    if data is not None:
        with np.load(data) as archive:
            names = {"x": "x_train", "y": "y_train", "x_test": "x_test", "y_test": "y_test"}
            return Site(**{name: archive[its] for name, its in names.items()})
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = x[:-_NUM_TEST] / 16, x[-_NUM_TEST:] / 16, y[:-_NUM_TEST], y[-_NUM_TEST:]
    chance = np.random.default_rng(list(hashlib.sha256(worker.encode()).digest()))
    mine = chance.permutation(len(y))[: chance.integers(_FEWEST, _MOST)]
    return Site(x=x[mine], y=y[mine], x_test=x_test, y_test=y_test)


def log_softmax(scores: Array) -> Array:
    """The logarithms of probabilities from scores, both (n, classes)."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
