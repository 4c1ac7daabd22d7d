"""The trainer that hands each answer to one of several processes, each with a model of its own."""

import logging
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from broker.errors import DataError, ModelError, ProtocolError, UsageError, WarrenError
from broker.logs import format_in_use
from broker.wire.messages import RoundStart
from broker.wire.tensors import Vector
from worker.learning.results import Report
from worker.processes.child import Answered, Ask, Failed, Round, Said, Shared, Stop
from worker.processes.sharing import make_folder, read_frame, share, write_frame, write_vector
from worker.rounds.failures import ElsewhereError
from worker.rounds.participant import Participant, Trained, Trainer
from worker.site.memory import resident_bytes

logger = logging.getLogger(__name__)

_ERRORS: dict[str, type[WarrenError]] = {
    kind.__name__: kind for kind in (ModelError, DataError, UsageError, ProtocolError)
}
_LOOK_SECONDS = 0.1
_END_SECONDS = 3.0
_MOST_DEATHS = 3  #: of processes over one answer; then it is the answer that kills them
_KEPT_ROUNDS = 2  #: whose weights lie in the folder
_THREADS = (
    "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    "NPROC",
)  #: where TensorFlow, numpy and scikit-learn, PyTorch and JAX read how many threads they have  # fmt: skip


class TrainingPool:
    """Trains in several processes; a `Trainer` of which so many answers may be asked for at once.

    The participants go to each process once, as the pool is made; their large arrays lie in files that all map.

    Args:
        participants: All that will be asked for.
        processes: How many; 0 means one for each core.
        make_trainer: Makes the trainer of a process: a function, a class, or a `functools.partial` of one, of a module.
        threads: What all of them together compute with; None: as many as there are cores.
        max_memory: Bytes. A process that goes beyond them, together with this one, is ended and its round declined.

    Attributes:
        num_at_once: How many answers are worked out at the same time.
        has_left_behind: Nothing is: a process that hangs ends with its pool.

    Raises:
        DataError: The participants' data can't be shared.
    """

    has_left_behind = False

    def __init__(
        self,
        participants: Sequence[Participant],
        processes: int,
        make_trainer: Callable[[], Trainer],
        *,
        threads: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        threads = threads or num_cores()
        self.num_at_once = processes or min(threads, num_cores())
        self._folder = make_folder()
        try:
            share(self._folder, Shared({each.name: each for each in participants}, make_trainer))
        except DataError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._is_closed = False
        self._sharing = threading.Lock()
        self._weights: list[Path] = []
        each_threads = max(1, threads // self.num_at_once)
        self._children = [_Process(self._folder, each_threads, max_memory) for _ in range(self.num_at_once)]
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for each in self._children:
            self._free.put(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are at, and remove what they shared; may be called twice."""
        self._is_closed = True
        for each in self._children:
            each.close()
        for each in self._children:
            each.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def warm_up(self) -> None:
        """Nothing: the processes have been importing since they were started."""

    def answer(
        self,
        participant: Participant,
        start: RoundStart,
        weights: Vector,
        stop: threading.Event,
        report: Report,
    ) -> Trained | None:
        """Have a free process train and measure; from as many threads as there are processes, or more.

        A process that dies is started again, and the worker trained again.

        Raises:
            ModelError: As in a process of one's own; or several processes died over it.
        """
        path = self._shared_weights(start, weights)
        process = self._free_one(stop)
        try:
            for _ in range(_MOST_DEATHS):
                if process is None or stop.is_set():
                    return None
                try:
                    return process.answer(participant.name, start, path, stop, report)
                except (EOFError, OSError, ValueError):
                    if self._is_closed:
                        return None
                    how = process.restart()
                    logger.warning("A training process ended %s; it is started again.", how)
        finally:
            if process is not None:
                self._free.put(process)
        raise ModelError(
            f"{_MOST_DEATHS} training processes ended over {participant.name}, perhaps for want of memory. "
            "Try fewer --processes."
        )

    def _free_one(self, stop: threading.Event) -> "_Process | None":
        while not stop.is_set():
            try:
                return self._free.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
        return None

    def _shared_weights(self, start: RoundStart, weights: Vector) -> Path:
        """Where the weights of a round lie; laid there by whoever needs them first."""
        path = self._folder / f"weights-{start.digest}-{weights.size}.npy"
        with self._sharing:
            if path not in self._weights:
                write_vector(path, weights)
                self._weights.append(path)
            while len(self._weights) > _KEPT_ROUNDS:
                self._weights.pop(0).unlink(missing_ok=True)
        return path


def raised_by(failed: Failed) -> WarrenError:
    """The error of a child as one of ours; of what nobody expected the traceback is in the log, written there."""
    error = _ERRORS.get(failed.kind, ModelError)(failed.reason)
    error.__cause__ = ElsewhereError(failed.withheld) if failed.withheld else None
    return error


class _Process:
    """One child, and what was told to it."""

    def __init__(self, folder: Path, num_threads: int, max_memory: int | None) -> None:
        self._folder = folder
        self._num_threads = num_threads
        self._max_memory = max_memory
        self._number = 0
        self._closing = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._told: tuple[object, ...] | None = None
        self._heard: queue.SimpleQueue[Answered | Failed | Said | None] = queue.SimpleQueue()
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.processes.child", str(self._folder), format_in_use()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(self._num_threads),
        )
        self._hearing = threading.Thread(
            target=_hear, args=(_pipe(self._popen.stdout), self._heard), name="pool", daemon=True
        )
        self._hearing.start()

    def restart(self) -> str:
        """Have another one in its place; how this one ended, in words."""
        self.wait()
        code = self._popen.returncode
        self._begin()
        return f"with exit code {code}" if code >= 0 else f"by signal {-code}"

    def close(self) -> None:
        """End its stdin, and it ends."""
        self._closing.set()
        with suppress(OSError):  # it had ended already
            _pipe(self._popen.stdin).close()

    def wait(self) -> None:
        """Wait for its end; one that doesn't is killed."""
        try:
            self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(_END_SECONDS)
        with suppress(OSError):
            _pipe(self._popen.stdin).close()
        self._hearing.join(_END_SECONDS)
        _pipe(self._popen.stdout).close()

    def answer(
        self, worker: str, start: RoundStart, weights: Path, stop: threading.Event, report: Report
    ) -> Trained | None:
        """Have it train one worker.

        Raises:
            EOFError: It died.
            WarrenError: What it raised.
        """
        stdin = _pipe(self._popen.stdin)
        # A coordinator that was started anew may have other settings for the same round.
        told = (start.run_id, start.round_number, start.mode, start.attempt, start.settings, weights)
        if told != self._told:
            write_frame(stdin, Round(replace(start, weights=None), weights))
            self._told = told
        self._number += 1
        write_frame(stdin, Ask(self._number, worker))
        return self._answer_to(self._number, stop, report)

    def _answer_to(self, number: int, stop: threading.Event, report: Report) -> Trained | None:
        is_stopped = False
        while True:
            self._watch_memory()
            try:
                word = self._heard.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if stop.is_set() and not is_stopped:
                    is_stopped = True
                    write_frame(_pipe(self._popen.stdin), Stop(number))
                if self._closing.is_set():
                    return None
                continue
            if word is None:
                raise EOFError
            if isinstance(word, Said):
                report(word.progress)
            elif isinstance(word, Failed):
                raise raised_by(word)
            else:
                return word.trained

    def _watch_memory(self) -> None:
        """Put another one in its place when it takes more than it may: nothing else stops TensorFlow in a step.

        Raises:
            ModelError: It has.
        """
        taken = 0 if self._max_memory is None else resident_bytes((os.getpid(), self._popen.pid))
        if self._max_memory is not None and taken > self._max_memory:
            self._popen.kill()
            self.restart()
            raise ModelError(
                f"This round took {taken / 2**30:.2f} GiB of memory at this site, whose operator allows "
                f"{self._max_memory / 2**30:.2f} GiB (--max-memory)."
            )


def _hear(replies: IO[bytes], heard: "queue.SimpleQueue[Any]") -> None:
    try:
        while True:
            heard.put(read_frame(replies))
    except (EOFError, OSError, ValueError):
        heard.put(None)


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environment(num_threads: int) -> dict[str, str]:
    """This process's own, with so few threads each that all of them together keep the cores busy, and no busier.

    An empty entry of PYTHONPATH would put the current folder before everything.
    """
    root = str(Path(__file__).resolve().parents[2])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([root, *filter(None, given)])
    return os.environ | {"PYTHONPATH": path} | dict.fromkeys(_THREADS, str(num_threads))


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 - Popen was asked for both
    return stream
