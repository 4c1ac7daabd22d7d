"""How often one sender may cause something: what it sends costs it little, and what follows costs others."""

import time
from collections.abc import Callable


class Allowance:
    """So many in a while for each, and the next ones when it is over.

    Args:
        most: How many.
        seconds: How long a while is.
    """

    def __init__(self, most: int, seconds: float, read_clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._seconds = seconds
        self._read_clock = read_clock
        self._taken: dict[str, tuple[float, int]] = {}

    def take(self, sender: str) -> bool:
        """Take one; whether it was left."""
        now = self._read_clock()
        began_at, number = self._taken.get(sender, (now, 0))
        if now - began_at >= self._seconds:
            began_at, number = now, 0
        self._taken[sender] = began_at, number + 1
        return number < self._most

    def num_refused(self, sender: str) -> int:
        """How many were not left in the while that is under way, or was the last."""
        return max(0, self._taken.get(sender, (0.0, 0))[1] - self._most)
