"""A vector on its way: cut into parts, encoded with the precision asked for, and put together again."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import xxhash

from broker.errors import ProtocolError
from broker.wire.fields import Binary
from broker.wire.messages import Part
from broker.wire.settings import Precision
from broker.wire.tensors import FLOAT32, PART_BYTES, Layout, Values, Vector, as_bytes, sections_of

_CODES: dict[Precision, str] = {
    "float32": "<f4", "float16": "<f2", "int8": "<i1", "local32": "<f4", "local64": "<f8",
}  # fmt: skip
_FLOAT16_LIMIT = 65504.0
_INT8_LIMIT = 127
_SMALLEST_SCALE = 2.0**-100  #: a smaller one is no float32 any more once it is divided by
_LARGEST_SCALE = 2.0**100  #: a larger one is no float32 any more once multiplied
_ROOM = 1 + 2.0**-20  #: so that the largest value is not above 127 steps, however float32 rounds
_FRACTION_BITS = 16  #: of a step, by which chance decides
_CHUNK = 1 << 16  #: values at a time: the scratch arrays stay in the processor's cache


def is_local(precision: Precision) -> bool:
    """Whether the trainable values travel as they have become, and not as what changed."""
    return precision in ("local32", "local64")


def item_bytes(precision: Precision) -> int:
    """What a value weighs on its way."""
    return np.dtype(_CODES[precision]).itemsize


def is_exact(layout: Layout) -> bool:
    """Whether a model is so small that its local values may travel: what of it is trained is one part at most."""
    return sections_of(layout).num_trainable * FLOAT32.itemsize <= PART_BYTES


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the values of one transfer are written down, little-endian, whatever part of them is at hand.

    Statistics always travel as float32: they are few, and a variance must not be rounded below zero.

    Attributes:
        precision: Of the trainable values.
        num_trainable: How many values, from the first, travel with that precision; the others as float32.
        tensors: For int8: the span of each trainable tensor.
        scales: For int8: the value of one step in each of these tensors.
        base: For local values: what they are told as the difference to, once they are read.
    """

    precision: Precision = "float32"
    num_trainable: int = 0
    tensors: tuple[slice, ...] = ()
    scales: tuple[float, ...] = ()
    base: Vector | None = None

    @classmethod
    def of(cls, vector: Values, layout: Layout, precision: Precision) -> Self:
        """What an update's sender decides; int8 wants finite trainable values."""
        sections = sections_of(layout)
        tensors = sections.tensors if precision == "int8" else ()
        scales = tuple(_scale_of(vector[span]) for span in tensors)
        return cls(precision=precision, num_trainable=sections.num_trainable, tensors=tensors, scales=scales)

    @classmethod
    def told(
        cls, layout: Layout, precision: Precision, scales: tuple[float, ...], base: Vector | None = None
    ) -> Self:
        """What an update's receiver is told.

        Raises:
            ProtocolError: These are no scales of such a model, or it is too large for local values.
        """
        sections = sections_of(layout)
        if is_local(precision) and not is_exact(layout):
            raise ProtocolError(f"Expected the difference that the training made, got {precision}.")
        tensors = sections.tensors if precision == "int8" else ()
        if len(scales) != len(tensors) or not cls(scales=scales).is_tellable:
            raise ProtocolError(
                f"Expected {len(tensors)} scales of 0 to {_LARGEST_SCALE:g}, got {len(scales)}"
                f"{f' from {min(scales)} to {max(scales)}' if scales else ''}."
            )
        return cls(
            precision=precision,
            num_trainable=sections.num_trainable,
            tensors=tensors,
            scales=scales,
            base=base if is_local(precision) else None,
        )

    @property
    def is_coarse(self) -> bool:
        """Whether something of the values is cut off."""
        return self.precision in ("float16", "int8")

    @property
    def is_tellable(self) -> bool:
        """Whether its receiver takes the scales: not where values are no numbers, or beyond all bounds."""
        return all(0 < scale <= _LARGEST_SCALE for scale in self.scales)

    def encode(self, vector: Vector, span: slice, seed: Sequence[int]) -> Binary:
        """Write down one slice of a vector.

        int8 rounds stochastically (Alistarh et al. 2017, "QSGD", section 3): v ≈ scale · q with E[scale · q] = v.

        Args:
            vector: float32, of local values also float64, shape (P,); as float32 the data is a view of it.
            span: What of it.
            seed: Decides the rounding of int8: the same of the same values gives the same bytes.
        """
        if self.precision == "float32":
            return as_bytes(vector[span])
        coarse, exact = self._divided(span)
        if self.precision == "float16":
            written = np.clip(vector[coarse], -_FLOAT16_LIMIT, _FLOAT16_LIMIT).astype("<f2").tobytes()
        elif is_local(self.precision):
            written = vector[coarse].astype(_CODES[self.precision]).tobytes()
        else:
            written = self._in_steps(vector[coarse], coarse, seed)
        return written + bytes(as_bytes(vector[exact]))

    def _in_steps(self, values: Values, span: slice, seed: Sequence[int]) -> bytes:
        """int8: ⌊v / scale + u⌋ with u uniform in [0, 1), both as whole numbers of 2^-16 of a step."""
        steps, bits = np.empty(values.size, np.int8), np.random.SFC64(seed)
        size = min(values.size, _CHUNK)
        scaled, whole = np.empty(size, np.float32), np.empty(size, np.int32)
        for piece, scale in self._pieces(span):
            factor = np.float32(2.0**_FRACTION_BITS / scale)
            for begin in range(piece.start, piece.stop, _CHUNK):
                chunk = slice(begin, min(begin + _CHUNK, piece.stop))
                num = chunk.stop - begin
                chance = bits.random_raw(-(-num // 4)).astype("<u8", copy=False).view("<u2")[:num]
                np.multiply(values[chunk], factor, out=scaled[:num])
                np.rint(scaled[:num], out=scaled[:num])
                np.copyto(whole[:num], scaled[:num], casting="unsafe")
                whole[:num] += chance
                whole[:num] >>= _FRACTION_BITS
                np.copyto(steps[chunk], whole[:num], casting="unsafe")
        return steps.tobytes()

    def decode(self, data: Binary, span: slice, out: Values) -> None:
        """Read one slice of a vector into `out`, float32 of the slice's shape; of local values float64.

        Raises:
            ProtocolError: The data is not exactly so many values.
        """
        coarse, exact = self._divided(span)
        num_coarse, num_exact = coarse.stop - coarse.start, exact.stop - exact.start
        code = np.dtype(_CODES[self.precision])
        cut = num_coarse * code.itemsize
        if len(data) != cut + num_exact * FLOAT32.itemsize or num_coarse + num_exact != out.size:
            raise ProtocolError(
                f"Expected {out.size} values of {self.precision}, got {len(data)} bytes. The shapes differ."
            )
        written = np.frombuffer(data, code, num_coarse)
        if self.precision == "int8":
            for piece, scale in self._pieces(coarse):
                np.multiply(written[piece], np.float32(scale), out=out[piece])
        else:
            out[:num_coarse] = written
        if self.base is not None:
            out[:num_coarse] -= self.base[coarse]
        out[num_coarse:] = np.frombuffer(data, FLOAT32, num_exact, cut)

    def take_away(self, data: Binary, span: slice, out: Values) -> None:
        """Leave of one slice of a vector what the precision cut off it.

        Args:
            data: As `encode` wrote it.
            span: What of the vector.
            out: These values, float32 of the slice's shape.
        """
        coarse, _ = self._divided(span)
        num_coarse = coarse.stop - coarse.start
        written = np.frombuffer(data, _CODES[self.precision], num_coarse)
        scratch = np.empty(min(num_coarse, _CHUNK), FLOAT32)
        pieces = self._pieces(coarse) if self.precision == "int8" else [(slice(0, num_coarse), 1.0)]
        for piece, scale in pieces:
            for begin in range(piece.start, piece.stop, _CHUNK):
                chunk = slice(begin, min(begin + _CHUNK, piece.stop))
                told = scratch[: chunk.stop - begin]
                np.multiply(written[chunk], np.float32(scale), out=told)
                out[chunk] -= told
        out[num_coarse:] = 0

    def follow(self, data: Binary, span: slice, base: Vector, out: Vector) -> None:
        """Read one slice of a step from a model to the next into `out`: statistics come as they are.

        Both sides do this to the bit alike: a product and a sum of float32, each rounded by itself.

        Args:
            data: As `encode` wrote it.
            span: What of the vector.
            base: The model that it leads on from, float32 of shape (P,).
            out: float32 of the slice's shape.

        Raises:
            ProtocolError: The data is not exactly so many values.
        """
        self.decode(data, span, out)
        moved, _ = self._divided(span)
        out[: moved.stop - moved.start] += base[moved]

    def num_bytes(self, span: slice) -> int:
        """What one slice of a vector takes."""
        coarse, exact = self._divided(span)
        num_coarse: int = coarse.stop - coarse.start
        num_exact: int = exact.stop - exact.start
        return num_coarse * item_bytes(self.precision) + num_exact * item_bytes("float32")

    def _divided(self, span: slice) -> tuple[slice, slice]:
        """A slice's part with the precision asked for, and the rest."""
        middle = min(max(self.num_trainable, span.start), span.stop)
        return slice(span.start, middle), slice(middle, span.stop)

    def _pieces(self, span: slice) -> Iterator[tuple[slice, float]]:
        """What a slice covers of each tensor, within the slice, with the tensor's scale."""
        for tensor, scale in zip(self.tensors, self.scales, strict=True):
            begin, end = max(tensor.start, span.start), min(tensor.stop, span.stop)
            if begin < end:
                yield slice(begin - span.start, end - span.start), scale


PLAIN = Encoding()  #: every value as float32


def _scale_of(values: Values) -> float:
    largest = float(max(np.max(values, initial=0.0), -np.min(values, initial=0.0)))
    scale = largest / _INT8_LIMIT * _ROOM
    return max(scale, _SMALLEST_SCALE)  # NaN stays NaN


class Digest:
    """SHA-256 over the XXH3-64 of each part in order of index, so that parts may come in any order.

    It finds what was damaged or mixed up on the way. Against forgery it need not help: who may write the parts may
    announce them, too. Every byte passes through it four times a round, and XXH3 is ten times as fast as CRC-32.

    Args:
        is_audited: An audit log is to tell which update this was, in words that nobody can forge: `sha256`.
    """

    def __init__(self, *, is_audited: bool = False) -> None:
        self._is_audited = is_audited
        self._parts: dict[int, bytes] = {}
        self._audited: dict[int, bytes] = {}
        self.num_bytes = 0

    def add(self, index: int, data: Binary) -> None:
        """Take one part's data."""
        self.num_bytes += 0 if index in self._parts else len(data)
        self._parts[index] = xxhash.xxh3_64_digest(data)
        if self._is_audited:
            self._audited[index] = hashlib.sha256(data).digest()

    def hex(self) -> str:
        """The digest of all parts taken."""
        return _in_order(self._parts)

    @property
    def sha256(self) -> str | None:
        """SHA-256 over the SHA-256 of each part in order of index; None where it is not audited, or of no part."""
        return _in_order(self._audited) if self._audited else None


def _in_order(parts: Mapping[int, bytes]) -> str:
    whole = hashlib.sha256()
    for index in sorted(parts):
        whole.update(parts[index])
    return whole.hexdigest()


class Writing:
    """Slices of a vector as they travel, each written down when it is first asked for: the first can leave at once.

    Args:
        vector: float32, shape (P,), of local values also float64; nobody else changes it.
        encoding: How its values are written down.
        spans: The slices.
        seed: Of int8's rounding.
        keeps_rest: Put into the vector's place what the precision cut off it; as float32 it stays what it is.
    """

    def __init__(
        self,
        vector: Values,
        encoding: Encoding,
        spans: Sequence[slice],
        seed: int,
        *,
        keeps_rest: bool = False,
    ) -> None:
        self._vector = vector
        self._encoding = encoding
        self._spans = spans
        self._seed = seed
        self._keeps_rest = keeps_rest and encoding.is_coarse
        self._written: dict[int, Binary] = {}

    def part(self, index: int) -> Binary:
        """One of the slices."""
        if index not in self._written:
            span = self._spans[index]
            self._written[index] = data = self._encoding.encode(self._vector, span, [self._seed, index])
            if self._keeps_rest:
                self._encoding.take_away(data, span, self._vector[span])
        return self._written[index]

    def all_parts(self) -> list[Binary]:
        """All of them."""
        return [self.part(index) for index in range(len(self._spans))]

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return sum(self._encoding.num_bytes(span) for span in self._spans)


def slices(size: int, part_bytes: int) -> Iterator[slice]:
    """The places in a vector of `size` values that each part covers."""
    step = part_bytes // FLOAT32.itemsize
    return (slice(begin, min(begin + step, size)) for begin in range(0, size, step))


class Assembly:
    """Puts the parts of one transfer together, in whatever order and however often they come.

    Args:
        out: Where the values go, float32 or float64 of shape (P,); what it held before is overwritten.
        transfer_id: Parts of another transfer are not taken.
        part_bytes: Bytes of float32 values that one part covers.
        encoding: How the values are written down.
        base: The parts are a step on from this model, float32 of shape (P,); None: they are the values themselves.
        digest: Of the parts, of which some may be in it before they are placed.
    """

    def __init__(
        self,
        out: Values,
        transfer_id: str,
        part_bytes: int = PART_BYTES,
        encoding: Encoding = PLAIN,
        *,
        base: Vector | None = None,
        digest: Digest | None = None,
    ) -> None:
        self.transfer_id = transfer_id
        self.digest = Digest() if digest is None else digest
        self._out = out
        self._encoding = encoding
        self._base = base
        self._step = part_bytes // FLOAT32.itemsize
        self._count = math.ceil(out.size / self._step)
        self._missing = set(range(self._count))
        self._num_in_order = 0

    @property
    def num_in_order(self) -> int:
        """How many parts, from the first on, were placed."""
        while self._num_in_order < self._count and self._num_in_order not in self._missing:
            self._num_in_order += 1
        return self._num_in_order

    @property
    def num_missing(self) -> int:
        """How many parts were not placed yet."""
        return len(self._missing)

    @property
    def is_complete(self) -> bool:
        """Whether every part was placed."""
        return not self._missing

    def place(self, part: Part, *, is_digested: bool = False) -> bool:
        """Put one part where it belongs; False when it is of another transfer.

        Args:
            part: With its values.
            is_digested: These are in the digest already.

        Raises:
            ProtocolError: It does not fit.
        """
        if part.transfer_id != self.transfer_id:
            return False
        if part.count != self._count:
            raise ProtocolError(f"Expected {self._count} parts, got a part of {part.count}.")
        if part.precision != self._encoding.precision:
            raise ProtocolError(f"Expected parts of {self._encoding.precision}, got {part.precision}.")
        begin = part.index * self._step
        span = slice(begin, min(begin + self._step, self._out.size))
        if self._base is None:
            self._encoding.decode(part.data, span, self._out[span])
        else:
            self._encoding.follow(part.data, span, self._base, self._out[span])
        if not is_digested:
            self.digest.add(part.index, part.data)
        self._missing.discard(part.index)
        return True

    def skip(self, part: object) -> None:
        """Count a part that does not fit as seen, so that the rest of a flawed transfer is taken out, too."""
        if isinstance(part, Part) and part.transfer_id == self.transfer_id:
            self._missing.discard(part.index)
