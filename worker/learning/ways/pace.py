"""How many gradient steps are taken in one call: as many as leave a training as quick to stop as it was."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_SHORT_SECONDS, _LONG_SECONDS = (
    0.05,
    0.2,
)  #: that a call may take before the next one takes more steps, or fewer
_MOST_STEPS = 256


class Pace:
    """Finds the number from how long calls take; what is worked out does not depend on it.

    Args:
        least: Never fewer.

    Attributes:
        steps: For the next call.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self.steps = least

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around a call."""
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        if seconds < _SHORT_SECONDS:
            self.steps = max(self._least, min(2 * self.steps, _MOST_STEPS))
        elif seconds > _LONG_SECONDS:
            self.steps = max(self._least, self.steps // 2)
