"""Tells of a Keras model what each of its weights is to the training; coordinator and workers must agree."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from broker.errors import ModelError, ProtocolError
from broker.wire.tensors import Kind, Layout, Sections, TensorSpec

_OWN: frozenset[Kind] = frozenset({"trainable", "statistic", "variance"})  # what may be private
_ADAPTED = "Normalization"  # its statistics are set by `adapt` alone, never by training


def layout_of(model: Any, private: Sequence[str] = ()) -> Layout:
    """The layout of a Keras model's weights, in Keras's order (`model.weights`).

    Args:
        model: The model.
        private: Patterns of weights that stay at each worker, as `fnmatch` takes them; see `matches`.

    Raises:
        ModelError: A pattern matches none, nothing is left to share, or a mean and its variance are parted.
    """
    kinds = _kinds(model)
    layout = tuple(
        TensorSpec(
            dtype=weight.dtype, shape=tuple(weight.shape), kind=_kind_of(weight, kinds.get(id(weight)))
        )
        for weight in model.weights
    )
    return _with_private(layout, [weight.path for weight in model.weights], private) if private else layout


def _with_private(layout: Layout, paths: list[str], patterns: Sequence[str]) -> Layout:
    """A frozen or integer weight stays what it is: it is the same everywhere."""
    able = [spec.kind in _OWN for spec in layout]
    for pattern in patterns:
        if not any(may and matches(path, pattern) for may, path in zip(able, paths, strict=True)):
            names = ", ".join(path for may, path in zip(able, paths, strict=True) if may)
            raise ModelError(f"No weight that is trained matches --private {pattern!r}. There are: {names}.")
    marked = tuple(
        replace(spec, kind="private") if may and any(matches(path, pattern) for pattern in patterns) else spec
        for spec, may, path in zip(layout, able, paths, strict=True)
    )
    sections = Sections(marked)
    if not sections.num_trainable:
        raise ModelError("With --private every weight stays at the workers. Leave some to train together.")
    try:
        _ = sections.variances
    except ProtocolError as exc:
        raise ModelError("--private parts a mean from its variance. Try a pattern that has both.") from exc
    return marked


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern means a weight, by its path in the model or from one of the layers in it on.

    Args:
        path: As Keras tells it, e.g. sequential/batch_normalization/gamma.
        pattern: E.g. batch_normalization* or dense_1/kernel.
    """
    parts = path.split("/")
    ends = ("/".join(parts[begin:]) for begin in range(max(1, len(parts) - 1)))
    return any(fnmatchcase(end, pattern) for end in ends)


def _kind_of(weight: Any, kind: Kind | None) -> Kind:
    is_float = "float" in str(weight.dtype)
    return (kind or "frozen") if is_float else "integer"


def _kinds(model: Any) -> dict[int, Kind]:
    """By the id of each variable. A layer that is frozen keeps its statistics, too: Keras then infers with it."""
    kinds: dict[int, Kind] = {id(weight): "trainable" for weight in model.trainable_weights}
    for layer in model._flatten_layers():  # Keras has no public way into wrappers and cells
        if not layer.trainable or type(layer).__name__ == _ADAPTED:
            continue
        for weight in layer._non_trainable_variables:
            kinds[id(weight)] = "statistic"
        if getattr(layer, "moving_mean", None) is not None and hasattr(layer, "moving_variance"):
            kinds[id(layer.moving_variance)] = "variance"
    return kinds


def renew_adapted(model: Any) -> None:
    """Have Normalization layers work with the statistics that were just assigned: each works with a copy of its own.

    Keras makes that copy when a layer is built or loaded. Here it is a variable, which traced functions read anew.
    """
    import tensorflow as tf

    for layer in model._flatten_layers():
        if type(layer).__name__ == _ADAPTED and layer.input_mean is None and layer.built:
            copies = layer.mean, layer.variance
            layer.finalize_state()
            for name, copy in zip(("mean", "variance"), copies, strict=True):
                value = getattr(layer, name)
                if isinstance(copy, tf.Variable):
                    copy.assign(value)
                else:
                    copy = tf.Variable(value, trainable=False)
                setattr(layer, name, copy)


def adapt_sole_normalization(model: Any, means: Sequence[float], variances: Sequence[float]) -> None:
    """Set a model's one Normalization layer, as its `adapt` on data of these means and variances would.

    Raises:
        ModelError: There is no such layer, or there are several; or it normalises another number of features.
    """
    adapted = [layer for layer in model._flatten_layers() if type(layer).__name__ == _ADAPTED]
    layers = [layer for layer in adapted if layer.input_mean is None]
    if len(layers) != 1:
        raise ModelError(
            f"The model has {len(layers) or 'no'} Normalization layers to be adapted. Expected one, as "
            "keras.layers.Normalization() after the input. Try without --normalize."
        )
    (layer,) = layers
    shape = tuple(layer.adapt_mean.shape)
    if int(np.prod(shape)) != len(means) or len(shape) > 1:
        raise ModelError(
            f"The model's Normalization layer normalises features of shape {shape}; the statistics are of "
            f"{len(means)}. Try axis=-1, and statistics of examples of the model's shape (--shape)."
        )
    for number, (mean, variance) in enumerate(zip(means, variances, strict=True), start=1):
        if max(abs(mean), variance) > np.finfo(np.float32).max:
            raise ModelError(
                f"The data's feature {number} has the mean {mean:g} and the variance {variance:g}. Expected numbers "
                "that float32 holds. Bring it to another scale at every site."
            )
    layer.adapt_mean.assign(np.reshape(means, shape))
    layer.adapt_variance.assign(np.reshape(variances, shape))
    renew_adapted(model)


def apply_kinds(model: Any, layout: Layout) -> bool:
    """Freeze and unfreeze single weights as the layout says, for Keras's JSON tells of whole layers only.

    Returns:
        Whether that changed anything: the model is to be compiled again then.

    Raises:
        ModelError: The layout is not that of this model.
    """
    present = _seen_as(layout, layout_of(model))
    if present == layout:
        return False
    for weight, spec in zip(model.weights, layout, strict=False):
        if spec.kind in ("trainable", "frozen") and spec.is_float:
            weight.trainable = spec.kind == "trainable"
    if _seen_as(layout, layout_of(model)) != layout:
        raise ModelError(
            "The model's weights are not those that were announced: their shapes or what is trained of them differ. "
            "Upgrade the older side."
        )
    return True


def _seen_as(layout: Layout, present: Layout) -> Layout:
    """The present layout with what another calls private called so, too: that is no property of the model."""
    return (
        tuple(
            replace(spec, kind="private") if wanted.kind == "private" and spec.kind in _OWN else spec
            for spec, wanted in zip(present, layout, strict=False)
        )
        + present[len(layout) :]
    )
