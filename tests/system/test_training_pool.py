"""Training in several processes: the same answers, arrays that nobody copies, and no process or file left behind."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import DataError, ModelError
from broker.hosting.private import wait_until
from broker.wire.messages import RoundStart
from broker.wire.tensors import FLOAT32, Vector
from tests.unit.test_messages import EXAMPLES
from worker.learning.results import Report, TrainingProgress
from worker.processes.pool import TrainingPool
from worker.rounds.participant import Participant, Trained
from worker.rounds.uploading import Measured
from worker.site.memory import resident_bytes

START = next(message for message in EXAMPLES if isinstance(message, RoundStart))
EXAMPLES_BYTES = 1024 * 1024


class Data:
    """As much of a data set as the trainers here look at: arrays that several sites share."""

    def __init__(self, every: np.ndarray[Any, Any], number: int) -> None:
        self.every, self.number, self.lock = every, number, threading.Lock()


class Sums:
    """In the place of Keras: adds up what a worker's data and the weights are."""

    def __init__(self, folder: str = "") -> None:
        self._folder = folder

    def warm_up(self) -> None:
        """Nothing to import."""

    def answer(
        self,
        participant: Participant,
        start: RoundStart,
        weights: Vector,
        stop: threading.Event,
        report: Report,
    ) -> Trained | None:
        data: Any = participant.data
        report(TrainingProgress(epoch=1, epochs=1, batch=1, batches=2, metrics={"loss": 0.5}))
        if participant.name == "s.1" and self._folder:
            self._die_once()
        if participant.name == "s.8":
            os._exit(3)
        if participant.name == "s.0":
            taken = np.ones(2**29, np.uint8)  # in one step, which nothing but its end can stop
            stop.wait(60 + taken[-1])
        if participant.name == "s.1" and not self._folder:
            return _threads_of(os.environ)
        if participant.name == "s.9":
            raise DataError("no such class")
        if participant.name == "s.7":
            stop.wait(60)
            return None
        shared = isinstance(data.every.base, np.ndarray) and not data.every.flags.writeable
        measured = Measured(
            num_examples=os.getpid(), metrics={"shared": float(shared)}, global_metrics={}, num_test_examples=0,
            seconds=0.0,
        )  # fmt: skip
        return Trained(vector=(weights + data.every[data.number]).astype(FLOAT32), measured=measured)

    def _die_once(self) -> None:
        mark = Path(self._folder) / "died"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _threads_of(environment: Mapping[str, str]) -> Trained:
    """How many threads the libraries of a process are told to use."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OPENBLAS_NUM_THREADS")
    told = {name: float(environment[name]) for name in names}
    measured = Measured(num_examples=1, metrics=told, global_metrics={}, num_test_examples=0, seconds=0.0)
    return Trained(vector=None, measured=measured)


@contextmanager
def pool_of(
    processes: int = 2, folder: str = "", **limits: int
) -> Iterator[tuple[TrainingPool, dict[str, Participant]]]:
    every = np.arange(EXAMPLES_BYTES // 4, dtype=FLOAT32)
    data: Any = [Data(every, number) for number in range(10)]
    participants = [Participant(name=f"s.{number}", data=data[number]) for number in range(10)]
    with TrainingPool(participants, processes, partial(Sums, folder), **limits) as pool:
        yield pool, {each.name: each for each in participants}


def ask(
    pool: TrainingPool,
    participant: Participant,
    start: RoundStart = START,
    stop: threading.Event | None = None,
) -> Trained | None:
    weights = np.full(2, start.round_number, FLOAT32)
    return pool.answer(participant, start, weights, stop or threading.Event(), lambda _: None)


def test_both_processes_train_on_the_same_memory() -> None:
    """Two answers at once come of two processes; the large array is mapped, and read-only; each round has its weights.
    Then neither a process nor a file is left."""
    with pool_of() as (pool, workers), ThreadPoolExecutor(2) as threads:
        folder = pool._folder
        second = replace(START, round_number=2, digest="d2")
        told: list[TrainingProgress] = []
        answers = list(
            threads.map(lambda name: ask(pool, workers[name]), [f"s.{number}" for number in range(2, 7)])
        )
        later = pool.answer(workers["s.3"], second, np.full(2, 2, FLOAT32), threading.Event(), told.append)
        pids = [child._popen.pid for child in pool._children]
    assert all(answer is not None for answer in answers)
    vectors = [answer.vector.tolist() for answer in answers if answer and answer.vector is not None]
    assert vectors == [[1 + number] * 2 for number in range(2, 7)]
    assert {answer.measured.num_examples for answer in answers if answer} <= set(pids)
    assert all(answer.measured.metrics == {"shared": 1.0} for answer in answers if answer)
    assert later is not None
    assert later.vector is not None
    assert later.vector.tolist() == [5, 5]
    assert [each.metrics for each in told] == [{"loss": 0.5}]
    assert not folder.exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_dies_is_started_again_and_its_worker_trained_again(tmp_path: Path) -> None:
    """Killed in the middle of an answer; over one that kills every process it is given up."""
    with pool_of(1, str(tmp_path)) as (pool, workers):
        answer = ask(pool, workers["s.1"])
        assert answer is not None
        assert answer.vector is not None
        assert answer.vector.tolist() == [2, 2]
        with pytest.raises(ModelError, match=r"3 training processes ended over s\.8"):
            ask(pool, workers["s.8"])
        assert ask(pool, workers["s.2"]) is not None


def test_what_a_trainer_raises_is_raised_and_a_stop_is_heard() -> None:
    """Our own errors keep their kind; a stopped training gives its process to the next."""
    with pool_of(1) as (pool, workers):
        with pytest.raises(DataError, match="no such class"):
            ask(pool, workers["s.9"])
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        assert ask(pool, workers["s.7"], stop=stop) is None
        assert ask(pool, workers["s.2"]) is not None


def test_the_processes_end_with_their_parent_and_so_do_its_files() -> None:
    """A killed process closes no pool: its children see the end of their pipes."""
    with pool_of(1) as (pool, workers):
        assert ask(pool, workers["s.2"]) is not None
        pool._children[0]._popen.stdin.close()  # type: ignore[union-attr]  # as the end of a process does
        assert wait_until(lambda: not pool._folder.exists(), 10)


def test_a_training_that_takes_too_much_memory_is_ended_and_the_next_one_answered() -> None:
    """In the middle of a step; the reason names both figures, and no other process is the worse for it."""
    limit = resident_bytes([os.getpid()]) + 2**29
    with pool_of(1, max_memory=limit) as (pool, workers):
        assert ask(pool, workers["s.2"]) is not None
        with pytest.raises(
            ModelError, match=r"took \d\.\d\d GiB of memory .* allows \d\.\d\d GiB \(--max-memory\)"
        ):
            ask(pool, workers["s.0"])
        assert ask(pool, workers["s.2"]) is not None


@pytest.mark.parametrize(("processes", "threads", "each"), [(1, 3, 3), (2, 3, 1)])
def test_the_libraries_of_a_process_are_told_how_many_threads_they_have(
    processes: int, threads: int, each: int
) -> None:
    """All processes together have as many as the operator says, whatever the machine has."""
    with pool_of(processes, threads=threads) as (pool, workers):
        answer = ask(pool, workers["s.1"])
    assert answer is not None
    assert set(answer.measured.metrics.values()) == {each}


def test_what_can_not_be_in_two_processes_is_named() -> None:
    """A generator goes on from where it is: there is no second one like it."""
    data: Any = (number for number in range(3))
    with pytest.raises(DataError, match="generator"):
        TrainingPool([Participant(name="s.1", data=data)], 2, Sums)
