"""A classifier's compiled loss as both sides must understand it: its name, whether it takes logits, its labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHORT = {"bce": "binarycrossentropy", "mse": "meansquarederror", "mae": "meanabsoluteerror"}


def sole_loss(loss: object) -> object:
    """The loss of a model with one output, which Keras also takes as a list or a dict of one; None without one."""
    if isinstance(loss, Mapping):
        loss = list(loss.values())
    if isinstance(loss, Sequence) and not isinstance(loss, str):
        return sole_loss(loss[0]) if len(loss) == 1 else None
    return loss


def loss_name(loss: object) -> str:
    """Which loss it is, whether given by name, as a function or as an object; "" without one.

    Returns:
        Small letters without underscores, as "sparsecategoricalcrossentropy".
    """
    sole = sole_loss(loss)
    if sole is None:
        return ""
    name = sole if isinstance(sole, str) else getattr(sole, "__name__", type(sole).__name__)
    plain = str(name).lower().replace("_", "")
    return _SHORT.get(plain, plain)


def is_builtin(loss: object) -> bool:
    """Whether a loss is one of Keras's own, of which is known what it takes."""
    sole = sole_loss(loss)
    if isinstance(sole, str):
        return ">" not in sole
    return str(getattr(sole, "__module__", "")).startswith("keras.")


def takes_logits(loss: object) -> bool:
    """Whether a loss was told that it gets logits; by name alone it wasn't."""
    get_config = getattr(sole_loss(loss), "get_config", None)
    return bool(get_config().get("from_logits")) if callable(get_config) else False


def takes_class_numbers(loss: object) -> bool:
    """Whether a loss wants class numbers rather than one-hot rows."""
    name = loss_name(loss)
    return "sparse" in name or name == "categoricalgeneralizedcrossentropy"


def encode_labels(loss: object, y: NDArray[np.int64], num_outputs: int) -> NDArray[Any]:
    """Labels as a compiled loss wants them.

    Args:
        loss: A Keras model's `loss`.
        y: (n,) class numbers.
        num_outputs: The width of the model's output.

    Returns:
        (n,) int64 for a sparse loss, (n, 1) float32 for one output, else one-hot (n, num_outputs) float32.
    """
    if takes_class_numbers(loss):
        return y
    if num_outputs == 1:
        return y.astype(np.float32)[:, np.newaxis]
    return np.eye(num_outputs, dtype=np.float32)[y]
