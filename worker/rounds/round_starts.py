"""A round start put together from its header and its parts."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from broker.errors import ProtocolError
from broker.link.seam import Delivery
from broker.wire.messages import Part, RoundStart
from broker.wire.tensors import (
    FLOAT32,
    MAX_MODEL_BYTES,
    Vector,
    as_bytes,
    part_count,
    sections_of,
    vector_size,
)
from broker.wire.transfer import Assembly, Digest, Encoding, slices

_SMALLEST_PART = 64 * 1024
_LARGEST_PART = 8 * 1024 * 1024


def check_start(start: RoundStart) -> None:
    """Refuse sizes that can't be meant.

    Raises:
        ProtocolError: They are too large, or do not fit each other.
    """
    num_bytes = vector_size(start.layout) * FLOAT32.itemsize
    if num_bytes > MAX_MODEL_BYTES:
        raise ProtocolError(f"Expected a model of at most {MAX_MODEL_BYTES} bytes, got one of {num_bytes}.")
    if not _SMALLEST_PART <= start.part_bytes <= _LARGEST_PART or start.part_bytes % FLOAT32.itemsize:
        raise ProtocolError(
            f"Expected parts of {_SMALLEST_PART} to {_LARGEST_PART} bytes, got {start.part_bytes}."
        )
    if start.parts != _parts_of(start, num_bytes):
        raise ProtocolError(f"A model of {num_bytes} bytes does not come in {start.parts} parts.")
    if start.weights is not None and len(start.weights) != num_bytes:
        raise ProtocolError(f"Expected {num_bytes} bytes of weights, got {len(start.weights)}.")


def _parts_of(start: RoundStart, num_bytes: int) -> int:
    """In how many parts the weights of a round start come, or what is new of them."""
    if not start.base:
        return part_count(num_bytes, start.part_bytes)
    is_news = start.base != start.digest
    return is_news * math.ceil(sections_of(start.layout).num_up * FLOAT32.itemsize / start.part_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The newest global model that came, kept by the whole process.

    Attributes:
        digest: Of its float weights.
        vector: These, float32 of shape (P,); read by whoever trains from them, and never changed.
    """

    digest: str
    vector: Vector

    def leads_to(self, start: RoundStart) -> bool:
        """Whether a round start tells a step on from this model."""
        is_alike = self.vector.shape == (vector_size(start.layout),)
        return is_alike and start.base == self.digest and start.parts > 0

    def is_of(self, start: RoundStart) -> bool:
        """Whether this is the model that a round begins with, which comes in parts, or not again."""
        is_alike = self.vector.shape == (vector_size(start.layout),)
        return is_alike and start.digest == self.digest and start.weights is None


class Incoming:
    """One round start on its way in.

    Args:
        start: A checked header.
        spare: A vector that nobody needs any more; used if it has the right size.
        newest: The model that the weights are told as a step from; None where they come whole.
        is_audited: Whether SHA-256 of the weights is wanted: it is worked out while they come.

    Raises:
        ProtocolError: There is no memory for it, or its scales are none of such a model.

    Attributes:
        workers: Whom it is for.
        vector: The global weights, float32 of shape (P,); whole once `is_complete`.
        deliveries: To be acknowledged once it is complete.
        account: Who sent it, by the broker's word.
    """

    account = ""
    _sha256 = None

    def __init__(
        self,
        start: RoundStart,
        spare: Vector | None = None,
        newest: Newest | None = None,
        *,
        is_audited: bool = False,
    ) -> None:
        self.start = start
        self.workers: dict[str, None] = {}
        self.deliveries: list[Delivery] = []
        size = vector_size(start.layout)
        fits = spare is not None and (spare.shape, spare.dtype) == ((size,), FLOAT32)
        self.vector: Vector = spare if spare is not None and fits else _reserved(size)
        self._newest = newest
        self._assembly = self._assembly_of_step(newest) if newest else self._assembly_of_all()
        self._is_inline = start.parts == 0
        self._num_hashed = 0
        if self._is_inline:
            self._take_inline()
        elif is_audited:
            self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> Callable[[], str] | None:
        """SHA-256 of the whole weights, if it was worked out while they came."""
        return self._sha256.hexdigest if self._sha256 is not None else None

    def _assembly_of_all(self) -> Assembly:
        return Assembly(self.vector, self.start.transfer_id, self.start.part_bytes)

    def _assembly_of_step(self, newest: Newest) -> Assembly:
        start = self.start
        out = self.vector[: sections_of(start.layout).num_up]
        encoding = Encoding.told(start.layout, start.download_precision, start.scales)
        return Assembly(out, start.transfer_id, start.part_bytes, encoding, base=newest.vector)

    @classmethod
    def of(cls, start: RoundStart, vector: Vector) -> "Incoming":
        """A round start whose weights are here already."""
        whole = cls.__new__(cls)
        whole.start, whole.workers, whole.deliveries = start, {}, []
        whole.vector, whole._is_inline = vector, True
        return whole

    def _take_inline(self) -> None:
        data = self.start.weights or b""
        digest = Digest()
        digest.add(0, data)
        self._check_digest(digest)
        self.vector[:] = np.frombuffer(data, FLOAT32)

    @property
    def is_complete(self) -> bool:
        """Whether all weights are there."""
        return self._is_inline or self._assembly.is_complete

    def take(self, part: Part) -> bool:
        """Take in a part; False when it belongs to another round start.

        Raises:
            ProtocolError: It does not fit, or the whole has another digest than announced.
        """
        if (part.run_id, part.round_number) != (self.start.run_id, self.start.round_number):
            return False
        num_in_order = self._assembly.num_in_order
        if not self._assembly.place(part):
            return False
        if part.index < num_in_order:
            self._sha256 = None  # it came again, in the place of what is in there
        if self._assembly.is_complete:
            self._check_digest(self._digest_of_step(self._newest) if self._newest else self._assembly.digest)
        self._hash_on()
        return True

    def _hash_on(self) -> None:
        """What is there from the first value on goes into SHA-256 before the rest has come."""
        is_whole = self._assembly.is_complete
        step = self.start.part_bytes // FLOAT32.itemsize
        end = self.vector.size if is_whole else self._assembly.num_in_order * step
        if self._sha256 is not None and end > self._num_hashed:
            self._sha256.update(as_bytes(self.vector[self._num_hashed : end]))
            self._num_hashed = end

    def _digest_of_step(self, newest: Newest) -> Digest:
        """Of the model that the step has led to, once what never changes is there, too."""
        end = sections_of(self.start.layout).num_up
        self.vector[end:] = newest.vector[end:]
        digest = Digest()
        for index, span in enumerate(slices(self.vector.size, self.start.part_bytes)):
            digest.add(index, as_bytes(self.vector[span]))
        return digest

    def _check_digest(self, digest: Digest) -> None:
        if digest.hex() != self.start.digest:
            raise ProtocolError("The weights do not have the digest that the round start announced.")


def described(start: RoundStart, account: str) -> str:
    """Which round it is, whose, and how it is trained, for the log."""
    settings = start.settings
    rate = "the model's own" if settings.learning_rate is None else f"{settings.learning_rate:g}"
    among = f" among {start.participants} with a quorum of {start.quorum}" if start.participants else ""
    return (
        f"Round {start.round_number} of {start.last_round} ({start.task}){among}, launched by the account {account}; "
        f"global weights received. Training started: learning rate {rate}, epochs {settings.epochs}, "
        f"batch size {settings.batch_size}."
    )


def _reserved(size: int) -> Vector:
    try:
        return np.empty(size, FLOAT32)
    except MemoryError as exc:
        raise ProtocolError(f"There is no memory here for a model of {size} values.") from exc
