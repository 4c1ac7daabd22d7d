"""The consuming side: what is received and acknowledged, and restored with every connection."""

import itertools
import logging
import queue
import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from functools import partial
from typing import Any

from broker.errors import BrokerError, LinkLost
from broker.link.rabbitmq.calls import finish
from broker.link.rabbitmq.connection import ConnectionThread
from broker.link.rabbitmq.declaring import Declaring
from broker.link.rabbitmq.fetching import Fetching
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.rabbitmq.translation import delivery_of
from broker.link.seam import Connection, Delivery, Queue, cut_word
from broker.link.standstill import Standstill

logger = logging.getLogger(__name__)

_CONNECTION = "no connection"  #: why nothing is received
_Restored = Callable[[Mapping[str, Queue], Mapping[str, int]], None]


class Outstanding:
    """What was delivered on one channel and is not acknowledged; used in the connection's thread only."""

    def __init__(self) -> None:
        self._tags: dict[int, None] = {}  # in the order in which they came

    def add(self, tag: int) -> None:
        """A message was delivered."""
        self._tags[tag] = None

    def settle(self, tags: Set[int], channel: Any) -> None:
        """Acknowledge these, all from the oldest on in one word; one that is unknown is void, and left out."""
        last: int | None = None
        for tag in self._tags:
            if tag not in tags:
                break
            last = tag
        if last is not None:
            channel.basic_ack(last, multiple=True)
        for tag in sorted(tags & self._tags.keys()):
            if last is None or tag > last:
                channel.basic_ack(tag)
            del self._tags[tag]


class Consuming:
    """Receives on a connection of its own.

    Args:
        standstill: Told while there is no connection.
        on_again: Called in the connection's thread with when it was lost, before it is told that it is there again.

    Attributes:
        connection: Its thread.
        declaring: What speaks about queues on the same connection.
        fetching: What takes single messages on the same connection.
        consumed: The queues that are received from on every connection, and the prefetch of each.
    """

    def __init__(
        self, settings: LinkSettings, standstill: Standstill, on_again: Callable[[float], None]
    ) -> None:
        self._on_again, self._told, self._lost_at = on_again, standstill.told, float("inf")
        self.connection = ConnectionThread(settings, "consume", self._on_ready, self._on_lost, standstill)
        self.declaring = Declaring(settings, self.connection)
        self.fetching = Fetching(self.connection)
        self.consumed: dict[str, int] = {}
        self._calls = self.connection.calls
        self._stop = settings.stop
        self._events: queue.SimpleQueue[Delivery | Connection] = queue.SimpleQueue()
        self._early: list[Delivery] | None = None
        self._unacknowledged = Outstanding()
        self._consumer_tags: dict[str, str] = {}
        self._tag_numbers = itertools.count(1)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> None:
        """Receive from these queues from now on, at most `prefetch` unacknowledged each; 0 means any number."""

        def perform(future: Future[Any]) -> None:
            self._start_consumers(dict.fromkeys(queues, prefetch), partial(finish, future))

        self.consumed.update(dict.fromkeys(queues, prefetch))
        try:
            self._calls.ask(perform)
        except LinkLost as exc:
            logger.debug("Received with the next connection: %s", exc)

    def cancel(self, queues: Sequence[str]) -> None:
        """Receive no longer from these queues; all requests are sent at once."""

        def perform(future: Future[Any]) -> None:
            channel = self.connection.channel
            for name in queues:
                channel.basic_cancel(self._consumer_tags.pop(name, name))
                # pika gives back what still comes for the old tag, and so does not take it a second time.
                self._consumer_tags[name] = f"{name} {next(self._tag_numbers)}"
            # The broker answers in order: the answer to this comes after all was cancelled.
            channel.basic_qos(prefetch_count=1, callback=lambda _ok: finish(future))

        for name in queues:
            self.consumed.pop(name, None)
        self._calls.ask(perform)

    def receive(self, seconds: float) -> Delivery | Connection | None:
        """The next delivery or change of the connection; None when there was none for so long."""
        try:
            return self._events.get(timeout=seconds) if seconds > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these; a void tag is ignored."""

        def perform(future: Future[Any]) -> None:
            own = {tag for number, tag in tags if number == self.connection.generation}
            self._unacknowledged.settle(own, self.connection.channel)
            for number, tag in tags:
                if number != self.connection.generation:
                    self.fetching.ack(number, tag)
            finish(future)

        tags = [each.tag for each in deliveries]
        if tags:
            self._calls.send(perform)

    # --- in the connection's thread ------------------------------------------------------------------------

    def _on_ready(self) -> None:
        """Restore what was declared and consumed, in order, on the new connection."""
        channel = self.connection.channel
        channel.add_on_cancel_callback(lambda _frame: self.connection.restart("a queue was deleted"))

        self._early, self._unacknowledged = [], Outstanding()
        self._restore(dict(self.declaring.declared), dict(self.consumed), self._restored)

    def _restore(self, declared: Mapping[str, Queue], consumed: Mapping[str, int], done: _Restored) -> None:
        def proceed(error: BrokerError | None) -> None:
            if error is None:
                self._start_consumers(consumed, partial(done, declared, consumed))
            elif not isinstance(error, LinkLost):  # which has ended what would be closed
                self.connection.refuse(error)

        if declared:
            self.declaring.start_declaring(list(declared.values()), proceed)
        else:
            proceed(None)

    def _restored(self, declared: Mapping[str, Queue], consumed: Mapping[str, int]) -> None:
        """All is as it was: this is told before what has come already is handed on."""
        is_first, early = not self.connection.was_ready, self._early or []
        self.connection.be_ready()
        if not is_first:
            self._on_again(self._lost_at)
            self._told.end(_CONNECTION)
            self._events.put(Connection.RESTORED)
        for delivery in early:
            self._events.put(delivery)
        self._early = None
        # Who asked for more meanwhile was told that there is no connection.
        asked_for = dict(self.declaring.declared)
        more_declared = {name: each for name, each in asked_for.items() if name not in declared}
        more_consumed = {name: each for name, each in dict(self.consumed).items() if name not in consumed}
        if more_declared or more_consumed:
            self._restore(more_declared, more_consumed, lambda *_: None)

    def _on_lost(self, error: BrokerError) -> None:
        self._lost_at = time.monotonic()
        if not self._stop.is_set():
            self._told.begin(_CONNECTION, f"{error} Reconnecting.", "Connected to the broker again.")
        self._events.put(Connection.LOST)

    def _start_consumers(self, wanted: Mapping[str, int], started: Callable[[], None]) -> None:
        """Receive from these queues, each with its prefetch; then say so."""
        missing = set(wanted)

        def answered(name: str, _ok: Any) -> None:
            missing.discard(name)
            if not missing:
                started()

        for name, prefetch in wanted.items():
            self._start_consumer(name, prefetch, partial(answered, name))
        if not wanted:
            started()

    def _start_consumer(self, name: str, prefetch: int, answered: Callable[[Any], None]) -> None:
        channel, generation = self.connection.channel, self.connection.generation

        def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            self._take(delivery_of(name, method, properties, cut_word(name, body), generation))

        channel.basic_qos(prefetch_count=prefetch)
        tag = self._consumer_tags.setdefault(name, name)
        channel.basic_consume(name, on_message, consumer_tag=tag, callback=answered)

    def _take(self, delivery: Delivery) -> None:
        """Hand on a delivery, but none before it is told that the connection is restored."""
        self._unacknowledged.add(delivery.tag[1])
        if self._early is not None:
            self._early.append(delivery)
        else:
            self._events.put(delivery)
