"""How long a link has taken no messages: time that must not count against anybody's deadline."""

import threading
import time
from collections.abc import Callable


class Standstill:
    """Lasts from its first cause to the end of its last one; thread-safe.

    Args:
        read: A monotonic clock.
    """

    def __init__(self, read: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._causes: set[str] = set()
        self._since = self._ended_at = float("-inf")
        self._seconds = 0.0

    @property
    def is_on(self) -> bool:
        """Whether there is a cause now."""
        return bool(self._causes)

    def begin(self, cause: str, *, seconds_ago: float = 0.0) -> None:
        """Add a cause; it may have been noticed later than it began."""
        with self._lock:
            since = max(self._read() - seconds_ago, self._ended_at)
            self._since = min(self._since, since) if self._causes else since
            self._causes.add(cause)

    def end(self, cause: str) -> None:
        """Take a cause away, if it is there."""
        with self._lock:
            if cause not in self._causes:
                return
            self._causes.discard(cause)
            if not self._causes:
                self._ended_at = self._read()
                self._seconds += self._ended_at - self._since

    def seconds(self) -> float:
        """How long it lasted in all, up to now."""
        with self._lock:
            return self._seconds + (self._read() - self._since if self._causes else 0.0)
