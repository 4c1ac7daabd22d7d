"""The claim to be the one active reader of a queue: whoever receives its own ping is it.

RabbitMQ's single active consumer hands a queue to one of its readers and does not say to which. So a role sends
itself a ping: an active reader gets it back at once; one that waits behind another does not.
"""

import secrets

from broker.errors import BrokerError, NameInUse
from broker.link import Link, outgoing
from broker.messages import Ping

WAIT_SECONDS = 50.0  #: a half-open predecessor is gone after 3 heartbeats of 15 s
_REPEAT_SECONDS = 1.0


class Claim:
    """One role's claim on its queue; time is passed in.

    Args:
        queue: The queue, and its routing key.
        wait_seconds: How long another reader is waited for; None means for ever.
    """

    def __init__(self, link: Link, queue: str, *, wait_seconds: float | None = WAIT_SECONDS) -> None:
        self._link = link
        self._queue = queue
        self._wait_seconds = wait_seconds
        self._token = secrets.token_hex(8)
        self._begun_at: float | None = None
        self._sent_at = float("-inf")
        self.is_held = False

    def begin(self, now: float) -> None:
        """Claim the queue, or claim it again after a reconnect."""
        self._begun_at = now
        self._sent_at = float("-inf")
        self.is_held = False
        self.check(now)

    def pause(self) -> None:
        """The connection is lost: time without the broker says nothing about another reader."""
        self._begun_at = None
        self.is_held = False

    def check(self, now: float) -> None:
        """Repeat the ping while it does not come back.

        Raises:
            NameInUse: Another process has read the queue all the time.
        """
        if self.is_held or self._begun_at is None:
            return
        if self._wait_seconds is not None and now - self._begun_at > self._wait_seconds:
            raise NameInUse(
                f"The name is in use: another process reads the queue {self._queue!r} "
                f"(waited {self._wait_seconds:g} s). Stop it, or choose another name."
            )
        if now - self._sent_at >= _REPEAT_SECONDS:
            self._sent_at = now
            self._send()

    def _send(self) -> None:
        ping = outgoing(Ping(token=self._token), self._queue, is_transient=True)
        try:
            self._link.publish([ping])
        except BrokerError:
            return  # repeated in a second, or begun anew after the reconnect

    def hear(self, ping: Ping) -> bool:
        """Whether this ping is ours and makes us the active reader."""
        self.is_held = self.is_held or ping.token == self._token
        return self.is_held
