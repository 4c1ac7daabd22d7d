"""A float32 vector on its way: cut into parts, encoded with the precision asked for, and put together again."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from broker.errors import ProtocolError
from broker.messages import Binary, Part, Precision
from broker.tensors import FLOAT32, PART_BYTES, Vector, as_bytes

_ITEM_BYTES: dict[Precision, int] = {"float32": 4, "float16": 2, "int8": 1}
_FLOAT16_LIMIT = 65504.0
_INT8_LIMIT = 127
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  #: float32 loses its digits below it, and at last is zero
_LARGEST_SCALE = 2.0**100  #: a larger one is no float32 any more once multiplied


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One part's data: little-endian values of the precision, each worth `scale`."""

    data: Binary
    scale: float


def encode_values(values: Vector, precision: Precision, generator: np.random.Generator) -> Encoded:
    """Encode a slice of a vector.

    int8 rounds stochastically (Alistarh et al. 2017, "QSGD", section 3): v ≈ scale · q with E[scale · q] = v.

    Args:
        values: float32, shape (k,); as float32 the data is a view of them. int8 takes finite ones alone.
        precision: How each value travels.
        generator: Draws the rounding of int8.
    """
    if precision == "float32":
        return Encoded(data=as_bytes(values), scale=1.0)
    if precision == "float16":
        clipped = np.clip(values, -_FLOAT16_LIMIT, _FLOAT16_LIMIT)
        return Encoded(data=clipped.astype("<f2").tobytes(), scale=1.0)
    largest = float(np.max(np.abs(values), initial=0.0))
    scale = max(largest / _INT8_LIMIT, _SMALLEST_SCALE)
    quotient = values / np.float32(scale) + generator.random(values.size, np.float32)
    steps = np.clip(np.floor(quotient), -_INT8_LIMIT, _INT8_LIMIT)
    return Encoded(data=steps.astype("<i1").tobytes(), scale=scale)


def decode_values(encoded: Encoded, precision: Precision, out: Vector) -> None:
    """Decode into `out`, float32 of shape (k,).

    Raises:
        ProtocolError: The data is not exactly so many values.
    """
    if len(encoded.data) != out.size * _ITEM_BYTES[precision]:
        raise ProtocolError(
            f"Expected {out.size} values of {precision}, got {len(encoded.data)} bytes. The shapes differ."
        )
    if precision == "int8" and not 0 < encoded.scale <= _LARGEST_SCALE:
        raise ProtocolError(f"Expected a scale of 0 to {_LARGEST_SCALE:g}, got {encoded.scale}.")
    if precision == "float32":
        out[:] = np.frombuffer(encoded.data, FLOAT32)
    elif precision == "float16":
        out[:] = np.frombuffer(encoded.data, "<f2")
    else:
        np.multiply(np.frombuffer(encoded.data, "<i1"), np.float32(encoded.scale), out=out, casting="unsafe")


class Digest:
    """SHA-256 over the XXH3-64 of each part in order of index, so that parts may come in any order.

    It finds what was damaged or mixed up on the way. Against forgery it need not help: who may write the parts may
    announce them, too. Every byte passes through it four times a round, and XXH3 is ten times as fast as CRC-32.
    """

    def __init__(self) -> None:
        self._parts: dict[int, bytes] = {}

    def add(self, index: int, data: Binary) -> None:
        """Take one part's data."""
        self._parts[index] = xxhash.xxh3_64_digest(data)

    def hex(self) -> str:
        """The digest of all parts taken."""
        whole = hashlib.sha256()
        for index in sorted(self._parts):
            whole.update(self._parts[index])
        return whole.hexdigest()


def slices(size: int, part_bytes: int) -> Iterator[slice]:
    """The places in a vector of `size` values that each part covers."""
    step = part_bytes // FLOAT32.itemsize
    return (slice(begin, min(begin + step, size)) for begin in range(0, size, step))


class Assembly:
    """Puts the parts of one transfer together, in whatever order and however often they come.

    Args:
        out: Where the values go, float32 of shape (P,); what it held before is overwritten.
        transfer_id: Parts of another transfer are not taken.
        part_bytes: Bytes of float32 values that one part covers.
    """

    def __init__(self, out: Vector, transfer_id: str, part_bytes: int = PART_BYTES) -> None:
        self.transfer_id = transfer_id
        self.digest = Digest()
        self._out = out
        self._step = part_bytes // FLOAT32.itemsize
        self._count = math.ceil(out.size / self._step)
        self._missing = set(range(self._count))

    @property
    def num_missing(self) -> int:
        """How many parts were not placed yet."""
        return len(self._missing)

    @property
    def is_complete(self) -> bool:
        """Whether every part was placed."""
        return not self._missing

    def place(self, part: Part) -> bool:
        """Put one part where it belongs; False when it is of another transfer.

        Raises:
            ProtocolError: It does not fit.
        """
        if part.transfer_id != self.transfer_id:
            return False
        if part.count != self._count:
            raise ProtocolError(f"Expected {self._count} parts, got a part of {part.count}.")
        begin = part.index * self._step
        decode_values(
            Encoded(data=part.data, scale=part.scale), part.precision, self._out[begin : begin + self._step]
        )
        self.digest.add(part.index, part.data)
        self._missing.discard(part.index)
        return True

    def skip(self, part: object) -> None:
        """Count a part that does not fit as seen, so that the rest of a flawed transfer is taken out, too."""
        if isinstance(part, Part) and part.transfer_id == self.transfer_id:
            self._missing.discard(part.index)
