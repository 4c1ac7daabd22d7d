"""The publishing side: a window of messages under way, and a broker that takes none told apart from a slow one."""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import pika

from broker.errors import BrokerError, LinkLost, PublishRefused, Unroutable
from broker.link.rabbitmq.confirms import Confirms
from broker.link.rabbitmq.connection import ConnectionThread
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Outgoing
from broker.link.standstill import Standstill
from broker.wire import names

logger = logging.getLogger(__name__)

_WINDOW_BYTES = 13 * 1024 * 1024  #: unconfirmed at once, three parts; more is memory, not speed
_WINDOW_MESSAGES = 256
_HANDFUL_BYTES = 512 * 1024  #: of small messages that are handed over together
_LARGE_BYTES = 64 * 1024
_TRANSIENT_MILLISECONDS = "10000"
_STOP_SECONDS = 2.0  #: how long a confirm is waited for after the wish to stop
_CONFIRM_SECONDS = 5.0  #: a message unconfirmed for so long: the broker takes none now
_CONFIRM_LIMIT_SECONDS = 60.0  #: then its connection is given up
_REFUSED_SECONDS = (
    5.0  #: messages refused for so long, at one of several addresses: another connection may be taken
)
_LOOK_SECONDS = 0.5  #: how often it is looked at after the first of these
_UNCONFIRMED = "a message is unconfirmed"  #: why messages are not taken


class _Window:
    """What of one batch is under way.

    Args:
        settle: Waits for a confirm, and tells why a message reached no queue.

    Attributes:
        missed: The last of these reasons.
    """

    def __init__(self, settle: Callable[[Future[Any]], BrokerError | None]) -> None:
        self._settle = settle
        self._underway: deque[tuple[int, Future[Any]]] = deque()
        self._num_bytes = 0
        self._num_settled = 0
        self.missed: BrokerError | None = None

    def make_room(self, num_bytes: int) -> None:
        """Wait until so much more may be under way."""
        while self._underway and (
            len(self._underway) >= _WINDOW_MESSAGES or self._num_bytes + num_bytes > _WINDOW_BYTES
        ):
            self._settle_oldest()

    def add(self, sent: Iterable[tuple[int, Future[Any]]]) -> None:
        """These are under way now, each with its size."""
        for size, future in sent:
            self._underway.append((size, future))
            self._num_bytes += size

    def close(self) -> None:
        """Wait until nothing is under way any more."""
        while self._underway:
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        size, oldest = self._underway[0]
        self.missed = self._settle(oldest) or self.missed
        self._underway.popleft()
        self._num_bytes -= size
        self._num_settled += 1

    @property
    def num_safe(self) -> int:
        """How many of the first the broker has; none where a repeat of all is to find again what was missed."""
        if self.missed is not None:
            return 0
        confirmed = itertools.takewhile(_is_confirmed, (future for _, future in self._underway))
        return self._num_settled + sum(1 for _ in confirmed)


def _is_confirmed(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


class Publishing:
    """Publishes on a connection of its own.

    Args:
        standstill: Told while something is unconfirmed for too long, too.

    Attributes:
        account: Whom the broker knows as the sender.
        connection: Its thread.
    """

    def __init__(self, settings: LinkSettings, standstill: Standstill) -> None:
        self.account = settings.account
        self.connection = ConnectionThread(settings, "publish", self._on_ready, self._on_lost, standstill)
        self._calls = self.connection.calls
        self._standstill = standstill
        self._told, self._slow_told_at = standstill.told, float("-inf")
        self._doubted_until, self._first_trusted = 0.0, 0
        self._left_refusal_at = float("-inf")
        self._confirms = Confirms()
        self._message_ids = itertools.count(1)

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Publish in order, a window of them under way at once; returns once the broker has them all."""
        window = _Window(self._settle)
        try:
            for group in _handfuls(batch):
                window.make_room(sum(len(body) for _, body in group))
                futures = self._calls.send_all([partial(self._publish_one, *each) for each in group])
                window.add((len(body), future) for (_, body), future in zip(group, futures, strict=True))
            window.close()
        except LinkLost as exc:
            raise LinkLost(str(exc), window.num_safe) from exc
        if window.missed is not None:
            raise window.missed

    def post(self, message: Outgoing) -> "Future[None]":
        """Publish without waiting."""
        return self._calls.send(partial(self._publish_one, message, message.encoded()))

    def _settle(self, future: Future[Any]) -> BrokerError | None:
        """Why one message reached no queue, or not all of its queues; that does not hold back the rest."""
        try:
            self._calls.wait(future, _CONFIRM_LIMIT_SECONDS, seconds_after_stop=_STOP_SECONDS)
        except (Unroutable, PublishRefused) as exc:
            return exc
        return None

    def _publish_one(self, message: Outgoing, body: bytes, future: Future[Any]) -> None:
        message_id = str(next(self._message_ids))
        headers: dict[str, Any] = {**message.headers}
        if message.bcc:
            headers["BCC"] = list(message.bcc)
        properties = pika.BasicProperties(
            app_id="warren",
            content_type="application/msgpack",
            delivery_mode=1 if message.is_transient or message.is_said_again else 2,
            expiration=_TRANSIENT_MILLISECONDS if message.is_transient else None,
            headers=headers or None,
            message_id=message_id,
            type=message.message_type,
            user_id=self.account,
        )
        self._confirms.add(message_id, future)
        if not self._confirms.is_watched:
            self._watch(self._confirms)
        self.connection.channel.basic_publish(
            names.EXCHANGE, message.key, body, properties, mandatory=message.is_mandatory
        )

    # --- in the connection's thread ------------------------------------------------------------------------

    def _on_ready(self) -> None:
        confirms = self._confirms = Confirms()
        self._doubted_until, self._first_trusted = 0.0, 0
        channel = self.connection.channel
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(
            lambda frame: self._on_confirm(confirms, frame), callback=lambda _ok: self.connection.be_ready()
        )

    def _on_lost(self, error: BrokerError) -> None:
        logger.debug("The publishing connection was lost: %s", error)
        self._standstill.end(_UNCONFIRMED)

    def _on_return(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        self._confirms.returned[properties.message_id] = method.routing_key

    def _on_confirm(self, confirms: Confirms, frame: Any) -> None:
        confirms.settle(frame)
        if confirms.age < _CONFIRM_SECONDS:
            self._standstill.end(_UNCONFIRMED)
            if confirms.oldest >= self._first_trusted:
                self._told.end(_UNCONFIRMED)
        if frame.method.NAME == "Basic.Nack" and confirms.seconds_refused >= _REFUSED_SECONDS:
            self._leave_refusal()

    def _leave_refusal(self) -> None:
        """Begin anew where a cluster's node refuses what it is sent, once in a while: a queue may be full, too.

        A channel of RabbitMQ 3 asks the node that led a queue when it first wrote to it. If that node is cut off it
        refuses every message to that queue, until the node is back; a channel that is opened later asks another one.
        """
        now = time.monotonic()
        if self.connection.attempts.is_among_several and now - self._left_refusal_at > _CONFIRM_LIMIT_SECONDS:
            self._left_refusal_at = now
            self.connection.restart("messages are refused")

    def _watch(self, confirms: Confirms) -> None:
        """Look at what is unconfirmed when its time is up: who waits for a confirm hears nothing that tells it so."""
        confirms.is_watched = bool(confirms.waiting)
        if not confirms.is_watched:
            return
        age, alarm, limit = confirms.age, self.connection.alarm, self._limit_seconds
        if not alarm.is_on and min(age, time.monotonic() - alarm.ended_at) >= limit:
            # A cluster that has its majority back may confirm nothing more on an old connection.
            self.connection.give_up(f"a message was not confirmed within {limit:g} s")
            return
        if age >= _CONFIRM_SECONDS:
            self._tell_slow(age)
            self._standstill.begin(_UNCONFIRMED, seconds_ago=age)
        self.connection.later(max(_LOOK_SECONDS, _CONFIRM_SECONDS - age), partial(self._watch, confirms))

    def doubt(self, lost_at: float) -> None:
        """The other connection was lost and is there again: what isn't confirmed soon never will be.

        A node of RabbitMQ 4 that was left without a majority keeps its clients, and may confirm nothing more of what
        they sent meanwhile, also when the majority is back.
        """
        confirms = self._confirms
        if not self.connection.ready.is_set() or confirms.since > lost_at:
            return  # a new connection begins without doubt
        if confirms.waiting:
            self._tell_unconfirmed(confirms.age)
        with suppress(BrokerError):
            self.connection.run_soon(self._begin_doubt)

    def _begin_doubt(self) -> None:
        self._doubted_until = time.monotonic() + _CONFIRM_LIMIT_SECONDS
        self._first_trusted = self._confirms.next_tag

    @property
    def _limit_seconds(self) -> float:
        """How long a confirm may take before the connection is given up."""
        is_doubted = time.monotonic() < self._doubted_until
        return 3 * _CONFIRM_SECONDS if is_doubted else _CONFIRM_LIMIT_SECONDS

    def _tell_slow(self, age: float) -> None:
        """Once until messages are taken again, and not again soon.

        A slow network has it come to this at each part, and so has a cluster with its majority back while one more
        queue elects. After that limit the connection is given up, which is told in any case.
        """
        told_at = max(self._slow_told_at, self._told.ended_at)
        is_quiet = time.monotonic() - told_at <= _CONFIRM_LIMIT_SECONDS or self._standstill.is_on
        if not self.connection.alarm.is_on and (self._told.is_on or not is_quiet):
            self._tell_unconfirmed(age)

    def _tell_unconfirmed(self, age: float) -> None:
        went = f"The broker has not confirmed a message for {age:.0f} s; waiting."
        if self._told.begin(_UNCONFIRMED, went, "The broker takes messages again."):
            self._slow_told_at = time.monotonic()


def _handfuls(batch: Iterable[Outgoing]) -> Iterator[list[tuple[Outgoing, bytes]]]:
    """Messages with their bodies, encoded when their turn comes; small ones together, a large one at once."""
    group: list[tuple[Outgoing, bytes]] = []
    num_bytes = 0
    for message in batch:
        body = message.encoded()
        if group and num_bytes + len(body) > _HANDFUL_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append((message, body))
        num_bytes += len(body)
        if len(body) >= _LARGE_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group
