"""A small neural network of scikit-learn, federated by its weights.

coordinator run worker.examples.sklearn_mlp:task --out runs/mlp
worker run --name w1 --trainer worker.examples.sklearn_mlp:Trainer
"""

from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier

from worker.examples.digits import NUM_CLASSES, NUM_PIXELS, log_softmax, open_site
from worker.trainer import Evaluated, FitSettings, Fitted, Weights

HIDDEN = 32


def task() -> dict[str, Any]:
    """Glorot's uniform weights; numpy's random numbers follow the run's --seed."""
    sizes = {"0": (NUM_PIXELS, HIDDEN), "1": (HIDDEN, NUM_CLASSES)}
    weights = {
        f"coefs_{layer}": np.random.uniform(-1, 1, size) * np.sqrt(6 / sum(size))
        for layer, size in sizes.items()
    }
    return weights | {f"intercepts_{layer}": np.zeros(size[1]) for layer, size in sizes.items()}


class Trainer:
    """Plain stochastic gradient descent."""

    def __init__(self, *, data: str | None, worker: str) -> None:
        self._site = open_site(data, worker)
        self.num_examples = len(self._site.y)

    def fit(self, weights: Weights, settings: FitSettings) -> Fitted:
        """Put the global weights into a network, and train it epoch by epoch."""
        model = MLPClassifier(
            (HIDDEN,), solver="sgd", momentum=0.0, batch_size=min(settings.batch_size, self.num_examples),
            learning_rate_init=settings.learning_rate or 0.1, random_state=settings.seed % 2**32,
        )  # fmt: skip
        few = slice(model.batch_size)
        model.partial_fit(self._site.x[few], self._site.y[few], classes=range(NUM_CLASSES))  # makes arrays
        model.coefs_ = [weights["coefs_0"], weights["coefs_1"]]
        model.intercepts_ = [weights["intercepts_0"], weights["intercepts_1"]]
        for epoch in range(1, settings.epochs + 1):
            if settings.stop.is_set():
                break
            model.partial_fit(self._site.x, self._site.y)
            settings.report(epoch, {"loss": model.loss_})
        named = {"coefs": model.coefs_, "intercepts": model.intercepts_}
        learned = {f"{name}_{layer}": values[layer] for name, values in named.items() for layer in (0, 1)}
        return Fitted(weights=learned, num_examples=self.num_examples, metrics={"loss": model.loss_})

    def evaluate(self, weights: Weights) -> Evaluated:
        """Measure them on the test examples."""
        hidden = np.maximum(self._site.x_test @ weights["coefs_0"] + weights["intercepts_0"], 0)
        return self._site.measure(log_softmax(hidden @ weights["coefs_1"] + weights["intercepts_1"]))
