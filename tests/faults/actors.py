"""Real processes for the fault tests: a coordinator or a worker as the command line makes it, with numpy for Keras.

What is under test is the product's own: Run, WorkerLoop, the RabbitMQ link, the files. Stand-ins are the model
process, the data, and the training, whose update depends on (weights, seed, round, worker) alone; with `data` in the
options these three are the product's own too, and TensorFlow trains; with `example` likewise, and scikit-learn does.
A break point kills the process, or holds it, before or after the n-th call of a function; it is patched in here, never
in the product.
"""

import faulthandler
import hashlib
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from broker import logs
from broker.audit import AUDIT_FILE, AuditLog
from broker.command import Stop
from broker.errors import EXIT_SIGNAL, BrokerError, BrokerUnreachable, Interrupted, WarrenError
from broker.hosting.private import wait_until
from broker.link.access import Access
from broker.link.rabbitmq.connection import ConnectionThread
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.single_reader import SingleReader
from broker.model.card import ModelCard
from broker.wire.messages import RoundStart
from broker.wire.settings import Held
from broker.wire.tensors import FLOAT32, InputFacts, Layout, TensorSpec, Vector
from coordinator.files import lock_folder, make_folder, write_atomically
from coordinator.folder.checkpoint import read_checkpoint
from coordinator.keras.process import BuiltModel, ModelProcess
from coordinator.learning.aggregation import UpdateSum, scale_exponent
from coordinator.learning.strategies.averages import FedAvg
from coordinator.options import RunOptions
from coordinator.play.run import Run
from coordinator.presence.broker_room import room_at
from coordinator.starting.relay.above import relay
from coordinator.starting.relay.part import RelayOptions
from coordinator.tasks import Task, TaskDefaults, resolve
from tests.steps import next_weights
from worker.data.data_set import open_data
from worker.learning.console import Console
from worker.learning.results import Report
from worker.processes.pool import TrainingPool
from worker.rounds.own_site import open_trainer
from worker.rounds.own_trainer import OwnTraining
from worker.rounds.participant import KerasTrainer, Participant, Trained, seed_of
from worker.rounds.private_parts import PrivateParts
from worker.rounds.uploading import Measured
from worker.rounds.worker_loop import WorkerLoop

TASK = Task(name="stand-in", kind="builder", source="stand_in:model", defaults=TaskDefaults())
CLASSES = ("no", "yes")
LARGEST_WEIGHT = 10_000.0  #: the stand-in model's answers are no numbers beyond it
_STEP_SECONDS = 0.05

#: Where a break point may be: module, and function or method.
POINTS: dict[str, tuple[str, str]] = {
    "open-round": ("coordinator.folder.run_folder", "write_open_round"),
    "send-part": ("coordinator.play.open_round.round_start", "Invitation.part"),
    "sent": ("coordinator.play.open_round.round_start", "Invitation.send"),
    "fetch": ("coordinator.play.open_round.fetching", "Assembly.place"),
    "settle": ("coordinator.play.open_round.taking", "Taking._settle"),
    "average": ("coordinator.play.open_round.live_round", "LiveRound.closed"),
    "checkpoint": ("coordinator.folder.run_folder", "write_checkpoint"),
    "fsync": ("os", "fsync"),
    "release": ("coordinator.play.open_round.unacknowledged", "Unacknowledged.release"),
    "closed": ("coordinator.play.open_round.guests", "Guests.tell_closed"),
    "save": ("coordinator.play.committed", "Committed.save"),
    "finish": ("coordinator.play.run", "Run._finish"),
    "keep-start": ("coordinator.starting.relay.region", "keep_start"),
    "finish-part": ("coordinator.starting.relay.region", "Region._finish"),
    "train": ("tests.faults.actors", "NumpyTrainer.answer"),
    "fit": ("worker.examples.sklearn_logistic", "Trainer.fit"),
    "upload-part": ("worker.rounds.uploading", "KeptUpdate.part"),
    "keep-private": ("worker.rounds.private_parts", "PrivateParts.keep"),
    "announce": ("worker.rounds.uploading", "KeptUpdate.announcement"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """Kill the process, or hold it until a file appears, at the n-th call of a function.

    Attributes:
        folder: When holding: `POINT.reached` is written here, and `POINT.go` awaited.
    """

    point: str
    when: Literal["before", "after"] = "before"
    count: int = 1
    action: Literal["kill", "hold"] = "kill"
    folder: str = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one actor is to be.

    Attributes:
        size: Float weights of the stand-in model.
        train_seconds: How long a training takes; it looks at the wish to stop every 50 ms.
        busy_seconds: How long a training computes in pure Python without looking at the wish to stop.
        holds_gil_seconds: How long a training blocks all of Python besides, as a C extension can.
        names: More than one: a process that speaks for several workers, one after the other.
        trainings: Where each training is noted, one JSON line each.
        connections: Where it is noted when each connection went away and came back, one JSON line each.
        audit: A worker's audit log; a coordinator's is in its folder.
        patches: Constants of the product to set, "module:name" to value: shorter waits for the tests.
        processes: That train behind a swarm's own; 1 trains in it.
        fails: Training raises DataError.
        spoils: Added to every value of its updates: finite, and yet too much for the model.
        crashes: So many trainings raise what nobody expects.
        classes: Of its data.
        data: What a worker trains on with Keras; for a coordinator: its model is Keras's, a small one.
        management_url: Where a coordinator asks for room at the broker; by default it doesn't.
        above: A relay's address of the broker above.
        example: In place of the stand-ins a task of arrays, and the trainer of one's own in the same module.
    """

    role: Literal["coordinator", "worker", "relay"]
    amqp_url: str
    names: tuple[str, ...] = ()
    out: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    size: int = 1000
    num_examples: int = 100
    train_seconds: float = 0.0
    busy_seconds: float = 0.0
    holds_gil_seconds: float = 0.0
    once: bool = True
    is_swarm: bool = False
    processes: int = 1
    evaluate_only: bool = False
    fails: bool = False
    spoils: float = 0.0
    crashes: int = 0
    classes: tuple[str, ...] = CLASSES
    data: str = ""
    state: str = ""
    example: str = ""
    above: str = ""
    management_url: str = ""
    trainings: str = ""
    connections: str = ""
    audit: str = ""
    claim_seconds: float = 20.0
    connect_seconds: float = 20.0
    patches: dict[str, float] = field(default_factory=dict)
    breaks: tuple[Break, ...] = ()
    verbose: bool = False


# --- what is learned -------------------------------------------------------------------------------------------


def first_weights(size: int, seed: int) -> Vector:
    """The stand-in model's initial weights."""
    return np.random.default_rng(seed).standard_normal(size, FLOAT32)


def update_of(weights: Vector, seed: int) -> Vector:
    """What one worker's training gives: the same bits for the same weights and seed."""
    noise = np.random.default_rng(seed).standard_normal(weights.size, FLOAT32)
    return (noise * FLOAT32.type(0.01) - weights * FLOAT32.type(0.1)).astype(FLOAT32)


def worker_seed(seed: int, round_number: int, worker: str) -> int:
    """`worker.rounds.participant.seed_of` without a round start."""
    text = f"{seed}/{round_number}/{worker}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def undisturbed(workers: dict[str, int], *, rounds: int, size: int, seed: int = 0) -> Vector:
    """The global model after so many rounds in which all these workers (with their examples) took part."""
    weights = first_weights(size, seed)
    for round_number in range(1, rounds + 1):
        total = UpdateSum(layout_of_size(size), scale_exponent(sum(workers.values())))
        for worker, num_examples in workers.items():
            total.add(update_of(weights, worker_seed(seed, round_number, worker)), num_examples)
        weights = next_weights(FedAvg(), weights, total, ())
    return weights


def undisturbed_median(workers: dict[str, int], *, rounds: int, size: int, seed: int = 0) -> Vector:
    """The same with the coordinate-wise median, by numpy's own."""
    weights = first_weights(size, seed)
    for round_number in range(1, rounds + 1):
        updates = [update_of(weights, worker_seed(seed, round_number, worker)) for worker in workers]
        weights = (np.median(updates, axis=0).astype(FLOAT32) + weights).astype(FLOAT32)
    return weights


def layout_of_size(size: int) -> Layout:
    """One trainable tensor."""
    return (TensorSpec(dtype="float32", shape=(size,), kind="trainable"),)


class StandInModels:
    """In the place of ModelProcess: builds a vector, and saves a digest of the checkpoint as model.keras."""

    def __init__(self, size: int) -> None:
        self._size = size

    def build(self, _task: Task, *, seed: int, initial_model: Path | None = None, **_: object) -> BuiltModel:
        """A model of one weight tensor."""
        del initial_model
        return BuiltModel(
            model_json='{"class_name": "StandIn"}',
            layout=layout_of_size(self._size),
            vector=first_weights(self._size, seed),
            integers=[],
            input_shape=(1,),
            num_classes=len(CLASSES),
            num_parameters=self._size,
        )

    def save(
        self, checkpoint_path: Path, model_path: Path, card: ModelCard, *, is_held: bool = False
    ) -> None:
        """Write which round this is, and the digest of its weights."""
        vector = read_checkpoint(checkpoint_path).vector
        digest = hashlib.sha256(vector.tobytes()).hexdigest()
        write_atomically(model_path, [f"{card.round_number} {digest}\n".encode()])
        if is_held:
            checkpoint_path.unlink()

    def draw_workers(self, _checkpoint_path: Path, _picture_path: Path) -> None:
        """Nobody looks."""

    def check(self, candidate: Path, _inputs: InputFacts | None) -> str | None:
        """As a model whose answers overflow once a weight is too large."""
        largest = float(np.abs(read_checkpoint(candidate).vector).max())
        return "its model answers NaN or infinity" if largest > LARGEST_WEIGHT else None

    def flush(self, _timeout_seconds: float) -> bool:
        """Everything is saved at once."""
        return True


@dataclass(frozen=True, slots=True)
class StandInData:
    """As much of a Dataset as joining needs."""

    num_train_examples: int
    classes: tuple[str, ...] = CLASSES
    num_test_examples: int = 10
    inputs: InputFacts | None = None
    holds: tuple[Held, ...] = ()

    @property
    def examples_per_class(self) -> dict[str, int]:
        """Half of them each."""
        half = self.num_train_examples // 2
        return {self.classes[0]: half, self.classes[1]: self.num_train_examples - half}


class NumpyTrainer:
    """In the place of KerasTrainer; notes every training."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._num_answered = 0

    def warm_up(self) -> None:
        """Nothing takes long here."""

    def answer(
        self,
        participant: Participant,
        start: RoundStart,
        weights: Vector,
        stop: threading.Event,
        report: Report,
    ) -> Trained | None:
        """Take the time, then compute the update."""
        del report
        begun = time.monotonic()
        self._note("began", participant.name, start, weights)
        if self._options.fails:
            from broker.errors import DataError

            raise DataError("the images can't be read")
        self._num_answered += 1
        if self._num_answered <= self._options.crashes:
            raise RuntimeError("You must compile the model.\nThis is the second line.")
        trains = participant.trains_in(start)
        while trains and time.monotonic() - begun < self._options.busy_seconds:
            sum(range(1000))  # Python that never waits
        if trains and self._options.holds_gil_seconds:
            hold_gil(self._options.holds_gil_seconds)
        while time.monotonic() - begun < self._options.train_seconds:
            if stop.wait(_STEP_SECONDS):
                self._note("stopped", participant.name, start, weights)
                return None
        vector = update_of(weights, seed_of(start, participant.name)) if trains else None
        if vector is not None and self._options.spoils:
            vector += np.float32(self._options.spoils)
        measured = Measured(
            num_examples=participant.data.num_train_examples if trains else 0,
            metrics={"loss": 1.0} if trains else {},
            global_metrics={"loss": float(np.mean(weights.astype(np.float64) ** 2))},
            num_test_examples=10,
            seconds=time.monotonic() - begun,
        )
        self._note("ended", participant.name, start, weights)
        return Trained(vector=vector, measured=measured)

    def _note(self, what: str, worker: str, start: RoundStart, weights: Vector) -> None:
        if not self._options.trainings:
            return
        line = {
            "what": what,
            "worker": worker,
            "round": start.round_number,
            "mode": start.mode,
            "weights": hashlib.sha256(weights.tobytes()).hexdigest()[:16],
            "pid": os.getpid(),
            "at": time.time(),
        }
        with Path(self._options.trainings).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def hold_gil(seconds: float) -> None:
    """Sleep without letting go of Python's lock: no other thread of this process runs meanwhile."""
    import ctypes

    libc = ctypes.PyDLL(None)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        libc.usleep(
            int(min(left, 0.9) * 1e6)
        )  # returns without a switch: the lock is never asked for in between


# --- break points ----------------------------------------------------------------------------------------------


class BreakPoint:
    """Stands before or after a function, counts its calls, and acts at the n-th."""

    def __init__(self, wanted: Break, link: RabbitLink) -> None:
        self._wanted = wanted
        self._link = link
        self._calls = 0

    def install(self) -> None:
        """Patch the function."""
        module_name, path = POINTS[self._wanted.point]
        owner: Any = importlib.import_module(module_name)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        patch(owner, name, self._around(getattr(owner, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            self._calls += 1
            is_now = self._calls == self._wanted.count
            if is_now and self._wanted.when == "before":
                self._act()
            result = function(*args, **more)
            if is_now and self._wanted.when == "after":
                self._act()
            return result

        return call

    def _act(self) -> None:
        # What was handed to the link before is with the broker: a kill after 10 parts leaves 10 parts.
        wait_until(lambda: not self._link._publishing.connection.calls._pending, 5, pause_seconds=0.01)
        if self._wanted.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        folder = Path(self._wanted.folder)
        (folder / f"{self._wanted.point}.reached").touch()
        wait_until((folder / f"{self._wanted.point}.go").exists, 120, pause_seconds=0.02)


def apply_patches(options: Options) -> None:
    """Shorten what the tests can't wait for."""
    defaults = SingleReader.__init__.__kwdefaults__
    assert "wait_seconds" in defaults
    defaults["wait_seconds"] = options.claim_seconds
    for place, value in {
        "coordinator.presence.session:WAIT_SECONDS": options.claim_seconds,
        **options.patches,
    }.items():
        module, name = place.split(":")
        patch(importlib.import_module(module), name, value)


def patch(owner: Any, name: str, value: object) -> None:
    """Set what is there already: a constant that has moved would be patched where nobody reads it.

    Raises:
        AttributeError: It is not there.
    """
    getattr(owner, name)
    setattr(owner, name, value)


# --- the two roles ---------------------------------------------------------------------------------------------


def task_of(options: Options) -> Task:
    """What is to be learned."""
    if options.example:
        return resolve(f"{options.example}:task")
    return resolve("mnist") if options.data else TASK


def play_coordinator(options: Options, link: RabbitLink, stop: Stop, log: logs.LogContext) -> int:
    """As `coordinator.cli.run` does it."""
    asked = RunOptions(task=task_of(options), out=Path(options.out), **options.run)
    make_models: Any = lambda: nullcontext(StandInModels(options.size))  # noqa: E731
    if options.data or options.example:
        make_models = lambda: ModelProcess(is_warm=asked.task.is_surely_keras)  # noqa: E731
    access = Access(amqp_url=options.amqp_url, management_url=options.management_url or None)
    room = room_at(access) if options.management_url else None
    try:
        make_folder(asked.out)
        with lock_folder(asked.out, wait=asked.standby, stop=stop.event):
            link.open()
            try:
                with make_models() as models:
                    audit_log = AuditLog(asked.out / AUDIT_FILE)
                    playing = Run(
                        link, asked, models, stop=stop.event, log=log, audit_log=audit_log, room=room
                    )
                    summary = playing.play()
            finally:
                link.close()
    except Interrupted as exc:
        click.echo(str(exc), err=True)
        return EXIT_SIGNAL + (stop.signal_number or 0)
    click.echo(f"rounds={summary.rounds} dead={summary.num_dead}")
    return 0


def trainer_of(options: Options, stop: Stop) -> Any:
    """What trains."""
    if options.example:
        return OwnTraining(ending=stop.event)
    if not options.data:
        return NumpyTrainer(options)
    private = PrivateParts(Path(options.state)) if options.state else None
    return KerasTrainer(ending=stop.event, private=private)


def play_worker(options: Options, link: RabbitLink, stop: Stop, log: logs.LogContext) -> int:
    """As `worker.rounds.start.take_part` does it."""
    participants = []
    for name in options.names:
        data: Any = StandInData(options.num_examples, options.classes)
        if options.example:
            data = open_trainer(f"{options.example}:Trainer", data=None, worker=name)
        elif options.data:
            data = open_data(options.data)
        participants.append(Participant(name=name, data=data, evaluate_only=options.evaluate_only))
    link.open()
    with ExitStack() as stack:
        stack.callback(link.close)
        pool = None
        if options.processes > 1:
            make_trainer = partial(NumpyTrainer, options)
            pool = stack.enter_context(TrainingPool(participants, options.processes, make_trainer))
        WorkerLoop(
            link,
            participants,
            pool or trainer_of(options, stop),
            stop=stop.event,
            log=log,
            console=Console(),
            once=options.once,
            is_swarm=options.is_swarm,
            at_once=pool.num_at_once if pool else 1,
            audit_log=AuditLog(Path(options.audit) if options.audit else None),
        ).serve()
    return 0


def play_relay(options: Options, link: RabbitLink, stop: Stop, log: logs.LogContext) -> int:
    """As `coordinator.starting.relay.above.play_relay` does it."""
    asked = RelayOptions(name=options.names[0], out=Path(options.out), **options.run)
    make_folder(asked.out)
    with lock_folder(asked.out, wait=False, stop=stop.event), ExitStack() as stack:
        for each in (link, above := RabbitLink(link_settings(options, stop, above=True))):
            each.open()
            stack.callback(each.close)
        relay(link, above, asked, stop.event, log, once=options.once)
    return 0


def link_settings(options: Options, stop: Stop, *, above: bool = False) -> LinkSettings:
    """Where the broker is, and what this process is called there."""
    is_coordinator = options.role != "worker" and not above
    return LinkSettings(
        access=Access(amqp_url=options.above if above else options.amqp_url),
        name="coordinator" if is_coordinator else f"worker {options.names[0]}",
        connect_seconds=options.connect_seconds,
        stop=stop.event,
    )


def note_connections(options: Options) -> None:
    """Note when a connection is there, and when one that was there is not any more: of both sides of a link, to the
    millisecond, and in one form, while the log tells of one side and in seconds."""
    path, be_ready, note_end = (
        Path(options.connections),
        ConnectionThread.be_ready,
        ConnectionThread._note_end,
    )
    who = options.names[0] if options.names else options.role

    def note(thread: ConnectionThread, what: str) -> None:
        line = {"what": what, "who": who, "side": thread.name, "pid": os.getpid(), "at": time.time()}
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def there(thread: ConnectionThread) -> None:
        be_ready(thread)
        note(thread, "there")

    def ended(thread: ConnectionThread, error: BrokerError) -> None:
        if thread.ready.is_set():
            note(thread, "lost")
        note_end(thread, error)

    ConnectionThread.be_ready, ConnectionThread._note_end = there, ended  # type: ignore[method-assign]


def main(options: Options, log_path: str) -> None:
    """Play one part in this process, which was forked for it; everything it says goes to a file."""
    with open(log_path, "ab", buffering=0) as stream:  # noqa: PTH123 - as descriptors 1 and 2
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.setsid()
    faulthandler.register(signal.SIGUSR1)
    raise SystemExit(play(options))


def play(options: Options) -> int:
    """From the options to the exit code."""
    apply_patches(options)
    if options.connections:
        note_connections(options)
    log = logs.configure(verbose=options.verbose)
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        link = RabbitLink(link_settings(options, stop))
        for each in options.breaks:
            BreakPoint(each, link).install()
        play_role = {"coordinator": play_coordinator, "worker": play_worker, "relay": play_relay}[
            options.role
        ]
        try:
            return play_role(options, link, stop, log)
        except BrokerUnreachable as exc:
            if stop.event.is_set():  # told to stop before the broker answered
                return EXIT_SIGNAL + (stop.signal_number or 0) if options.role == "coordinator" else 0
            click.echo(f"Error: {exc}", err=True)
            return exc.exit_code
        except WarrenError as exc:
            click.echo(f"Error: {exc}", err=True)
            return exc.exit_code
