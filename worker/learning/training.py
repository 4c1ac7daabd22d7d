"""Local training and evaluation of one model: built once, used for every round, every call like the first."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import DataError, ModelError
from broker.model.head import head_of
from broker.model.kinds import apply_kinds, layout_of, renew_adapted
from broker.model.loss import encode_labels
from broker.wire.scores import count_answers
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Array, Layout
from worker.data.data_set import Examples
from worker.learning.batches import BatchPipelines, ShuffledExamples, example_weights
from worker.learning.compiled_metrics import Kept, kept_by, measure_compiled
from worker.learning.evaluation import score
from worker.learning.fresh_start import FreshStart, be_deterministic
from worker.learning.gradient_step import GradientSteps, Steps
from worker.learning.pace import Pace
from worker.learning.results import Report, TestResult, TrainingProgress, TrainingResult
from worker.learning.wire_model import build_model

EVALUATION_BATCH = 64
REPORT_SECONDS = 0.5


class LocalModel:
    """One compiled model that a worker trains and evaluates, round after round.

    Building, compiling and tracing happen once. Each call of `train` starts from the given weights with a
    fresh optimizer, fresh metrics and newly seeded random layers: its result depends on its arguments alone.
    A learning rate's schedule goes on from the step that the settings tell.

    Attributes:
        layout: Of its weights, in Keras's order.
        input_shape: Of one example, (height, width, channels) for images.
        num_classes: How many classes its output tells apart; 2 for a single sigmoid.
    """

    def __init__(self, model_json: str, layout: Layout | None = None, *, deterministic: bool = False) -> None:
        """Build the model.

        Args:
            model_json: Keras's JSON, compile settings inside.
            layout: What of it is trained, weight by weight; None leaves that to the JSON.
            deterministic: Same arguments, same bits, in any process. Stays switched on for the whole process.

        Raises:
            ModelError: It can't be built, is not allowed, or is no classifier with one input and one output.
        """
        if deterministic:
            be_deterministic(0)
        self._model = build_model(model_json)
        self._check_form()
        if layout is not None and apply_kinds(self._model, layout):
            self._model.compile_from_config(self._model.get_compile_config())
        self.layout = layout_of(self._model) if layout is None else layout
        self.input_shape: tuple[int, ...] = tuple(self._model.input_shape[1:])
        self._num_outputs = int(self._model.output_shape[-1])
        self.num_classes = max(self._num_outputs, 2)
        self._head = head_of(self._model)
        self._fresh_start = FreshStart(self._model)
        self._pipelines = BatchPipelines(self.input_shape, self._model.inputs[0].dtype)
        self._gradient_steps = GradientSteps(self._model)
        self._test = _test_function(self._model)

    def _check_form(self) -> None:
        shapes = (self._model.input_shape, self._model.output_shape)
        if not all(isinstance(shape, tuple) for shape in shapes) or None in shapes[0][1:]:
            raise ModelError(
                f"The model must have one input of a fixed shape and one output. Received {shapes}."
            )
        if len(shapes[1]) != 2:
            raise ModelError(
                f"The model must give one number per class. Received an output of shape {shapes[1]}."
            )

    def weights(self) -> list[Array]:
        """The model's present weights, in Keras's order (`model.weights`)."""
        return [variable.numpy() for variable in self._model.weights]

    def save(self, weights: Sequence[Array], path: Path) -> None:
        """Save it with these weights, in Keras's order, as a .keras file."""
        self._set_weights(weights)
        self._model.save(path)

    def train(
        self,
        weights: Sequence[Array],
        examples: Examples,
        validation: Examples | None,
        settings: TrainingSettings,
        *,
        seed: int,
        stop: threading.Event,
        report: Report,
        each_step: Callable[[], None] = lambda: None,
    ) -> TrainingResult:
        """Train on a worker's own examples, starting from the given weights.

        Args:
            weights: In Keras's order.
            examples: x of shape (n, *input_shape), y of shape (n,) with class numbers.
            validation: Measured after each epoch; None measures nothing.
            settings: As the coordinator decided.
            seed: Of shuffling and random layers; derived from run seed, round and worker.
            stop: Looked at before each batch.
            report: Called at most about twice a second, and at the end of each epoch.
            each_step: Called before each batch: what came before it has ended.

        Raises:
            ModelError: The weights don't fit, the outputs are no longer numbers, the model's learning rate is
                a schedule and another is asked for, or the settings name a term that isn't known here.
            DataError: The examples don't fit the model.
        """
        started = time.perf_counter()
        self._check_examples(examples)
        self._set_weights(weights)
        self._fresh_start.begin(
            seed=seed,
            learning_rate=settings.learning_rate,
            steps_before=settings.epochs_before * -(-len(examples.y) // settings.batch_size),
        )
        run = self._gradient_steps.begin(settings.terms)
        finished, kept = True, Kept()
        found: dict[str, float] = {}
        for number, shuffled in enumerate(self._shuffled(examples, settings, seed), start=1):
            epoch = _Epoch(
                number=number,
                of=settings.epochs,
                batches=shuffled.num_batches,
                stop=stop,
                report=report,
                each_step=each_step,
            )
            finished, metrics = self._run_epoch(run, self._pipelines.batches(shuffled), epoch)
            if not finished:
                break
            kept = kept_by(self._model, metrics)
            found = self._validated(validation, epoch)
            finished = not stop.is_set()
            if not finished:
                break
            report(epoch.progress(epoch.batches, metrics | {f"val_{name}": found[name] for name in found}))
        self._model.optimizer.finalize_variable_values(self._model.trainable_weights)
        return TrainingResult(
            weights=self.weights(),
            num_examples=len(examples.y),
            metrics=kept.metrics,
            states=kept.states,
            validation=found,
            seconds=time.perf_counter() - started,
            finished=finished,
        )

    def _shuffled(
        self, examples: Examples, settings: TrainingSettings, seed: int
    ) -> Iterator[ShuffledExamples]:
        """The examples in each epoch's order."""
        labels = self._encode(examples.y)
        weights = example_weights(examples.y, settings.class_weight)
        orders = np.random.default_rng([seed, 1])
        for _ in range(settings.epochs):
            yield ShuffledExamples(
                x=examples.x,
                y=labels,
                weights=weights,
                order=orders.permutation(len(examples.y)),
                batch_size=settings.batch_size,
            )

    def _validated(self, validation: Examples | None, epoch: "_Epoch") -> dict[str, float]:
        """What the weights reach after an epoch; nothing when told to stop meanwhile.

        Raises:
            ModelError: Its outputs are no longer numbers.
        """
        if validation is None or not len(validation.y):
            return {}
        try:
            measured = self._measure(validation, epoch.stop, epoch.each_step)
        except ModelError as exc:
            raise ModelError(f"Training has diverged. {exc} Try a lower --learning-rate.") from exc
        return measured.figures if measured else {}

    def evaluate(
        self,
        weights: Sequence[Array],
        examples: Examples,
        *,
        stop: threading.Event | None = None,
        each_step: Callable[[], None] = lambda: None,
    ) -> TestResult | None:
        """Measure weights on examples.

        Args:
            weights: In Keras's order.
            examples: x of shape (n, *input_shape), y of shape (n,) with class numbers.
            stop: Looked at before each batch.
            each_step: Called before each batch.

        Returns:
            What was found; None when `stop` was set before the end.

        Raises:
            ModelError: The weights don't fit, or the outputs are no numbers.
            DataError: The examples don't fit the model.
        """
        self._check_examples(examples)
        self._set_weights(weights)
        return self._measure(examples, stop or threading.Event(), each_step)

    def _check_examples(self, examples: Examples) -> None:
        shape, labels = tuple(examples.x.shape[1:]), examples.y
        if shape != self.input_shape or len(examples.x) != len(labels):
            raise DataError(
                f"The examples don't fit the model. Expected {self.input_shape} each, received "
                f"{len(examples.x)} of {shape} with {len(labels)} labels."
            )
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= self.num_classes:
            received = "no examples" if len(labels) == 0 else f"{labels.min()} to {labels.max()}"
            raise DataError(f"Expected labels from 0 to {self.num_classes - 1}. Received {received}.")

    def _set_weights(self, weights: Sequence[Array]) -> None:
        shapes = [tuple(variable.shape) for variable in self._model.weights]
        received = [tuple(weight.shape) for weight in weights]
        if shapes != received:
            raise ModelError(f"The weights don't fit the model. Expected {shapes}, received {received}.")
        for variable, weight in zip(self._model.weights, weights, strict=True):
            variable.assign(weight)
        renew_adapted(self._model)

    def _run_epoch(self, run: Steps, batches: Any, epoch: "_Epoch") -> tuple[bool, dict[str, float]]:
        """Train on every batch, or until told to stop; returns whether it got to the end, and the metrics."""
        self._model.reset_metrics()
        logs: dict[str, Any] = {}
        iterator, pace = iter(batches), Pace(self._model.steps_per_execution)
        done, last_report = 0, time.monotonic()
        while done < epoch.batches:
            if epoch.stop.is_set():
                return False, _plain(logs)
            epoch.each_step()
            with pace.kept():
                count = min(pace.steps, epoch.batches - done)
                logs = run(iterator, count)
            done += count
            if time.monotonic() - last_report >= REPORT_SECONDS:
                last_report = time.monotonic()
                epoch.report(epoch.progress(done, _plain(logs)))
        return True, _plain(logs)

    def _measure(
        self, examples: Examples, stop: threading.Event, each_step: Callable[[], None]
    ) -> TestResult | None:
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

    def _encode(self, y: NDArray[np.int64]) -> Array:
        return encode_labels(self._model.loss, y, self._num_outputs)

    def _test_batch(self, x: Array, y: NDArray[np.int64]) -> tuple[float, NDArray[np.float32]]:
        loss, outputs = self._test(np.asarray(x, np.float32), self._encode(y))
        return float(loss), outputs.numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Epoch:
    """One epoch of a training, and who is told of it."""

    number: int
    of: int
    batches: int
    stop: threading.Event
    report: Report
    each_step: Callable[[], None]

    def progress(self, batch: int, metrics: dict[str, float]) -> TrainingProgress:
        return TrainingProgress(
            epoch=self.number,
            epochs=self.of,
            batch=batch,
            batches=self.batches,
            metrics=dict(metrics),
        )


def _test_function(model: Any) -> Any:
    """A traced function (x, y) -> (mean loss, outputs); it leaves the compiled metrics alone."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def test(x: Any, y: Any) -> tuple[Any, Any]:
        outputs = model(tf.cast(x, model.inputs[0].dtype), training=False)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=None, training=False)
        return loss, tf.cast(outputs, tf.float32)

    return test


def _plain(logs: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items()}


def _cut(values: Array) -> Iterator[Array]:
    for start in range(0, len(values), EVALUATION_BATCH):
        yield values[start : start + EVALUATION_BATCH]
