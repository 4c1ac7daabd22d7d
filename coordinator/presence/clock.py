"""Time that counts only while workers can answer, so that an outage or an alarm never costs a round its deadline."""

import time
from collections.abc import Callable


class ConnectedClock:
    """Seconds in which the broker took messages, and gave this coordinator what is in its queue.

    Args:
        seconds_still: For how long in all the broker has taken no messages; see `Link.seconds_still`.
        read: A monotonic clock.
    """

    def __init__(
        self,
        seconds_still: Callable[[], float] = lambda: 0.0,
        read: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds_still = seconds_still
        self._read = read
        self._lost_at: float | None = None
        self._away = 0.0

    def now(self) -> float:
        """Seconds; it may step back by the five after which a message counts as unconfirmed."""
        return (self._lost_at if self._lost_at is not None else self._taking()) - self._away

    def lost(self) -> None:
        """The place at the queue is lost: stand still from now on."""
        if self._lost_at is None:
            self._lost_at = self._taking()

    def restored(self) -> None:
        """Go on."""
        if self._lost_at is not None:
            self._away += self._taking() - self._lost_at
            self._lost_at = None

    def _taking(self) -> float:
        return self._read() - self._seconds_still()
