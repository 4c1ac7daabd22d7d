"""The Link over RabbitMQ, put together of its two sides.

Two connections, publish and consume: during an alarm the broker stops reading from a publishing connection,
acknowledgements included. Each is owned by a thread of its own that only talks; whoever wants something of it
hands it a function and waits for the answer.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from broker.errors import BrokerError, BrokerUnreachable, Unroutable
from broker.link.rabbitmq import pika_stand_ins
from broker.link.rabbitmq.allocator import keep_freed_memory
from broker.link.rabbitmq.connection import ConnectionThread
from broker.link.rabbitmq.consuming import Consuming
from broker.link.rabbitmq.publishing import Publishing
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Connection, Delivery, Outgoing, Queue
from broker.link.standstill import Standstill
from broker.wire import names

logger = logging.getLogger(__name__)

_DEAD_BYTES = 64 * 1024
_TOLD_AFTER_SECONDS = 2.0  #: a broker that is just starting is not worth a line
_TOLD_EVERY_SECONDS = 10.0


class RabbitLink:
    """A role's two connections to RabbitMQ. See `broker.link.seam.Link`."""

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._standstill = Standstill()
        self._publishing = Publishing(settings, self._standstill)
        self._consuming = Consuming(settings, self._standstill, self._publishing.doubt)
        self._declaring = self._consuming.declaring
        sides = self._consuming.connection, self._publishing.connection
        for side, other in zip(sides, reversed(sides), strict=True):
            side.partner = other

    @property
    def account(self) -> str:
        """The name that this role is logged in with."""
        return self._publishing.account

    @property
    def is_connected(self) -> bool:
        """Whether both connections are there now."""
        return self._consuming.connection.ready.is_set() and self._publishing.connection.ready.is_set()

    @property
    def takes_messages(self) -> bool:
        """Whether both connections are there, without an alarm, and nothing is unconfirmed for 5 seconds."""
        return not self._standstill.is_on

    def seconds_still(self) -> float:
        """For how long in all it has taken no messages."""
        return self._standstill.seconds()

    def open(self) -> None:
        """Connect; afterwards the link reconnects by itself, for ever unless the login is refused for good.

        Raises:
            BrokerUnreachable: Nothing answered for `connect_seconds`, or what answers can't be used.
            LoginRefused: The broker refused the login.
        """
        keep_freed_memory()
        pika_stand_ins.stand_in()
        began = time.monotonic()
        for connection in (self._publishing.connection, self._consuming.connection):
            connection.start()
            try:
                self._await_first(connection, began)
            except BrokerError:
                self.close()
                raise

    def _await_first(self, connection: ConnectionThread, began: float) -> None:
        limit = self._settings.connect_seconds
        tell_after = _TOLD_AFTER_SECONDS
        while not connection.ready.wait(0.02):
            if refusal := connection.login_refusal:
                raise refusal
            if hopeless := connection.attempts.hopeless:
                raise hopeless  # a certificate is no better the next time
            waited = time.monotonic() - began
            if self._settings.stop.is_set() or (limit is not None and waited > limit):
                raise BrokerUnreachable(self._not_there(connection, waited)) from next(
                    iter(list(connection.attempts.errors.values())), None
                )
            if waited > tell_after:
                logger.warning("%s Waiting for it.", self._not_there(connection, waited))
                tell_after = waited + _TOLD_EVERY_SECONDS

    def _not_there(self, connection: ConnectionThread, waited: float) -> str:
        causes = [str(error) for error in list(connection.attempts.errors.values())]
        cause = " ".join(dict.fromkeys(causes)) or "It does not answer, or not as RabbitMQ does."
        return f"No broker at {self._settings.access.address} for {waited:.0f} s. {cause}"

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Publish in order, a window of them under way at once; returns once the broker has them all."""
        self._publishing.publish(batch)

    def post(self, message: Outgoing) -> "Future[None]":
        """Publish without waiting."""
        return self._publishing.post(message)

    def copy_to_dead(self, delivery: Delivery, reason: str) -> None:
        """Copy what can't be accepted to the queue `dead`, with the reason."""
        copy = Outgoing(
            key=names.DEAD,
            body=delivery.body[:_DEAD_BYTES],
            message_type=delivery.message_type or "unknown",
            headers={"reason": reason[:1000], "queue": delivery.queue, "sender": delivery.user_id or ""},
        )
        try:
            self.publish([copy])
        except Unroutable:
            logger.warning("Without a queue %r this is kept nowhere: %s", names.DEAD, reason)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> None:
        """Receive from these queues from now on, at most `prefetch` unacknowledged each; 0 means any number."""
        self._consuming.consume(queues, prefetch=prefetch)

    def cancel(self, queues: Sequence[str]) -> None:
        """Receive no longer from these queues."""
        self._consuming.cancel(queues)

    def receive(self, seconds: float) -> Delivery | Connection | None:
        """The next delivery or change of the connection; None when there was none for so long.

        Raises:
            LoginRefused: The broker takes the login no longer.
        """
        for side in (self._consuming, self._publishing):
            if refusal := side.connection.login_refusal:
                raise refusal
        return self._consuming.receive(seconds)

    def fetch(self, queue: str, most: int = 1) -> Iterator[Delivery]:
        """Take up to `most` messages out of a queue that isn't consumed, until it is empty or missing."""
        return self._consuming.fetching.fetch(queue, most)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these; a void tag is ignored."""
        self._consuming.ack(deliveries)

    def declare(self, queues: Sequence[Queue]) -> None:
        """Create queues and their bindings; they are restored with the connection."""
        self._declaring.declare(queues)

    def consumers(self, queue: str) -> int | None:
        """How many readers a queue has; None when there is no such queue."""
        return self._declaring.consumers(queue)

    def waiting(self, queue: str) -> int | None:
        """How many messages wait in a queue; None when there is no such queue."""
        return self._declaring.waiting(queue)

    def unread(self, queues: Sequence[str]) -> list[str]:
        """Those of these queues that nobody reads, that are missing, or that can't be used."""
        return self._declaring.unread(queues)

    def purge(self, queue: str) -> None:
        """Empty a queue; a missing one is as good as empty."""
        self._declaring.purge(queue)

    def delete(self, queues: Sequence[str]) -> None:
        """Delete queues.

        Of a deleted queue that is received from, the broker tells the reader, and the connection would start anew.
        """
        if own := [name for name in queues if name in self._consuming.consumed]:
            self.cancel(own)
        self._declaring.delete(queues)

    def close(self) -> None:
        """Give everything unacknowledged back to the broker and end both connections; bounded by seconds."""
        for connection in (self._consuming.connection, self._publishing.connection):
            if connection.is_alive():
                connection.end()
