"""The seam: what a role may ask of a broker. RabbitMQ and memory implement it, and pass the same contract tests.

A message is known to be safe once `publish` returns. A delivery is held by the broker until it is acknowledged;
after a reconnect every held delivery comes again, with a new tag, and the old tag is void.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from broker.wire import messages, names
from broker.wire.limits import MOST_WORD_BYTES
from broker.wire.messages import Message

Body = bytes | Callable[[], bytes]

_CUT_BYTES = 1024

# A laptop may stay closed over a holiday; a worker that never comes back must not fill the disk for ever. An upload
# queue that nobody looks into for so long holds nothing that a round still waits for, and its worker makes it again
# when it next uploads.
UNREAD_SECONDS = 14 * 24 * 3600  #: then a worker's queue is deleted, unless it is kept for an account


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue to declare: its name and the routing keys bound to it.

    Attributes:
        single_active_consumer: Only one of its readers receives; another waits behind it.
        max_length: The oldest messages beyond this number are dropped; None keeps all.
        expires_seconds: The broker deletes it once nobody used it for so long; None keeps it. One that is there and is
            kept, else the same, is taken as it is.
    """

    name: str
    keys: tuple[str, ...]
    single_active_consumer: bool = False
    max_length: int | None = None
    expires_seconds: int | None = None

    @property
    def arguments(self) -> dict[str, bool | int]:
        """What it is declared with; another value of any of them, and RabbitMQ refuses to declare it."""
        arguments = {
            "x-single-active-consumer": self.single_active_consumer or None,
            "x-max-length": self.max_length,
            "x-expires": None if self.expires_seconds is None else 1000 * self.expires_seconds,
        }
        return {name: value for name, value in arguments.items() if value is not None}


def cut_word(queue: str, body: bytes) -> bytes:
    """The body as it is handed on: of what is too large for its queue no more than a beginning."""
    return body[:_CUT_BYTES] if queue == names.COORDINATOR and len(body) > MOST_WORD_BYTES else body


def coordinator_queue() -> Queue:
    """The queue that the coordinator reads."""
    return Queue(name=names.COORDINATOR, keys=(names.COORDINATOR,), single_active_consumer=True)


def dead_queue() -> Queue:
    """The queue for a person: copies of what could not be accepted."""
    return Queue(name=names.DEAD, keys=(names.DEAD,), max_length=1000)


def worker_queue(worker: str, *, is_kept: bool = False) -> Queue:
    """The queue that one worker reads; also bound to the key of the roll call.

    Args:
        worker: Or the process that reads for a swarm.
        is_kept: It never expires: an invited account could not make it again.
    """
    name = names.worker_queue(worker)
    return Queue(
        name=name,
        keys=(name, names.EVERY_WORKER),
        single_active_consumer=True,
        expires_seconds=None if is_kept else UNREAD_SECONDS,
    )


def upload_queue(worker: str, *, is_kept: bool = False) -> Queue:
    """The queue that holds the parts of one worker's update; kept as `worker_queue` is."""
    name = names.upload_queue(worker)
    return Queue(name=name, keys=(name,), expires_seconds=None if is_kept else UNREAD_SECONDS)


def reply_queue(name: str) -> Queue:
    """The queue of one question to the coordinator; the asker deletes it, or else the broker does."""
    return Queue(name=name, keys=(name,), expires_seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One message to publish.

    Attributes:
        key: Its routing key.
        body: Encoded, or a function that encodes it when its turn comes, so that a large model is not held twice.
        message_type: For the person at the management page.
        bcc: More routing keys that get the same message; no reader sees them.
        is_transient: It may be lost, and is dropped after 10 seconds in a queue.
        is_said_again: Its sender says it again to who lacks it once the broker is back from a crash: nothing of it need
            go to the broker's disk.
        is_mandatory: It must reach a queue, or `publish` raises Unroutable.
    """

    key: str
    body: Body
    message_type: str
    bcc: tuple[str, ...] = ()
    is_transient: bool = False
    is_said_again: bool = False
    is_mandatory: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """The body's bytes."""
        return self.body() if callable(self.body) else self.body


def outgoing(
    message: Message,
    key: str,
    *,
    bcc: Sequence[str] = (),
    is_transient: bool = False,
    is_said_again: bool = False,
    is_mandatory: bool = True,
) -> Outgoing:
    """Address a message."""
    return Outgoing(
        key=key,
        body=messages.encode(message),
        message_type=message.TYPE,
        bcc=tuple(bcc),
        is_transient=is_transient,
        is_said_again=is_said_again,
        is_mandatory=is_mandatory and not is_transient,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message received; held by the broker until it is acknowledged.

    Attributes:
        user_id: The sender's account, validated by the broker; None if the sender left it out.
        tag: The link's own; void after a reconnect.
    """

    queue: str
    body: bytes
    message_type: str | None
    content_type: str | None
    user_id: str | None
    headers: dict[str, object]
    tag: tuple[int, int]

    def without_body(self) -> "Delivery":
        """What is enough to acknowledge it later: what is held must not fill memory."""
        return replace(self, body=b"")


class Connection(Enum):
    """What `receive` tells of the connection."""

    LOST = "lost"
    RESTORED = "restored"  #: every delivery held before is void and comes again


class Link(Protocol):
    """A role's connection to the broker. Every call may come from any thread; every wait is bounded."""

    @property
    def account(self) -> str:
        """The name that this role is logged in with."""

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now; it may be gone the next moment."""

    @property
    def takes_messages(self) -> bool:
        """Whether what is published now is likely to be taken.

        Not without a connection, nor during an alarm, nor while something published is unconfirmed for 5 seconds.
        """

    def seconds_still(self) -> float:
        """For how long in all it has taken no messages; a message unconfirmed for 5 seconds counts from its start."""

    def declare(self, queues: Sequence[Queue]) -> None:
        """Create queues and their bindings; they are restored with the connection, if it is lost now or later.

        A restore that is refused (a queue is there with other arguments) is no connection: it is tried again with
        growing delays, and told by one RESTORED once it is done.

        Raises:
            DeclareRefused: One is there with other arguments.
            BrokerError: The broker refused one.
        """

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Publish in order and return once the broker has them all.

        Raises:
            Unroutable: A mandatory one reached no queue; the others are published.
            PublishRefused: The broker did not take one; the others are published.
            LinkLost: The connection went away before all were confirmed; some may have arrived, and the first so many
                have that it tells of.
        """

    def post(self, message: Outgoing) -> "Future[None]":
        """Publish without waiting; the future is done once the broker has it, or fails as `publish` would."""

    def consume(self, queues: Sequence[str], *, prefetch: int) -> None:
        """Receive from these queues from now on, at most `prefetch` unacknowledged each; 0 means any number.

        Also from the next connection on, if this one is lost now or later. What comes into the coordinator's queue and
        is larger than a word (`wire.limits.MOST_WORD_BYTES`) is cut, so that it can't be read, nor fill the memory.
        """

    def cancel(self, queues: Sequence[str]) -> None:
        """Receive no longer from these queues."""

    def receive(self, seconds: float) -> Delivery | Connection | None:
        """The next delivery or change of the connection; None when there was none for so long.

        Raises:
            LoginRefused: The broker takes the login no longer, and has said so for a while: there is no way on.
        """

    def fetch(self, queue: str, most: int = 1) -> Iterator[Delivery]:
        """Take up to `most` messages out of a queue that isn't consumed, until it is empty or missing.

        The next one is under way while one is worked on: take all, or it is held until the connection ends.

        Raises:
            LinkLost: The connection went away.
        """

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these; a void tag is ignored."""

    def copy_to_dead(self, delivery: Delivery, reason: str) -> None:
        """Copy what can't be accepted to the queue `dead`, 64 KiB at most, with the reason; acknowledges nothing."""

    def consumers(self, queue: str) -> int | None:
        """How many readers a queue has; None when there is no such queue."""

    def waiting(self, queue: str) -> int | None:
        """How many messages wait in a queue, without those that somebody holds; None when there is no such queue."""

    def unread(self, queues: Sequence[str]) -> list[str]:
        """Those of these queues that nobody reads, that are missing, or that can't be used; many in one go."""

    def purge(self, queue: str) -> None:
        """Empty a queue; a missing one is as good as empty."""

    def delete(self, queues: Sequence[str]) -> None:
        """Delete queues, those that this link receives from too; a missing one is as good as deleted."""

    def close(self) -> None:
        """Give everything unacknowledged back to the broker and end the connection; bounded by seconds."""
