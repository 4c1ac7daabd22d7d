"""The way down made thin: workers hold the last model, so what travels is the step to the next, coarsely written.

Tang et al. 2019, "DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-pass Error-Compensated Compression",
algorithm 1, its server's side: p = step + rest, everybody takes Q(p), and rest = p − Q(p) waits for the next round.
The global model of such a run is what the workers hold, to the bit: the coordinator follows its own coarse steps.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from broker.wire import transfer
from broker.wire.fields import Binary
from broker.wire.settings import Precision
from broker.wire.tensors import FLOAT32, INLINE_BYTES, Layout, Vector, sections_of
from broker.wire.transfer import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How one global model becomes the next, as it travels.

    Attributes:
        base: The digest of the model that it leads on from.
        vector: The model that it leads to, float32 of shape (P,).
        encoding: How its values are written down.
        part_bytes: Bytes of float32 values that one part covers.
        written: Its parts.
    """

    base: str
    vector: Vector
    encoding: Encoding
    part_bytes: int
    written: list[Binary]


class Squeezing:
    """Makes each step of a run coarse, and remembers the newest: after a restart everybody gets one whole copy.

    Args:
        precision: Of the steps; float32 leaves them as they are.
        seed: The run's.
    """

    def __init__(self, precision: Precision = "float32", seed: int = 0) -> None:
        self.precision = precision
        self._seed = seed
        self._newest: Step | None = None
        self._spare: Vector | None = None

    def step_to(self, vector: Vector, part_bytes: int) -> Step | None:
        """The step that leads to this model in parts of this size, if it is the newest."""
        newest = self._newest
        is_it = newest is not None and newest.vector is vector and newest.part_bytes == part_bytes
        return newest if is_it else None

    def squeeze(
        self,
        wanted: Vector,
        held: Vector,
        rest: Vector | None,
        layout: Layout,
        *,
        held_digest: str,
        part_bytes: int,
        round_number: int,
    ) -> Vector | None:
        """Turn the next model into one that is a coarse step away from what the workers hold.

        Args:
            wanted: What the round has come to, float32 of shape (P,); it becomes the next model.
            held: The model that the round began with.
            rest: What was not told by then, float32 of shape (U,), U being what travels up; None is zero.
            layout: Of the model.
            held_digest: Of that model.
            part_bytes: Bytes of float32 values that one part covers.
            round_number: Decides, with the run's seed, the rounding: the same at every try.

        Returns:
            What is not told yet, as `rest`; None where all of it is.
        """
        sections, self._newest = sections_of(layout), None
        if rest is not None:
            wanted[: sections.num_up] += rest
        if self.precision == "float32" or wanted.nbytes <= INLINE_BYTES:
            return None
        left = self._taken(sections.num_up)
        np.copyto(left, wanted[: sections.num_up])
        left[: sections.num_trainable] -= held[: sections.num_trainable]
        encoding = Encoding.of(left, layout, self.precision)
        if not encoding.is_tellable:
            return None  # a step of 10^32: one whole copy tells it
        spans, seed = list(transfer.slices(sections.num_up, part_bytes)), _seed_of(self._seed, round_number)
        written = transfer.encoded(left, encoding, spans, seed)
        for span, data in zip(spans, written, strict=True):
            encoding.follow(data, span, held, wanted[span])
            moved = slice(span.start, max(span.start, min(span.stop, sections.num_trainable)))
            left[moved] -= wanted[moved] - held[moved]
        left[sections.num_trainable :] = 0
        self._newest = Step(
            base=held_digest, vector=wanted, encoding=encoding, part_bytes=part_bytes, written=written
        )
        return left

    def give_back(self, rest: Vector | None) -> None:
        """Hand over memory that nobody needs any more."""
        self._spare = rest

    def _taken(self, size: int) -> Vector:
        spare, self._spare = self._spare, None
        return spare if spare is not None and spare.shape == (size,) else np.empty(size, FLOAT32)


def _seed_of(seed: int, round_number: int) -> int:
    text = f"{seed}/{round_number}/down"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
