"""What takes the longer the more workers there are: done so seldom that it takes no more than a fifth of the time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TIMES = 4  #: as long as it took, something else has its turn


class Seldom:
    """When something is due again; at first it is at once.

    Args:
        pause_seconds: What passes between two times at least.
        read: A monotonic clock.
    """

    def __init__(self, pause_seconds: float = 0.0, read: Callable[[], float] = time.monotonic) -> None:
        self._pause_seconds = pause_seconds
        self._read = read
        self._due_at = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether it may be done now."""
        return self._read() >= self._due_at

    def put_off(self) -> None:
        """Wait for a pause's length from now on."""
        self._due_at = self._read() + self._pause_seconds

    @contextmanager
    def doing(self, *, is_last: bool = True) -> Iterator[None]:
        """Do it, or (not the last) a piece of it, after which the next one need not wait for the pause."""
        begun = self._read()
        try:
            yield
        finally:
            now = self._read()
            self._due_at = now + _TIMES * (now - begun) + (self._pause_seconds if is_last else 0.0)
