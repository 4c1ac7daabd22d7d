"""How a Keras model ends: the activation that its answers went through, however deep it sits in the model."""

import math
from dataclasses import dataclass
from typing import Any

ONE_OF_ALL = frozenset({"softmax", "sparsemax"})  #: each row of these is a distribution over the classes
EACH_ALONE = frozenset({"sigmoid", "hard_sigmoid", "sparse_sigmoid"})  #: each value of these is from 0 to 1
UNKNOWN = "unknown"

# What leaves a value as it is once training is over.
_UNCHANGED = frozenset(
    {
        "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
        "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    }
)  # fmt: skip
_RESHAPED = frozenset({"Flatten", "Permute", "Reshape"})
# A mean of distributions is one, as of an ensemble or of all places of an image.
_AVERAGED = frozenset(
    {"Average", *(f"{kind}AveragePooling{n}D" for kind in ("", "Global", "Adaptive") for n in (1, 2, 3))}
)
_WRAPPERS = frozenset({"SpectralNormalization", "TimeDistributed"})
# Layers whose `activation` is the last thing that they do; a recurrent layer's, as a rule, is not.
_ACTIVATED = frozenset(
    {"Activation", "Dense", "EinsumDense", "SimpleRNN"}
    | {f"{kind}Conv{n}D" for kind in ("", "Depthwise", "Separable") for n in (1, 2, 3)}
    | {f"Conv{n}DTranspose" for n in (1, 2, 3)}
)
_FUNCTIONS = frozenset(
    {"ReLU", "Relu", "Relu6", "Sigmoid", "Silu", "Softmax", "Tanh"}
)  # layers and operations


@dataclass(frozen=True, slots=True)
class Ending:
    """What a model's output went through last.

    Attributes:
        activation: Keras's name of it, "linear" without one, "unknown" where the output was computed further.
        layer: The layer that applies it; None where there isn't one.
    """

    activation: str
    layer: Any = None


def ending_of(model: Any) -> Ending:
    """Find the last activation of a model with one output."""
    outputs = getattr(model, "outputs", None)
    return _ending(outputs[0]) if outputs and len(outputs) == 1 else Ending(UNKNOWN)


def _ending(tensor: Any) -> Ending:
    layer, node, index = tensor._keras_history
    if hasattr(layer, "layers") and getattr(layer, "outputs", None):
        return _ending(layer.outputs[index])
    return _ending_in(layer, layer._inbound_nodes[node].input_tensors, tensor)


def _ending_in(layer: Any, inputs: list[Any], tensor: Any) -> Ending:
    name = type(layer).__name__
    activation = _activation_of(layer)
    if name in _UNCHANGED or (name == "Activation" and activation == "linear"):
        return _ending(inputs[0])
    if name in _RESHAPED:
        return _reshaped(_ending(inputs[0]), inputs[0].shape, tensor.shape)
    if name in _AVERAGED:
        return _averaged([_ending(each) for each in inputs], layer)
    if name in _WRAPPERS:
        return _wrapped(layer.layer, inputs, tensor)
    if name in _FUNCTIONS:
        return _function(layer, name, len(tensor.shape))
    return Ending(activation, layer) if name in _ACTIVATED else Ending(UNKNOWN)


def _activation_of(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    if activation is None:
        return "linear"
    return str(getattr(activation, "__name__", type(activation).__name__)).lower()


def _reshaped(inner: Ending, before: tuple[int | None, ...], after: tuple[int | None, ...]) -> Ending:
    """Single values stay what they are in any shape; a distribution does as long as its row stays whole."""
    sizes = [size for size in before[1:] if size is not None]
    is_whole = before[-1] == after[-1] == math.prod(sizes)
    return inner if is_whole or inner.activation not in ONE_OF_ALL else Ending(UNKNOWN)


def _averaged(endings: list[Ending], layer: Any) -> Ending:
    activation = endings[0].activation
    is_one = all(ending.activation == activation for ending in endings)
    is_along_places = getattr(layer, "data_format", "channels_last") == "channels_last"
    keeps = activation in ONE_OF_ALL | EACH_ALONE | {"linear"} and is_along_places
    return Ending(activation) if is_one and keeps else Ending(UNKNOWN)


def _wrapped(inner: Any, inputs: list[Any], tensor: Any) -> Ending:
    if hasattr(inner, "layers"):
        return ending_of(inner)
    return _ending_in(inner, inputs, tensor)


def _function(layer: Any, name: str, rank: int) -> Ending:
    """A layer or an operation that is an activation; softmax over anything but the classes is none."""
    axis = getattr(layer, "axis", -1)
    if name == "Softmax" and axis not in (-1, rank - 1, (-1,), [-1], (rank - 1,), [rank - 1]):
        return Ending(UNKNOWN)
    return Ending(name.lower(), layer)
