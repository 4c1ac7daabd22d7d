"""Tells of a Keras model what each of its weights is to the training; coordinator and workers must agree."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from broker.errors import ModelError
from broker.wire.tensors import Kind, Layout, TensorSpec

_ADAPTED = "Normalization"  # its statistics are set by `adapt` alone, never by training


def layout_of(model: Any) -> Layout:
    """The layout of a Keras model's weights, in Keras's order (`model.weights`)."""
    kinds = _kinds(model)
    return tuple(
        TensorSpec(
            dtype=weight.dtype, shape=tuple(weight.shape), kind=_kind_of(weight, kinds.get(id(weight)))
        )
        for weight in model.weights
    )


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
    present = layout_of(model)
    if present == layout:
        return False
    for weight, spec in zip(model.weights, layout, strict=False):
        if spec.kind in ("trainable", "frozen") and spec.is_float:
            weight.trainable = spec.kind == "trainable"
    if layout_of(model) != layout:
        raise ModelError(
            "The model's weights are not those that were announced: their shapes or what is trained of them differ. "
            "Upgrade the older side."
        )
    return True
