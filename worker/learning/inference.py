"""The one way to a model's predictions: an image gets the same bits alone and among others, whoever asks."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.model.head import Floats, Head, head_of
from broker.model.loss import encode_labels, sole_loss
from worker.data.listing import Labels
from worker.learning.ways.compiled_metrics import measure_compiled
from worker.tensorflow import load_keras

_CHUNK = 64  # examples that are converted at a time
_TINY = 1e-7  # as Keras clips probabilities before the logarithm

Array = npt.NDArray[Any]


class Inference:
    """A Keras classifier that is asked for predictions.

    TensorFlow computes a batch of 32 with other kernels than a batch of one, and rounds otherwise. So every example
    goes through the model by itself, as a batch of one; several at a time, in one graph for all of them. The weights
    are the model's own: after new ones the predictions are theirs.

    Attributes:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        """Trace the model once; it is not changed.

        Args:
            model: With one input of a fixed shape and one output (n, k), compiled or not.

        Raises:
            ModelError: It is no classifier.
        """
        self.model = model
        self._head = head_of(model)
        self._function = _trace(model)

    @property
    def head(self) -> Head:
        """How its outputs are read."""
        return self._head

    def probabilities(self, x: Array) -> Floats:
        """The model's prediction for each example, (n, classes), rows sum to 1.

        Raises:
            ModelError: An output isn't finite.
        """
        outputs, _, _ = self._outputs(x)
        return self._head.probabilities(outputs)

    def measure(self, x: Array, y: Labels) -> tuple[Floats, float, dict[str, float]]:
        """The probabilities, and the compiled loss and metrics as `model.evaluate` gives them.

        A model that was compiled with no loss gets the cross-entropy of its probabilities.

        Args:
            x: (n, *shape).
            y: (n,) class numbers.

        Raises:
            ModelError: An output isn't finite.
        """
        outputs, scores, penalties = self._outputs(x)
        probabilities = self._head.probabilities(outputs)
        if not getattr(self.model, "compiled", False) or sole_loss(self.model.loss) is None:
            return probabilities, cross_entropy(probabilities, y), {}
        loss = self._loss(outputs, scores, y) + float(penalties.mean(dtype=np.float64))
        targets = encode_labels(self.model.loss, y, self._head.num_outputs)
        return probabilities, loss, measure_compiled(self.model, targets, outputs).metrics

    def _outputs(self, x: Array) -> tuple[Array, Array, Array]:
        """Outputs (n, k), the scores that they were made of (n, k), and the layers' own losses (n,)."""
        import tensorflow as tf

        dtype = self.model.inputs[0].dtype
        found = [self._function(tf.cast(chunk, dtype)) for chunk in _cut(x)]
        outputs, scores, penalties = (np.concatenate(each) for each in zip(*found, strict=True))
        return outputs, scores, penalties

    def _loss(self, outputs: Array, scores: Array, y: Labels) -> float:
        import tensorflow as tf

        targets = encode_labels(self.model.loss, y, self._head.num_outputs)
        predicted = tf.constant(outputs)
        if scores.shape[1]:
            predicted._keras_logits = tf.constant(scores)  # what Keras's cross-entropies compute from
        # Not compute_loss, which adds the layers' own losses of the last call, here a graph's.
        return float(self.model._compile_loss(targets, predicted))


def cross_entropy(probabilities: Floats, y: Labels) -> float:
    """Mean of -log of each example's true class."""
    return float(-np.log(probabilities[np.arange(len(y)), y].clip(_TINY)).mean())


def _cut(x: Array) -> Iterator[Array]:
    for start in range(0, len(x), _CHUNK):
        yield x[start : start + _CHUNK]


def _trace(model: Any) -> Callable[[Any], Any]:
    """One graph from (n, *shape) to the outputs; it is the same whoever asks, and so are its kernels."""
    load_keras()
    import tensorflow as tf

    def predict(example: Any) -> tuple[Any, Any, Any]:
        outputs = model(example[tf.newaxis], training=False)
        scores = getattr(outputs, "_keras_logits", outputs[:, :0])
        penalty = tf.add_n([tf.cast(loss, tf.float32) for loss in model.losses] or [tf.zeros(())])
        return outputs[0], scores[0], penalty

    dtype = model.outputs[0].dtype

    def predict_all(x: Any) -> Any:
        return tf.map_fn(
            predict,
            x,
            fn_output_signature=(dtype, dtype, tf.float32),
            parallel_iterations=os.cpu_count() or 1,
        )

    spec = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    concrete = tf.function(predict_all, autograph=False).get_concrete_function(spec)
    return lambda x: tuple(each.numpy() for each in concrete(x))
