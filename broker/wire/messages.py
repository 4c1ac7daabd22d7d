"""What travels, one frozen dataclass per message; its docstring says who sends it, when, and what a repeat means.

A body is a msgpack map of the fields, with `type` and `version` beside them. One that has its default's value may be
left out, and is: so a new field with a default is no flag day. A missing one without, an unknown or a mistyped one is a
ProtocolError, and the delivery goes to the queue `dead`. What holds between two versions is
said in `broker.wire.versions`.
"""

import json
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from broker.envelope import Message as Message  # for whoever speaks of any of these
from broker.errors import OtherVersion, ProtocolError
from broker.wire import codec, names
from broker.wire.fields import Binary, from_plain, require, to_plain
from broker.wire.limits import require_amount, require_classes, require_measures, require_names, require_short
from broker.wire.scores import AnswerCounts
from broker.wire.settings import (
    Held,
    Needs,
    Precision,
    RelayTerms,
    Summed,
    TrainingSettings,
    require_holds,
)
from broker.wire.statistics import StatisticsAsked, StatisticsRefused, StatisticsTold
from broker.wire.tensors import Array, InputFacts, TensorSpec
from broker.wire.versions import VERSION, read_envelope

_FIRST_LAUNCH = 1

Mode = Literal["train", "evaluate"]
Outcome = Literal["done", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundKey:
    """The round whose start a worker has received whole.

    Attributes:
        digest: Of the weights that it began with: a run that was restored from a copy plays a round once more.
    """

    run_id: str
    round_number: int
    attempt: int
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollCall(Message):
    """Coordinator to all, when it starts or reconnects: who is there? A repeat is answered again.

    Attributes:
        session: As in `RoundStart`; this word can't be old, so it is the one that counts.
    """

    TYPE: ClassVar[str] = "roll-call"
    session: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Message):
    """A role to its own queue: whoever receives its own token is the one active reader of that queue."""

    TYPE: ClassVar[str] = "ping"
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStart(Message):
    """Coordinator to the selected workers, when a round opens; again to one that lost it. A repeat is ignored.

    Attributes:
        model: Keras's JSON config of the model, its compile settings inside; of a task of arrays their names alone
            (`broker.model.arrays`).
        layout: The model's weights, in Keras's order or that of the names, and what of them is trained.
        inputs: What the examples of most sites are like: a site that differs says so.
        integers: The integer weights, [dtype, shape, bytes] each; they are not averaged.
        scale_exponent: The fixed-point scale of this round's sum is 2 ** scale_exponent.
        parts: How many `Part`s follow with the float weights; 0 when `weights` holds them.
        digest: `transfer.Digest` of the float weights' bytes, part by part.
        session: When the coordinator became the one of this virtual host, in milliseconds since 1970. What an earlier
            one sent is void, even if its round was a later one: the run may have been restored from a copy.
        needs: What the model needs of a site's data; None for a classifier, which needs `classes`.
        numbers: Of a swarm's workers those that are invited, see `names.pack_numbers`; empty: whoever reads this.
        download_precision: How a step from one global model to the next is written down in this run. As float32 none
            is told; else whoever takes part keeps the newest model, to which the next may be told as a step.
        base: The digest of the model that the parts are a step on from (trainable weights, coarse; statistics as they
            are; all others stay what they are); that of `digest` itself: no parts follow to whoever keeps it. Empty:
            they are all weights.
        scales: Of the step, as in `UpdateAnnounced`.
        participants: How many workers are asked for an update; 0: not told.
        quorum: The fewest updates that the next model may rest on; 0: not told.
        relay: To a relay alone.
    """

    TYPE: ClassVar[str] = "round-start"
    run_id: str
    round_number: int
    attempt: int
    mode: Mode
    task: str
    classes: tuple[str, ...]
    model: str
    settings: TrainingSettings
    layout: tuple[TensorSpec, ...]
    inputs: InputFacts | None = None
    integers: tuple[Array, ...] = ()
    scale_exponent: int
    part_bytes: int
    parts: int = 0
    weights: bytes | None = None
    digest: str
    last_round: int
    deadline_seconds: float
    session: int = 0
    needs: Needs | None = None
    numbers: bytes = b""
    participants: int = 0
    quorum: int = 0
    download_precision: Precision = "float32"
    base: str = ""
    scales: tuple[float, ...] = ()
    relay: RelayTerms | None = None

    @property
    def held(self) -> RoundKey:
        """What a worker says it holds once it has all of this."""
        return RoundKey(
            run_id=self.run_id, round_number=self.round_number, attempt=self.attempt, digest=self.digest
        )

    @property
    def transfer_id(self) -> str:
        """In every `Part` that carries this round start's weights."""
        return f"attempt-{self.attempt}{'-step' if self.base else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Message):
    """One piece of a float32 vector, little-endian; of a round start (coordinator) or of an update (worker).

    A repeat with the same transfer_id and index holds the same bytes.

    Attributes:
        transfer_id: Which transfer it belongs to: `RoundStart.transfer_id`, or the upload's random id.
        precision: Of the trainable values; see `transfer.Encoding`.
    """

    TYPE: ClassVar[str] = "part"
    run_id: str
    round_number: int
    transfer_id: str
    index: int
    count: int
    precision: Precision = "float32"
    data: Binary

    def __post_init__(self) -> None:
        require(0 <= self.index < self.count, "an index from 0 to count - 1", (self.index, self.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundClosed(Message):
    """Coordinator to the invited whose update is not in, after the commit: stop training it. Repeats are ignored.

    Attributes:
        numbers: As in `RoundStart`.
    """

    TYPE: ClassVar[str] = "round-closed"
    run_id: str
    round_number: int
    numbers: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadAgain(Message):
    """Coordinator to a worker whose announced parts are not all there: publish that update again.

    Attributes:
        worker: Whose update; of a swarm the process, if `numbers` says whose.
        upload_id: Which one, where it is one.
        numbers: Of a swarm's workers those whose updates are wanted; empty: it is `worker`'s.
    """

    TYPE: ClassVar[str] = "upload-again"
    run_id: str
    round_number: int
    worker: str
    upload_id: str
    numbers: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Message):
    """Coordinator to a worker that can't take part, with the reason; the worker ends with it.

    Attributes:
        token: Of the worker's newest `joined`. A worker ignores what answers another process, of before its restart.
    """

    TYPE: ClassVar[str] = "refused"
    worker: str
    reason: str
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Message):
    """Coordinator to all, when a run ends. A repeat is ignored.

    Attributes:
        session: As in `RoundStart`: what that session, or one before, sent of this run is void from now on.
    """

    TYPE: ClassVar[str] = "run-finished"
    run_id: str
    rounds: int
    outcome: Outcome
    session: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Message):
    """Worker to coordinator: when it starts, reconnects, or hears a roll call. The newest one counts.

    Attributes:
        num_examples: How many examples it trains on; an update may not claim more.
        examples_per_class: The same, by class.
        task: The one task it takes part in, or None for any.
        held: The open round whose start it has whole, so that it isn't sent again.
        announced: The upload_id of its update for that round, once announced: whoever has not got that asks again.
        inputs: What its examples are like.
        token: Random, of the worker's process; what answers this word to this worker alone carries it.
        holds: Its arrays, where they are no examples of classes; `classes` is empty then.
        trusts: Registered names of parts, beside Keras's own, of which it builds models.
        has_trainer: It trains with a trainer of its own: models of named arrays, and none of Keras's.
        pause: Why it takes no round for now; empty: it does.
        release: The Warren that it runs, e.g. "0.1.0": shown, and nothing is decided by it.
        model: The digest of the newest global model, where its process keeps it: see `RoundStart.base`.
        behind: Of a relay the examples of each worker behind it; `num_examples` is their sum. A worker says nothing.
    """

    TYPE: ClassVar[str] = "joined"
    worker: str
    classes: tuple[str, ...]
    num_examples: int
    examples_per_class: tuple[int, ...]
    num_test_examples: int = 0
    evaluate_only: bool = False
    task: str | None = None
    held: RoundKey | None = None
    announced: str | None = None
    inputs: InputFacts | None = None
    token: str = ""
    holds: tuple[Held, ...] = ()
    trusts: tuple[str, ...] = ()
    has_trainer: bool = False
    pause: str = ""
    release: str = ""
    model: str = ""
    behind: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(names.is_worker(self.worker), "a worker's name", self.worker)
        require(len(self.behind) <= names.MOST_IN_A_SWARM, "fewer workers behind a relay", len(self.behind))
        is_their_sum = not self.behind or (min(self.behind) > 0 and sum(self.behind) == self.num_examples)
        require(is_their_sum, "the examples of the workers behind a relay, and their sum", self.num_examples)
        require_amount("examples", self.num_examples)
        require_amount("test examples", self.num_test_examples)
        require_classes(self.classes, self.examples_per_class)
        require_holds(self.holds)
        require_names(self.trusts)
        require_short(
            task=self.task,
            announced=self.announced,
            token=self.token,
            pause=self.pause,
            release=self.release,
            model=self.model,
        )
        if self.inputs is not None:
            low, high = self.inputs.low, self.inputs.high
            require(-math.inf < low <= high < math.inf, "a finite range of its examples", (low, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedAlike:
    """What some workers of a swarm say of themselves, who differ in little.

    Attributes:
        common: What all of them say; its worker and the fields below are nobody's.
        numbers: Theirs, see `names.pack_numbers`.
        num_examples: Of each, int64 of shape (n,), the lowest number first.
        num_test_examples: Likewise.
        examples_per_class: Likewise, of shape (n, classes); (n, 0) where they don't say.
        announced: Likewise; empty where they have announced nothing.
    """

    common: Joined
    numbers: bytes
    num_examples: Array
    num_test_examples: Array
    examples_per_class: Array
    announced: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = require_numbers(self.numbers)
        require(len(self.announced) in (0, count), "an upload for each", len(self.announced))
        for column, dimensions in (
            (self.num_examples, 1),
            (self.num_test_examples, 1),
            (self.examples_per_class, 2),
        ):
            is_fit = column.dtype == np.int64 and column.ndim == dimensions and len(column) == count
            require(is_fit, f"int64 for each of {count} workers", f"{column.dtype} {column.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmJoined(Message):
    """A swarm's process to coordinator, in the place of many `Joined`; where it says all in several, in any order.

    Attributes:
        worker: The process's own name, by which its queues are called; its workers are NAME.i.
    """

    TYPE: ClassVar[str] = "swarm-joined"
    worker: str
    groups: tuple[JoinedAlike, ...]

    def __post_init__(self) -> None:
        require(names.is_worker(self.worker), "a name", self.worker)
        require(len({group.common.token for group in self.groups}) == 1, "one process's words", self.worker)

    @property
    def token(self) -> str:
        """As in `Joined`: of the process."""
        return self.groups[0].common.token

    @property
    def most(self) -> int:
        """The highest number among them."""
        return max(names.unpack_numbers(group.numbers)[-1] for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmLeft(Message):
    """A swarm's process to coordinator, in the place of a `Left` of each of its workers.

    Attributes:
        worker: As in `SwarmJoined`.
        for_good: As in `Left`.
    """

    TYPE: ClassVar[str] = "swarm-left"
    worker: str
    for_good: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Left(Message):
    """Worker to coordinator: it stops on purpose. A repeat is ignored.

    As durable as `joined`, which it takes back: a coordinator that starts later finds both, in their order.

    Attributes:
        for_good: No worker says so: whoever removes its queues does, and it is shown no longer until it joins again.
    """

    TYPE: ClassVar[str] = "left"
    worker: str
    for_good: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Message):
    """Worker to coordinator, transient, at most one a second: how far its training is."""

    TYPE: ClassVar[str] = "progress"
    worker: str
    run_id: str
    round_number: int
    epoch: int
    epochs: int
    batch: int
    batches: int
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_short(run_id=self.run_id)
        require_measures(self.metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAnnounced(Message):
    """Worker to coordinator, after the broker confirmed every part. The first accepted one counts.

    Attributes:
        upload_id: Random; in every part of this upload.
        num_examples: Examples trained on: the update's weight in the mean. 0 when it only evaluated.
        metrics: Of the local training's last epoch, loss and every compiled metric by its own name.
        states: Of those metrics that are no mean over examples: what adds up over the workers, float64 of shape (k,).
        global_metrics: Of the global model that the round began with, on the worker's own test examples.
        global_states: The same for these.
        counts: Of the global model's answers on the test examples; None when there are none.
        num_test_examples: The weight of global_metrics.
        scales: For int8: the value of one step in each trainable tensor, in Keras's order.
        parts: Parts in the upload queue; 0 when `update` holds all, or there is none.
        digest: `transfer.Digest` of the data of the parts, as they travel.
        seconds: The worker's own time from the round start to the end of training.
        base: The digest of the weights that it was trained from.
        summed: Of a relay, whose update is the sum of its workers': as int64, eight bytes in the place of two values'.
    """

    TYPE: ClassVar[str] = "update-announced"
    worker: str
    run_id: str
    round_number: int
    attempt: int
    upload_id: str
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    states: dict[str, Array] = field(default_factory=dict)
    global_metrics: dict[str, float] = field(default_factory=dict)
    global_states: dict[str, Array] = field(default_factory=dict)
    counts: AnswerCounts | None = None
    num_test_examples: int = 0
    precision: Precision = "float32"
    scales: tuple[float, ...] = ()
    parts: int = 0
    update: bytes | None = None
    digest: str
    seconds: float
    base: str = ""
    summed: Summed | None = None

    def __post_init__(self) -> None:
        require_short(run_id=self.run_id, upload_id=self.upload_id, digest=self.digest, base=self.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined(Message):
    """Worker to coordinator: it can't answer this round (model refused, training failed), with the reason."""

    TYPE: ClassVar[str] = "declined"
    worker: str
    run_id: str
    round_number: int
    attempt: int
    reason: str

    def __post_init__(self) -> None:
        require_short(run_id=self.run_id)

    @property
    def workers(self) -> tuple[str, ...]:
        """Of whom it is said."""
        return (self.worker,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmDeclined(Message):
    """A swarm's process to coordinator, in the place of a `Declined` of each of those that say the same.

    Attributes:
        worker: As in `SwarmJoined`.
        numbers: Of whom it is said, see `names.pack_numbers`.
    """

    TYPE: ClassVar[str] = "swarm-declined"
    worker: str
    numbers: bytes
    run_id: str
    round_number: int
    attempt: int
    reason: str

    def __post_init__(self) -> None:
        require_short(run_id=self.run_id)
        require(names.is_worker(self.worker), "a name", self.worker)
        require_numbers(self.numbers)

    @property
    def workers(self) -> tuple[str, ...]:
        """Of whom it is said."""
        return tuple(names.numbered(self.worker, names.unpack_numbers(self.numbers)))

    @property
    def most(self) -> int:
        """The highest number among them."""
        return names.unpack_numbers(self.numbers)[-1]


def require_numbers(numbers: bytes) -> int:
    """How many numbers of a swarm's workers these are.

    Raises:
        ProtocolError: None, or more than a swarm has.
    """
    count = len(names.unpack_numbers(numbers[: names.MOST_IN_A_SWARM // 8]))
    require(count > 0 and len(numbers) <= names.MOST_IN_A_SWARM // 8, "some numbers", count)
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch(Message):
    """Anyone with the coordinator's account to a serving coordinator: start this run. May be plain JSON.

    A repeat finds the run under way, and is refused like any other launch then.

    Attributes:
        options: What `coordinator launch` takes, by option name.
        reply_to: The queue that wants a LaunchAnswered, or None.
    """

    TYPE: ClassVar[str] = "launch"
    task: str
    options: dict[str, str] = field(default_factory=dict)
    reply_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchAnswered(Message):
    """Coordinator to whoever launched: whether the run was taken. Once for each Launch that names a queue.

    Attributes:
        run: The run's folder under --runs; empty when it was not taken.
        reason: Why it was not taken; None when it was.
    """

    TYPE: ClassVar[str] = "launch-answered"
    run: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusAsked(Message):
    """Anyone with the coordinator's account to the coordinator: what goes on? Changes nothing."""

    TYPE: ClassVar[str] = "status-asked"
    reply_to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusTold(Message):
    """Coordinator to whoever asked: what goes on, as `coordinator status --json` prints it.

    Attributes:
        state: A JSON object.
    """

    TYPE: ClassVar[str] = "status-told"
    state: str


_MESSAGES: dict[str, type[Message]] = {
    kind.TYPE: kind
    for kind in (
        RollCall, Ping, RoundStart, Part, RoundClosed, UploadAgain, Refused, RunFinished,
        Joined, Left, SwarmJoined, SwarmLeft, Progress, UpdateAnnounced, Declined, SwarmDeclined,
        Launch, LaunchAnswered, StatusAsked, StatusTold, StatisticsAsked, StatisticsTold, StatisticsRefused,
    )
}  # fmt: skip


def encode(message: Message) -> bytes:
    """The message's body as it travels."""
    return codec.pack({"type": message.TYPE, "version": VERSION, **to_plain(message, without_defaults=True)})


def decode(body: bytes, content_type: str | None = None) -> Message:
    """The message in a body; plain JSON is taken for `launch` alone.

    Raises:
        OtherVersion: It is of a version that we don't speak.
        ProtocolError: It is not one of ours.
    """
    if content_type == "application/json":
        return _decode_value(_launch_in(body))
    return _decode_value(codec.unpack(body))


def _launch_in(body: bytes) -> dict[str, object]:
    """The fields of a launch that a person typed: the version may be left out, and the first one will do."""
    try:
        value = json.loads(body[: codec.MAX_BODY_BYTES])
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"Expected JSON. {exc}") from exc
    if not isinstance(value, dict) or value.get("type") != Launch.TYPE:
        raise ProtocolError("Only a launch may be JSON.")
    told = value.get("version", VERSION)
    is_first = type(told) is int and told == _FIRST_LAUNCH  # this message is what it was
    return {**value, "version": VERSION if is_first else told}


def _decode_value(value: object) -> Message:
    if not isinstance(value, dict):
        raise ProtocolError(f"Expected a map, got {type(value).__name__}.")
    envelope = read_envelope(value)
    if envelope is None:
        raise ProtocolError(
            f"Expected a message of type and version, got {value.get('type')!r:.40} and {value.get('version')!r:.40}."
        )
    kind = _MESSAGES.get(envelope.type)
    if envelope.version != VERSION:
        raise OtherVersion(
            f"Expected version {VERSION} of {envelope.type}, got {envelope.version}. Upgrade the older side.",
            envelope,
        )
    if kind is None:
        raise ProtocolError(f"Expected a message type of ours, got {envelope.type!r}.")
    fields = {name: each for name, each in value.items() if name not in ("type", "version")}
    try:
        message = from_plain(kind, fields, kind.TYPE)
    except ProtocolError as exc:
        raise ProtocolError(str(exc), envelope) from exc
    assert isinstance(message, Message)  # noqa: S101 - from_plain returns an instance of its first argument
    return message
