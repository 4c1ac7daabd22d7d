"""A model trained and measured as a classifier of labelled examples, with figures of classes besides its own."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import DataError
from broker.model.head import head_of
from broker.model.loss import encode_labels
from broker.wire.scores import count_answers
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Array
from worker.data.data_set import Examples
from worker.learning.evaluation import score
from worker.learning.results import TestResult
from worker.learning.ways.batches import BatchPipelines, Form, example_weights, shuffled
from worker.learning.ways.compiled_metrics import Kept, kept_by, measure_compiled
from worker.learning.ways.way import EVALUATION_BATCH, EpochBatches


class OfClasses:
    """One model with one input of a fixed shape and one output.

    Attributes:
        input_shape: Of one example, (height, width, channels) for images.
        num_classes: How many classes its output tells apart; 2 for a single sigmoid.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.input_shape: tuple[int, ...] = tuple(model.input_shape[1:])
        self._num_outputs = int(model.output_shape[-1])
        self.num_classes = max(self._num_outputs, 2)
        self._head = head_of(model)
        self._pipelines = BatchPipelines()
        self._test = _test_function(model)

    def check(self, examples: Examples) -> int:
        """As `Way.check`."""
        shape, labels = tuple(examples.x.shape[1:]), examples.y
        if shape != self.input_shape or len(examples.x) != len(labels):
            raise DataError(
                f"The examples don't fit the model. Expected {self.input_shape} each, received "
                f"{len(examples.x)} of {shape} with {len(labels)} labels."
            )
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= self.num_classes:
            received = "no examples" if len(labels) == 0 else f"{labels.min()} to {labels.max()}"
            raise DataError(f"Expected labels from 0 to {self.num_classes - 1}. Received {received}.")
        return len(labels)

    def num_batches(self, examples: Examples, batch_size: int) -> int:
        """As `Way.num_batches`; the last one may be smaller than the others."""
        return -(-len(examples) // batch_size)

    def epochs(self, examples: Examples, settings: TrainingSettings, seed: int) -> Iterator[EpochBatches]:
        """As `Way.epochs`: x, y as the loss wants it, and what each example counts."""
        labels = self._encode(examples.y)
        weights = example_weights(examples.y, settings.class_weight)
        if examples.weights is not None:
            weights = weights * examples.weights
        number, size = self.num_batches(examples, settings.batch_size), settings.batch_size
        forms = (
            Form(dtype=examples.x.dtype, shape=self.input_shape, cast=self._model.inputs[0].dtype),
            Form(dtype=labels.dtype, shape=labels.shape[1:]),
            Form(dtype=weights.dtype, shape=()),
        )
        orders = shuffled(seed, len(examples))
        for _ in range(settings.epochs):
            order = next(orders)

            def batch(step: int, order: NDArray[np.int64] = order) -> tuple[Array, Array, Array]:
                rows = order[step * size : (step + 1) * size]
                return examples.x[rows], labels[rows], weights[rows]

            yield EpochBatches(number=number, batches=self._pipelines.batches(number, batch, forms))

    def measure(
        self, examples: Examples, stop: threading.Event, each_step: Callable[[], None]
    ) -> TestResult | None:
        """As `Way.measure`."""
        outputs, loss = [], 0.0
        for x, y in zip(_cut(examples.x), _cut(examples.y), strict=True):
            if stop.is_set():
                return None
            each_step()
            batch_loss, batch_outputs = self._test_batch(x, y)
            outputs.append(batch_outputs)
            loss += batch_loss * len(y)
        all_outputs = np.concatenate(outputs)
        probabilities = self._head.probabilities(all_outputs)
        found = score(probabilities, examples.y, loss / len(examples.y))
        compiled = measure_compiled(self._model, self._encode(examples.y), all_outputs)
        scores = {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy}
        return TestResult(
            metrics={"loss": found.loss} | compiled.metrics,
            states=compiled.states,
            counts=count_answers(probabilities, examples.y),
            scores=scores if found.auc is None else scores | {"auc": found.auc},
        )

    def unpack(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """As `Way.unpack`: they are x, y and weights."""
        return tuple(arrays)

    def kept(self, metrics: dict[str, float]) -> Kept:
        """As `Way.kept`."""
        return kept_by(self._model, metrics)

    def _encode(self, y: NDArray[np.int64]) -> Array:
        return encode_labels(self._model.loss, y, self._num_outputs)

    def _test_batch(self, x: Array, y: NDArray[np.int64]) -> tuple[float, NDArray[np.float32]]:
        loss, outputs = self._test(np.asarray(x, np.float32), self._encode(y))
        return float(loss), outputs.numpy()


def _test_function(model: Any) -> Any:
    """A traced function (x, y) -> (mean loss, outputs); it leaves the compiled metrics alone."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def test(x: Any, y: Any) -> tuple[Any, Any]:
        outputs = model(tf.cast(x, model.inputs[0].dtype), training=False)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=None, training=False)
        return loss, tf.cast(outputs, tf.float32)

    return test


def _cut(values: Array) -> Iterator[Array]:
    for start in range(0, len(values), EVALUATION_BATCH):
        yield values[start : start + EVALUATION_BATCH]
