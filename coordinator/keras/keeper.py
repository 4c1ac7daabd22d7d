"""Models kept from round to round in the process that has Keras: saved, tried, and asked for their metrics."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from broker.disk import sync
from broker.errors import ModelError
from broker.model.arrays import is_arrays
from broker.model.card import ModelCard, write_card
from broker.model.kinds import apply_kinds
from broker.wire.tensors import Array, unflatten
from coordinator.keras.arrays import write_arrays
from coordinator.keras.building import from_json, one_line, set_weights
from coordinator.keras.curves import draw_curves
from coordinator.keras.trial import made_up_examples, unanswered, unanswered_in_general, work_out

if TYPE_CHECKING:
    from coordinator.folder.checkpoint import Checkpoint

Request = dict[str, Any]


class Keeper:
    """Keeps the built model, for only its weights change from round to round."""

    def __init__(self) -> None:
        self._text = ""
        self._model: Any = None

    def save(self, request: Request) -> dict[str, Any]:
        """Write a model with its card, and curves.png beside the newest, each aside and then in place."""
        from coordinator.folder.checkpoint import read_checkpoint

        checkpoint = read_checkpoint(Path(request["checkpoint"]))
        path, card = Path(request["model"]), ModelCard.from_json(request["card"])
        if is_arrays(checkpoint.model_json):
            _put_in_place(
                lambda aside: write_arrays(aside, checkpoint.model_json, _weights(checkpoint), card), path
            )
        else:
            model = self.with_weights(checkpoint)
            _put_in_place(lambda aside: _write_keras(aside, model, card), path)
        if request["is_held"]:
            Path(request["checkpoint"]).unlink(missing_ok=True)
            return {}
        draw_curves([row.flat for row in checkpoint.history], path.with_name("curves.png"))
        return {}

    def check(self, request: Request) -> dict[str, Any]:
        """Try a checkpoint's model on made-up examples."""
        from coordinator.folder.checkpoint import CHECKPOINT_FILE, read_checkpoint

        path = Path(request["checkpoint"])
        committed = path.with_name(CHECKPOINT_FILE)
        former = partial(read_checkpoint, committed) if committed.exists() else None
        return {"reason": self.reason_against(read_checkpoint(path), former, request["inputs"])}

    def reason_against(
        self,
        candidate: "Checkpoint",
        former: "Callable[[], Checkpoint] | None",
        inputs: Mapping[str, Any] | None,
    ) -> str | None:
        """Why a model must not be committed; what the committed one can't answer either says nothing.

        Args:
            candidate: Its state.
            former: Gives the committed state, if there is one.
            inputs: What the workers' examples are like, as `InputFacts` by field.
        """
        wrong = self._unanswered(candidate, inputs)
        if wrong.any() and former is not None:
            wrong &= ~self._unanswered(former(), inputs)
        reason = f"its model answers NaN or infinity to {wrong.sum()} of {len(wrong)} examples"
        return reason if wrong.any() else None

    def _unanswered(self, state: "Checkpoint", inputs: Mapping[str, Any] | None) -> NDArray[np.bool_]:
        model = self.with_weights(state)
        if state.is_general and state.needs is not None:
            return unanswered_in_general(model, state.needs)
        return unanswered(model, made_up_examples(state.input_shape, inputs))

    def work_out(self, request: Request) -> dict[str, Any]:
        """The results of compiled metrics from the sums that they keep."""
        return {"metrics": self.results_of(request["model_json"], request["states"])}

    def results_of(self, model_json: str, states: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """The results of a model's compiled metrics; see `trial.work_out`."""
        return work_out(self._built(model_json), states)

    def with_weights(self, checkpoint: "Checkpoint") -> Any:
        """The model of a committed state, compiled; the same object every time, for only its weights change."""
        model = self._built(checkpoint.model_json)
        apply_kinds(model, checkpoint.layout)
        set_weights(model, _weights(checkpoint))
        return model

    def _built(self, text: str) -> Any:
        if text != self._text:
            self._model, self._text = from_json(text), text
        return self._model


def _weights(checkpoint: "Checkpoint") -> list[Array]:
    return unflatten(checkpoint.layout, checkpoint.vector, checkpoint.integers)


def _write_keras(path: Path, model: Any, card: ModelCard) -> None:
    model.save(path)
    write_card(path, card)


def _put_in_place(write: Callable[[Path], None], path: Path) -> None:
    """Save aside, fsync, rename: whoever opens the file finds a whole model, whenever the power goes."""
    aside = path.with_name(f".aside-{path.name}")  # Keras and numpy want the suffix as it is
    try:
        write(aside)
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except OSError as exc:
        raise ModelError(f"Can't save {path}: {one_line(exc)}") from exc
