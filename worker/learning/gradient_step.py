"""One gradient step of local training: Keras's own `train_step`, with one place where terms join the gradient."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from worker.learning.terms import TERMS, GradientTerm, require_known
from worker.tensorflow import load_keras

#: (iterator over batches, how many to train on) -> the metrics so far in this epoch.
Steps = Callable[[Any, int], dict[str, Any]]

Unpack = Callable[[Any], tuple[Any, ...]]


class GradientSteps:
    """The gradient steps of one compiled model, traced once for each set of terms.

    Args:
        model: The Keras model.
        unpack: Makes (x, y) or (x, y, example weights) of a batch.
    """

    def __init__(self, model: Any, unpack: Unpack) -> None:
        self._model = model
        self._unpack = unpack
        self._terms: dict[str, GradientTerm] = {}
        self._steps: dict[tuple[str, ...], Steps] = {}

    def begin(self, settings: Mapping[str, float]) -> Steps:
        """The steps of one round's training; the model holds the round's global weights.

        Args:
            settings: The coefficient of each term, by name. One of 0 is left out of the trace, so that what is
                worked out is to the bit what no term gives.

        Raises:
            ModelError: There is no such term.
        """
        require_known(settings)
        chosen = tuple(name for name in TERMS if settings.get(name))
        for name in chosen:
            if name not in self._terms:
                self._terms[name] = TERMS[name](self._model.trainable_weights)
            self._terms[name].begin(settings[name])
        if chosen not in self._steps:
            self._steps[chosen] = _traced(self._model, self._unpack, [self._terms[name] for name in chosen])
        return self._steps[chosen]


def _traced(model: Any, unpack: Unpack, terms: Sequence[GradientTerm]) -> Steps:
    """As many steps in one call as it is told: a call from Python costs as much as a step of a small model."""
    import tensorflow as tf

    def step(batch: Any) -> None:
        _train_step(model, terms, unpack(batch))

    if not model.run_eagerly:
        step = tf.function(step, autograph=False, reduce_retracing=True, jit_compile=model.jit_compile)

    def steps(iterator: Any, count: Any) -> Any:
        def one_more(done: Any) -> Any:
            step(iterator.get_next())
            return done + 1

        # No iteration begins before the one before has ended: what they share are the weights.
        tf.while_loop(lambda done: done < count, one_more, [tf.constant(0)], parallel_iterations=1)
        return model.get_metrics_result()

    run = steps if model.run_eagerly else tf.function(steps, autograph=False, reduce_retracing=True)
    return lambda iterator, count: run(iterator, tf.constant(count))  # each number by itself would be a trace


def _train_step(model: Any, terms: Sequence[GradientTerm], batch: tuple[Any, ...]) -> None:
    """What Keras does with one batch (keras/src/backend/tensorflow/trainer.py, `train_step`), and the terms.

    The loss that is recorded is the model's own: a term moves the weights alone.
    """
    import tensorflow as tf

    x, y, *weights_given = batch
    example_weights = weights_given[0] if weights_given else None
    optimizer, weights = model.optimizer, model.trainable_weights
    with tf.GradientTape() as tape:
        outputs = model(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=example_weights, training=True)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(tf.nest.flatten(x)[0])[0])
        loss = optimizer.scale_loss(loss)
    gradients = tape.gradient(loss, weights)
    optimizer.apply(_with_terms(gradients, terms, optimizer) if terms else gradients, weights)
    model.compute_metrics(x, y, outputs, sample_weight=example_weights)


def _with_terms(gradients: list[Any], terms: Iterable[GradientTerm], optimizer: Any) -> list[Any]:
    """Add the terms to the gradients of the loss itself, whatever mixed precision multiplies it with meanwhile."""
    ops = load_keras().ops
    scale = optimizer.scale_loss(1.0)
    # An embedding's gradient names the rows that it touches; a term may touch all.
    gradients = [
        each if each is None else ops.divide(ops.convert_to_tensor(each), scale) for each in gradients
    ]
    for term in terms:
        gradients = term.add(gradients)
    return [each if each is None else ops.multiply(each, scale) for each in gradients]
