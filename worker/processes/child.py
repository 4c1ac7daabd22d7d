"""A process that trains for a pool: it maps the data and the weights that the pool has laid out, and answers by pipe.

It ends when its stdin does, so it never outlives the process that started it, even a killed one; then it also removes
the folder of what they shared.
"""

import logging
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from broker import logs
from broker.errors import WarrenError
from broker.wire.messages import RoundStart
from worker.learning.results import TrainingProgress
from worker.processes.sharing import map_array, read_frame, take_shared, write_frame
from worker.rounds.failures import kind_withheld, told
from worker.rounds.participant import Participant, Trained, Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shared:
    """What every child takes from the pool's folder."""

    participants: Mapping[str, Participant]
    make_trainer: Callable[[], Trainer]


@dataclass(frozen=True, slots=True)
class Round:
    """Pool to child, before the first answer of a round: the start, and where its weights lie."""

    start: RoundStart
    weights: Path


@dataclass(frozen=True, slots=True)
class Ask:
    """Pool to child: train this worker in the round that was told last."""

    number: int
    worker: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Pool to child: what was asked with this number is not wanted any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Said:
    """Child to pool: how far a training is."""

    number: int
    progress: TrainingProgress


@dataclass(frozen=True, slots=True)
class Answered:
    """Child to pool: the answer; None when it was stopped."""

    number: int
    trained: Trained | None


@dataclass(frozen=True, slots=True)
class Failed:
    """Child to pool: why there is none, and the name of the error if it is one of ours.

    Attributes:
        withheld: The kind of another library's error whose words are in the reason; empty where they are Warren's own.
    """

    number: int
    kind: str
    reason: str
    withheld: str = ""


class Child:
    """Answers what comes in on one pipe, on another."""

    def __init__(self, shared: Shared, requests: IO[bytes], replies: IO[bytes], folder: Path) -> None:
        self._shared = shared
        self._requests, self._replies, self._folder = requests, replies, folder
        self._asked: queue.SimpleQueue[tuple[Ask, Round, threading.Event]] = queue.SimpleQueue()
        self._stops: dict[int, threading.Event] = {}
        self._writing = threading.Lock()
        self._trainer = shared.make_trainer()

    def serve(self) -> None:
        """Answer until the pipe ends, and the process with it."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        self._trainer.warm_up()
        while True:
            ask, the_round, stop = self._asked.get()
            self._say(self._answer(ask, the_round, stop))
            self._stops.pop(ask.number, None)

    def _read(self) -> None:
        the_round: Round | None = None
        try:
            while True:
                request = read_frame(self._requests)
                if isinstance(request, Round):
                    the_round = request
                elif isinstance(request, Ask):
                    assert the_round is not None  # noqa: S101 - the pool tells it first
                    stop = self._stops[request.number] = threading.Event()
                    self._asked.put((request, the_round, stop))
                elif isinstance(request, Stop) and request.number in self._stops:
                    self._stops[request.number].set()
        except (EOFError, OSError):
            self._end()

    def _end(self) -> None:
        """Nobody waits for an answer: TensorFlow is not waited for either."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)

    def _answer(self, ask: Ask, the_round: Round, stop: threading.Event) -> Answered | Failed:
        try:
            if stop.is_set():
                return Answered(ask.number, None)
            trained = self._trainer.answer(
                self._shared.participants[ask.worker],
                the_round.start,
                map_array(the_round.weights),
                stop,
                partial(self._report, ask.number),
            )
            return Answered(ask.number, trained)
        except WarrenError as exc:
            return Failed(ask.number, type(exc).__name__, str(exc), kind_withheld(exc) or "")
        except Exception as exc:
            logger.exception("%s could not be trained.", ask.worker)
            return Failed(ask.number, "", told(exc), type(exc).__name__)

    def _report(self, number: int, progress: TrainingProgress) -> None:
        self._say(Said(number, progress))

    def _say(self, word: Any) -> None:
        try:
            with self._writing:
                write_frame(self._replies, word)
        except OSError:
            self._end()


def main() -> None:
    """Serve the pool that has started this process."""
    # Last, so that a person's json.py or broker.py here stands in for nobody else's; "" is where this process works.
    sys.path.append("")
    # Ctrl-C and a stop of the whole group are the pool's to handle; the end of stdin is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a person's own code prints goes to stderr
    folder, log_format = Path(sys.argv[1]), sys.argv[2]
    logs.configure(log_format="json" if log_format == "json" else "text")
    Child(take_shared(folder), sys.stdin.buffer, replies, folder).serve()


if __name__ == "__main__":
    # Under its own name: what is sent to and fro is of the classes of that module.
    from worker.processes import child

    child.main()
