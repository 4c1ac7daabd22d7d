"""Local training and evaluation of one model: built once, used for every round, every call like the first."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import DataError, ModelError
from broker.model.head import head_of
from broker.model.kinds import apply_kinds, layout_of
from broker.model.loss import encode_labels
from broker.wire.scores import AnswerCounts, count_answers
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Array, Layout
from worker.data.data_set import Examples
from worker.learning.compiled_metrics import Kept, kept_by, measure_compiled
from worker.learning.evaluation import score
from worker.learning.gradient_step import GradientSteps, Steps
from worker.learning.wire_model import build_model
from worker.tensorflow import load_keras

EVALUATION_BATCH = 64
REPORT_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        epoch: From 1.
        batch: Batches of this epoch that are done.
        metrics: So far in this epoch, by their own names; with val_ ones once the epoch is done.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """What one call of `LocalModel.evaluate` found.

    Attributes:
        metrics: The loss, and every compiled metric by its own name.
        states: Of the compiled metrics that are no means over examples, the sums that they keep.
        counts: Of the answers.
        answers: accuracy, balanced_accuracy (mean recall of the classes present), and with two classes auc.
    """

    metrics: dict[str, float]
    states: dict[str, Array]
    counts: AnswerCounts
    answers: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """All there is to say; a compiled metric keeps its name, even where ours has the same."""
        return self.metrics | {name: self.answers[name] for name in self.answers if name not in self.metrics}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What one call of `LocalModel.train` gave.

    Attributes:
        weights: In Keras's order.
        num_examples: Examples trained on: the weight of this result in a mean.
        metrics: The loss and every compiled metric of the last epoch, by their own names.
        states: Of those that are no means over examples, the sums that they keep.
        validation: What the trained weights reach on the validation examples.
        finished: False when it was told to stop before the last batch.
    """

    weights: list[Array]
    num_examples: int
    metrics: dict[str, float]
    states: dict[str, Array]
    validation: dict[str, float]
    seconds: float
    finished: bool


Report = Callable[[TrainingProgress], None]


def be_deterministic(seed: int) -> None:
    """Make TensorFlow give the same bits for the same seed, in this whole process; call it first."""
    keras = load_keras()
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


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
        self.layout = layout_of(self._model)
        self._schedule_start = _continue_schedule(self._model.optimizer)
        self.input_shape: tuple[int, ...] = tuple(self._model.input_shape[1:])
        self._outputs = int(self._model.output_shape[-1])
        self.num_classes = max(self._outputs, 2)
        self._head = head_of(self._model)
        self._first_state = _FirstState(self._model.optimizer)
        self._seeds = _seed_states(self._model)
        self._reading: _Reading
        self._pipelines: dict[tuple[int, np.dtype[Any]], Any] = {}
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

        Raises:
            ModelError: The weights don't fit, the answers are no longer numbers, the model's learning rate is
                a schedule and another is asked for, or the settings name a term that isn't known here.
            DataError: The examples don't fit the model.
        """
        started = time.perf_counter()
        self._check_examples(examples)
        self._start_over(weights, settings, len(examples.y), seed)
        run = self._gradient_steps.begin(settings.terms)
        example_weights = _example_weights(examples.y, settings.class_weight)
        labels = self._encode(examples.y)
        orders = np.random.default_rng([seed, 1])
        finished, kept = True, Kept()
        found: dict[str, float] = {}
        for epoch in range(1, settings.epochs + 1):
            order = orders.permutation(len(examples.y))
            steps = _Steps(epoch=epoch, settings=settings, num_examples=len(order), stop=stop, report=report)
            reading = _Reading(examples.x, labels, example_weights, order, settings.batch_size)
            finished, metrics = self._run_epoch(run, self._batches(reading, steps.batches), steps)
            if not finished:
                break
            kept = kept_by(self._model, metrics)
            found = self._validated(validation)
            report(steps.progress(steps.batches, metrics | {f"val_{name}": found[name] for name in found}))
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

    def _validated(self, validation: Examples | None) -> dict[str, float]:
        """What the weights reach after an epoch.

        Raises:
            ModelError: The model no longer answers with numbers.
        """
        if validation is None or not len(validation.y):
            return {}
        try:
            return self._measure(validation).figures
        except ModelError as exc:
            raise ModelError(f"Training has diverged. {exc} Try a lower --learning-rate.") from exc

    def evaluate(self, weights: Sequence[Array], examples: Examples) -> TestResult:
        """Measure weights on examples.

        Raises:
            ModelError: The weights don't fit, or the answers are no numbers.
            DataError: The examples don't fit the model.
        """
        self._check_examples(examples)
        self._set_weights(weights)
        return self._measure(examples)

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

    def _start_over(
        self, weights: Sequence[Array], settings: TrainingSettings, num_examples: int, seed: int
    ) -> None:
        """Forget what earlier calls left behind; in place, for a new object would have to be traced again."""
        self._set_weights(weights)
        self._first_state.restore()
        self._model.reset_metrics()
        for number, state in enumerate(self._seeds):
            word = np.random.SeedSequence([seed, 2, number]).generate_state(1)[0]
            state.assign(np.array([word, 0], np.uint32))
        if settings.learning_rate is not None:
            self._set_learning_rate(settings.learning_rate)
        if self._schedule_start is not None:
            self._schedule_start.assign(settings.epochs_before * -(-num_examples // settings.batch_size))

    def _set_learning_rate(self, learning_rate: float) -> None:
        try:
            self._model.optimizer.learning_rate = learning_rate
        except TypeError as exc:
            raise ModelError(
                f"The model's learning rate is a schedule, so it can't be set to {learning_rate}. "
                "Try without --learning-rate."
            ) from exc

    def _run_epoch(self, run: Steps, batches: Any, steps: "_Steps") -> tuple[bool, dict[str, float]]:
        """Train on every batch, or until told to stop; returns whether it got to the end, and the metrics."""
        self._model.reset_metrics()
        logs: dict[str, Any] = {}
        iterator, last_report = iter(batches), time.monotonic()
        stride = self._model.steps_per_execution
        for batch in range(0, steps.batches, stride):
            if steps.stop.is_set():
                return False, _plain(logs)
            logs = run(iterator, min(stride, steps.batches - batch))
            if time.monotonic() - last_report >= REPORT_SECONDS:
                last_report = time.monotonic()
                steps.report(steps.progress(min(batch + stride, steps.batches), _plain(logs)))
        return True, _plain(logs)

    def _batches(self, reading: "_Reading", steps: int) -> Any:
        """One epoch's batches (x, y, weight); the next ones are prepared meanwhile.

        The pipeline is traced once for each number of steps: a new one in every epoch costs time, and memory that
        TensorFlow keeps.
        """
        self._reading = reading
        key = steps, reading.x.dtype
        if key not in self._pipelines:
            self._pipelines[key] = self._pipeline(
                steps, reading.x.dtype, reading.y.dtype, reading.y.shape[1:]
            )
        return self._pipelines[key]

    def _pipeline(
        self, steps: int, x_dtype: np.dtype[Any], y_dtype: np.dtype[Any], y_shape: tuple[int, ...]
    ) -> Any:
        import tensorflow as tf

        input_dtype = self._model.inputs[0].dtype

        # The arrays stay numpy's: TensorFlow would copy all of them, every round.
        def take(step: Any) -> tuple[Array, Array, Array]:
            return self._reading.batch(int(step))

        def load(step: Any) -> tuple[Any, Any, Any]:
            inputs, labels, weights = tf.numpy_function(take, [step], [x_dtype, y_dtype, tf.float32])
            inputs.set_shape((None, *self.input_shape))
            labels.set_shape((None, *y_shape))
            weights.set_shape((None,))
            return tf.cast(inputs, input_dtype), labels, weights

        options = tf.data.Options()
        # Its thread sleeps for longer and longer, up to a minute, and the end of an epoch waits until it wakes up.
        options.autotune.enabled = False
        return tf.data.Dataset.range(steps).map(load).prefetch(2).with_options(options)

    def _measure(self, examples: Examples) -> TestResult:
        outputs, loss = [], 0.0
        for x, y in zip(_cut(examples.x), _cut(examples.y), strict=True):
            batch_loss, batch_outputs = self._test_batch(x, y)
            outputs.append(batch_outputs)
            loss += batch_loss * len(y)
        given = np.concatenate(outputs)
        probabilities = self._head.probabilities(given)
        found = score(probabilities, examples.y, loss / len(examples.y))
        compiled = measure_compiled(self._model, self._encode(examples.y), given)
        answers = {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy}
        return TestResult(
            metrics={"loss": found.loss} | compiled.metrics,
            states=compiled.states,
            counts=count_answers(probabilities, examples.y),
            answers=answers if found.auc is None else answers | {"auc": found.auc},
        )

    def _encode(self, y: NDArray[np.int64]) -> Array:
        return encode_labels(self._model.loss, y, self._outputs)

    def _test_batch(self, x: Array, y: NDArray[np.int64]) -> tuple[float, NDArray[np.float32]]:
        loss, outputs = self._test(np.asarray(x, np.float32), self._encode(y))
        return float(loss), outputs.numpy()


@dataclass(frozen=True, slots=True)
class _Reading:
    """The examples of one epoch, in its order."""

    x: Array
    y: Array
    weights: NDArray[np.float32]
    order: NDArray[np.int64]
    batch_size: int

    def batch(self, step: int) -> tuple[Array, Array, Array]:
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        return self.x[rows], self.y[rows], self.weights[rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """One epoch's place in a training."""

    epoch: int
    settings: TrainingSettings
    num_examples: int
    stop: threading.Event
    report: Report

    @property
    def batches(self) -> int:
        return -(-self.num_examples // self.settings.batch_size)

    def progress(self, batch: int, metrics: dict[str, float]) -> TrainingProgress:
        return TrainingProgress(
            epoch=self.epoch,
            epochs=self.settings.epochs,
            batch=batch,
            batches=self.batches,
            metrics=dict(metrics),
        )


class _FirstState:
    """An optimizer's variables as they were before the first step; a constant one is kept as one number."""

    def __init__(self, optimizer: Any) -> None:
        self._variables = list(optimizer.variables)
        self._values = [_compact(variable.numpy()) for variable in self._variables]

    def restore(self) -> None:
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)


def _compact(value: Array) -> Array:
    is_constant = value.size > 1 and bool((value == value.flat[0]).all())
    return np.broadcast_to(np.array(value.flat[0]), value.shape) if is_constant else value


def _continue_schedule(optimizer: Any) -> Any:
    """Have a learning rate's schedule count from a variable on, which is returned; None where there is none.

    The optimizer counts its own steps from 0 in every round, and with Adam must: its moments begin anew, too.
    """
    kind: Any = load_keras().optimizers.schedules.LearningRateSchedule
    import tensorflow as tf

    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # mixed precision wraps it
    schedule = optimizer._learning_rate  # the public name gives the rate at the present step
    if not isinstance(schedule, kind):
        return None
    start = tf.Variable(0, dtype=tf.int64, trainable=False)

    class Continued(kind):  # type: ignore[misc]
        """The schedule, further on."""

        def __call__(self, step: Any) -> Any:
            return schedule(tf.cast(step, tf.int64) + start)

        def get_config(self) -> dict[str, Any]:
            return dict(schedule.get_config())

    optimizer.learning_rate = Continued()
    return start


def _seed_states(model: Any) -> list[Any]:
    """The states of all random layers, nested ones too: variables that Keras counts as no weight."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


def _test_function(model: Any) -> Any:
    """A traced function (x, y) -> (mean loss, outputs); it leaves the compiled metrics alone."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def test(x: Any, y: Any) -> tuple[Any, Any]:
        outputs = model(tf.cast(x, model.inputs[0].dtype), training=False)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=None, training=False)
        return loss, tf.cast(outputs, tf.float32)

    return test


def _example_weights(y: NDArray[np.int64], class_weight: str) -> NDArray[np.float32]:
    """Per example: 1, or for "balanced" n / (k · n_c), with k the classes that occur; the mean stays 1."""
    if class_weight == "none":
        return np.ones(len(y), np.float32)
    counts = np.bincount(y)
    return (len(y) / (np.count_nonzero(counts) * counts[y])).astype(np.float32)


def _plain(logs: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items()}


def _cut(values: Array) -> Iterator[Array]:
    for start in range(0, len(values), EVALUATION_BATCH):
        yield values[start : start + EVALUATION_BATCH]
