"""A connection that comes back by itself, owned by a thread of its own that only talks."""

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pika.exceptions

from broker.errors import BrokerError, LinkLost, LoginRefused
from broker.link.access import speaks_tls
from broker.link.rabbitmq.alarm import Alarm
from broker.link.rabbitmq.calls import Calls
from broker.link.rabbitmq.pika_stand_ins import LeanConnection
from broker.link.rabbitmq.settings import LinkSettings, Role
from broker.link.rabbitmq.translation import speaks_tls_instead, translate
from broker.link.standstill import Standstill

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 3.0
_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 10.0
_REFUSALS = 3  #: refused logins in a row that are believed
_REFUSED_SECONDS = 30.0  #: how long they must go on where the login was taken, or nothing answered, before
_LOOP_ENDED = (
    pika.exceptions.AMQPError,
    OSError,
    AttributeError,
    RuntimeError,
)  #: what a loop that is over raises


class Refusals:
    """Refused logins in a row, and whether they are believed; time is passed in.

    A connection that is cut in the middle of the login looks like a refused one, but not time and again. And a broker
    that has just started, or is being restored, may not know its accounts yet: where anything else was met at the
    address before, a no counts only once it has lasted.
    """

    def __init__(self) -> None:
        self.num = 0
        self._since = float("inf")
        self._has_met_other = False

    def note(self, error: BrokerError | None, now: float) -> None:
        """A connection failed, or (None) is there."""
        if not isinstance(error, LoginRefused):
            self.num, self._since, self._has_met_other = 0, float("inf"), True
            return
        self.num += 1
        self._since = min(self._since, now)

    def are_believed(self, now: float) -> bool:
        """Whether it is no use to try any longer."""
        needed = _REFUSED_SECONDS if self._has_met_other else 0.0
        return self.num >= _REFUSALS and now - self._since >= needed


class ConnectionThread(threading.Thread):
    """One connection, owned by this thread; reconnects by itself with growing, jittered, bounded delays.

    Args:
        on_ready: Called in this thread once the channel is open, on every connection; calls `be_ready` in the end.
        on_lost: Called in this thread when an open connection went away.
        standstill: Told while there is no connection, and of an alarm.

    Attributes:
        channel: The main channel, for this thread; None without a connection.
        generation: How many connections there were.
        ready: Set while calls are taken.
        was_ready: Whether it was ever set.
        last_error: Why the last try to connect failed.
    """

    def __init__(
        self,
        settings: LinkSettings,
        role: Role,
        on_ready: Callable[[], None],
        on_lost: Callable[[BrokerError], None],
        standstill: Standstill,
    ) -> None:
        super().__init__(name=f"broker-{role}", daemon=True)
        self.channel: Any = None
        self.generation = 0
        self.last_error: BrokerError | None = None
        self._refusals = Refusals()
        self.ready, self.was_ready = threading.Event(), False
        self.alarm = Alarm(f"an alarm at {role}", standstill)
        self.calls = Calls(settings, self.alarm, self._run_soon, self.restart)
        self._settings, self._parameters = settings, settings.parameters(role)
        self._on_ready, self._on_lost = on_ready, on_lost
        self._outage, self._standstill = f"no connection to {role}", standstill
        self._standstill.begin(self._outage)
        self._ready_at = float("inf")
        self._refusal = ""
        self._connection: Any = None
        self._closing = threading.Event()

    @property
    def login_refusal(self) -> LoginRefused | None:
        """The broker's no to the login, once it is believed."""
        error = self.last_error
        if isinstance(error, LoginRefused) and self._refusals.are_believed(time.monotonic()):
            return error
        return None

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
            self._connection = LeanConnection(
                self._parameters,
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_end,
                on_close_callback=self._on_end,
            )
            self._connection.ioloop.start()
        except Exception as exc:
            logger.debug("The connection's loop ended.", exc_info=exc)
            self._note_end(self._translated(exc))
        finally:
            self._forget_connection()

    def _forget_connection(self) -> None:
        """Close the loop; a call that was scheduled too late finds its future failed."""
        connection, self._connection = self._connection, None
        self.channel = None
        self.calls.fail_all(LinkLost("The connection to the broker was lost."))
        if connection is not None:
            connection.ioloop.close()

    def _on_open(self, connection: Any) -> None:
        self.alarm.watch(connection)
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self.channel = channel
        self.generation += 1
        channel.add_on_close_callback(self._on_channel_closed)
        self._on_ready()

    def be_ready(self) -> None:
        """All is restored: take calls from now on."""
        self._ready_at = time.monotonic()
        self.was_ready = True
        self._refusals.note(None, self._ready_at)
        self._refusal = ""
        self._standstill.end(self._outage)
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
            self.refuse(translate(reason, self._settings.amqp_url))
            return
        logger.warning("The broker closed a channel: %s", reason)
        self.calls.fail_all(LinkLost(f"The broker closed the channel: {reason}"))
        self._connection.close()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something done in this thread, unless the connection ends before; asked for in this thread."""
        self._connection.ioloop.call_later(seconds, act)

    def restart(self, reason: str) -> None:
        """Begin anew with a new connection, which restores the queues; asked for in this thread."""
        connection = self._connection
        if connection is None or not connection.is_open:
            return  # it is at its end already
        logger.warning("Connecting anew: %s.", reason)
        connection.ioloop.call_later(_CLOSE_SECONDS, partial(self._cut, connection))
        connection.close()

    def _cut(self, connection: Any) -> None:
        """End a connection whose broker does not answer a close, either."""
        if connection is self._connection and not connection.is_closed:
            connection.cut("the broker did not answer, nor did it close the connection")

    def on_own_channel(self, use: Callable[[Any], None], on_closed: Callable[[BaseException], None]) -> None:
        """Run channel calls that the broker may refuse on a channel of their own, opened for them."""

        def on_open(channel: Any) -> None:
            channel.add_on_close_callback(lambda _channel, reason: on_closed(reason))
            use(channel)

        self._connection.channel(on_open_callback=on_open)

    def _on_end(self, connection: Any, error: BaseException | str) -> None:
        cause = error if isinstance(error, BaseException) else pika.exceptions.AMQPConnectionError(error)
        self._note_end(self._translated(cause))
        connection.ioloop.stop()

    def _translated(self, error: BaseException) -> BrokerError:
        """An end as ours; whether a port that does not answer AMQP is one for TLS has to be tried."""
        url = self._settings.amqp_url
        is_silent = isinstance(error, pika.exceptions.IncompatibleProtocolError)
        if is_silent and self._parameters.ssl_options is None and speaks_tls(url):
            return speaks_tls_instead(url)
        return translate(error, url)

    def _note_end(self, error: BrokerError) -> None:
        was_connected = self.ready.is_set()
        self._standstill.begin(self._outage)
        self.ready.clear()
        self.alarm.forget()
        self.last_error = error
        self._refusals.note(error, time.monotonic())
        if self.was_ready and not was_connected:
            self._tell_why(error)
        self.calls.fail_all(LinkLost(str(error)))
        if was_connected and not self._closing.is_set():
            self._on_lost(error)

    def _tell_why(self, error: BrokerError) -> None:
        """Say why there is no connection again, where that is more than an outage; the same is said once."""
        is_doubtful = isinstance(error, LoginRefused) and self._refusals.num < _REFUSALS
        if isinstance(error, LinkLost) or is_doubtful or str(error) == self._refusal:
            return
        self._refusal = str(error)
        if isinstance(error, LoginRefused):
            logger.warning(
                "Not connected again; ending unless this changes within %.0f s: %s", _REFUSED_SECONDS, error
            )
        else:
            logger.warning("Not connected again, but trying until it works: %s", error)

    def _run_soon(self, act: Callable[[], None]) -> None:
        """Have something done in this thread, from any other.

        Raises:
            LinkLost: There is no connection, or it ended meanwhile.
            LoginRefused: There will be none.
        """
        if refusal := self.login_refusal:
            raise refusal
        connection = self._connection
        if connection is None or not self.ready.is_set():
            raise LinkLost("There is no connection to the broker now.")
        try:
            connection.ioloop.add_callback_threadsafe(act)
        except _LOOP_ENDED as exc:
            raise translate(exc, self._settings.amqp_url) from exc
        if self._connection is not connection:
            # The connection ended between the look and the call: its loop will not run it.
            raise LinkLost("The connection to the broker was lost.")

    def end(self) -> None:
        """Close the connection and the thread, within seconds."""
        self._closing.set()
        connection = self._connection
        if connection is not None:
            try:
                connection.ioloop.add_callback_threadsafe(partial(_shut, connection))
            except _LOOP_ENDED:
                logger.debug("The connection had ended before it was closed.")
        self.join(_CLOSE_SECONDS + 2)


def _shut(connection: Any) -> None:
    # A blocked broker does not answer a close: the loop then ends by itself.
    connection.ioloop.call_later(_CLOSE_SECONDS, connection.ioloop.stop)
    if connection.is_open:
        connection.close()
    else:
        connection.ioloop.stop()
