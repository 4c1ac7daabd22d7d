"""How long a link has taken no messages, which must not count against a deadline, and what a person is told of it."""

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Told:
    """One line when a link stands still, and one when it goes on; thread-safe.

    What befalls a broker befalls both connections of a link, each at a moment of its own and in its own way: whatever
    comes after the first line, and before the last cause has ended, is not told again. A line is said under the lock:
    lines of two threads come in the order of what they tell.

    Attributes:
        ended_at: When the second line was said the last time, by the monotonic clock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._causes: set[str] = set()
        self._came = ""
        self.ended_at = float("-inf")

    @property
    def is_on(self) -> bool:
        """Whether the first line was said, and the second one was not."""
        with self._lock:
            return bool(self._causes)

    def begin(self, cause: str, went: str, came: str) -> bool:
        """Add a cause; whether its line was said.

        Args:
            cause: What it is called.
            went: What is said of it.
            came: What is said in the end, if this is what it began with.
        """
        with self._lock:
            is_news = not self._causes
            self._causes.add(cause)
            self._came = came if is_news else self._came
            logger.log(logging.WARNING if is_news else logging.DEBUG, "%s", went)
        return is_news

    def end(self, cause: str) -> None:
        """Take a cause away, if it is there."""
        with self._lock:
            is_last = self._causes == {cause}
            self._causes.discard(cause)
            if is_last:
                self.ended_at = time.monotonic()
                logger.info("%s", self._came)


class Standstill:
    """Lasts from its first cause to the end of its last one; thread-safe.

    Args:
        read: A monotonic clock.

    Attributes:
        told: What a person is told of it.
    """

    def __init__(self, read: Callable[[], float] = time.monotonic) -> None:
        self.told = Told()
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
