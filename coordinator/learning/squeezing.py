"""The way down made thin: workers hold the last model, so what travels is the step to the next, coarsely written.

Tang et al. 2019, "DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-pass Error-Compensated Compression",
algorithm 1, its server's side: p = step + rest, everybody takes Q(p), and rest = p − Q(p) waits for the next round.
The global model of such a run is what the workers hold, to the bit: the coordinator follows its own coarse steps.
"""

import hashlib
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from broker.wire import transfer
from broker.wire.fields import Binary
from broker.wire.settings import Precision
from broker.wire.tensors import FLOAT32, INLINE_BYTES, PART_BYTES, Layout, Sections, Vector, sections_of
from broker.wire.transfer import Encoding, Writing

_CHUNK = 1 << 16  #: values at a time: the scratch array stays in the processor's cache


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What the workers were not told yet of the trainable weights, as it stands in the checkpoint.

    It is less than a step, and written in steps of its own, 127 times as fine, rounded by chance: nothing is lost in
    the mean, and it takes a quarter of the memory and of the checkpoint.

    Attributes:
        values: int8, shape (T,), for T trainable values; in older files float32, shape (U,), U being what travels up.
        scales: The value of one in each trainable tensor; none of float32.
    """

    values: NDArray[np.int8] | Vector
    scales: tuple[float, ...] = ()

    @classmethod
    def of(cls, left: Vector, layout: Layout, seed: int, values: NDArray[np.int8] | None = None) -> Self:
        """Write down what is left, float32 of shape (U,); of the statistics nothing is.

        Args:
            left: What is left.
            layout: Of the model.
            seed: Decides the rounding.
            values: Memory to use again.
        """
        encoding = Encoding.of(left, layout, "int8")
        if values is None or values.size != encoding.num_trainable:
            values = np.empty(encoding.num_trainable, np.int8)
        for index, span in enumerate(transfer.slices(values.size, PART_BYTES)):
            values[span] = np.frombuffer(encoding.encode(left, span, [seed, index]), np.int8)
        return cls(values=values, scales=encoding.scales)

    def add_to(self, wanted: Vector, layout: Layout) -> None:
        """Add it to the next model, float32 of shape (P,)."""
        if not self.scales:
            wanted[: self.values.size] += self.values
            return
        part = np.empty(min(_CHUNK, self.values.size), FLOAT32)
        for tensor, scale in zip(sections_of(layout).tensors, self.scales, strict=True):
            for begin in range(tensor.start, tensor.stop, _CHUNK):
                span = slice(begin, min(begin + _CHUNK, tensor.stop))
                rest = part[: span.stop - span.start]
                np.multiply(self.values[span], np.float32(scale), out=rest)
                wanted[span] += rest


def split_rest(
    body: NDArray[np.uint8], scales: tuple[float, ...], sections: Sections, *, has_rest: bool
) -> tuple[NDArray[np.uint8], Rest | None]:
    """What stands before the rest in a checkpoint, and the rest.

    Args:
        body: The bytes of both.
        scales: Of a rest in int8; without them there is none of that kind.
        sections: Of the model.
        has_rest: There is one in float32.

    Raises:
        ValueError: It is none of such a model.
    """
    if not scales and not has_rest:
        return body, None
    if len(scales) not in (0, len(sections.tensors)):
        raise ValueError(f"{len(scales)} scales of {len(sections.tensors)} tensors")
    num_bytes = sections.num_trainable if scales else sections.num_up * FLOAT32.itemsize
    before, rest = np.split(body, [body.size - num_bytes])
    return before, Rest(values=rest.view(np.int8) if scales else rest.view(FLOAT32), scales=scales)


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
        self._left: Vector = np.empty(0, FLOAT32)  # used again: fresh pages are dear
        self._spare: NDArray[np.int8] | None = None

    def step_to(self, vector: Vector, part_bytes: int) -> Step | None:
        """The step that leads to this model in parts of this size, if it is the newest."""
        newest = self._newest
        is_it = newest is not None and newest.vector is vector and newest.part_bytes == part_bytes
        return newest if is_it else None

    def squeeze(
        self,
        wanted: Vector,
        held: Vector,
        rest: Rest | None,
        layout: Layout,
        *,
        held_digest: str,
        part_bytes: int,
        round_number: int,
    ) -> Rest | None:
        """Turn the next model into one that is a coarse step away from what the workers hold.

        Args:
            wanted: What the round has come to, float32 of shape (P,); it becomes the next model.
            held: The model that the round began with.
            rest: What was not told by then.
            layout: Of the model.
            held_digest: Of that model.
            part_bytes: Bytes of float32 values that one part covers.
            round_number: Decides, with the run's seed, the rounding: the same at every try.

        Returns:
            What is not told yet; None where all of it is.
        """
        sections, self._newest = sections_of(layout), None
        if rest is not None:
            rest.add_to(wanted, layout)
        if self.precision == "float32" or wanted.nbytes <= INLINE_BYTES:
            return None
        if self._left.size != sections.num_up:
            self._left = np.empty(sections.num_up, FLOAT32)
        left, num_trainable = self._left, sections.num_trainable
        np.subtract(wanted[:num_trainable], held[:num_trainable], out=left[:num_trainable])
        left[num_trainable:] = wanted[num_trainable : sections.num_up]
        encoding = Encoding.of(left, layout, self.precision)
        if not encoding.is_tellable:
            return None  # a step of 10^32: one whole copy tells it
        spans = list(transfer.slices(sections.num_up, part_bytes))
        seed = _seed_of(self._seed, round_number, "down")
        written = Writing(left, encoding, spans, seed).all_parts()
        change = np.empty(part_bytes // FLOAT32.itemsize, FLOAT32)
        for span, data in zip(spans, written, strict=True):
            encoding.follow(data, span, held, wanted[span])
            moved = slice(span.start, max(span.start, min(span.stop, num_trainable)))
            np.subtract(wanted[moved], held[moved], out=change[: moved.stop - moved.start])
            left[moved] -= change[: moved.stop - moved.start]
        self._newest = Step(
            base=held_digest, vector=wanted, encoding=encoding, part_bytes=part_bytes, written=written
        )
        seed = _seed_of(self._seed, round_number, "rest")
        spare, self._spare = self._spare, None
        return Rest.of(left, layout, seed, spare) if sections.tensors else None

    def give_back(self, rest: Rest | None) -> None:
        """Hand over memory that nobody needs any more."""
        if rest is not None and rest.values.dtype == np.int8 and rest.values.flags.owndata:
            self._spare = cast("NDArray[np.int8]", rest.values)


def _seed_of(seed: int, round_number: int, what: str) -> int:
    text = f"{seed}/{round_number}/{what}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
