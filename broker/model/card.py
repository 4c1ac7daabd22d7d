"""What a saved model says about itself, so that whoever opens it knows its classes and origin."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from broker.errors import ModelError, ProtocolError
from broker.model.archive import add_text, read_comment, read_text, set_comment
from broker.model.arrays import NPZ
from broker.wire.fields import from_plain, to_plain
from broker.wire.settings import Needs
from broker.wire.tensors import InputFacts

MEMBER = "warren.json"  #: the card's name inside model.keras, which is a zip file; Keras reads past it
_MAX_BYTES = 1 << 20
_NEWER = frozenset({"inputs", "needs"})  #: fields that the first version did not write


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The card of one saved model; written by the coordinator's child, read by the worker.

    Attributes:
        task: What was learned, as `coordinator run TASK` was given it.
        classes: Class names in the order of the model's outputs; none of a model of arrays.
        run_id: The training that made it.
        round_number: The last closed round, from 1; 0 before the first.
        saved_at: ISO 8601 time.
        num_examples: Training examples behind the last round.
        shape: What the model takes: (height, width, channels) for images.
        metrics: Of the last round, by name; a value that isn't finite is left out when written.
        training: The settings it was trained with: epochs, batch_size, learning_rate, learning_rate_decay,
            class_weight.
        inputs: What the examples that it was trained on are like; None in older models.
        needs: What it needs of data, where it is no classifier: `classes` and `shape` are empty then.
    """

    task: str
    classes: tuple[str, ...]
    run_id: str
    round_number: int
    saved_at: str
    num_examples: int
    shape: tuple[int, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, float | str | None] = field(default_factory=dict)
    inputs: InputFacts | None = None
    needs: Needs | None = None

    def __post_init__(self) -> None:
        """Check the types, for a card may come from any file.

        Raises:
            ModelError: A field has another type or an impossible value.
        """
        for name, is_right in (
            ("task", isinstance(self.task, str)),
            ("classes", _all_are(self.classes, str) and len(set(self.classes)) == len(self.classes) != 1),
            ("run_id", isinstance(self.run_id, str)),
            ("round_number", _is_count(self.round_number)),
            ("saved_at", isinstance(self.saved_at, str)),
            ("num_examples", _is_count(self.num_examples)),
            ("shape", _all_are(self.shape, int) and all(size > 0 for size in self.shape)),
            ("metrics", _are_metrics(self.metrics)),
            ("training", _are_settings(self.training)),
        ):
            if not is_right:
                raise ModelError(f"The model's card has a wrong {name!r}: {getattr(self, name)!r:.200}.")

    @property
    def _has_right_classes(self) -> bool:
        """Two or more, all different; none where it is no classifier."""
        return len(set(self.classes)) == len(self.classes) and (len(self.classes) > 1) == (self.needs is None)

    def to_json(self) -> str:
        """Write the card as one JSON object."""
        finite = {name: float(value) for name, value in self.metrics.items() if math.isfinite(value)}
        needs = {} if self.needs is None else {"needs": to_plain(self.needs)}
        plain = {name: value for name, value in asdict(self).items() if name != "needs"}
        return json.dumps({**plain, "metrics": finite, **needs}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card; every field must be there, but for those that an older model lacks, and no other.

        Raises:
            ModelError: It isn't JSON, a field is missing, extra, or of another type.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ModelError(f"The model's card is not JSON: {exc}.") from exc
        expected = {entry.name for entry in fields(cls)}
        if not isinstance(values, dict) or not expected - _NEWER <= set(values) <= expected:
            received = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ModelError(f"The model's card needs the fields {sorted(expected)}. Received {received}.")
        for name in ("classes", "shape"):
            if isinstance(values[name], list):
                values[name] = tuple(values[name])
        if values.get("inputs") is not None:
            values["inputs"] = _read(InputFacts, values["inputs"], "inputs")
        if values.get("needs") is not None:
            values["needs"] = _read(Needs, values["needs"], "needs")
        return cls(**values)


def _read(kind: type, value: object, name: str) -> Any:
    try:
        return from_plain(kind, value, name)
    except ProtocolError as exc:
        raise ModelError(f"The model's card is wrong: {exc}") from exc


def write_card(path: Path, card: ModelCard) -> None:
    """Add the card to a freshly saved model.keras, or as its comment to a model.npz.

    Raises:
        ModelError: The file isn't a Keras model, or has a card already.
    """
    if path.suffix == NPZ:
        set_comment(path, card.to_json())
    else:
        add_text(path, MEMBER, card.to_json())


def read_card(path: Path) -> ModelCard | None:
    """Read the card of a saved model; None if it has none, as a model from elsewhere.

    Raises:
        ModelError: The file can't be read, or its card is wrong.
    """
    text = read_comment(path) if path.suffix == NPZ else read_text(path, MEMBER, _MAX_BYTES)
    return None if text is None else ModelCard.from_json(text)


def _all_are(values: object, kind: type) -> bool:
    return isinstance(values, tuple) and all(type(value) is kind for value in values)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _are_metrics(values: object) -> bool:
    return isinstance(values, Mapping) and all(
        isinstance(name, str) and type(value) in (int, float) for name, value in values.items()
    )


def _are_settings(values: object) -> bool:
    return isinstance(values, Mapping) and all(
        isinstance(name, str) and (value is None or type(value) in (int, float, str))
        for name, value in values.items()
    )
