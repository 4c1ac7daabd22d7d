"""The Link over RabbitMQ; the only file that imports pika.

Two connections, publish and consume: during an alarm the broker stops reading from a publishing connection,
acknowledgements included. Each is owned by a thread of its own that only talks; whoever wants something of it
hands it a function through `call` and waits for the answer.
"""

import itertools
import logging
import queue
import random
import shlex
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pika
import pika.exceptions
import pika.frame
from pika.adapters.select_connection import SelectConnection
from pika.adapters.utils import io_services_utils

from broker.errors import (
    BrokerError,
    BrokerUnreachable,
    DeclareRefused,
    LinkLost,
    LoginRefused,
    PublishRefused,
    Unroutable,
    UsageError,
)
from broker.link.address import check_amqp_url, without_password
from broker.link.rabbitmq.allocator import keep_freed_memory
from broker.link.seam import Connection, Delivery, Outgoing, Queue
from broker.link.standstill import Standstill
from broker.wire import names

logger = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 15
_CLOSE_SECONDS = 3.0
_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 10.0
_WINDOW_BYTES = 12 * 1024 * 1024  #: unconfirmed bytes under way at once; more is memory, not speed
_WINDOW_MESSAGES = 256
_TRANSIENT_MILLISECONDS = "10000"
_DEAD_BYTES = 64 * 1024
_REFUSALS = 3  #: refused logins in a row that are believed
_PIECE_SECONDS = 0.5  #: how often a wait looks at the wish to stop
_STOP_SECONDS = 2.0  #: how long a confirm is waited for after that
_CONFIRM_SECONDS = 5.0  #: a message unconfirmed for so long: the broker takes none now
_CONFIRM_LIMIT_SECONDS = 60.0  #: then its connection is given up
_UNCONFIRMED = "a message is unconfirmed"  #: why messages are not taken
_NOT_EQUIVALENT = 406  #: AMQP's PRECONDITION_FAILED

_FRAME_HEADER = struct.Struct(">BHL")  #: type, channel, size of the payload; one octet ends a frame

# pika 1.4 reads 4 KiB at a time, each in a turn of its own. With 256 KiB pika as it comes receives large parts two to
# three times as fast. The attribute is private: guarded, and gone in later pika.
if hasattr(io_services_utils._AsyncTransportBase, "_MAX_RECV_BYTES"):
    io_services_utils._AsyncTransportBase._MAX_RECV_BYTES = 256 * 1024

Role = Literal["publish", "consume"]
_Restored = Callable[["_Wire", Mapping[str, Queue], Mapping[str, int]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """How to reach the broker and what to be called there.

    Attributes:
        name: Shown at the management page, e.g. "worker hospital-1".
        connect_seconds: How long the first connection is tried.
        stop: The process's wish to end: every wait then ends within about a second.
    """

    amqp_url: str
    name: str
    connect_seconds: float = 10.0
    stop: threading.Event = field(default_factory=threading.Event)

    def parameters(self, role: Role) -> pika.URLParameters:
        """What pika wants to know.

        Raises:
            UsageError: The address can't be understood.
        """
        url = check_amqp_url(self.amqp_url)
        try:
            parameters = pika.URLParameters(url)
        except (ValueError, TypeError, SyntaxError, LookupError, OSError) as exc:
            raise UsageError(
                f"The broker's address {without_password(url)!r} has an option after its '?' that can't be "
                f"used: {exc}"
            ) from exc
        parameters.heartbeat = _HEARTBEAT_SECONDS
        parameters.socket_timeout = parameters.stack_timeout = 10
        parameters.client_properties = {
            "connection_name": f"{self.name} ({role})",
            "product": "warren",
        }
        return parameters


def translate(error: BaseException, amqp_url: str) -> BrokerError:
    """Turn an error of pika or of the socket into ours; every pika error has its place here."""
    where = without_password(amqp_url)
    reason = str(error) or type(error).__name__
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError):
        return LoginRefused(f"The broker at {where} refused the user or the password. Check --amqp-url.")
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        return LoginRefused(f"The broker at {where} refused the virtual host in the address: {reason}")
    if isinstance(error, pika.exceptions.UnroutableError):
        return Unroutable(f"No queue takes the message: {reason}")
    if isinstance(error, pika.exceptions.NackError):
        return PublishRefused(f"The broker refused a message: {reason}")
    if isinstance(error, pika.exceptions.ChannelClosedByBroker):
        return PublishRefused(f"The broker refused: {error.reply_code} {error.reply_text}")
    if isinstance(error, pika.exceptions.ConnectionClosedByBroker) and error.reply_code in (403, 530):
        return LoginRefused(
            f"The broker at {where} closed the connection: {error.reply_code} {error.reply_text}"
        )
    if isinstance(
        error, pika.exceptions.AMQPError | pika.exceptions.ChannelError | pika.exceptions.ReentrancyError
    ):
        return LinkLost(f"The connection to the broker at {where} was lost: {reason}")
    return LinkLost(f"The connection to the broker at {where} failed: {reason}")


class _LeanConnection(SelectConnection):  # type: ignore[misc] # pika is untyped here
    """pika's connection without most of its copies: with those of msgpack, a tenth of a round of 100 MB models.

    pika copies each byte of a large message four times on the way in and three times on the way out; here it is once.
    Both methods stand in for private ones of pika 1.4, and rest on its frame classes.
    """

    _body_left = 0  # bytes of the body frame that is under way, and its end octet
    _body_channel = 0
    _beginning = b""  # of a frame, too short to tell what it is, or of one without a body

    def _on_data_available(self, data_in: bytes) -> None:
        """Hand on pieces of body frames as they come, as views; all other frames are small, and left to pika."""
        data = self._beginning + data_in if self._beginning else data_in
        self._beginning = b""
        view, at = memoryview(data), 0
        while at < len(data):
            if self._body_left:
                at += self._take_body(view[at : at + self._body_left])
            elif len(data) - at < _FRAME_HEADER.size:
                break
            else:
                kind, channel, size = _FRAME_HEADER.unpack_from(data, at)
                end = at + _FRAME_HEADER.size + size + 1
                if kind == pika.spec.FRAME_BODY:
                    at += _FRAME_HEADER.size
                    self.bytes_received += _FRAME_HEADER.size
                    self._body_channel, self._body_left = channel, size + 1
                elif end > len(data):
                    break
                else:
                    super()._on_data_available(data[at:end])
                    at = end
        self._beginning = data[at:]

    def _take_body(self, piece: memoryview) -> int:
        """Hand on what came of a body frame; pika counts up to the size of the message, whatever the pieces."""
        self.bytes_received += len(piece)
        self._body_left -= len(piece)
        payload = piece if self._body_left else piece[:-1]
        if not self._body_left and piece[-1] != pika.spec.FRAME_END:
            raise pika.exceptions.InvalidFrameError("Invalid FRAME_END marker")
        if payload:
            self._process_frame(pika.frame.Body(self._body_channel, payload))
        return len(piece)

    def _send_message(self, channel_number: int, method: Any, content: tuple[Any, bytes]) -> None:
        """Cut a message into frames."""
        properties, body = content
        frames = [
            pika.frame.Method(channel_number, method).marshal(),
            pika.frame.Header(channel_number, len(body), properties).marshal(),
        ]
        view, end = memoryview(body), bytes([pika.spec.FRAME_END])
        for begin in range(0, len(body), self._body_max_length):
            piece = view[begin : begin + self._body_max_length]
            header = _FRAME_HEADER.pack(pika.spec.FRAME_BODY, channel_number, len(piece))
            frames.append(b"".join((header, piece, end)))
        self._output_marshaled_frames(frames)


class _Wire(threading.Thread):
    """One connection, owned by this thread; reconnects by itself with growing, jittered, bounded delays.

    Args:
        on_ready: Called in this thread with the wire once its channel is open, on every connection.
        on_lost: Called in this thread when an open connection went away.
        standstill: Told while there is no connection, and of an alarm.
    """

    def __init__(
        self,
        settings: LinkSettings,
        role: Role,
        on_ready: Callable[["_Wire"], None],
        on_lost: Callable[[BrokerError], None],
        standstill: Standstill,
    ) -> None:
        super().__init__(name=f"broker-{role}", daemon=True)
        self.settings = settings
        self.standstill = standstill
        self.channel: Any = None
        self.generation = 0
        self.first_error: BrokerError | None = None
        self.num_refused = 0
        self.ready = threading.Event()
        self.is_blocked, self.unblocked_at = False, float("-inf")
        self._parameters = settings.parameters(role)
        self._on_ready, self._on_lost = on_ready, on_lost
        self._outage, self._alarm = f"no connection to {role}", f"an alarm at {role}"
        self.standstill.begin(self._outage)
        self._ready_at = float("inf")
        self.was_ready = False
        self._refusal = ""
        self._connection: Any = None
        self._closing = threading.Event()
        self._pending: set[Future[Any]] = set()

    def run(self) -> None:
        """Connect, talk until the connection ends, and again until closed."""
        delay = _FIRST_DELAY_SECONDS
        while not self._closing.is_set():
            self._ready_at = float("inf")
            self._talk()
            if time.monotonic() - self._ready_at >= _LONGEST_DELAY_SECONDS:
                delay = _FIRST_DELAY_SECONDS  # one that breaks again and again is not tried without pause
            self._closing.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    def _talk(self) -> None:
        try:
            self._connection = _LeanConnection(
                self._parameters,
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_end,
                on_close_callback=self._on_end,
            )
            self._connection.ioloop.start()
        except Exception as exc:
            logger.debug("The connection's loop ended.", exc_info=exc)
            self._note_end(translate(exc, self.settings.amqp_url))
        finally:
            self._forget_connection()

    def _forget_connection(self) -> None:
        """Close the loop; a call that was scheduled too late finds its future failed."""
        connection, self._connection = self._connection, None
        self.channel = None
        self._fail_pending(LinkLost("The connection to the broker was lost."))
        if connection is not None:
            connection.ioloop.close()

    def _on_open(self, connection: Any) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self.channel = channel
        self.generation += 1
        channel.add_on_close_callback(self._on_channel_closed)
        self._on_ready(self)

    def be_ready(self) -> None:
        """All is restored: take calls from now on."""
        self._ready_at = time.monotonic()
        self.was_ready = True
        self._refusal = ""
        self.standstill.end(self._outage)
        self.ready.set()

    def refuse(self, error: BrokerError) -> None:
        """The broker would not restore something: that is no connection; the reason is told when it is another one."""
        if str(error) != self._refusal:
            self._refusal = str(error)
            logger.warning("Not connected again, but trying until it works: %s", error)
        self._connection.close()

    def _on_channel_closed(self, channel: Any, reason: BaseException) -> None:
        """A main channel that the broker closes takes its connection along: both start anew."""
        if self._connection is None or not self._connection.is_open:
            return
        if not self.ready.is_set():
            self.refuse(translate(reason, self.settings.amqp_url))
            return
        logger.warning("The broker closed a channel: %s", reason)
        self._fail_pending(LinkLost(f"The broker closed the channel: {reason}"))
        self._connection.close()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something done in this thread, unless the connection ends before."""
        self._connection.ioloop.call_later(seconds, act)

    def restart(self, reason: str) -> None:
        """Begin anew with a new connection, which restores the queues."""
        logger.warning("Connecting anew: %s.", reason)
        self._connection.close()

    def _on_end(self, connection: Any, error: BaseException | str) -> None:
        cause = error if isinstance(error, BaseException) else pika.exceptions.AMQPConnectionError(error)
        self._note_end(translate(cause, self.settings.amqp_url))
        connection.ioloop.stop()

    def _note_end(self, error: BrokerError) -> None:
        was_connected = self.ready.is_set()
        self.standstill.begin(self._outage)
        self.ready.clear()
        self.is_blocked = False
        self.standstill.end(self._alarm)
        self.first_error = error
        self.num_refused = self.num_refused + 1 if isinstance(error, LoginRefused) else 0
        if self.num_refused == _REFUSALS and self.was_ready:
            logger.warning("Not connected again, but trying until it works: %s", error)
        self._fail_pending(LinkLost(str(error)))
        if was_connected and not self._closing.is_set():
            self._on_lost(error)

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self.is_blocked = True
        self.standstill.begin(self._alarm)
        logger.warning("The broker takes no messages now (%s); waiting.", frame.method.reason)

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self.is_blocked, self.unblocked_at = False, time.monotonic()
        self.standstill.end(self._alarm)
        logger.info("The broker takes messages again.")

    def call(self, function: Callable[["_Wire", Future[Any]], None], seconds: float = 30.0) -> Any:
        """Run a function in this thread and wait for the future that it was given.

        Raises:
            LinkLost: There is no connection, it went away, or no answer came for so long.
        """
        future: Future[Any] = Future()
        self.send(function, future)
        return self.wait(future, seconds)

    def send(self, function: Callable[["_Wire", Future[Any]], None], future: Future[Any]) -> None:
        """Hand a function to this thread; its future fails if the connection goes away first."""
        connection = self._connection
        if connection is None or not self.ready.is_set():
            future.set_exception(LinkLost("There is no connection to the broker now."))
            return
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        try:
            connection.ioloop.add_callback_threadsafe(partial(self._perform, function, future))
        except (pika.exceptions.AMQPError, OSError, AttributeError, RuntimeError) as exc:
            _fail(future, translate(exc, self.settings.amqp_url))
        if self._connection is not connection:
            # The connection ended between the look and the call: its loop will not run the function.
            _fail(future, LinkLost("The connection to the broker was lost."))

    def _perform(self, function: Callable[["_Wire", Future[Any]], None], future: Future[Any]) -> None:
        if future.done():
            return
        try:
            function(self, future)
        except (pika.exceptions.AMQPError, pika.exceptions.ChannelError, ValueError) as exc:
            _fail(future, translate(exc, self.settings.amqp_url))

    def wait(self, future: Future[Any], seconds: float, *, seconds_after_stop: float = float("inf")) -> Any:
        """Wait for a future in pieces: a stop ends the wait soon, an alarm does not."""
        deadline, stop_deadline = time.monotonic() + seconds, float("inf")
        while not wait_for([future], timeout=_PIECE_SECONDS).done:
            now = time.monotonic()
            if self.is_blocked:
                deadline = now + seconds
            if self.settings.stop.is_set():
                stop_deadline = min(stop_deadline, now + (0 if self.is_blocked else seconds_after_stop))
            if now >= stop_deadline:
                raise LinkLost("Stopped while the broker takes no messages.")
            if now > deadline:
                raise LinkLost(f"The broker did not answer for {seconds:g} s.")
        return future.result()

    def desk(self, use: Callable[[Any], None], on_closed: Callable[[BaseException], None]) -> None:
        """Run channel calls that the broker may refuse on a channel of their own, opened for them."""

        def on_open(channel: Any) -> None:
            channel.add_on_close_callback(lambda _channel, reason: on_closed(reason))
            use(channel)

        self._connection.channel(on_open_callback=on_open)

    def _fail_pending(self, error: BrokerError) -> None:
        for future in list(self._pending):
            _fail(future, error)

    def end(self) -> None:
        """Close the connection and the thread, within seconds."""
        self._closing.set()
        connection = self._connection
        if connection is not None:
            try:
                connection.ioloop.add_callback_threadsafe(partial(self._shut, connection))
            except (pika.exceptions.AMQPError, OSError, AttributeError, RuntimeError):
                logger.debug("The connection had ended before it was closed.")
        self.join(_CLOSE_SECONDS + 2)

    def _shut(self, connection: Any) -> None:
        # A blocked broker does not answer a close: the loop then ends by itself.
        connection.ioloop.call_later(_CLOSE_SECONDS, connection.ioloop.stop)
        if connection.is_open:
            connection.close()
        else:
            connection.ioloop.stop()


def _fail(future: Future[Any], error: BrokerError) -> None:
    if not future.done():
        future.set_exception(error)


def _finish(future: Future[Any], result: Any = None) -> None:
    if not future.done():
        future.set_result(result)


@dataclass(frozen=True, slots=True)
class _Unconfirmed:
    """A message on its way to the broker."""

    message_id: str
    future: Future[Any]


class _Confirms:
    """What is published and not yet confirmed, on one channel; used in the wire's thread only."""

    def __init__(self) -> None:
        self.next_tag = 1
        self.waiting: dict[int, _Unconfirmed] = {}  # the oldest first
        self.returned: dict[str, str] = {}
        self.is_watched = False
        self._oldest_since = 0.0

    def add(self, message_id: str, future: Future[Any]) -> None:
        """Note a message that is about to be published."""
        if not self.waiting:
            self._oldest_since = time.monotonic()
        self.waiting[self.next_tag] = _Unconfirmed(message_id, future)
        self.next_tag += 1

    @property
    def age(self) -> float:
        """For how many seconds the oldest one has been that: on a slow network each has its turn."""
        return time.monotonic() - self._oldest_since if self.waiting else 0.0

    def settle(self, frame: Any) -> None:
        """The broker confirmed or refused one, or all up to it."""
        tag, is_ack = frame.method.delivery_tag, frame.method.NAME == "Basic.Ack"
        tags = [each for each in self.waiting if each <= tag] if frame.method.multiple else [tag]
        oldest = next(iter(self.waiting), None)
        for each in tags:
            unconfirmed = self.waiting.pop(each, None)
            if unconfirmed is not None:
                self._answer(unconfirmed, is_ack)
        if oldest not in self.waiting:
            self._oldest_since = time.monotonic()

    def _answer(self, unconfirmed: _Unconfirmed, is_ack: bool) -> None:
        key = self.returned.pop(unconfirmed.message_id, None)
        if key is not None:
            _fail(unconfirmed.future, Unroutable(f"No queue takes messages for {key!r}."))
        elif is_ack:
            _finish(unconfirmed.future)
        else:
            refused = "The broker refused a message: a queue is full, or its nodes are away."
            _fail(unconfirmed.future, PublishRefused(refused))


class RabbitLink:
    """A role's two connections to RabbitMQ. See `broker.link.seam.Link`."""

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._account = settings.parameters("publish").credentials.username
        self._events: queue.SimpleQueue[Delivery | Connection] = queue.SimpleQueue()
        self._early: list[Delivery] | None = None
        self._standstill = Standstill()
        self._is_slow_told, self._slow_told_at = False, float("-inf")
        self._declared: dict[str, Queue] = {}
        self._consumed: dict[str, int] = {}
        self._consumer_tags: dict[str, str] = {}
        self._confirms = _Confirms()
        self._message_ids = itertools.count(1)
        self._fetching: Future[Any] = Future()
        self._publisher = _Wire(
            settings, "publish", self._publisher_ready, self._publisher_lost, self._standstill
        )
        self._consumer = _Wire(
            settings, "consume", self._consumer_ready, self._consumer_lost, self._standstill
        )

    @property
    def account(self) -> str:
        """The name that this role is logged in with."""
        return str(self._account)

    @property
    def is_connected(self) -> bool:
        """Whether both connections are there now."""
        return self._consumer.ready.is_set() and self._publisher.ready.is_set()

    @property
    def takes_messages(self) -> bool:
        """Whether both connections are there, without an alarm, and nothing is unconfirmed for 5 seconds."""
        return not self._standstill.is_on

    def seconds_still(self) -> float:
        """For how long in all it has taken no messages."""
        return self._standstill.seconds()

    def open(self) -> None:
        """Connect; afterwards the link reconnects by itself for ever.

        Raises:
            BrokerUnreachable: Nothing answered for `connect_seconds`.
            LoginRefused: The broker refused the login.
        """
        keep_freed_memory()
        deadline = time.monotonic() + self._settings.connect_seconds
        for wire in (self._publisher, self._consumer):
            wire.start()
            try:
                self._await_first(wire, deadline)
            except BrokerError:
                self.close()
                raise

    def _await_first(self, wire: _Wire, deadline: float) -> None:
        while not wire.ready.wait(0.02):
            # A connection that is cut in the middle of the login looks like a refused one, but not time and again.
            if isinstance(wire.first_error, LoginRefused) and wire.num_refused >= _REFUSALS:
                raise wire.first_error
            if time.monotonic() > deadline or self._settings.stop.is_set():
                raise BrokerUnreachable(
                    f"No broker answers at {without_password(self._settings.amqp_url)} "
                    f"(tried for {self._settings.connect_seconds:g} s). Start one with `broker up`, or "
                    "check --amqp-url."
                ) from wire.first_error

    # --- the publishing connection -------------------------------------------------------------------------

    def _publisher_ready(self, wire: _Wire) -> None:
        confirms = self._confirms = _Confirms()
        wire.channel.add_on_return_callback(self._on_return)
        wire.channel.confirm_delivery(
            lambda frame: self._on_confirm(confirms, frame), callback=lambda _ok: wire.be_ready()
        )

    def _publisher_lost(self, error: BrokerError) -> None:
        logger.debug("The publishing connection was lost: %s", error)
        self._is_slow_told = False
        self._standstill.end(_UNCONFIRMED)

    def _on_confirm(self, confirms: _Confirms, frame: Any) -> None:
        confirms.settle(frame)
        if confirms.age < _CONFIRM_SECONDS:
            self._standstill.end(_UNCONFIRMED)
            if self._is_slow_told:
                self._is_slow_told = False
                logger.info("The broker takes messages again.")

    def _watch(self, wire: _Wire, confirms: _Confirms) -> None:
        """Look at what is unconfirmed when its time is up: who waits for a confirm hears nothing that tells it so."""
        confirms.is_watched = bool(confirms.waiting)
        if not confirms.is_watched:
            return
        age = confirms.age
        if not wire.is_blocked and min(age, time.monotonic() - wire.unblocked_at) >= _CONFIRM_LIMIT_SECONDS:
            # A cluster that has its majority back may confirm nothing more on an old connection.
            wire.restart(f"a message was not confirmed within {_CONFIRM_LIMIT_SECONDS:g} s")
            return
        if age >= _CONFIRM_SECONDS:
            self._tell_slow(wire, age)
            self._standstill.begin(_UNCONFIRMED, seconds_ago=age)
        wire.later(max(_PIECE_SECONDS, _CONFIRM_SECONDS - age), partial(self._watch, wire, confirms))

    def _tell_slow(self, wire: _Wire, age: float) -> None:
        """Once, and again after a while: with a slow network it comes to this at each part."""
        is_news = time.monotonic() - self._slow_told_at > _CONFIRM_LIMIT_SECONDS
        if is_news and not (wire.is_blocked or self._standstill.is_on):
            self._slow_told_at, self._is_slow_told = time.monotonic(), True
            logger.warning("The broker has not confirmed a message for %.0f s; waiting.", age)

    def _on_return(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        self._confirms.returned[properties.message_id] = method.routing_key

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Publish in order, a window of them under way at once; returns once the broker has them all."""
        underway: deque[tuple[int, Future[Any]]] = deque()
        underway_bytes = 0
        missed: BrokerError | None = None
        for message in batch:
            body = message.encoded()
            while underway and (
                len(underway) >= _WINDOW_MESSAGES or underway_bytes + len(body) > _WINDOW_BYTES
            ):
                size, oldest = underway.popleft()
                underway_bytes -= size
                missed = self._settle(oldest) or missed
            future: Future[Any] = Future()
            self._publisher.send(partial(self._publish_one, message, body), future)
            underway.append((len(body), future))
            underway_bytes += len(body)
        for _, future in underway:
            missed = self._settle(future) or missed
        if missed is not None:
            raise missed

    def post(self, message: Outgoing) -> "Future[None]":
        """Publish without waiting."""
        future: Future[None] = Future()
        self._publisher.send(partial(self._publish_one, message, message.encoded()), future)
        return future

    def _settle(self, future: Future[Any]) -> BrokerError | None:
        """Why one message reached no queue, or not all of its queues; that does not hold back the rest."""
        try:
            self._publisher.wait(future, _CONFIRM_LIMIT_SECONDS, seconds_after_stop=_STOP_SECONDS)
        except (Unroutable, PublishRefused) as exc:
            return exc
        return None

    def _publish_one(self, message: Outgoing, body: bytes, wire: _Wire, future: Future[Any]) -> None:
        message_id = str(next(self._message_ids))
        headers: dict[str, Any] = {**message.headers}
        if message.bcc:
            headers["BCC"] = list(message.bcc)
        properties = pika.BasicProperties(
            app_id="warren",
            content_type="application/msgpack",
            delivery_mode=1 if message.is_transient else 2,
            expiration=_TRANSIENT_MILLISECONDS if message.is_transient else None,
            headers=headers or None,
            message_id=message_id,
            type=message.message_type,
            user_id=self._account,
        )
        self._confirms.add(message_id, future)
        if not self._confirms.is_watched:
            self._watch(wire, self._confirms)
        wire.channel.basic_publish(
            names.EXCHANGE, message.key, body, properties, mandatory=message.is_mandatory
        )

    # --- the consuming connection --------------------------------------------------------------------------

    def _consumer_ready(self, wire: _Wire) -> None:
        """Restore what was declared and consumed, in order, on the new connection."""
        wire.channel.add_callback(
            lambda _frame: _finish(self._fetching), [pika.spec.Basic.GetEmpty], one_shot=False
        )
        wire.channel.add_on_cancel_callback(lambda _frame: wire.restart("a queue was deleted"))

        self._early = []
        self._restore(wire, dict(self._declared), dict(self._consumed), self._restored)

    def _restore(
        self, wire: _Wire, declared: Mapping[str, Queue], consumed: Mapping[str, int], done: _Restored
    ) -> None:
        def proceed(error: BrokerError | None) -> None:
            if error is None:
                self._start_consumers(wire, consumed, partial(done, wire, declared, consumed))
            elif not isinstance(error, LinkLost):  # which has ended what would be closed
                wire.refuse(error)

        if declared:
            self._declare_on_desk(wire, list(declared.values()), proceed)
        else:
            proceed(None)

    def _restored(self, wire: _Wire, declared: Mapping[str, Queue], consumed: Mapping[str, int]) -> None:
        """All is as it was: this is told before what has come already is handed on."""
        is_first, early = not wire.was_ready, self._early or []
        wire.be_ready()
        if not is_first:
            logger.info("Connected to the broker again.")
            self._events.put(Connection.RESTORED)
        for delivery in early:
            self._events.put(delivery)
        self._early = None
        # Who asked for more meanwhile was told that there is no connection.
        more_declared = {name: each for name, each in dict(self._declared).items() if name not in declared}
        more_consumed = {name: each for name, each in dict(self._consumed).items() if name not in consumed}
        if more_declared or more_consumed:
            self._restore(wire, more_declared, more_consumed, lambda *_: None)

    def _consumer_lost(self, error: BrokerError) -> None:
        if not self._settings.stop.is_set():
            logger.warning("%s Reconnecting.", error)
        self._events.put(Connection.LOST)

    def declare(self, queues: Sequence[Queue]) -> None:
        """Create queues and their bindings; they are restored with the connection."""

        def perform(wire: _Wire, future: Future[Any]) -> None:
            def finished(error: BrokerError | None) -> None:
                if error is None:
                    _finish(future)
                else:
                    _fail(future, error)

            self._declare_on_desk(wire, queues, finished)

        self._declared.update({each.name: each for each in queues})
        try:
            self._consumer.call(perform, seconds=30.0 + 0.1 * len(queues))
        except LinkLost as exc:
            logger.debug("Declared with the next connection: %s", exc)
        except BrokerError:
            for each in queues:
                self._declared.pop(each.name, None)
            raise

    def _declare_on_desk(
        self, wire: _Wire, queues: Sequence[Queue], finished: Callable[[BrokerError | None], None]
    ) -> None:
        """Declare the exchange and these queues on a channel of their own, all requests sent at once."""
        outcome: list[BrokerError | None] = []

        def finish(error: BrokerError | None) -> None:
            if not outcome:
                outcome.append(error)
                finished(error)

        unmade = deque(queues)

        def made(_ok: Any) -> None:
            unmade.popleft()

        def use(channel: Any) -> None:
            channel.exchange_declare(names.EXCHANGE, passive=True)
            for each in queues:
                _declare(each, channel, made)
            # The broker answers in order: the answer to this last request comes after all others.
            channel.basic_qos(prefetch_count=1, callback=partial(_then_close, channel, partial(finish, None)))

        def refused(reason: BaseException) -> None:
            if outcome:
                return  # closed by ourselves
            if _is_not_equivalent(reason) and unmade:
                finish(self._other_arguments("queue", unmade[0].name))
            else:
                finish(translate(reason, self._settings.amqp_url))

        self._ensure_exchange(wire, lambda: wire.desk(use, refused), finish)

    def _other_arguments(self, kind: str, name: str) -> DeclareRefused:
        vhost = self._settings.parameters("consume").virtual_host
        option = "" if vhost == "/" else f" --vhost {shlex.quote(vhost)}"
        program = f", or `rabbitmqctl delete_queue {name}{option}`" if kind == "queue" else ""
        return DeclareRefused(
            f"The {kind} {name!r} exists with other arguments; delete it (at the management page{program}) "
            "and try again."
        )

    def _ensure_exchange(
        self, wire: _Wire, then: Callable[[], None], refuse: Callable[[BrokerError], None]
    ) -> None:
        """Declare the exchange where the account may; a least-privilege worker finds it declared."""
        outcome: list[bool] = []

        def proceed() -> None:
            if not outcome:
                outcome.append(True)
                then()

        def use(channel: Any) -> None:
            channel.exchange_declare(
                names.EXCHANGE, "topic", durable=True, callback=partial(_then_close, channel, proceed)
            )

        def closed(reason: BaseException) -> None:
            if _is_not_equivalent(reason):
                outcome.append(False)
                refuse(self._other_arguments("exchange", names.EXCHANGE))
            else:
                proceed()

        wire.desk(use, closed)

    def consume(self, queues: Sequence[str], *, prefetch: int) -> None:
        """Receive from these queues from now on, at most `prefetch` unacknowledged each; 0 means any number."""

        def perform(wire: _Wire, future: Future[Any]) -> None:
            self._start_consumers(wire, dict.fromkeys(queues, prefetch), partial(_finish, future))

        self._consumed.update(dict.fromkeys(queues, prefetch))
        try:
            self._consumer.call(perform)
        except LinkLost as exc:
            logger.debug("Received with the next connection: %s", exc)

    def _start_consumers(self, wire: _Wire, wanted: Mapping[str, int], started: Callable[[], None]) -> None:
        """Receive from these queues, each with its prefetch; then say so."""
        missing = set(wanted)

        def answered(name: str, _ok: Any) -> None:
            missing.discard(name)
            if not missing:
                started()

        for name, prefetch in wanted.items():
            self._start_consumer(wire, name, prefetch, partial(answered, name))
        if not wanted:
            started()

    def _start_consumer(self, wire: _Wire, name: str, prefetch: int, answered: Callable[[Any], None]) -> None:
        generation = wire.generation

        def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            self._take(_delivery(name, method, properties, body, generation))

        wire.channel.basic_qos(prefetch_count=prefetch)
        tag = self._consumer_tags.setdefault(name, name)
        wire.channel.basic_consume(name, on_message, consumer_tag=tag, callback=answered)

    def _take(self, delivery: Delivery) -> None:
        """Hand on a delivery, but none before it is told that the connection is restored."""
        if self._early is not None:
            self._early.append(delivery)
        else:
            self._events.put(delivery)

    def cancel(self, queues: Sequence[str]) -> None:
        """Receive no longer from these queues; all requests are sent at once."""

        def perform(wire: _Wire, future: Future[Any]) -> None:
            for name in queues:
                wire.channel.basic_cancel(self._consumer_tags.pop(name, name))
                # pika gives back what still comes for the old tag, and so does not take it a second time.
                self._consumer_tags[name] = f"{name} {next(self._message_ids)}"
            # The broker answers in order: the answer to this comes after all was cancelled.
            wire.channel.basic_qos(prefetch_count=1, callback=lambda _ok: _finish(future))

        for name in queues:
            self._consumed.pop(name, None)
        self._consumer.call(perform)

    def receive(self, seconds: float) -> Delivery | Connection | None:
        """The next delivery or change of the connection; None when there was none for so long."""
        try:
            return self._events.get(timeout=seconds) if seconds > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def fetch(self, queue: str, most: int = 1) -> Iterator[Delivery]:
        """Take up to `most` messages out of a queue that isn't consumed, until it is empty or missing."""

        def perform(wire: _Wire, future: Future[Any]) -> None:
            def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
                _finish(future, _delivery(queue, method, properties, body, wire.generation))

            self._fetching = future
            wire.channel.basic_get(queue, on_message)

        def ask() -> Future[Any]:
            future: Future[Any] = Future()
            self._consumer.send(perform, future)
            return future

        answer = ask()
        for left in reversed(range(most)):
            delivery = self._consumer.wait(answer, 30.0)
            if delivery is None:
                return
            if left:
                answer = ask()  # comes while the caller works on this one
            yield delivery

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these; a void tag is ignored."""

        def perform(wire: _Wire, future: Future[Any]) -> None:
            for generation, tag in tags:
                if generation == wire.generation:
                    wire.channel.basic_ack(tag)
            _finish(future)

        tags = [each.tag for each in deliveries]
        if tags:
            self._consumer.send(perform, Future())

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

    def consumers(self, queue: str) -> int | None:
        """How many readers a queue has; None when there is no such queue."""

        def use(future: Future[Any], channel: Any) -> None:
            def answered(frame: Any) -> None:
                _finish(future, frame.method.consumer_count)
                channel.close()

            channel.queue_declare(queue, passive=True, callback=answered)

        count: int | None = self._ask(use)
        return count

    def unread(self, queues: Sequence[str]) -> list[str]:
        """Those of these queues that nobody reads, that are missing, or that can't be used; on as few channels."""
        found: list[str] = []

        def perform(wire: _Wire, future: Future[Any]) -> None:
            unasked = deque(queues)

            def ask(channel: Any) -> None:
                channel.queue_declare(unasked[0], passive=True, callback=partial(answered, channel))

            def answered(channel: Any, frame: Any) -> None:
                name = unasked.popleft()
                if frame.method.consumer_count == 0:
                    found.append(name)
                if unasked:
                    ask(channel)
                else:
                    _finish(future)
                    channel.close()

            def closed(reason: BaseException) -> None:
                """The broker closes the channel at a missing queue: the next one asks for the rest."""
                if isinstance(reason, pika.exceptions.ChannelClosedByBroker) and unasked:
                    found.append(unasked.popleft())
                    if unasked:
                        wire.desk(ask, closed)
                    else:
                        _finish(future)

            wire.desk(ask, closed)

        if queues:
            self._consumer.call(perform, seconds=30.0 + 0.1 * len(queues))
        return found

    def purge(self, queue: str) -> None:
        """Empty a queue; a missing one is as good as empty."""

        def use(future: Future[Any], channel: Any) -> None:
            channel.queue_purge(queue, callback=partial(_then_close, channel, partial(_finish, future)))

        self._ask(use)

    def delete(self, queues: Sequence[str]) -> None:
        """Delete queues; all requests are sent at once.

        Of a deleted queue that is received from, the broker tells the reader, and the connection would start anew.
        """
        own = [name for name in queues if name in self._consumed]
        if own:
            self.cancel(own)
        for name in queues:
            self._declared.pop(name, None)
        if queues:
            self._ask(partial(_delete, queues), seconds=30.0 + 0.1 * len(queues))

    def _ask(self, use: Callable[[Future[Any], Any], None], seconds: float = 30.0) -> Any:
        """Ask on a channel of its own; None when the broker closes it because there is no such queue."""

        def perform(wire: _Wire, future: Future[Any]) -> None:
            def closed(reason: BaseException) -> None:
                if getattr(reason, "reply_code", 0) == 404:
                    _finish(future)
                else:
                    _fail(future, translate(reason, self._settings.amqp_url))

            wire.desk(partial(use, future), closed)

        return self._consumer.call(perform, seconds)

    def close(self) -> None:
        """Give everything unacknowledged back to the broker and end both connections; bounded by seconds."""
        for wire in (self._consumer, self._publisher):
            if wire.is_alive():
                wire.end()


def _then_close(channel: Any, act: Callable[[], None], _answer: Any) -> None:
    """Act on the broker's answer, then close the channel that asked."""
    act()
    channel.close()


def _declare(each: Queue, channel: Any, made: Callable[[Any], None]) -> None:
    """Declare a queue and bind it; `made` is called with the broker's answer to the last of this."""
    arguments: dict[str, Any] = {}
    if each.single_active_consumer:
        arguments["x-single-active-consumer"] = True
    if each.max_length is not None:
        arguments["x-max-length"] = each.max_length
    if each.expires_seconds is not None:
        arguments["x-expires"] = 1000 * each.expires_seconds
    callbacks = [lambda _ok: None] * len(each.keys) + [made]
    channel.queue_declare(each.name, durable=True, arguments=arguments, callback=callbacks[0])
    for key, callback in zip(each.keys, callbacks[1:], strict=True):
        channel.queue_bind(each.name, names.EXCHANGE, key, callback=callback)


def _is_not_equivalent(reason: BaseException) -> bool:
    return isinstance(reason, pika.exceptions.ChannelClosedByBroker) and reason.reply_code == _NOT_EQUIVALENT


def _delete(queues: Sequence[str], future: Future[Any], channel: Any) -> None:
    *others, last = queues
    for name in others:
        channel.queue_delete(name)
    channel.queue_delete(last, callback=partial(_then_close, channel, partial(_finish, future)))


def _delivery(name: str, method: Any, properties: Any, body: bytes, generation: int) -> Delivery:
    return Delivery(
        queue=name,
        body=body,
        message_type=properties.type,
        content_type=properties.content_type,
        user_id=properties.user_id,
        headers=properties.headers or {},
        tag=(generation, method.delivery_tag),
    )
