"""A peer's processes: found wherever they went, measured, and ended by their id. Linux, in the peer's environment.

Nothing of Warren's own packages is imported: what they need is not installed there.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

_SAMPLE_SECONDS = 0.1
_END_SECONDS = 5
_ATTEMPTS = 3
_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def descendants_ended() -> Iterator[None]:
    """With the block end all processes that it started, directly or not, also when this one is told to end."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # Every descendant whose own parent ends becomes a child of this process (Linux), so none is lost from sight.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        _end_descendants()


def _end_descendants() -> None:
    """Ask them, then use force until none is left: one may have started another meanwhile."""
    for end in (psutil.Process.terminate, *[psutil.Process.kill] * _ATTEMPTS):
        left = psutil.Process().children(recursive=True)
        for process in left:
            with ignored():
                end(process)
        psutil.wait_procs(left, timeout=_END_SECONDS)


@contextmanager
def ignored() -> Iterator[None]:
    """A process may end while it is looked at."""
    try:
        yield
    except psutil.Error:
        return


class PeakMemory:
    """Adds up, ten times a second, what the server's processes have resident, and keeps the most.

    Args:
        words: A process of the server has one of them in its command line.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.megabytes = 0.0
        self._words = words
        self._is_server: dict[int, bool] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            total = sum(self._resident(each) for each in psutil.Process().children(recursive=True))
            self.megabytes = max(self.megabytes, round(total / 2**20, 1))

    def _resident(self, process: psutil.Process) -> int:
        with ignored():
            if process.pid not in self._is_server:
                line = " ".join(process.cmdline())
                self._is_server[process.pid] = any(word in line for word in self._words)
            return int(process.memory_info().rss) if self._is_server[process.pid] else 0
        return 0


def wait_for(what: str, is_there: Callable[[], bool], *, seconds: float, pause_seconds: float = 0.1) -> None:
    """Wait until something is there.

    Raises:
        TimeoutError: It did not come in time.
    """
    pause, end = threading.Event(), time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds} s.")
        pause.wait(pause_seconds)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing uses now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def environment(home: Path) -> dict[str, str]:
    """The peers' processes get a home of their own, find this project, and keep TensorFlow quiet and off GPUs."""
    return os.environ | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONPATH": str(Path.cwd()),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
