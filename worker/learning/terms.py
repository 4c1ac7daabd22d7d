"""What a strategy adds to the gradient of every local step: a class for each term, in a table by its setting's name.

The setting is a number that travels in `TrainingSettings.terms`. To add a term, write its class here and a line in
`TERMS`, and let the coordinator's strategy name the setting in its `worker_settings`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from broker.errors import ModelError
from worker.tensorflow import load_keras


class GradientTerm(Protocol):
    """One addition to the gradient of one model's trainable weights.

    It is made once, and the step that it is part of is traced once: what changes from round to round stands in
    TensorFlow variables.
    """

    def begin(self, coefficient: float) -> None:
        """Prepare for a round's training; the model holds the global weights.

        Args:
            coefficient: The setting's number, never 0.
        """

    def add(self, gradients: Sequence[Any]) -> list[Any]:
        """The gradients with this term; runs inside the trace.

        Args:
            gradients: Of the loss, in the order of the weights, each of its weight's shape; None where the loss
                doesn't depend on a weight, and stays None.
        """


class Proximal:
    """The gradient of μ/2 · ‖w − wₜ‖², which is μ (w − wₜ): it holds local training near the round's global weights.

    Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx), equation 2.

    Args:
        weights: The model's trainable weights w, Keras variables.
    """

    def __init__(self, weights: Sequence[Any]) -> None:
        import tensorflow as tf

        self._weights = weights
        self._global_weights = [tf.Variable(weight.value, trainable=False) for weight in weights]
        self._mu = tf.Variable(0.0, trainable=False)

    def begin(self, coefficient: float) -> None:
        """Keep μ and wₜ."""
        self._mu.assign(coefficient)
        for kept, weight in zip(self._global_weights, self._weights, strict=True):
            kept.assign(weight.value)

    def add(self, gradients: Sequence[Any]) -> list[Any]:
        """Add μ (w − wₜ)."""
        keras = load_keras()

        def added(gradient: Any, weight: Any, kept: Any) -> Any:
            mu = keras.ops.cast(self._mu, weight.dtype)
            return gradient if gradient is None else gradient + mu * (weight.value - kept)

        return [added(*each) for each in zip(gradients, self._weights, self._global_weights, strict=True)]


#: By the name of the setting. Where a strategy asks for several, they are added in this order.
TERMS: dict[str, Callable[[Sequence[Any]], GradientTerm]] = {"prox_mu": Proximal}


def require_known(settings: Iterable[str]) -> None:
    """Refuse a setting that no term here has: training without it would be another strategy's.

    Raises:
        ModelError: One is unknown; it is named.
    """
    for name in settings:
        if name not in TERMS:
            raise ModelError(
                f"This worker doesn't know the setting {name!r} that the strategy needs: upgrade it."
            )
