"""A model trained and measured on whatever it needs: named inputs and targets, in memory or streamed."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from broker.errors import DataError, ModelError
from broker.model.needs import inputs_struct, outputs_struct, packed
from broker.wire.settings import TEXT, InputSpec, Needs, TrainingSettings
from worker.learning.results import TestResult
from worker.learning.ways.batches import BatchPipelines, Form, shuffled
from worker.learning.ways.compiled_metrics import Kept, kept_by
from worker.learning.ways.way import EVALUATION_BATCH, EpochBatches
from worker.tables.fitted import Flat, Rows


class OfAnything:
    """One model of any inputs and outputs.

    Args:
        model: The compiled Keras model.
        needs: Of the model.
    """

    def __init__(self, model: Any, needs: Needs) -> None:
        self._model = model
        self._needs = needs
        self._structs = inputs_struct(model), outputs_struct(model)
        self._pipelines = BatchPipelines()
        self._test = _test_function(model)

    def check(self, examples: Rows) -> int:
        """As `Way.check`; that they fit was found when they were fitted."""
        if not len(examples):
            raise DataError("Expected examples. Received none.")
        return len(examples)

    def num_batches(self, examples: Rows, batch_size: int) -> int:
        """As `Way.num_batches`."""
        return examples.num_batches(batch_size)

    def epochs(self, examples: Rows, settings: TrainingSettings, seed: int) -> Iterator[EpochBatches]:
        """As `Way.epochs`; a stream keeps its own order."""
        if settings.class_weight != "none" or settings.examples_per_class is not None:
            raise DataError("The run weighs or picks examples by class, and its model has no classes.")
        number, size = examples.num_batches(settings.batch_size), settings.batch_size
        forms = self._forms(next(examples.batches(1)))
        orders = shuffled(seed, len(examples))
        for _ in range(settings.epochs):
            order = None if examples.is_ordered else next(orders)

            def begin(order: Any = order) -> Iterator[Flat]:
                return examples.batches(size, order)

            batches = self._pipelines.streamed(begin, forms)
            yield EpochBatches(number=number, batches=batches)

    def measure(
        self, examples: Rows, stop: threading.Event, each_step: Callable[[], None]
    ) -> TestResult | None:
        """As `Way.measure`: the loss and every compiled metric, as `model.evaluate` gives them."""
        self._model.reset_metrics()
        metrics: dict[str, Any] = {}
        for arrays in examples.batches(EVALUATION_BATCH):
            if stop.is_set():
                return None
            each_step()
            metrics, is_finite = self._test(*self.unpack(self._tensors(arrays)))
            if not is_finite:
                raise ModelError(
                    "The model answers with NaN or infinity. Its training went wrong; use an earlier one."
                )
        kept = self.kept({name: float(value) for name, value in metrics.items()})
        return TestResult(metrics=kept.metrics, states=kept.states, counts=None, scores={})

    def kept(self, metrics: dict[str, float]) -> Kept:
        """As `Way.kept`: with weights and masks a mean over examples is none over workers, so all sums are told."""
        return kept_by(self._model, metrics, with_means=True)

    def unpack(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """As `Way.unpack`."""
        num_inputs, num_targets = len(self._needs.inputs), len(self._needs.targets)
        x = packed(self._structs[0], arrays[:num_inputs])
        y = packed(self._structs[1], arrays[num_inputs : num_inputs + num_targets])
        weights = arrays[num_inputs + num_targets :]
        if not weights:
            return x, y
        return x, y, weights[0] if len(weights) == 1 else packed(self._structs[1], weights)

    def _forms(self, first: Flat) -> list[Form]:
        shapes = [each.shape for each in self._needs.inputs] + [each.shape for each in self._needs.targets]
        shapes = [
            tuple(array.shape[1:]) if place >= len(shapes) or self._is_anything(place) else shapes[place]
            for place, array in enumerate(first)
        ]
        casts = [None if spec.dtype == TEXT else spec.dtype for spec in self._needs.inputs]
        return [
            Form(dtype=_dtype(array), shape=shape, cast=casts[place] if place < len(casts) else None)
            for place, (array, shape) in enumerate(zip(first, shapes, strict=True))
        ]

    def _tensors(self, arrays: Flat) -> list[Any]:
        import tensorflow as tf

        num_inputs = len(self._needs.inputs)
        return [*as_tensors(self._needs.inputs, arrays[:num_inputs]), *map(tf.constant, arrays[num_inputs:])]

    def _is_anything(self, place: int) -> bool:
        target = place - len(self._needs.inputs)
        return target >= 0 and self._needs.targets[target].kind == "anything"


def as_tensors(specs: Sequence[InputSpec], arrays: Flat) -> list[Any]:
    """Inputs as the model takes them."""
    import tensorflow as tf

    return [
        tf.constant(array) if spec.dtype == TEXT else tf.cast(array, spec.dtype)
        for spec, array in zip(specs, arrays, strict=True)
    ]


def _dtype(array: Any) -> Any:
    import tensorflow as tf

    return tf.string if array.dtype == object else np.dtype(array.dtype)


def _test_function(model: Any) -> Any:
    """A traced function (x, y, weights) -> (the metrics so far, whether all outputs are finite)."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def test(x: Any, y: Any, weights: Any = None) -> tuple[Any, Any]:
        outputs = model(x, training=False)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weights, training=False)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(tf.nest.flatten(x)[0])[0])
        metrics = model.compute_metrics(x, y, outputs, sample_weight=weights)
        are_finite = [
            tf.reduce_all(tf.math.is_finite(tf.cast(each, tf.float32))) for each in tf.nest.flatten(outputs)
        ]
        return metrics, tf.reduce_all(are_finite)

    return test
