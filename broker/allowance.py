"""How often one sender may cause something: what it sends costs it little, and what follows costs others."""

import threading
import time
from collections.abc import Callable


class Allowance:
    """So many in a while for each, and the next ones when it is over; from any thread.

    Args:
        most: How many.
        seconds: How long a while is.
        most_senders: Of whom more than these are counted, whoever took one longest ago is forgotten; None: nobody is.
    """

    def __init__(
        self,
        most: int,
        seconds: float,
        read_clock: Callable[[], float] = time.monotonic,
        *,
        most_senders: int | None = None,
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._read_clock = read_clock
        self._most_senders = most_senders
        self._taken: dict[str, tuple[float, int]] = {}  # whoever took one last stands last
        self._lock = threading.Lock()

    def take(self, sender: str) -> bool:
        """Take one; whether it was left."""
        now = self._read_clock()
        with self._lock:
            began_at, number = self._taken.pop(sender, (now, 0))
            if now - began_at >= self._seconds:
                began_at, number = now, 0
            self._taken[sender] = began_at, number + 1
            if self._most_senders is not None and len(self._taken) > self._most_senders:
                del self._taken[next(iter(self._taken))]
        return number < self._most

    def seconds_until_left(self, sender: str) -> float:
        """How long it is until one is left; 0 when one is."""
        began_at, number = self._taken.get(sender, (0.0, 0))
        return 0.0 if number < self._most else max(0.0, began_at + self._seconds - self._read_clock())

    def num_refused(self, sender: str) -> int:
        """How many were not left in the while that is under way, or was the last."""
        return max(0, self._taken.get(sender, (0.0, 0))[1] - self._most)
