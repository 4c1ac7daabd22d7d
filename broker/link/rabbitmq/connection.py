"""A connection that comes back by itself, owned by a thread of its own that only talks."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pika.exceptions

from broker.errors import BrokerError, LinkLost, LoginRefused
from broker.link.access import speaks_tls
from broker.link.attempts import REFUSALS, REFUSED_SECONDS, Attempts
from broker.link.rabbitmq.alarm import Alarm
from broker.link.rabbitmq.calls import Calls
from broker.link.rabbitmq.pika_stand_ins import LeanConnection
from broker.link.rabbitmq.settings import LinkSettings, Role
from broker.link.rabbitmq.translation import speaks_tls_instead, translate
from broker.link.standstill import Standstill

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 3.0
_CONNECT_SECONDS = 10.0
_LOOP_ENDED = (
    pika.exceptions.AMQPError,
    OSError,
    AttributeError,
    RuntimeError,
)  #: what a loop that is over raises


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
        attempts: At which address it is, and why others failed.
        partner: The other connection of the link.
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
        self.attempts = Attempts(settings.addresses)
        self._tells = role == "consume"  # of two connections that fail alike, one says so
        self.ready, self.was_ready = threading.Event(), False
        self.alarm = Alarm(f"an alarm at {role}", standstill)
        self.calls = Calls(settings.stop, self.alarm, self.run_soon, self.give_up, self.translated)
        self.partner: ConnectionThread | None = None
        self._parameters = settings.parameters(role)
        self._on_ready, self._on_lost = on_ready, on_lost
        self._outage, self._standstill = f"no connection to {role}", standstill
        self._standstill.begin(self._outage)
        self._refusal = ""
        self._connection: Any = None
        self._closing = threading.Event()

    @property
    def login_refusal(self) -> LoginRefused | None:
        """The broker's no to the login, once it is believed."""
        return self.attempts.refusal(time.monotonic())

    def run(self) -> None:
        """Connect, talk until the connection ends, and again until closed."""
        while not self._closing.is_set():
            self.attempts.begin()
            self._talk()
            self._closing.wait(self.attempts.pause(time.monotonic()))

    def _talk(self) -> None:
        try:
            self._connection = LeanConnection(
                self._parameters_now(),
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_end,
                on_close_callback=self._on_end,
            )
            self._connection.ioloop.start()
        except Exception as exc:
            logger.debug("The connection's loop ended.", exc_info=exc)
            self._note_end(self.translated(exc))
        finally:
            self._forget_connection()

    def _parameters_now(self) -> Any:
        """For the address whose turn it is, with how long it may take."""
        parameters = self._parameters[self.attempts.address]
        seconds = min(_CONNECT_SECONDS, self.attempts.patience or _CONNECT_SECONDS)
        parameters.socket_timeout = parameters.stack_timeout = seconds
        return parameters

    def _forget_connection(self) -> None:
        """Close the loop; a call that was scheduled too late finds its future failed."""
        connection, self._connection = self._connection, None
        self.channel = None
        self.calls.fail_all(LinkLost("The connection to the broker was lost."))
        if connection is not None:
            connection.ioloop.close()

    def _on_open(self, connection: Any) -> None:
        self.alarm.watch(connection)
        if (patience := self.attempts.patience) is not None:
            self.later(patience, partial(self._go_on, connection))
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self.channel = channel
        self.generation += 1
        channel.add_on_close_callback(self._on_channel_closed)
        self._on_ready()

    def be_ready(self) -> None:
        """All is restored: take calls from now on."""
        self.was_ready = True
        self.attempts.succeed(time.monotonic())
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
            self.refuse(translate(reason, self.attempts.address))
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
        logger.log(
            logging.DEBUG if self._standstill.told.is_on else logging.WARNING, "Connecting anew: %s.", reason
        )
        connection.ioloop.call_later(_CLOSE_SECONDS, partial(self._cut, connection))
        connection.close()

    def give_up(self, reason: str) -> None:
        """The broker does not answer: begin anew, and with the other connection, where there is another node.

        One that is cut off from the others of RabbitMQ 4 keeps its clients: it hands out no more than it confirms.
        """
        partner, its = self.partner, self.attempts
        if partner is not None and its.is_among_several and partner.attempts.address == its.address:
            with suppress(BrokerError):  # it went away by itself
                partner.run_soon(partial(partner.restart, reason))
        self.restart(reason)

    def _cut(self, connection: Any) -> None:
        """End a connection whose broker does not answer a close, either."""
        if connection is self._connection and not connection.is_closed:
            connection.cut("the broker did not answer, nor did it close the connection")

    def _go_on(self, connection: Any) -> None:
        """Give up a node that restores nothing for so long, as one without a majority does: another one may."""
        if connection is self._connection and connection.is_open and not self.ready.is_set():
            connection.cut("it did not restore the queues in time, and there are other addresses")

    def on_own_channel(self, use: Callable[[Any], None], on_closed: Callable[[BaseException], None]) -> None:
        """Run channel calls that the broker may refuse on a channel of their own, opened for them."""

        def on_open(channel: Any) -> None:
            channel.add_on_close_callback(lambda _channel, reason: on_closed(reason))
            use(channel)

        self._connection.channel(on_open_callback=on_open)

    def _on_end(self, connection: Any, error: BaseException | str) -> None:
        cause = error if isinstance(error, BaseException) else pika.exceptions.AMQPConnectionError(error)
        self._note_end(self.translated(cause))
        connection.ioloop.stop()

    def translated(self, error: BaseException) -> BrokerError:
        """An end, or a refusal, as ours; whether a port that does not answer AMQP is one for TLS has to be tried."""
        url = self.attempts.address
        is_silent = isinstance(error, pika.exceptions.IncompatibleProtocolError)
        if is_silent and self._parameters[url].ssl_options is None and speaks_tls(url):
            return speaks_tls_instead(url)
        return translate(error, url)

    def _note_end(self, error: BrokerError) -> None:
        was_connected = self.ready.is_set()
        self._standstill.begin(self._outage)
        self.ready.clear()
        self.alarm.forget()
        self.attempts.fail(error, time.monotonic())
        if self._tells and self.was_ready and not was_connected:
            self._tell_why(error)
        self.calls.fail_all(LinkLost(str(error)))
        if was_connected and not self._closing.is_set():
            self._on_lost(error)

    def _tell_why(self, error: BrokerError) -> None:
        """Say why there is no connection again, where that is more than an outage; the same is said once."""
        is_doubtful = isinstance(error, LoginRefused) and self.attempts.num_refused < REFUSALS
        if isinstance(error, LinkLost) or is_doubtful or str(error) == self._refusal:
            return
        self._refusal = str(error)
        if isinstance(error, LoginRefused):
            logger.warning(
                "Not connected again; ending unless this changes within %.0f s: %s", REFUSED_SECONDS, error
            )
        else:
            logger.warning("Not connected again, but trying until it works: %s", error)

    def run_soon(self, act: Callable[[], None]) -> None:
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
            raise translate(exc, self.attempts.address) from exc
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
    if connection.is_closing or connection.is_closed:
        connection.ioloop.stop()
    else:
        connection.close()  # one that is just opening gives its socket back, too
