"""What one request may cost the clinic: a small file can hold a huge image, and a form can hold many."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from werkzeug.exceptions import ServiceUnavailable

from broker.errors import DataError
from worker.data.images import ImageFacts

#: Of one image. The largest X-rays, mammograms, have 30 million; a phone's photo of a film has 50. Colours of more
#: than 8 bits cost four times the memory of gray, and no X-ray has any.
MOST_PIXELS = 50_000_000
_MOST_DEEP_COLOUR = MOST_PIXELS // 4
_MOST_IN_ALL = 4 * MOST_PIXELS
_MOST_SECONDS = 60.0

_LARGE_PIXELS = 8_000_000
_AT_ONCE = 2  # images being decoded, of which one may be large
_MOST_REQUESTS = 12  # being answered or waiting for their turn


class Budget:
    """One request's pixels and seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = clock() + _MOST_SECONDS
        self._pixels = _MOST_IN_ALL

    @property
    def seconds(self) -> float:
        """How many are left."""
        return max(0.0, self._until - self._clock())

    def spend(self, facts: ImageFacts) -> None:
        """Pay for one image, before it is decoded.

        Raises:
            DataError: It is too large, or with those before it too much.
        """
        pixels = facts.width * facts.height
        most = _MOST_DEEP_COLOUR if facts.is_colour and facts.bits > 8 else MOST_PIXELS
        if pixels > most:
            raise DataError(
                f"It has {facts.width} × {facts.height} pixels, more than the {most:,} that are taken here"
                f"{' of deep colour' if most < MOST_PIXELS else ''}. Save it smaller."
            )
        self._pixels -= pixels
        if self._pixels < 0 or not self.seconds:
            raise DataError("The images before it took all that one request may take. Send fewer at once.")


class Turns:
    """Who is answered now, and how many may wait for that."""

    def __init__(self) -> None:
        self._requests = threading.BoundedSemaphore(_MOST_REQUESTS)
        self._images = threading.BoundedSemaphore(_AT_ONCE)
        self._large = threading.BoundedSemaphore(1)

    @contextmanager
    def request(self) -> Iterator[None]:
        """The time of one request.

        Raises:
            ServiceUnavailable: Too many are there.
        """
        with _held(self._requests, 0.0):
            yield

    @contextmanager
    def image(self, facts: ImageFacts, budget: Budget) -> Iterator[None]:
        """The time in which one image is decoded and looked at.

        Raises:
            ServiceUnavailable: It would wait for longer than its request may take.
        """
        is_large = facts.width * facts.height > _LARGE_PIXELS
        first = _held(self._large, budget.seconds) if is_large else nullcontext()
        with first, _held(self._images, budget.seconds):
            yield


@contextmanager
def _held(semaphore: threading.Semaphore, seconds: float) -> Iterator[None]:
    if not semaphore.acquire(timeout=seconds):
        raise ServiceUnavailable("Busy with other images. Try again in a moment.")
    try:
        yield
    finally:
        semaphore.release()
