"""Time that counts only while the coordinator is connected, so that an outage never costs a round its deadline."""

import time
from collections.abc import Callable


class ConnectedClock:
    """Seconds connected.

    Args:
        read: A monotonic clock.
    """

    def __init__(self, read: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._lost_at: float | None = None
        self._away = 0.0

    def now(self) -> float:
        """Seconds, standing still while the connection is lost."""
        return (self._lost_at if self._lost_at is not None else self._read()) - self._away

    def lost(self) -> None:
        """Stand still from now on."""
        if self._lost_at is None:
            self._lost_at = self._read()

    def restored(self) -> None:
        """Go on."""
        if self._lost_at is not None:
            self._away += self._read() - self._lost_at
            self._lost_at = None
