"""Weights as one float32 vector: flattened in Keras's order, cut into parts at byte offsets, and rebuilt."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import ProtocolError

Vector = NDArray[np.float32]
Array = NDArray[Any]

PART_BYTES = 4 * 1024 * 1024  #: the fastest size measured, and below every broker's message limit
INLINE_BYTES = 64 * 1024  #: a vector of up to this size rides inside the message that announces it
MAX_MODEL_BYTES = 16 * 1024**3

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One weight of a model: its dtype by Keras's name, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in _FLOATS + _INTEGERS or any(size < 0 for size in self.shape):
            raise ProtocolError(
                f"Expected a number type and sizes of at least 0, got {self.dtype} {self.shape}."
            )

    @property
    def size(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it takes part in the average; an integer one stays the global model's."""
        return self.dtype in _FLOATS


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFacts:
    """What a participant's examples are like, so that sites whose inputs differ are noticed.

    Attributes:
        shape: Of one example; None for images, which are decoded to any shape.
        dtype: Of the values as they were given, by numpy's name.
        low: The least value as it is handed to the model, of training and test part together.
        high: The largest, likewise; images have 0 and 255.
    """

    shape: tuple[int, ...] | None
    dtype: str
    low: float
    high: float


Layout = tuple[TensorSpec, ...]


def layout_of(weights: Sequence[Array]) -> Layout:
    """Describe a model's weights, in Keras's order."""
    return tuple(TensorSpec(dtype=weight.dtype.name, shape=weight.shape) for weight in weights)


def vector_size(layout: Layout) -> int:
    """How many float values a model of this layout has."""
    return sum(spec.size for spec in layout if spec.is_float)


def flatten(weights: Sequence[Array]) -> tuple[Vector, list[Array]]:
    """Split weights into one float32 vector of shape (P,) and the list of integer arrays."""
    layout = layout_of(weights)
    vector = np.empty(vector_size(layout), FLOAT32)
    start = 0
    for spec, weight in zip(layout, weights, strict=True):
        if spec.is_float:
            vector[start : start + spec.size] = np.asarray(weight, FLOAT32).ravel()
            start += spec.size
    integers = [np.array(weight) for spec, weight in zip(layout, weights, strict=True) if not spec.is_float]
    return vector, integers


def unflatten(layout: Layout, vector: Vector, integers: Sequence[Array]) -> list[Array]:
    """Rebuild the weights; float32 ones are views of the vector.

    Raises:
        ProtocolError: The vector or the integer arrays do not fit the layout.
    """
    if vector.shape != (vector_size(layout),):
        raise ProtocolError(f"Expected {vector_size(layout)} float values, got {vector.shape}.")
    rest = iter(integers)
    weights: list[Array] = []
    start = 0
    for spec in layout:
        if spec.is_float:
            values: Array = vector[start : start + spec.size].reshape(spec.shape)
            start += spec.size
        else:
            values = _next_integer(rest, spec)
        weights.append(values)
    return weights


def _next_integer(rest: Iterator[Array], spec: TensorSpec) -> Array:
    values = next(rest, None)
    if values is None or values.shape != spec.shape or values.dtype.name != spec.dtype:
        received = None if values is None else f"{values.dtype} {values.shape}"
        raise ProtocolError(f"Expected {spec.dtype} {spec.shape}, got {received}.")
    return values


def part_count(num_bytes: int, part_bytes: int) -> int:
    """How many parts a vector of this size is cut into; 0 for one that rides inline."""
    return 0 if num_bytes <= INLINE_BYTES else math.ceil(num_bytes / part_bytes)


def as_bytes(vector: Vector) -> memoryview:
    """The vector's little-endian bytes, without a copy."""
    return np.ascontiguousarray(vector, FLOAT32).view(np.uint8).data
