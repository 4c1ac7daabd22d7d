"""One update, kept from the end of its training to the end of its round: published, and published again if asked."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from broker.errors import ModelError
from broker.link.seam import Outgoing
from broker.wire import names, transfer
from broker.wire.fields import Binary
from broker.wire.limits import MOST_WORD_BYTES
from broker.wire.messages import Part, RoundKey, UpdateAnnounced
from broker.wire.messages import encode as encode_message
from broker.wire.scores import AnswerCounts
from broker.wire.settings import Precision, Summed
from broker.wire.tensors import FLOAT32, INLINE_BYTES, Array, Layout, Values, Vector, sections_of
from broker.wire.transfer import Digest, Encoding, Writing, is_local


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What training and measuring gave besides the update itself; see `UpdateAnnounced`."""

    num_examples: int
    metrics: dict[str, float]
    global_metrics: dict[str, float]
    num_test_examples: int
    seconds: float
    states: dict[str, Array] = field(default_factory=dict)
    global_states: dict[str, Array] = field(default_factory=dict)
    counts: AnswerCounts | None = None
    summed: Summed | None = None


_REFUSED_SECONDS = 30.0  #: that a full upload queue is tried again
_MEGABYTE = 2**20
_ROOM = 4  #: updates that an upload queue has room for when the coordinator sizes it


class Refusals:
    """For how long the broker has refused the parts of one update, time and again.

    Args:
        account: What this process is called at the broker.
    """

    def __init__(self, account: str) -> None:
        self._account = account
        self._since: float | None = None

    def note(self, update: "KeptUpdate", *, is_refused: bool, is_alone: bool, now: float) -> None:
        """The parts were not taken.

        Args:
            update: Whose.
            is_refused: The queue was full, rather than gone.
            is_alone: Nobody else's parts are in it, which the coordinator will take out.
            now: In seconds.

        Raises:
            ModelError: It has been so for long: there is no room for this update, and waiting makes none.
        """
        if not (is_refused and is_alone):
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= _REFUSED_SECONDS:
            size = -(-update.num_bytes // _MEGABYTE)
            raise ModelError(
                f"The broker refuses this update of {size} MB again and again: its upload queue is full. Whoever "
                f"administers the broker makes room with `broker invite {names.invitation(self._account)} "
                f"--upload-limit {_ROOM * size + 16}M --again`."
            )


def told_of(updates: Sequence["KeptUpdate"], swarm: str | None) -> Iterator[dict[str, object]]:
    """What the audit log says of uploads that the broker has: each, or of a swarm's all of a round together."""
    if swarm is None:
        yield from (update.told for update in updates)
        return
    for key in dict.fromkeys(update.key for update in updates):
        ours = [update for update in updates if update.key == key]
        yield {
            "worker": swarm,
            "number": len(ours),
            "run": key.run_id,
            "round": key.round_number,
            "attempt": key.attempt,
            "num_examples": sum(update.measured.num_examples for update in ours),
            "bytes": sum(update.num_sent_bytes for update in ours),
        }


class KeptUpdate:
    """An update that can be uploaded as often as it takes; each upload has an id of its own.

    Args:
        worker: Whose.
        key: The attempt at a round that it answers.
        measured: What is announced with it.
        vector: What travels up, float32 of shape (U,): of trainable weights the difference local minus global,
            statistics as they are; where local values are asked for, these, float64 if need be. None when the worker
            only measured. It is given away.
        layout: Of the model.
        part_bytes: The most that one message carries of it.
        precision: How its values are asked for.
        seed: Of int8's stochastic rounding: the same part is encoded to the same bytes every time.
        reader: The process whose upload queue takes its parts; the worker's own if it is called like it.
        keeps_rest: Whether what a coarser precision cuts off is wanted (`take_rest`).
        is_audited: Whether the audit log is to tell which update this was.

    Attributes:
        vector: The same, once it is written down in a coarser precision what that cut off; None where that is wanted.

    Raises:
        ModelError: Training has diverged, and int8 can't tell the coordinator.
    """

    def __init__(
        self,
        worker: str,
        key: RoundKey,
        measured: Measured,
        vector: Values | None,
        *,
        layout: Layout,
        part_bytes: int,
        precision: Precision,
        seed: int,
        reader: str | None = None,
        keeps_rest: bool = False,
        is_audited: bool = False,
    ) -> None:
        self.worker = worker
        self._reader = reader or worker
        self.key = key
        self.measured = measured
        self.vector = vector
        self._has_update = vector is not None
        self._encoding = (
            Encoding() if vector is None else Encoding.of(vector, layout, _written(vector, precision))
        )
        self._writing: Writing | None = None
        self._rest: Values | None = None
        self._num_parts = self._num_bytes = 0
        if vector is not None:
            is_inline = vector.nbytes <= INLINE_BYTES
            spans = [slice(0, vector.size)] if is_inline else list(transfer.slices(vector.size, part_bytes))
            self._num_parts, self._num_bytes = 0 if is_inline else len(spans), vector.nbytes
            self._check(vector[sections_of(layout).num_trainable :])
            self._writing = Writing(vector, self._encoding, spans, seed, keeps_rest=True)
            if keeps_rest and self._encoding.is_coarse:
                self.vector, self._rest = None, vector
        self._is_audited = is_audited
        self._digest = Digest(is_audited=is_audited)
        self._sizes: dict[
            int, int
        ] = {}  # of this upload's messages, by index; the announcement's after all parts
        self._upload_id = ""
        self._is_announced = False

    def _check(self, statistics: Values) -> None:
        is_exact = self._encoding.precision == "int8"
        if is_exact and not (self._encoding.is_tellable and np.isfinite(statistics).all()):
            raise ModelError(
                "Training has diverged: the update has NaN or infinity. Try a lower learning rate."
            )

    def take_rest(self) -> Vector | None:
        """What the precision cut off, float32 of shape (U,), once: it is added to the next update (error feedback).

        Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", algorithm 1.
        None as float32, or where a training that has diverged leaves nothing to go on with.
        """
        rest, self._rest = self._rest, None
        if rest is None or self._writing is None:
            return None
        self._writing.all_parts()  # perhaps its round closed before all of them were published
        return np.asarray(rest, FLOAT32) if np.isfinite(rest).all() else None

    def at_attempt(self, key: RoundKey) -> None:
        """Answer a later attempt at the same round with the same update."""
        self.key = key
        self._is_announced = False

    @property
    def announced(self) -> str | None:
        """The upload_id that the broker has an announcement of."""
        return self._upload_id if self._is_announced else None

    def note_uploading(self) -> None:
        """A new upload begins, with an id of its own; what was announced before no longer counts."""
        self._upload_id, self._is_announced = secrets.token_hex(8), False
        self._digest, self._sizes = Digest(is_audited=self._is_audited), {}

    def note_announced(self) -> None:
        """The broker confirmed the announcement."""
        self._is_announced = True

    @property
    def num_sent_bytes(self) -> int:
        """What the values of the upload took on the wire."""
        return self._digest.num_bytes

    @property
    def told(self) -> dict[str, object]:
        """What the audit log says of an upload that the broker has."""
        return {
            "worker": self.worker,
            "run": self.key.run_id,
            "round": self.key.round_number,
            "attempt": self.key.attempt,
            "upload": self._upload_id,
            "num_examples": self.measured.num_examples,
            "bytes": self.num_sent_bytes,
            "sha256": self._digest.sha256,
        }

    @property
    def num_parts(self) -> int:
        """How many parts it travels in; 0 when it rides inside its announcement."""
        return self._num_parts

    @property
    def num_bytes(self) -> int:
        """What its values take before they are encoded."""
        return self._num_bytes

    @property
    def num_kept_bytes(self) -> int:
        """What its values take here, as they are written down; as float32 that is where they are."""
        is_apart = self.vector is not None and self._encoding.precision != "float32"
        num_written = self._writing.num_bytes if self._writing is not None else 0
        return num_written + (self._num_bytes if is_apart else 0)

    def parts(self) -> Iterator[Outgoing]:
        """The parts of the upload that was begun, encoded one by one as they are published."""
        queue = names.upload_queue(self._reader)
        return (
            Outgoing(key=queue, body=_PartBody(self, self._upload_id, index), message_type=Part.TYPE)
            for index in range(self._num_parts)
        )

    def part(self, upload_id: str, index: int) -> bytes:
        """One part's body."""
        data = self._value(index)
        self._digest.add(index, data)
        body = encode_message(
            Part(
                run_id=self.key.run_id,
                round_number=self.key.round_number,
                transfer_id=upload_id,
                index=index,
                count=self._num_parts,
                precision=self._encoding.precision,
                data=data,
            )
        )
        self._sizes[index] = len(body)
        return body

    def _value(self, index: int) -> Binary:
        """A part's values, written down once for all uploads; as float32 that takes no memory of its own."""
        assert self._writing is not None  # noqa: S101 - an update has parts only if it has values
        return self._writing.part(index)

    def announcement(self) -> Outgoing:
        """What tells the coordinator, once the parts are confirmed; encoded when it is published, as they are."""
        return Outgoing(
            key=names.COORDINATOR, body=self._announcement_body, message_type=UpdateAnnounced.TYPE
        )

    @property
    def sent(self) -> str:
        """What this upload was, for the log of the site that it has left."""
        measured = self.measured
        names_of = sorted({*measured.metrics, *measured.global_metrics})
        figures = f"the figures {', '.join(names_of)}" if names_of else "no figures"
        what = f"the update of {measured.num_examples} examples" if self._has_update else "nothing trained"
        return (
            f"Sent for round {self.key.round_number}, and confirmed by the broker: {what}, {figures}; "
            f"{sum(self._sizes.values()):,} bytes in {len(self._sizes)} messages"
            f"{f', digest {self._digest.hex()}' if self._has_update else ''}."
        )

    def _announcement_body(self) -> bytes:
        message = UpdateAnnounced(
            worker=self.worker,
            run_id=self.key.run_id,
            round_number=self.key.round_number,
            attempt=self.key.attempt,
            upload_id=self._upload_id,
            num_examples=self.measured.num_examples,
            metrics=self.measured.metrics,
            states=self.measured.states,
            global_metrics=self.measured.global_metrics,
            global_states=self.measured.global_states,
            counts=self.measured.counts,
            num_test_examples=self.measured.num_test_examples,
            precision=self._encoding.precision,
            scales=self._encoding.scales,
            parts=self._num_parts,
            update=None,
            digest=self._digest.hex(),
            seconds=self.measured.seconds,
            base=self.key.digest,
            summed=self.measured.summed,
        )
        if self._has_update and not self._num_parts:
            data = self._value(0)
            self._digest.add(0, data)
            message = replace(message, update=bytes(data), digest=self._digest.hex())
        body = encode_message(message)
        self._sizes[self._num_parts] = len(body)
        if len(body) > MOST_WORD_BYTES:
            raise ModelError(
                f"What the model's metrics keep is larger than the {MOST_WORD_BYTES // 1024} KiB that the coordinator "
                "takes. Compile it with metrics of fewer thresholds or classes."
            )
        return body


def _written(vector: Values, asked: Precision) -> Precision:
    """How an update's values travel: local ones take no more room than they need."""
    return "local32" if is_local(asked) and vector.dtype == FLOAT32 else asked


class _PartBody:
    """Encodes one part when it is published, so that the update is not in memory twice."""

    def __init__(self, update: KeptUpdate, upload_id: str, index: int) -> None:
        self._update, self._upload_id, self._index = update, upload_id, index

    def __call__(self) -> bytes:
        return self._update.part(self._upload_id, self._index)
