"""Local training and evaluation of one model: built once, used for every round, every call like the first."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.errors import ModelError
from broker.model.kinds import apply_kinds, layout_of, renew_adapted
from broker.model.needs import needs_of
from broker.model.trust import NOTHING, Trusted
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Array, Layout
from worker.data.data_set import Examples
from worker.learning.fresh_start import FreshStart, be_deterministic
from worker.learning.gradient_step import GradientSteps, Steps
from worker.learning.results import Report, TestResult, TrainingProgress, TrainingResult
from worker.learning.ways.classes import OfClasses
from worker.learning.ways.compiled_metrics import Kept
from worker.learning.ways.general import OfAnything
from worker.learning.ways.pace import Pace
from worker.learning.ways.way import Way
from worker.learning.wire_model import build_model
from worker.tables.fitted import Rows

REPORT_SECONDS = 0.5


class LocalModel:
    """One compiled model that a worker trains and evaluates, round after round.

    Building, compiling and tracing happen once. Each call of `train` starts from the given weights with a
    fresh optimizer, fresh metrics and newly seeded random layers: its result depends on its arguments alone.
    A learning rate's schedule goes on from the step that the settings tell.

    Attributes:
        layout: Of its weights, in Keras's order.
        needs: What it needs of data.
        is_general: It is trained on `Rows`, and not as a classifier of `Examples`.
    """

    def __init__(
        self,
        model_json: str,
        layout: Layout | None = None,
        *,
        deterministic: bool = False,
        is_general: bool = False,
        trusted: Trusted = NOTHING,
    ) -> None:
        """Build the model.

        Args:
            model_json: Keras's JSON, compile settings inside.
            layout: What of it is trained, weight by weight; None leaves that to the JSON.
            deterministic: Same arguments, same bits, in any process. Stays switched on for the whole process.
            is_general: Train it on whatever it needs, though it may be one that can tell classes apart.
            trusted: Registered names of parts of one's own that it may hold.

        Raises:
            ModelError: It can't be built, or is not allowed.
        """
        if deterministic:
            be_deterministic(0)
        self._model = build_model(model_json, trusted)
        self.needs = needs_of(self._model)
        if layout is not None and apply_kinds(self._model, layout):
            self._model.compile_from_config(self._model.get_compile_config())
        self.layout = layout_of(self._model) if layout is None else layout
        self.is_general = is_general or not self.needs.num_classes
        self._way: Way[Any] = (
            OfAnything(self._model, self.needs) if self.is_general else OfClasses(self._model)
        )
        self._fresh_start = FreshStart(self._model)
        self._gradient_steps = GradientSteps(self._model, self._way.unpack)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example of a classifier, (height, width, channels) for images."""
        return tuple(self._model.input_shape[1:])

    @property
    def num_classes(self) -> int:
        """How many classes its output tells apart; 2 for a single sigmoid."""
        return self.needs.num_classes

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
        examples: Examples | Rows,
        validation: Examples | Rows | None,
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
            examples: Of a classifier x of shape (n, *input_shape), y of shape (n,) with class numbers; else rows.
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
        num_examples = self._way.check(examples)
        self._set_weights(weights)
        self._fresh_start.begin(
            seed=seed,
            learning_rate=settings.learning_rate,
            steps_before=settings.epochs_before * self._way.num_batches(examples, settings.batch_size),
        )
        run = self._gradient_steps.begin(settings.terms)
        finished, kept = True, Kept()
        found: dict[str, float] = {}
        for number, given in enumerate(self._way.epochs(examples, settings, seed), start=1):
            epoch = _Epoch(
                number=number,
                of=settings.epochs,
                batches=given.number,
                stop=stop,
                report=report,
                each_step=each_step,
            )
            finished, metrics = self._run_epoch(run, given.batches, epoch)
            if not finished:
                break
            kept = self._way.kept(metrics)
            found = self._validated(validation, epoch)
            finished = not stop.is_set()
            if not finished:
                break
            report(epoch.progress(epoch.batches, metrics | {f"val_{name}": found[name] for name in found}))
        self._model.optimizer.finalize_variable_values(self._model.trainable_weights)
        return TrainingResult(
            weights=self.weights(),
            num_examples=num_examples,
            metrics=kept.metrics,
            states=kept.states,
            validation=found,
            seconds=time.perf_counter() - started,
            finished=finished,
        )

    def _validated(self, validation: Examples | Rows | None, epoch: "_Epoch") -> dict[str, float]:
        """What the weights reach after an epoch; nothing when told to stop meanwhile.

        Raises:
            ModelError: Its outputs are no longer numbers.
        """
        if validation is None or not len(validation):
            return {}
        try:
            measured = self._way.measure(validation, epoch.stop, epoch.each_step)
        except ModelError as exc:
            raise ModelError(f"Training has diverged. {exc} Try a lower --learning-rate.") from exc
        return measured.figures if measured else {}

    def evaluate(
        self,
        weights: Sequence[Array],
        examples: Examples | Rows,
        *,
        stop: threading.Event | None = None,
        each_step: Callable[[], None] = lambda: None,
    ) -> TestResult | None:
        """Measure weights on examples.

        Args:
            weights: In Keras's order.
            examples: Of a classifier x of shape (n, *input_shape), y of shape (n,) with class numbers; else rows.
            stop: Looked at before each batch.
            each_step: Called before each batch.

        Returns:
            What was found; None when `stop` was set before the end.

        Raises:
            ModelError: The weights don't fit, or the outputs are no numbers.
            DataError: The examples don't fit the model.
        """
        self._way.check(examples)
        self._set_weights(weights)
        return self._way.measure(examples, stop or threading.Event(), each_step)

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


def _plain(logs: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items()}
