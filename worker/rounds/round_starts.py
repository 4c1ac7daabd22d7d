"""A round start put together from its header and its parts."""

import numpy as np

from broker.errors import ProtocolError
from broker.link.seam import Delivery
from broker.wire.messages import Part, RoundStart
from broker.wire.tensors import (
    FLOAT32,
    MAX_MODEL_BYTES,
    Vector,
    part_count,
    vector_size,
)
from broker.wire.transfer import Assembly, Digest

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
    if start.parts != part_count(num_bytes, start.part_bytes):
        raise ProtocolError(f"A model of {num_bytes} bytes does not come in {start.parts} parts.")
    if start.weights is not None and len(start.weights) != num_bytes:
        raise ProtocolError(f"Expected {num_bytes} bytes of weights, got {len(start.weights)}.")


class Incoming:
    """One round start on its way in.

    Args:
        start: A checked header.
        spare: A vector that nobody needs any more; used if it has the right size.

    Attributes:
        workers: Whom it is for.
        vector: The global weights, float32 of shape (P,); whole once `is_complete`.
        deliveries: To be acknowledged once it is complete.
        account: Who sent it, by the broker's word.
    """

    account = ""

    def __init__(self, start: RoundStart, spare: Vector | None = None) -> None:
        self.start = start
        self.workers: dict[str, None] = {}
        self.deliveries: list[Delivery] = []
        size = vector_size(start.layout)
        fits = spare is not None and (spare.shape, spare.dtype) == ((size,), FLOAT32)
        self.vector: Vector = spare if spare is not None and fits else _reserved(size)
        self._assembly = Assembly(self.vector, start.transfer_id, start.part_bytes)
        self._is_inline = start.parts == 0
        if self._is_inline:
            self._take_inline()

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
        if not self._assembly.place(part):
            return False
        if self._assembly.is_complete:
            self._check_digest(self._assembly.digest)
        return True

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
