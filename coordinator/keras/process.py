"""The coordinator's way to Keras: one child process builds and saves the model, so this one stays small."""

import logging
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from broker.errors import CheckpointError, DataError, ModelError, ProtocolError, UsageError, WarrenError
from broker.model.card import ModelCard
from broker.wire.fields import from_plain, to_plain
from broker.wire.settings import Needs
from broker.wire.tensors import Array, InputFacts, Layout, TensorSpec, Vector, flatten
from coordinator.folder.statistics_file import read_statistics
from coordinator.keras.form import has_schedule
from coordinator.keras.pipes import CLOSE_SECONDS, Child
from coordinator.tasks import Task

log = logging.getLogger(__name__)

_ERRORS: dict[str, type[WarrenError]] = {
    kind.__name__: kind for kind in (ModelError, UsageError, DataError, CheckpointError, ProtocolError)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A task's model, ready to be sent.

    Attributes:
        model_json: Keras's JSON, compile settings inside; of a task of arrays their names.
        layout: Its weights, in Keras's order.
        vector: The initial float weights, shape (P,), in the order of `Sections`.
        integers: The initial integer weights.
        input_shape: Of one example; of a task of arrays nobody knows it, nor how many classes there are: 0.
        inputs: What a model to start from was trained on, if it says so.
        needs: What it needs of a site's data.
        parts: Registered names of what it holds beside Keras's own parts.
    """

    model_json: str
    layout: Layout
    vector: Vector
    integers: list[Array]
    input_shape: tuple[int, ...]
    num_classes: int
    num_parameters: int
    inputs: InputFacts | None = None
    needs: Needs | None = None
    parts: tuple[str, ...] = ()

    @property
    def has_schedule(self) -> bool:
        """Whether its learning rate is a schedule, which no other rate can replace."""
        return has_schedule(self.model_json)


def built_model(answer: Mapping[str, Any], weights: list[Array]) -> BuiltModel:
    """A task's model from what its builder said of it; tells what is hardly meant.

    Args:
        answer: See `coordinator.keras.building.describe`.
        weights: The initial ones, in Keras's order.
    """
    needs = from_plain(Needs, answer["needs"], "needs") if answer["needs"] else None
    layout = tuple(from_plain(TensorSpec, each, "layout") for each in answer["layout"])
    for warning in answer["warnings"]:
        log.warning("%s", warning)
    vector, integers = flatten(weights, layout)
    return BuiltModel(
        model_json=answer["model_json"],
        layout=layout,
        vector=vector,
        integers=integers,
        input_shape=tuple(answer["input_shape"]),
        num_classes=needs.num_classes if needs else 0,
        num_parameters=answer["num_parameters"],
        inputs=from_plain(InputFacts, answer["inputs"], "inputs") if answer["inputs"] else None,
        needs=needs,
        parts=tuple(answer["parts"]),
    )


class Models(Protocol):
    """What a run asks of Keras; `ModelProcess` says what each does."""

    def build(
        self,
        task: Task,
        *,
        seed: int,
        initial_model: Path | None = None,
        normalize: Path | None = None,
        private: Sequence[str] = (),
    ) -> BuiltModel:
        """Build a task's model and its initial weights."""

    def check(self, candidate: Path, inputs: InputFacts | None) -> str | None:
        """Why a checkpoint must not be committed, or None."""

    def work_out(self, model_json: str, sums: Mapping[str, Array]) -> dict[str, float]:
        """The results of compiled metrics from the sums that they keep."""

    def save(
        self, checkpoint_path: Path, model_path: Path, card: ModelCard, *, is_held: bool = False
    ) -> None:
        """Have a checkpoint saved as a model."""

    def draw_workers(self, checkpoint_path: Path, picture_path: Path) -> None:
        """Have each worker's own curves drawn."""

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything asked for is saved; False if that took too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Later:
    """Something that nobody waits for.

    Attributes:
        path: The file that it writes.
        request: As the child takes it.
        held: A checkpoint that is kept for it alone.
    """

    path: Path
    request: dict[str, Any]
    held: Path | None = None

    def give_way_to(self, newer: "_Later") -> None:
        """A newer state is written in its stead."""
        if self.held is not None and self.held != newer.held:
            self.held.unlink(missing_ok=True)


class ModelProcess:
    """One child process with Keras in it; started at once, so that its slow import overlaps with connecting.

    `build` waits for its answer. `save` does not: a thread hands over the newest state of each file, and a state that
    was overtaken before its turn is dropped. What the run waits for is answered beside a save that is under way, and
    goes before all others. Should the child die, the next request starts another.

    Args:
        trusted_modules: What these register may occur in a model.
        is_warm: Import Keras at once, not at the first need: a task of arrays has none.
    """

    def __init__(self, trusted_modules: Sequence[str] = (), *, is_warm: bool = True) -> None:
        self._trusted_modules = tuple(trusted_modules)
        self._is_warm = is_warm
        self._child = Child(self._trusted_modules, is_warm=is_warm)
        self._starting = threading.Lock()  # guards the child itself
        self._talking = threading.Lock()  # one request at a time of those that are waited for
        self._changed = threading.Condition()  # guards the five below
        self._waiting: dict[Path, _Later] = {}  # by the file
        self._is_saving = False
        self._num_waited_for = 0  # requests whose answer the run waits for
        self._is_closed = False
        self._errors: dict[Path, WarrenError] = {}  # of the last save of each file
        self._saver = threading.Thread(target=self._save_newest, name="model-saver", daemon=True)
        self._saver.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def build(
        self,
        task: Task,
        *,
        seed: int,
        initial_model: Path | None = None,
        private: Sequence[str] = (),
        normalize: Path | None = None,
    ) -> BuiltModel:
        """Build a task's model and its initial weights.

        Args:
            task: From `coordinator.tasks.resolve`.
            seed: Of the initial weights.
            initial_model: A .keras file, or an .npz file of arrays, whose weights to start from.
            private: Patterns of weights that stay at the workers.
            normalize: What `coordinator statistics` has found, for the model's Normalization layer.

        Raises:
            UsageError: There is no such module, function or file.
            ModelError: The model isn't compiled, isn't one that workers run, or its code raised.
        """
        with tempfile.TemporaryDirectory(prefix="warren-") as folder:
            weights_path = Path(folder) / "weights.npz"
            answer = self._ask_first(
                {
                    "op": "build",
                    "kind": task.kind,
                    "source": task.source,
                    "seed": seed,
                    "initial_model": None if initial_model is None else str(initial_model.resolve()),
                    "normalization": None if normalize is None else normalization_in(normalize),
                    "weights_path": str(weights_path),
                    "private": list(private),
                }
            )
            weights = _read_weights(weights_path)
        return built_model(answer, weights)

    def check(self, candidate: Path, inputs: InputFacts | None) -> str | None:
        """Why a checkpoint must not be committed: its model answers NaN or infinity where it didn't before.

        Args:
            candidate: A checkpoint that is written and not yet in its place.
            inputs: What the workers' examples are like; the model is tried on made-up ones within their range.

        Returns:
            The reason, or None.

        Raises:
            ModelError: The process that would try it died.
        """
        facts = None if inputs is None else to_plain(inputs)
        answer = self._ask_first({"op": "check", "checkpoint": str(candidate.resolve()), "inputs": facts})
        reason: str | None = answer["reason"]
        return reason

    def work_out(self, model_json: str, sums: Mapping[str, Array]) -> dict[str, float]:
        """The results of compiled metrics from the sums that they keep, float64 of shape (k,) each, by name."""
        states = {name: [float(value) for value in state] for name, state in sums.items()}
        answer = self._ask_first({"op": "work-out", "model_json": model_json, "states": states})
        return {str(name): float(value) for name, value in answer["metrics"].items()}

    def save(
        self, checkpoint_path: Path, model_path: Path, card: ModelCard, *, is_held: bool = False
    ) -> None:
        """Have a checkpoint saved as a model, curves.png beside it; returns at once.

        Args:
            checkpoint_path: Read when its turn comes.
            model_path: Replaced whole, or not at all.
            card: What the model says about itself.
            is_held: The checkpoint is kept for this model alone: removed once that is saved; no curves are drawn.
        """
        request = {
            "op": "save",
            "checkpoint": str(checkpoint_path.resolve()),
            "model": str(model_path.resolve()),
            "card": card.to_json(),
            "is_held": is_held,
        }
        held = checkpoint_path.resolve() if is_held else None
        self._do_later(_Later(path=model_path.resolve(), request=request, held=held))

    def draw_workers(self, checkpoint_path: Path, picture_path: Path) -> None:
        """Have each worker's own curves drawn; returns at once.

        Args:
            checkpoint_path: Read when its turn comes.
            picture_path: Replaced whole, or not at all.
        """
        picture = picture_path.resolve()
        checkpoint = str(checkpoint_path.resolve())
        request = {"op": "draw-workers", "checkpoint": checkpoint, "picture": str(picture)}
        self._do_later(_Later(path=picture, request=request))

    def _do_later(self, wanted: _Later) -> None:
        with self._changed:
            former = self._waiting.get(wanted.path)
            self._waiting[wanted.path] = wanted
            self._changed.notify_all()
        if former is not None:
            former.give_way_to(wanted)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything asked for is saved.

        Returns:
            False if that took too long.

        Raises:
            WarrenError: The newest state could not be saved.
        """
        with self._changed:
            is_saved = self._changed.wait_for(lambda: not (self._waiting or self._is_saving), timeout_seconds)
            errors, self._errors = list(self._errors.values()), {}
        if errors:
            raise errors[0]
        return is_saved

    def close(self) -> None:
        """Let the save under way end, drop one that waits, and end the child. May be called twice.

        A build or a trial under way is of no use to anybody any more: it is not waited for.
        """
        with self._changed:
            self._waiting.clear()
            self._is_closed = True
            self._changed.notify_all()
        self._child.end_request(but="save")
        self._saver.join(CLOSE_SECONDS)
        self._child.close()

    def _ask_first(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask what the run waits for: no save that waits begins meanwhile."""
        with self._changed:
            self._num_waited_for += 1
        try:
            with self._talking:
                return self._ask(request)
        finally:
            with self._changed:
                self._num_waited_for -= 1
                self._changed.notify_all()

    def _save_newest(self) -> None:
        while (wanted := self._take()) is not None:
            error = self._try(wanted)
            with self._changed:
                self._is_saving = False
                self._errors.pop(wanted.path, None)
                if error is not None:
                    self._errors[wanted.path] = error
                self._changed.notify_all()

    def _take(self) -> _Later | None:
        with self._changed:
            self._changed.wait_for(
                lambda: (bool(self._waiting) and not self._num_waited_for) or self._is_closed
            )
            target = next(iter(self._waiting), None)
            self._is_saving = target is not None
            return self._waiting.pop(target) if target is not None else None

    def _try(self, wanted: _Later) -> WarrenError | None:
        try:
            self._ask(wanted.request)
        except WarrenError as exc:
            log.warning("%s not saved: %s", wanted.path.name, exc)
            return exc
        except Exception as exc:
            # A thread's exception would be lost, and flush would wait for ever.
            log.exception("%s not saved", wanted.path.name)
            return ModelError(f"{wanted.path.name} could not be saved: {exc}")
        return None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._starting:
            if not self._child.is_alive:
                self._child.close()
                self._child = Child(self._trusted_modules, is_warm=self._is_warm)
            child = self._child
        answer = child.ask(request)
        if "error" not in answer:
            return dict(answer["result"])
        if answer["error"] in _ERRORS:
            raise _ERRORS[answer["error"]](answer["text"])
        raise RuntimeError(f"The model process failed: {answer['text']}")


def normalization_in(path: Path) -> dict[str, list[float]]:
    """The means and variances that `coordinator statistics` has found, of the inputs.

    Raises:
        DataError: The file can't be read, or is of several inputs: no layer says which of them it normalises.
    """
    features = [each for each in read_statistics(path).features if each.role == "input"]
    if len({each.array for each in features}) != 1:
        raise DataError(f"{str(path)!r} is of several inputs, or none. --normalize takes statistics of one.")
    return {"means": [each.mean for each in features], "variances": [each.variance for each in features]}


def _read_weights(path: Path) -> list[Array]:
    with np.load(path, allow_pickle=False) as archive:
        return [archive[f"arr_{number}"] for number in range(len(archive.files))]
