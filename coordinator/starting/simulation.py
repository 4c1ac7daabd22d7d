"""A federation in one process, for a notebook or a test: the commands' own rounds and workers, over a link in memory.

The one place of the coordinator that knows of workers, and has TensorFlow in its process; no command imports it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from broker.command import Interruptible, checked_amqp_url
from broker.errors import DataError, Interrupted, ModelError, UsageError
from broker.link.access import Access
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Link
from broker.logs import LogContext
from coordinator.folder.memory_folder import MemoryFolder
from coordinator.keras.building import trust_modules
from coordinator.keras.in_process import InProcessModels
from coordinator.learning.strategies import Strategy
from coordinator.options import RunOptions
from coordinator.play.run import Run, Summary
from coordinator.starting.api import RunResult, asked_options, opened, result_of
from coordinator.tasks import Task, TaskDefaults, resolve
from coordinator.terminal.console import RoundsBar
from worker.api import open_any, site_with
from worker.data.data_set import Dataset
from worker.learning.console import Console
from worker.processes.pool import TrainingPool
from worker.rounds.own_trainer import OwnTraining
from worker.rounds.participant import KerasTrainer, Participant
from worker.rounds.start import EndingTrainer, trainer_of
from worker.rounds.worker_loop import WorkerLoop
from worker.tables.table_set import TableSet
from worker.tensorflow import load_keras, trusted_by

_NAME = "swarm"  # as `worker swarm` calls its workers: the same names, the same seeds
_WITH_A_FOLDER = frozenset({"keep_every", "private", "track"})  # options of what is kept on disk
_CONNECT_SECONDS = 10.0
_LAST_SECONDS = 30.0


def simulate(
    model: Any,
    data: Any,
    *,
    workers: int = 100,
    fraction: float = 0.1,
    rounds: int = 20,
    partition: str | None = None,
    strategy: str | Strategy = "fedavg",
    trainer: Any = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    deterministic: bool = False,
    processes: int = 1,
    trusted_modules: Sequence[str] = (),
    amqp_url: str | None = None,
    progress: bool = True,
    stop: threading.Event | None = None,
    **options: Any,
) -> RunResult:
    """Train a model with many logical workers in this process, in one call.

    It plays what `coordinator run` and `worker swarm` play: with the same seed, settings and partition, and with
    `deterministic`, the result has the same bits. No broker is needed, and no files are left: what is committed is kept
    in memory. Only where a strategy needs every update side by side (`median`), and for several processes, there is a
    temporary folder meanwhile. Keras's and Python's random seeds are set in this process. Ctrl-C ends it with
    KeyboardInterrupt.

    Args:
        model: A compiled keras.Model, which is left as it is; a function that returns one; a TASK as `coordinator run`
            takes it; or, for a trainer, a mapping of names to arrays.
        data: (x, y), or ((x_train, y_train), (x_test, y_test)), and after them the classes' names if you like; or a
            PATH as `worker swarm --data` takes it. Of (x, y) a tenth is held out for tests. With a trainer what is
            not such values, e.g. None, goes to each as it is.
        workers: How many there are.
        fraction: Share of them that is invited to a round.
        rounds: How many.
        partition: How alike their data are: iid, shards or dirichlet:ALPHA; by default dirichlet:0.3, of data without
            classes iid.
        strategy: By name, or one of `coordinator.strategies`, or an object of one's own.
        trainer: A class or function that makes a trainer of one's own for each worker, see `worker.trainer`, as
            `trainer(data=..., worker=NAME)`; data are its part, ((x_train, y_train), (x_test, y_test)).
        epochs: Local ones in a round; None takes the task's, or 1.
        batch_size: None takes the task's, or 32.
        learning_rate: None takes the task's, or the model's own.
        seed: Of the initial weights, the partition, who is invited, and shuffling.
        deterministic: Same seed, same bits; slower, and TensorFlow stays so in this process.
        processes: Train in so many processes behind this one, which share the data in memory; 0: one for each core.
            Pays where training takes longer than the few seconds that they take to start. The result is the same.
        trusted_modules: The model may hold the layers, losses and metrics that these modules register.
        amqp_url: A broker's address: the same over this broker. None takes a link in memory.
        progress: Whether a bar shows how far it is.
        stop: Ends the call when it is set, from any thread.
        **options: Others of `coordinator run`, with _ for -: `class_weight="balanced"`.

    Returns:
        `history`, one dict a round: `pandas.DataFrame(result.history)`; `model`, `weights`, `workers`.

    Raises:
        UsageError: Options that are unknown or contradict each other.
        DataError: The data can't be used, can't be cut into so many parts, or don't fit the model.
        ModelError: No worker could train the model.
        QuorumNotReached: Workers could not train; the reasons are told.
        BrokerError: The broker is unreachable, or refused the login.
        Interrupted: `stop` was set.
    """
    if isinstance(model, Mapping) and trainer is None:
        raise UsageError("Named arrays are trained by a trainer: give one, or a Keras model.")
    task, make = _task_of(model)
    given = {
        "workers": workers,
        "fraction": fraction,
        "rounds": rounds,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "deterministic": deterministic,
    }
    for name in _WITH_A_FOLDER & options.keys():
        raise UsageError(f"A simulation has no folder for {name!r}. Take coordinator.run and worker.run.")
    asked = RunOptions(task=task, out=Path(_NAME), **asked_options(strategy, given | options))
    trusts = tuple(trusted_modules)
    if trainer is None:
        _check_keras()
        trust_modules(trusts)
    participants = _participants(data, trainer, workers, partition, seed, tuple(sorted(trusted_by(trusts))))
    with (
        Interruptible(stop) as ending,
        _links(amqp_url, ending) as (ours, theirs),
        closing(_training(participants, processes, ending, trusts, deterministic=deterministic)) as training,
        _Swarm(theirs, participants, training, ending),
    ):
        summary = _play(ours, asked, make, ending, progress=progress)
    return result_of(summary, None, trusts)


def _task_of(model: Any) -> tuple[Task, Callable[[], Any] | None]:
    """The task, and what makes its model if that is no matter of the task's own."""
    if isinstance(model, str):
        return resolve(model), None
    is_function = callable(model) and not hasattr(model, "to_json")  # a keras.Model is called, too
    name = getattr(model, "__name__", None) or getattr(model, "name", None) or type(model).__name__
    task = Task(name=str(name), kind="builder", source="", defaults=TaskDefaults())
    return task, model if is_function else lambda: model


def _participants(
    data: Any, trainer: Any, workers: int, partition: str | None, seed: int, trusts: tuple[str, ...]
) -> list[Participant]:
    """The workers, each with its part of the data, or with a trainer that has it."""
    names = [f"{_NAME}.{number}" for number in range(1, workers + 1)]
    if trainer is not None and not isinstance(data, tuple | list):
        return [Participant(name=name, data=site_with(trainer, data, name)) for name in names]
    whole = open_any(data, seed=seed)
    scheme = partition or ("dirichlet:0.3" if whole.classes else "iid")
    parts: Sequence[Dataset | TableSet] = whole.divide(workers, scheme, seed)
    return [
        Participant(
            name=name,
            data=part if trainer is None else site_with(trainer, _values(part), name),
            trusts=trusts,
        )
        for name, part in zip(names, parts, strict=True)
    ]


def _training(
    participants: list[Participant],
    processes: int,
    ending: threading.Event,
    trusted_modules: tuple[str, ...],
    *,
    deterministic: bool,
) -> EndingTrainer:
    """What trains them, in this process or in several."""
    if processes < 0:
        raise UsageError(f"Expected 0 processes, one for each core, or more. Received {processes}.")
    if processes == 1:
        return trainer_of(
            participants, deterministic=deterministic, ending=ending, trusted_modules=trusted_modules
        )
    keras = partial(KerasTrainer, deterministic=deterministic, trusted_modules=trusted_modules)
    return TrainingPool(participants, processes, OwnTraining if participants[0].has_trainer else keras)


def _values(part: Dataset | TableSet) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """((x_train, y_train), (x_test, y_test)) of one worker.

    Raises:
        DataError: They are streamed, or have weights.
    """
    if isinstance(part, TableSet):
        return part.pairs()
    shape = part.inputs.shape or ()
    train, test = part.train(shape), part.test(shape)
    if train.weights is not None:
        raise DataError("A trainer of one's own is given x and y, and no sample weights.")
    return (train.x, train.y), (test.x, test.y)


def _check_keras() -> None:
    """Load Keras, and see what it runs on.

    Raises:
        ModelError: Not on TensorFlow.
    """
    backend = load_keras().backend.backend()
    if backend != "tensorflow":
        raise ModelError(
            f"Keras runs on {backend} in this process; Warren trains with TensorFlow. Set KERAS_BACKEND=tensorflow "
            "before Keras is imported."
        )


@contextmanager
def _links(amqp_url: str | None, stop: threading.Event) -> Iterator[tuple[Link, Link]]:
    """The coordinator's and the workers'."""
    if amqp_url is None:
        broker = MemoryBroker()
        yield MemoryLink(broker), MemoryLink(broker)
        return
    access = Access(amqp_url=checked_amqp_url(amqp_url))
    with (
        opened(None, access, "coordinator", _CONNECT_SECONDS, stop) as ours,
        opened(None, access, f"swarm {_NAME}", _CONNECT_SECONDS, stop) as theirs,
    ):
        yield ours, theirs


def _play(
    link: Link, asked: RunOptions, make: Callable[[], Any] | None, stop: threading.Event, *, progress: bool
) -> Summary:
    folder = MemoryFolder()
    models = InProcessModels(folder.state_at, make)
    run = Run(link, asked, models, stop=stop, log=LogContext(), folder=folder)
    bar = RoundsBar(run.view, asked.rounds, is_shown=progress)
    run.each_turn(bar.draw)
    try:
        return run.play()
    finally:
        bar.end()
        folder.close()


class _Swarm:
    """The workers, in a thread of their own; what ends them ends the run, and is raised where the run is played."""

    def __init__(
        self,
        link: Link,
        participants: list[Participant],
        trainer: EndingTrainer,
        run_is_to_end: threading.Event,
    ) -> None:
        self._run_is_to_end = run_is_to_end
        self._failure: Exception | None = None
        self._has_ended_run = False
        self._is_over = threading.Event()
        self._loop = WorkerLoop(
            link,
            participants,
            trainer,
            stop=self._is_over,
            log=LogContext(),
            console=Console(),
            once=True,
            is_swarm=True,
            at_once=trainer.num_at_once,
        )
        self._thread = threading.Thread(target=self._serve, name=_NAME, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _trace: object) -> None:
        self._is_over.set()
        self._thread.join(_LAST_SECONDS)
        if self._has_ended_run:
            self._run_is_to_end.clear()  # it may be a caller's own, who did not set it
        if self._failure is not None and (kind is None or issubclass(kind, Interrupted)):
            raise self._failure from exc

    def _serve(self) -> None:
        try:
            self._loop.serve()
        except Exception as exc:  # noqa: BLE001 - raised in the thread that waits for the run
            self._failure = exc
            self._has_ended_run = not self._run_is_to_end.is_set()
            self._run_is_to_end.set()
