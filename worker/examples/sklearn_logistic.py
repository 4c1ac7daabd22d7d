"""Logistic regression of scikit-learn, federated.

coordinator run worker.examples.sklearn_logistic:task --epochs 5 --out runs/logistic
worker run --name w1 --trainer worker.examples.sklearn_logistic:Trainer
"""

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from worker.examples.digits import NUM_CLASSES, NUM_PIXELS, log_softmax, open_site
from worker.trainer import Evaluated, FitSettings, Fitted, Weights


def task() -> dict[str, Any]:
    """The arrays that are learned, as they are at the beginning."""
    return {"coef": np.zeros((NUM_CLASSES, NUM_PIXELS)), "intercept": np.zeros(NUM_CLASSES)}


class Trainer:
    """Goes on from the global coefficients, as many iterations of L-BFGS as there are epochs."""

    def __init__(self, *, data: str | None, worker: str) -> None:
        self._site = open_site(data, worker)
        self.num_examples = len(self._site.y)

    def fit(self, weights: Weights, settings: FitSettings) -> Fitted:
        """Train with scikit-learn, which can't be interrupted: rounds are short."""
        model = LogisticRegression(max_iter=settings.epochs, warm_start=True)
        model.classes_ = np.arange(NUM_CLASSES)
        model.coef_, model.intercept_ = weights["coef"], weights["intercept"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the next round goes on
            model.fit(self._site.x, self._site.y)
        metrics = {"accuracy": float(model.score(self._site.x, self._site.y))}
        settings.report(settings.epochs, metrics)
        learned = {"coef": model.coef_, "intercept": model.intercept_}
        return Fitted(weights=learned, num_examples=self.num_examples, metrics=metrics)

    def evaluate(self, weights: Weights) -> Evaluated:
        """Measure them on the test examples."""
        scores = self._site.x_test @ weights["coef"].T + weights["intercept"]
        return self._site.measure(log_softmax(scores))
