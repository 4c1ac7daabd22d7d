"""What is published and not yet confirmed, on one channel."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from broker.errors import PublishRefused, Unroutable
from broker.link.rabbitmq.calls import fail, finish

_FORGOTTEN_SECONDS = (
    20.0  #: a refusal after so long begins the count anew; what is refused comes again every 5 s
)


@dataclass(frozen=True, slots=True)
class _Unconfirmed:
    """A message on its way to the broker."""

    message_id: str
    future: Future[Any]


class Confirms:
    """The messages under way, by the broker's tag; used in the connection's thread only.

    Attributes:
        returned: The routing keys of messages that reached no queue, by message id; the broker says so before it
            confirms them.
        is_watched: Whether somebody will look at their age.
        since: When the channel began.
        seconds_refused: For how long messages have been refused again and again, up to the last of them.
    """

    def __init__(self) -> None:
        self.next_tag = 1
        self.waiting: dict[int, _Unconfirmed] = {}  # the oldest first
        self.returned: dict[str, str] = {}
        self.is_watched = False
        self.since = time.monotonic()
        self.seconds_refused = 0.0
        self._refused_at = float("-inf")
        self._oldest_since = 0.0

    def add(self, message_id: str, future: Future[Any]) -> None:
        """Note a message that is about to be published."""
        if not self.waiting:
            self._oldest_since = time.monotonic()
        self.waiting[self.next_tag] = _Unconfirmed(message_id, future)
        self.next_tag += 1

    @property
    def oldest(self) -> int:
        """The tag of the oldest one, or of the next, where there is none."""
        return next(iter(self.waiting), self.next_tag)

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
            fail(unconfirmed.future, Unroutable(f"No queue takes messages for {key!r}."))
        elif is_ack:
            finish(unconfirmed.future)
        else:
            self._note_refused(time.monotonic())
            refused = "The broker refused a message: a queue is full, or its nodes are away."
            fail(unconfirmed.future, PublishRefused(refused))

    def _note_refused(self, now: float) -> None:
        between = now - self._refused_at
        self.seconds_refused = 0.0 if between > _FORGOTTEN_SECONDS else self.seconds_refused + between
        self._refused_at = now
