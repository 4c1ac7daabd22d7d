"""Weights as one float32 vector, trainable ones first, frozen ones last; cut into parts, and rebuilt."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from broker.errors import ProtocolError

Vector = NDArray[np.float32]
Values = NDArray[np.floating[Any]]  #: of an update: float32, or float64 where it is to be exact
Array = NDArray[Any]

PART_BYTES = 4 * 1024 * 1024  #: the fastest size measured, and below every broker's message limit
INLINE_BYTES = 64 * 1024  #: a vector of up to this size rides inside the message that announces it
MAX_MODEL_BYTES = 16 * 1024**3

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOAT32 = np.dtype("<f4")

#: What a weight is to the training. *trainable*: the strategy's step moves it. *statistic*: measured on the data, as
#: BatchNormalization's moving mean; the next one is the workers' weighted mean. *variance*: a statistic about the mean
#: that stands right before it. *frozen* and *integer* ones stay the global model's, and don't travel up. *private* ones
#: stay at each worker; what travels down is the value to begin with.
Kind = Literal["trainable", "statistic", "variance", "frozen", "private", "integer"]
_SECTIONS: tuple[tuple[Kind, ...], ...] = (("trainable",), ("statistic", "variance"), ("frozen", "private"))


def as_dtype(name: object) -> np.dtype[Any]:
    """A number type by its name.

    Raises:
        ProtocolError: There is none of that name.
    """
    if name not in _FLOATS + _INTEGERS:
        raise ProtocolError(f"Expected a number type, got {name!r}.")
    return np.dtype(str(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One weight of a model: its dtype by Keras's name, its shape, and what it is to the training."""

    dtype: str
    shape: tuple[int, ...]
    kind: Kind

    def __post_init__(self) -> None:
        if self.dtype not in _FLOATS + _INTEGERS or any(size < 0 for size in self.shape):
            raise ProtocolError(
                f"Expected a number type and sizes of at least 0, got {self.dtype} {self.shape}."
            )
        if self.is_float == (self.kind == "integer"):
            raise ProtocolError(f"A weight of {self.dtype} can't be {self.kind}.")

    @property
    def size(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it is one of the float vector's; an integer one stays the global model's."""
        return self.dtype in _FLOATS


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFacts:
    """What a site's examples are like, so that two sites that differ are found before they spoil a model.

    Attributes:
        shape: Of one example; None for images in files, which take the model's shape.
        dtype: Of the values as they were given, by numpy's name.
        low: The smallest value as it is handed to the model, of training and test part together.
        high: The largest, likewise; images have 0 and 255.
    """

    shape: tuple[int, ...] | None
    dtype: str
    low: float
    high: float

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))


Layout = tuple[TensorSpec, ...]  #: in Keras's order


@dataclass(frozen=True)
class Sections:
    """How the float vector of a layout is divided: [trainable | statistics | frozen], each in Keras's order.

    So what travels up is the vector's beginning, and what the strategy moves is the beginning of that.
    """

    layout: Layout

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The positions in the layout of the float weights, in the vector's order."""
        return tuple(
            position for kinds in _SECTIONS for position, spec in enumerate(self.layout) if spec.kind in kinds
        )

    @cached_property
    def num_trainable(self) -> int:
        """How many values the strategy moves."""
        return self._size_of(_SECTIONS[0])

    @cached_property
    def num_up(self) -> int:
        """How many values an update has: trainable ones and statistics."""
        return self.num_trainable + self._size_of(_SECTIONS[1])

    @cached_property
    def size(self) -> int:
        """How many values the whole vector has."""
        return self.num_up + self._size_of(_SECTIONS[2])

    def _size_of(self, kinds: tuple[Kind, ...]) -> int:
        return sum(spec.size for spec in self.layout if spec.kind in kinds)

    @cached_property
    def tensors(self) -> tuple[slice, ...]:
        """The span of each trainable tensor."""
        return tuple(span for span, spec in self._spans() if spec.kind == "trainable")

    @cached_property
    def variances(self) -> tuple[tuple[slice, slice], ...]:
        """The places of each mean and of the variance about it, within the statistics.

        Raises:
            ProtocolError: No mean of the same shape stands before a variance.
        """
        pairs: list[tuple[slice, slice]] = []
        before: tuple[slice, TensorSpec] | None = None
        for span, spec in self._spans():
            if spec.kind == "variance":
                if before is None or (before[1].kind, before[1].shape) != ("statistic", spec.shape):
                    raise ProtocolError(f"No mean of the shape {spec.shape} stands before its variance.")
                pairs.append((self._among_statistics(before[0]), self._among_statistics(span)))
            before = span, spec
        return tuple(pairs)

    def _among_statistics(self, span: slice) -> slice:
        return slice(span.start - self.num_trainable, span.stop - self.num_trainable)

    def _spans(self) -> Iterator[tuple[slice, TensorSpec]]:
        begin = 0
        for position in self.order:
            spec = self.layout[position]
            yield slice(begin, begin + spec.size), spec
            begin += spec.size


@lru_cache(maxsize=8)
def sections_of(layout: Layout) -> Sections:
    """The sections of a layout, worked out once: every update of a run asks for the same."""
    return Sections(layout)


def vector_size(layout: Layout) -> int:
    """How many float values a model of this layout has."""
    return sum(spec.size for spec in layout if spec.is_float)


def flatten(weights: Sequence[Array], layout: Layout) -> tuple[Vector, list[Array]]:
    """Split weights, in Keras's order, into one float32 vector of shape (P,) and the list of integer arrays."""
    integers = [np.array(weight) for spec, weight in zip(layout, weights, strict=True) if not spec.is_float]
    return flatten_first(weights, layout, vector_size(layout)), integers


def flatten_first(weights: Sequence[Array], layout: Layout, size: int) -> Vector:
    """The first so many values of the vector, whole tensors: with `Sections.num_up` what travels up."""
    vector = np.empty(size, FLOAT32)
    begin = 0
    for position in sections_of(layout).order:
        if begin == size:
            break
        weight = np.asarray(weights[position], FLOAT32)
        vector[begin : begin + weight.size] = weight.ravel()
        begin += weight.size
    return vector


def unflatten(layout: Layout, vector: Vector, integers: Sequence[Array]) -> list[Array]:
    """Rebuild the weights, in Keras's order; float32 ones are views of the vector.

    Raises:
        ProtocolError: The vector or the integer arrays do not fit the layout.
    """
    sections = sections_of(layout)
    if vector.shape != (sections.size,):
        raise ProtocolError(f"Expected {sections.size} float values, got {vector.shape}.")
    weights: dict[int, Array] = {}
    begin = 0
    for position in sections.order:
        spec = layout[position]
        weights[position] = vector[begin : begin + spec.size].reshape(spec.shape)
        begin += spec.size
    rest = iter(integers)
    for position, spec in enumerate(layout):
        if not spec.is_float:
            weights[position] = _next_integer(rest, spec)
    return [weights[position] for position in range(len(layout))]


def _next_integer(rest: Iterator[Array], spec: TensorSpec) -> Array:
    values = next(rest, None)
    if values is None or values.shape != spec.shape or values.dtype.name != spec.dtype:
        received = None if values is None else f"{values.dtype} {values.shape}"
        raise ProtocolError(f"Expected {spec.dtype} {spec.shape}, got {received}.")
    return values


def part_count(num_bytes: int, part_bytes: int) -> int:
    """How many parts a vector of this size is cut into; 0 for one that rides inline."""
    return 0 if num_bytes <= INLINE_BYTES else math.ceil(num_bytes / part_bytes)


def as_bytes(vector: Values) -> memoryview:
    """The vector's little-endian bytes, without a copy."""
    return np.ascontiguousarray(vector, FLOAT32).view(np.uint8).data
