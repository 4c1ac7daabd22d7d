"""A neural network in JAX, trained with optax, federated; FedProx's term is one line of its loss.

coordinator run worker.examples.jax_optax:task --out runs/jax --strategy fedprox --strategy-option mu=0.1
worker run --name w1 --trainer worker.examples.jax_optax:Trainer
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from worker.examples.digits import NUM_CLASSES, NUM_PIXELS, open_site
from worker.trainer import Evaluated, FitSettings, Fitted, Weights

HIDDEN = 32


def task() -> dict[str, Any]:
    """Glorot's uniform weights."""
    first, last = jax.random.split(jax.random.key(np.random.randint(2**31)))
    glorot = jax.nn.initializers.glorot_uniform()
    return {
        "hidden/kernel": glorot(first, (NUM_PIXELS, HIDDEN)), "hidden/bias": jnp.zeros(HIDDEN),
        "output/kernel": glorot(last, (HIDDEN, NUM_CLASSES)), "output/bias": jnp.zeros(NUM_CLASSES),
    }  # fmt: skip


def log_probabilities(weights: Any, x: Any) -> Any:
    """Of each class, shape (n, 10)."""
    hidden = jax.nn.relu(x @ weights["hidden/kernel"] + weights["hidden/bias"])
    return jax.nn.log_softmax(hidden @ weights["output/kernel"] + weights["output/bias"])


def loss_of(weights: Any, start: Any, mu: float, x: Any, y: Any) -> Any:
    """Cross-entropy, and μ/2 ‖w − wₜ‖² (Li et al. 2020)."""
    entropy = -log_probabilities(weights, x)[jnp.arange(len(y)), y].mean()
    return entropy + mu / 2 * optax.tree.norm(optax.tree.sub(weights, start), squared=True)


def descend(weights: Any, state: Any, start: Any, mu: float, rate: float, x: Any, y: Any) -> Any:
    """One step of gradient descent with momentum, compiled once."""
    loss, slope = jax.value_and_grad(loss_of)(weights, start, mu, x, y)
    step, state = optax.sgd(rate, momentum=0.9).update(slope, state)
    return optax.apply_updates(weights, step), state, loss


fast_descend = jax.jit(descend)


class Trainer:
    """Stochastic gradient descent with a momentum that begins anew each round."""

    terms = ("prox_mu",)

    def __init__(self, *, data: str | None, worker: str) -> None:
        self._site = open_site(data, worker)
        self.num_examples = len(self._site.y)

    def fit(self, weights: Weights, settings: FitSettings) -> Fitted:
        """Train batch by batch, in another order each epoch."""
        start, rate, mu = weights, settings.learning_rate or 0.05, settings.terms.get("prox_mu", 0.0)
        learned, state, loss = start, optax.sgd(rate, momentum=0.9).init(start), 0.0
        order = np.random.default_rng(settings.seed)
        for epoch in range(1, settings.epochs + 1):
            mixed = order.permutation(self.num_examples)
            for first in range(0, self.num_examples, settings.batch_size):
                if settings.stop.is_set():
                    break
                batch = mixed[first : first + settings.batch_size]
                x, y = self._site.x[batch], self._site.y[batch]
                learned, state, loss = fast_descend(learned, state, start, mu, rate, x, y)
            settings.report(epoch, {"loss": float(loss)})
        return Fitted(weights=learned, num_examples=self.num_examples, metrics={"loss": float(loss)})

    def evaluate(self, weights: Weights) -> Evaluated:
        """Measure them on the test examples."""
        return self._site.measure(log_probabilities(weights, self._site.x_test))
