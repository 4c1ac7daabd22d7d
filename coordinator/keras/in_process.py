"""What the child process does with Keras, done in this one: for a simulation, which has TensorFlow in it anyway."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from broker.model.card import ModelCard
from broker.wire.fields import to_plain
from broker.wire.tensors import Array, InputFacts
from coordinator.folder.checkpoint import CHECKPOINT_FILE, Checkpoint
from coordinator.keras import building
from coordinator.keras.keeper import Keeper
from coordinator.keras.process import BuiltModel, built_model, normalization_in
from coordinator.tasks import Task


class InProcessModels:
    """The same as `ModelProcess`, without a process and without files; it saves nothing.

    Args:
        state_at: Gives the state that stands at a path.
        make: Gives the compiled model, or named arrays; None calls the task's function, or opens its file.
    """

    def __init__(self, state_at: Callable[[Path], Checkpoint], make: Callable[[], Any] | None = None) -> None:
        self._state_at = state_at
        self._make = make
        self._keeper = Keeper()

    def build(
        self,
        task: Task,
        *,
        seed: int,
        initial_model: Path | None = None,
        normalize: Path | None = None,
        private: Sequence[str] = (),
    ) -> BuiltModel:
        """Build a task's model and its initial weights.

        Raises:
            UsageError: There is no such module, function or file.
            ModelError: The model isn't compiled, isn't one that workers run, or its code raised.
        """
        if self._make is not None:
            given = building.given_by_function(task.name, self._make, seed)
        else:
            given = building.given_by(task.kind, task.source, seed)
        start = None if initial_model is None else str(initial_model)
        normalization = None if normalize is None else normalization_in(normalize)
        answer, weights = building.describe(given, start, normalization, private)
        return built_model(answer, weights)

    def check(self, candidate: Path, inputs: InputFacts | None) -> str | None:
        """Why a state must not be committed, or None."""
        committed = candidate.with_name(CHECKPOINT_FILE)
        facts = None if inputs is None else to_plain(inputs)
        return self._keeper.reason_against(
            self._state_at(candidate), lambda: self._state_at(committed), facts
        )

    def work_out(self, model_json: str, sums: Mapping[str, Array]) -> dict[str, float]:
        """The results of compiled metrics from the sums that they keep."""
        states = {name: [float(value) for value in state] for name, state in sums.items()}
        return self._keeper.results_of(model_json, states)

    def save(
        self, _checkpoint_path: Path, _model_path: Path, _card: ModelCard, *, is_held: bool = False
    ) -> None:
        """Nothing is saved."""

    def draw_workers(self, _checkpoint_path: Path, _picture_path: Path) -> None:
        """Nothing is drawn."""

    def flush(self, _timeout_seconds: float) -> bool:
        """Nothing is to be waited for."""
        return True
