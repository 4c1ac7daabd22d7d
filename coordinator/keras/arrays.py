"""Tasks of named arrays, for trainers of the sites' own: read in the child, saved as model.npz; no Keras is needed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import ModelError, UsageError
from broker.model.arrays import NPZ, array_names, arrays_text, is_arrays
from broker.model.card import ModelCard, write_card
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import FLOAT32, Array, Layout, TensorSpec, as_dtype
from broker.wire.transfer import is_exact

_FLOATS = frozenset({"float16", "float32", "float64"})

Arrays = dict[str, Array]


def read_arrays(given: Mapping[Any, Any]) -> Arrays:
    """What a task's function returned, as arrays that can travel: floats as float32, integers as they are.

    Raises:
        ModelError: Something in it is no such array, or there is nothing to train.
    """
    arrays = {str(name): _read(str(name), value) for name, value in given.items()}
    arrays_text(arrays)
    if not any(array.dtype == FLOAT32 and array.size for array in arrays.values()):
        raise ModelError("Expected an array of floats to train, got none.")
    return arrays


def _read(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
    except Exception as exc:  # a tensor of another library may raise anything
        raise ModelError(f"{name!r} can't become an array. {type(exc).__name__}: {exc!s:.200}") from exc
    if array.dtype.name in _FLOATS:
        return _as_float32(name, array)
    if array.dtype.kind in "biu":
        return array.astype(as_dtype(array.dtype.name))
    raise ModelError(
        f"{name!r} is an array of {array.dtype.name}. Expected float16, float32 or float64, which travel as float32, "
        "or integers, which stay as they are."
    )


def _as_float32(name: str, array: Array) -> Array:
    with np.errstate(over="ignore"):
        values = array.astype(FLOAT32)
    if not np.isfinite(values).all():
        raise ModelError(f"{name!r} holds NaN, infinity, or what float32 can't hold.")
    return values


def layout_of_arrays(arrays: Arrays) -> tuple[TensorSpec, ...]:
    """Each array of floats is trained; integers are not averaged, and stay."""
    return tuple(
        TensorSpec(
            dtype=array.dtype.name,
            shape=array.shape,
            kind="trainable" if array.dtype == FLOAT32 else "integer",
        )
        for array in arrays.values()
    )


def started_from(arrays: Arrays, path: Path) -> Arrays:
    """The arrays of a file in place of a task's own.

    Raises:
        UsageError: There is no such file.
        ModelError: It is no .npz file, or holds other arrays than the task.
    """
    if path.suffix != NPZ:
        raise ModelError(
            f"The task is one of arrays, and {path.name} none of its models. Try the path of a model{NPZ}."
        )
    found = read_arrays(_load(path))
    ours, theirs = _described(arrays), _described(found)
    if ours != theirs:
        raise ModelError(
            f"The arrays of {path.name} don't fit the task's. Expected {ours}, received {theirs}."
        )
    return {name: found[name] for name in arrays}


def _load(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise UsageError(f"There is no model file {str(path)!r}.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as exc:  # whatever a damaged or foreign archive makes numpy raise
        raise ModelError(f"{path.name} can't be read as an .npz file of arrays: {exc!s:.200}") from exc


def _described(arrays: Arrays) -> str:
    shown = sorted(f"{name} {array.dtype.name} {array.shape}" for name, array in arrays.items())
    return "; ".join(shown)


def write_arrays(path: Path, model: str, values: list[Array], card: ModelCard) -> None:
    """Write a model's arrays under their names, and its card as the file's comment.

    Args:
        path: Of an .npz file.
        model: The text with their names.
        values: In the order of the layout.
        card: What the model says about itself.
    """
    named: dict[str, Any] = dict(zip(array_names(model), values, strict=True))
    np.savez(path, **named)
    write_card(path, card)


def asked_exactly(settings: TrainingSettings, model: str, layout: Layout) -> TrainingSettings:
    """What the workers of a small task of arrays are asked for: their arrays as they are, to the last bit."""
    if settings.precision == "float32" and is_arrays(model) and is_exact(layout):
        return replace(settings, precision="local64")
    return settings


def refuse_keras_settings(model: str, settings: TrainingSettings) -> None:
    """Whether a task of arrays is asked for what Keras alone does.

    Raises:
        UsageError: It is.
    """
    if is_arrays(model) and (settings.class_weight != "none" or settings.examples_per_class is not None):
        raise UsageError(
            "The task is one of arrays: what its trainers train on is theirs to say. Try without --class-weight and "
            "--examples-per-class."
        )
