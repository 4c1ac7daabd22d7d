"""A training's batches: in another order every epoch, and the next ones prepared while the model trains."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.wire.tensors import Array

Flat = Sequence[Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One array of every batch.

    Attributes:
        dtype: As it is handed over, by numpy or TensorFlow.
        shape: Of one example; None for an axis of any size.
        cast: What it is made into; None leaves it as it is.
    """

    dtype: Any
    shape: tuple[int | None, ...]
    cast: Any = None


class BatchPipelines:
    """Hands one model its batches; a pipeline is traced once for each number and form of them.

    A new one in every epoch would cost time, and memory that TensorFlow keeps.
    """

    def __init__(self) -> None:
        self._batch: Callable[[int], Flat]
        self._stream: Callable[[], Iterator[Flat]]
        self._pipelines: dict[Any, Any] = {}

    def batches(self, number: int, batch: Callable[[int], Flat], forms: Sequence[Form]) -> Any:
        """One epoch's batches, to be iterated over before the next epoch's are asked for.

        Args:
            number: How many.
            batch: Gives the arrays of one, from 0.
            forms: Of the arrays.
        """
        self._batch = batch
        key = number, *map(repr, forms)
        if key not in self._pipelines:
            self._pipelines[key] = self._traced(number, forms)
        return self._pipelines[key]

    def streamed(self, begin: Callable[[], Iterator[Flat]], forms: Sequence[Form]) -> Any:
        """The same of batches that come one after the other.

        Args:
            begin: Begins an epoch.
            forms: Of the arrays.
        """
        self._stream = begin
        key = tuple(map(repr, forms))
        if key not in self._pipelines:
            self._pipelines[key] = self._traced_stream(forms)
        return self._pipelines[key]

    def _traced(self, number: int, forms: Sequence[Form]) -> Any:
        import tensorflow as tf

        # The arrays stay numpy's: TensorFlow would copy all of them, every round.
        def take(step: Any) -> list[Array]:
            return list(self._batch(int(step)))

        def load(step: Any) -> Any:
            arrays = tf.numpy_function(take, [step], [form.dtype for form in forms])
            for array, form in zip(arrays, forms, strict=True):
                array.set_shape((None, *form.shape))
            return _cast_all(arrays, forms)

        return _prefetched(tf.data.Dataset.range(number).map(load))

    def _traced_stream(self, forms: Sequence[Form]) -> Any:
        import tensorflow as tf

        signature = tuple(tf.TensorSpec((None, *form.shape), form.dtype) for form in forms)
        given = tf.data.Dataset.from_generator(lambda: map(tuple, self._stream()), output_signature=signature)
        return _prefetched(given.map(lambda *arrays: _cast_all(arrays, forms)))


def _cast_all(arrays: Sequence[Any], forms: Sequence[Form]) -> tuple[Any, ...]:
    return tuple(_cast(*each) for each in zip(arrays, forms, strict=True))


def _cast(array: Any, form: Form) -> Any:
    import tensorflow as tf

    return array if form.cast is None else tf.cast(array, form.cast)


def _prefetched(dataset: Any) -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    # Its thread sleeps for longer and longer, up to a minute, and the end of an epoch waits until it wakes up.
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def shuffled(seed: int, count: int) -> Iterator[NDArray[np.int64]]:
    """The order of the examples in one epoch after the other."""
    orders = np.random.default_rng([seed, 1])
    while True:
        yield orders.permutation(count)


def example_weights(y: NDArray[np.int64], class_weight: str) -> NDArray[np.float32]:
    """Per example: 1, or for "balanced" n / (k · n_c), with k the classes that occur; the mean stays 1."""
    if class_weight == "none":
        return np.ones(len(y), np.float32)
    counts = np.bincount(y)
    return (len(y) / (np.count_nonzero(counts) * counts[y])).astype(np.float32)
