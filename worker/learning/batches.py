"""A training's batches: in another order every epoch, and the next ones prepared while the model trains."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.wire.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffledExamples:
    """The examples of one epoch, in its order.

    Attributes:
        x: (n, *input_shape).
        y: (n,) or (n, outputs), as the loss wants them.
        weights: (n,) what each counts in the loss.
        order: (n,) their positions in the epoch's order.
    """

    x: Array
    y: Array
    weights: NDArray[np.float32]
    order: NDArray[np.int64]
    batch_size: int

    @property
    def num_batches(self) -> int:
        """The last one may be smaller than the others."""
        return -(-len(self.order) // self.batch_size)

    def batch(self, step: int) -> tuple[Array, Array, Array]:
        """x, y and weights of one batch, from 0."""
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        return self.x[rows], self.y[rows], self.weights[rows]


class BatchPipelines:
    """Hands one model its batches; a pipeline is traced once for each number of them.

    A new one in every epoch would cost time, and memory that TensorFlow keeps.

    Args:
        input_shape: Of one example.
        input_dtype: What the model takes.
    """

    def __init__(self, input_shape: tuple[int, ...], input_dtype: Any) -> None:
        self._input_shape = input_shape
        self._input_dtype = input_dtype
        self._examples: ShuffledExamples
        self._pipelines: dict[tuple[int, np.dtype[Any]], Any] = {}

    def batches(self, examples: ShuffledExamples) -> Any:
        """One epoch's batches (x, y, weights), to be iterated over before the next epoch's are asked for."""
        self._examples = examples
        key = examples.num_batches, examples.x.dtype
        if key not in self._pipelines:
            self._pipelines[key] = self._traced(examples)
        return self._pipelines[key]

    def _traced(self, examples: ShuffledExamples) -> Any:
        import tensorflow as tf

        dtypes = [examples.x.dtype, examples.y.dtype, tf.float32]
        y_shape = examples.y.shape[1:]

        # The arrays stay numpy's: TensorFlow would copy all of them, every round.
        def take(step: Any) -> tuple[Array, Array, Array]:
            return self._examples.batch(int(step))

        def load(step: Any) -> tuple[Any, Any, Any]:
            inputs, labels, weights = tf.numpy_function(take, [step], dtypes)
            inputs.set_shape((None, *self._input_shape))
            labels.set_shape((None, *y_shape))
            weights.set_shape((None,))
            return tf.cast(inputs, self._input_dtype), labels, weights

        options = tf.data.Options()
        # Its thread sleeps for longer and longer, up to a minute, and the end of an epoch waits until it wakes up.
        options.autotune.enabled = False
        return tf.data.Dataset.range(examples.num_batches).map(load).prefetch(2).with_options(options)


def example_weights(y: NDArray[np.int64], class_weight: str) -> NDArray[np.float32]:
    """Per example: 1, or for "balanced" n / (k · n_c), with k the classes that occur; the mean stays 1."""
    if class_weight == "none":
        return np.ones(len(y), np.float32)
    counts = np.bincount(y)
    return (len(y) / (np.count_nonzero(counts) * counts[y])).astype(np.float32)
