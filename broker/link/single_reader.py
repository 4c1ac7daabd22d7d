"""The claim to be the one active reader of a queue: whoever receives its own ping is it.

RabbitMQ's single active consumer hands a queue to one of its readers and does not say to which. So a role sends
itself a ping: an active reader gets it back at once; one that waits behind another does not. Only a ping that the
broker has confirmed says anything by not coming back: an alarm, or an outage, is no other reader.
"""

import logging
import secrets
from concurrent.futures import Future
from dataclasses import replace

from broker.errors import NameInUse
from broker.link.seam import Link, Outgoing, outgoing
from broker.wire.messages import Ping

logger = logging.getLogger(__name__)

#: A half-open predecessor is gone after 3 heartbeats of 15 s. One whose node died stays for 60 on RabbitMQ 4.3, where a
#: policy says less.
WAIT_SECONDS = 50.0
_REPEAT_SECONDS = 1.0
_TOLD_AFTER = 5  #: unheard pings; a predecessor that is just ending is not worth a line
_SLOW_SECONDS = 5.0  #: a ping unconfirmed for so long begins the count anew


class SingleReader:
    """One role's claim on its queue; time is passed in.

    Args:
        queue: The queue, and its routing key.
        wait_seconds: How long another reader is waited for, in pings a second apart; None means for ever.
    """

    def __init__(self, link: Link, queue: str, *, wait_seconds: float | None = WAIT_SECONDS) -> None:
        self._link = link
        self._queue = queue
        self._wait_seconds = wait_seconds
        self._token = secrets.token_hex(8)
        self._is_sought = False
        self._underway: Future[None] | None = None
        self._sent_at = float("-inf")
        self._num_unheard = 0  # pings in a row that were confirmed, and did not come back for a second
        self.is_confirmed = False

    def begin(self, now: float) -> None:
        """Claim the queue, or claim it again after a reconnect."""
        self.pause()
        self._is_sought = True
        self.check(now)

    def pause(self) -> None:
        """The connection is lost: time without the broker says nothing about another reader."""
        self._is_sought = self.is_confirmed = False
        self._underway, self._sent_at, self._num_unheard = None, float("-inf"), 0

    def check(self, now: float, *, is_idle: bool = True) -> None:
        """Repeat the ping while it does not come back.

        Args:
            now: Seconds.
            is_idle: Nothing waits to be read; else the ping may be among it, and nothing is judged.

        Raises:
            NameInUse: Another process has read the queue all the time.
        """
        if self.is_confirmed or not self._is_sought:
            return
        if self._underway is not None and not self._underway.done():
            if now - self._sent_at > _SLOW_SECONDS:
                self._num_unheard = 0
        elif now - self._sent_at >= _REPEAT_SECONDS:
            if is_idle:
                self._judge_last()
            self._sent_at = now
            self._underway = self._link.post(self.ping())

    def ping(self) -> Outgoing:
        """What only the active reader gets back."""
        ping = outgoing(Ping(token=self._token), self._queue, is_transient=True)
        return replace(ping, is_mandatory=True)  # without the queue there is nothing to read

    def _judge_last(self) -> None:
        if self._underway is None:
            return
        self._num_unheard = 0 if self._underway.exception() else self._num_unheard + 1
        waited = self._num_unheard * _REPEAT_SECONDS
        if self._wait_seconds is not None and waited >= self._wait_seconds:
            raise NameInUse(
                f"The name is in use: another process reads the queue {self._queue!r} "
                f"(waited {self._wait_seconds:g} s). Stop it, or choose another name."
            )
        if self._num_unheard == _TOLD_AFTER:
            logger.info("Another process reads the queue %r; waiting for its end.", self._queue)

    def hear(self, ping: Ping) -> bool:
        """Whether this ping is ours and makes us the active reader."""
        self.is_confirmed = self.is_confirmed or (self._is_sought and ping.token == self._token)
        return self.is_confirmed
