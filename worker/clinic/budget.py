"""What one request may cost the clinic: a small file can hold a huge image, and a form can hold many."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from werkzeug.exceptions import ServiceUnavailable

from broker.errors import DataError
from worker.data.images import StoredSize

#: Of one image. The largest X-rays, mammograms, have 30 million; a phone's photo of a film has 50. Colours of more
#: than 8 bits cost four times the memory of gray, and no X-ray has any.
MOST_PIXELS = 50_000_000
_MOST_DEEP_COLOUR = MOST_PIXELS // 4
_MOST_IN_ALL = 4 * MOST_PIXELS
_MOST_SECONDS = 60.0
_BUSY = "Busy with other images. Try again in a moment."

_LARGE_PIXELS = 8_000_000
_MOST_REQUESTS = 12  # being answered or waiting for their turn

Result = TypeVar("Result")


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

    def spend(self, size: StoredSize) -> None:
        """Pay for one image, before it is decoded.

        Raises:
            DataError: It is too large, or with those before it too much.
        """
        most = _MOST_DEEP_COLOUR if size.is_deep_colour else MOST_PIXELS
        if size.pixels > most:
            raise DataError(
                f"It has {size.width} × {size.height} pixels, more than the {most:,} that are taken here"
                f"{' of deep colour' if most < MOST_PIXELS else ''}. Save it smaller."
            )
        self._pixels -= size.pixels
        if self._pixels < 0 or not self.seconds:
            raise DataError("The images before it took all that one request may take. Send fewer at once.")


class Turns:
    """Who is answered now, and how many may wait for that.

    Images are decoded by the same few threads: each thread that ever decodes a large one keeps some of its memory.
    """

    def __init__(self) -> None:
        self._requests = threading.BoundedSemaphore(_MOST_REQUESTS)
        self._large = _Desk(1)
        self._small = _Desk(2)

    @contextmanager
    def request(self) -> Iterator[None]:
        """The time of one request.

        Raises:
            ServiceUnavailable: Too many are there.
        """
        if not self._requests.acquire(blocking=False):
            raise ServiceUnavailable(_BUSY)
        try:
            yield
        finally:
            self._requests.release()

    def take(self, size: StoredSize, budget: Budget, work: Callable[[], Result]) -> Result:
        """Decode and look at one image in its turn; one large image at a time.

        Raises:
            ServiceUnavailable: It did not get its turn in the time of its request.
        """
        desk = self._large if size.pixels > _LARGE_PIXELS else self._small
        return desk.do(work, budget.seconds)


class _Desk:
    """A few threads that do what they are given, one thing after the other."""

    def __init__(self, threads: int) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        for _ in range(threads):
            threading.Thread(target=self._work, name="image", daemon=True).start()

    def do(self, work: Callable[[], Result], seconds: float) -> Result:
        done: Future[Result] = Future()
        self._waiting.put((done, work))
        try:
            return done.result(seconds)
        except TimeoutError as exc:
            done.cancel()
            raise ServiceUnavailable(_BUSY) from exc

    def _work(self) -> None:
        while True:
            done, work = self._waiting.get()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(work())
            except Exception as exc:  # noqa: BLE001 - carried to the thread that waits for it
                done.set_exception(exc)
            del done, work  # an image is large
