"""What other threads ask of the thread that owns a connection; every call ends, at the latest with the connection."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import wait as wait_for
from contextlib import suppress
from functools import partial
from typing import Any

import pika.exceptions

from broker.errors import BrokerError, LinkLost
from broker.link.rabbitmq.alarm import Alarm

_PIECE_SECONDS = 0.5  #: how often a wait looks at the wish to stop

Call = Callable[[Future[Any]], None]


def finish(future: Future[Any], result: Any = None) -> None:
    """Answer a call, unless it has ended."""
    with suppress(InvalidStateError):
        future.set_result(result)


def fail(future: Future[Any], error: BrokerError) -> None:
    """End a call with an error, unless it has ended."""
    with suppress(InvalidStateError):
        future.set_exception(error)


class Calls:
    """Functions handed to a connection's thread, each with the future that it is to answer.

    Args:
        stop: The process's wish to end.
        alarm: That of the connection: while it is on no wait runs out.
        run_soon: Has something done in the connection's thread, or raises LinkLost.
        restart: Begins anew with a new connection, in its thread.
        translated: Has an error of pika as ours.
    """

    def __init__(
        self,
        stop: threading.Event,
        alarm: Alarm,
        run_soon: Callable[[Callable[[], None]], None],
        restart: Callable[[str], None],
        translated: Callable[[BaseException], BrokerError],
    ) -> None:
        self._stop, self._alarm = stop, alarm
        self._run_soon, self._restart, self._translated = run_soon, restart, translated
        self._pending: set[Future[Any]] = set()

    def ask(self, call: Call, seconds: float = 30.0) -> Any:
        """Run a function in the connection's thread and wait for the future that it was given.

        Raises:
            LinkLost: There is no connection, it went away, or no answer came for so long.
        """
        return self.wait(self.send(call), seconds)

    def send(self, call: Call) -> Future[Any]:
        """Hand a function to the connection's thread; its future fails if the connection goes away first."""
        return self.send_all([call])[0]

    def send_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        """Hand several over at once: to wake the other thread costs as much as a small call itself."""
        futures: list[Future[Any]] = [Future() for _ in calls]
        for future in futures:
            self._pending.add(future)
            future.add_done_callback(self._pending.discard)
        try:
            self._run_soon(partial(self._perform_all, list(zip(calls, futures, strict=True))))
        except BrokerError as exc:
            for future in futures:
                fail(future, exc)
        return futures

    def _perform_all(self, calls: Sequence[tuple[Call, Future[Any]]]) -> None:
        for call, future in calls:
            self._perform(call, future)

    def _perform(self, call: Call, future: Future[Any]) -> None:
        if future.done():
            return
        try:
            call(future)
        except (pika.exceptions.AMQPError, pika.exceptions.ChannelError, ValueError) as exc:
            fail(future, self._translated(exc))

    def wait(self, future: Future[Any], seconds: float, *, seconds_after_stop: float = float("inf")) -> Any:
        """Wait for a future in pieces: a stop ends the wait soon, an alarm does not.

        Raises:
            LinkLost: No answer came; if that is the broker's fault, its connection is given up.
        """
        if future.done():
            return future.result()
        deadline, stop_deadline = time.monotonic() + seconds, float("inf")
        while not wait_for([future], timeout=_PIECE_SECONDS).done:
            now = time.monotonic()
            if self._alarm.is_on:
                deadline = now + seconds
            if self._stop.is_set():
                stop_deadline = min(stop_deadline, now + (0 if self._alarm.is_on else seconds_after_stop))
            if now >= stop_deadline:
                raise LinkLost("Stopped while the broker takes no messages.")
            if now > deadline:
                self._give_up(f"the broker did not answer for {seconds:g} s")
                raise LinkLost(f"The broker did not answer for {seconds:g} s.")
        return future.result()

    def _give_up(self, reason: str) -> None:
        """What isn't acknowledged comes again with another connection only: whoever waited counts on that."""
        with suppress(LinkLost):  # it went away by itself
            self._run_soon(partial(self._restart, reason))

    def fail_all(self, error: BrokerError) -> None:
        """The connection went away, and with it every answer."""
        for future in list(self._pending):
            fail(future, error)
