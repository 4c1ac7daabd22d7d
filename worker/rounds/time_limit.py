"""What a model does inside TensorFlow can't be interrupted: it is done in a thread that can be left behind."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from broker.errors import ModelError

MAX_LEFT_BEHIND = 3  #: threads that go on though nobody waits for them
ENDING_SECONDS = 3.0  #: what is under way may still take when the process is to end
_LOOK_SECONDS = 0.1

Result = TypeVar("Result")


@dataclass(slots=True)
class _Work(Generic[Result]):
    """One piece of work and when it last got on."""

    function: Callable[[Callable[[], None]], Result]
    begun: float = field(default_factory=time.monotonic)
    is_done: threading.Event = field(default_factory=threading.Event)
    result: "Future[Result]" = field(default_factory=Future)

    def gets_on(self) -> None:
        self.begun = time.monotonic()

    def do(self) -> None:
        try:
            self.result.set_result(self.function(self.gets_on))
        except BaseException as exc:  # noqa: BLE001 - carried to the thread that waits
            self.result.set_exception(exc)
        finally:
            self.is_done.set()


class _Hand(threading.Thread):
    """A thread that does one piece of work after the other: to start one takes longer than a small step of training."""

    def __init__(self) -> None:
        super().__init__(name="model", daemon=True)
        self.works: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while (work := self.works.get()) is not None:
            work.do()
            del work  # what it gave is not kept while the next is waited for


class TimeLimit:
    """Waits for work no longer than it may take; the thread that waits stays free to hear a signal.

    Args:
        ending: Set when the process is to end: then nothing is waited for any more.
    """

    def __init__(self, ending: threading.Event) -> None:
        self._ending = ending
        self._left_behind: list[_Hand] = []
        self._free: list[_Hand] = []

    @property
    def num_left_behind(self) -> int:
        """How many threads go on though nobody waits for them."""
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        return len(self._left_behind)

    def close(self) -> None:
        """Let the threads go that wait for work; another piece of work makes a new one."""
        while self._free:
            self._free.pop().works.put(None)

    def keep(
        self, what: str, seconds: float, function: Callable[[Callable[[], None]], Result]
    ) -> Result | None:
        """Do something, and give it up when it takes too long.

        Args:
            what: It is, as the first words of a sentence.
            seconds: It may take so long without getting on.
            function: Does it. Its argument is to be called whenever it gets on: the time then begins anew.

        Returns:
            What the function gave; None when the process is to end before that. It may then still go on.

        Raises:
            ModelError: It took longer, and goes on unheeded; or too much of that sort goes on already.
        """
        if self.num_left_behind >= MAX_LEFT_BEHIND:
            raise ModelError(
                f"{MAX_LEFT_BEHIND} models that took too long are still being worked out here. Start the worker anew."
            )
        work = _Work(function)
        hand = self._free.pop() if self._free else _Hand()
        hand.works.put(work)
        ends_at: float | None = None
        while not work.is_done.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if ends_at is None and self._ending.is_set():
                ends_at = now + ENDING_SECONDS
            if ends_at is not None and now >= ends_at:
                self._leave_behind(hand)
                return None
            if now - work.begun > seconds:
                self._leave_behind(hand)
                raise ModelError(f"{what} took more than {seconds:g} s here, and was given up.")
        self._free.append(hand)
        return work.result.result()

    def _leave_behind(self, hand: _Hand) -> None:
        self._left_behind.append(hand)
        hand.works.put(None)
