"""A run asked for from Python: the same as the command's, with its result as an object and our errors raised."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from broker.audit import AUDIT_FILE, AuditLog, user
from broker.command import DEFAULT_AMQP_URL, Interruptible, checked_amqp_url
from broker.errors import BrokerUnreachable, Interrupted
from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Link
from broker.link.validity import CertificateWatch
from broker.logs import LogContext
from broker.model.arrays import array_names
from broker.wire.tensors import Array, unflatten
from broker.wire.versions import release
from coordinator.files import lock_folder, make_folder
from coordinator.folder.checkpoint import Checkpoint
from coordinator.folder.history import FlatRow, flat_workers
from coordinator.folder.run_folder import model_file
from coordinator.folder.tracking.process import tracked
from coordinator.keras.process import ModelProcess
from coordinator.learning.strategies import STRATEGIES, Strategy
from coordinator.options import RunOptions
from coordinator.play.run import Run, Summary
from coordinator.presence.broker_room import room_at
from coordinator.starting.launching import make_options, read_values
from coordinator.terminal.console import Console


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        outcome: "done", or "stopped" when a person ended it before its last round.
        rounds: How many were closed.
        path: Its model.keras, or model.npz; None of a simulation, which leaves no files.
        num_dead: How many messages were refused, and are in the queue `dead`.
        state: What was committed last.
        trusted_modules: What its model may hold.
    """

    outcome: Literal["done", "stopped"]
    rounds: int
    path: Path | None
    num_dead: int
    state: Checkpoint = field(repr=False)
    trusted_modules: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def history(self) -> list[FlatRow]:
        """One dict a round, as history.csv has it: `pandas.DataFrame(result.history)`."""
        return [row.flat for row in self.state.history]

    @cached_property
    def workers(self) -> list[FlatRow]:
        """One dict a round and worker, as workers.csv has it; of rounds with more than 250 workers there are none."""
        return flat_workers(self.state.history)

    @property
    def weights(self) -> list[Array]:
        """The model's weights, in Keras's order (`model.get_weights()`), or in that of a task's arrays."""
        return unflatten(self.state.layout, self.state.vector, list(self.state.integers))

    @property
    def arrays(self) -> dict[str, Array]:
        """The weights of a task of arrays by their names.

        Raises:
            ModelError: It is a Keras model.
        """
        return dict(zip(array_names(self.state.model_json), self.weights, strict=True))

    @cached_property
    def model(self) -> Any:
        """The compiled Keras model with the last weights; this imports TensorFlow.

        Raises:
            ModelError: It is a task of arrays.
        """
        from coordinator.keras.building import trust_modules
        from coordinator.keras.keeper import Keeper

        trust_modules(self.trusted_modules)
        return Keeper().with_weights(self.state)


def run(
    task: str,
    out: Path | str,
    *,
    amqp_url: str = DEFAULT_AMQP_URL,
    insecure: bool = False,
    access: Access | None = None,
    connect_seconds: float = 10.0,
    link: Link | None = None,
    strategy: str | Strategy = "fedavg",
    standby: bool = False,
    trusted_modules: Sequence[str] = (),
    stop: threading.Event | None = None,
    log: LogContext | None = None,
    **options: Any,
) -> RunResult:
    """Train a model with the workers that join, as `coordinator run` does; an interrupted run goes on in its folder.

    TensorFlow stays in a child process. Nothing is printed, and no log is set up: `broker.logs.configure()` sends the
    story to stderr. Ctrl-C ends it with KeyboardInterrupt; the same call goes on.

    Args:
        task: A task's name, MODULE:FUNCTION, or a compiled FILE.keras.
        out: The run's folder.
        amqp_url: The broker's address.
        insecure: Take an amqp:// address beyond this machine, too.
        access: Address, authority and certificate, such as `broker.link.invitation.read_invitation(path)`, in place of
            the address.
        connect_seconds: How long the first connection is tried.
        link: An open link in place of the address; it stays open.
        strategy: By name, or one of `coordinator.strategies`, or an object of one's own.
        standby: Wait while another coordinator works, and take over when it ends.
        trusted_modules: The model may hold the layers, losses and metrics that these register; workers must trust them.
        stop: Ends the call when it is set, from any thread.
        log: Told which run and round the story is about.
        **options: Those of `coordinator run`, with _ for -: `workers=3, rounds=5, learning_rate=0.1`.

    Returns:
        How it ended.

    Raises:
        UsageError: Options that are unknown or contradict each other, or the folder is another run's.
        BrokerError: The broker is unreachable, or refused the login.
        QuorumNotReached: Too few workers joined or answered; the last closed round's model is saved.
        ModelError: No worker could train the model.
        CheckpointError: The folder can't be read or written.
        Interrupted: `stop` was set.
    """
    asked = make_options(task, Path(out), asked_options(strategy, options) | {"standby": standby})
    given = access or Access(amqp_url=checked_amqp_url(amqp_url, insecure=insecure))
    with Interruptible(stop) as ending:
        return play(asked, given, connect_seconds, ending, log or LogContext(), link, trusted_modules)


def play(
    asked: RunOptions,
    access: Access,
    connect_seconds: float,
    stop: threading.Event,
    log: LogContext,
    link: Link | None = None,
    trusted_modules: Sequence[str] = (),
    management_url: str | None = None,
) -> RunResult:
    """Play one run, for a command or a caller: hold the folder, connect, play; all is let go of in the reverse order.

    Raises:
        WarrenError: See `run`.
    """
    make_folder(asked.out)
    audit_log = AuditLog(asked.out / AUDIT_FILE)
    with (
        lock_folder(asked.out, wait=asked.standby, stop=stop),
        opened(link, access, "coordinator", connect_seconds, stop) as at,
        ModelProcess(trusted_modules, is_warm=asked.task.is_surely_keras) as models,
        tracked(asked.out, asked.track),
    ):
        audit_log.note(
            "launched", task=asked.task.name, folder=asked.out.name, user=user(), version=release()
        )
        room = None if link else room_at(access, management_url)
        playing = Run(at, asked, models, stop=stop, log=log, audit_log=audit_log, room=room)
        console = Console(playing.view)
        playing.each_turn(console.draw)
        try:
            summary = playing.play()
        finally:
            console.end()
    return result_of(summary, model_file(asked.out), trusted_modules)


def result_of(summary: Summary, path: Path | None, trusted_modules: Sequence[str]) -> RunResult:
    """What a caller is given of a run that has ended."""
    return RunResult(
        outcome="stopped" if summary.is_stopped else "done",
        rounds=summary.rounds,
        path=path,
        num_dead=summary.num_dead,
        state=summary.state,
        trusted_modules=tuple(trusted_modules),
    )


def asked_options(strategy: str | Strategy, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run, by the names that `RunOptions` has for them.

    Args:
        strategy: A name, or an object; of a dataclass the fields stand in run.json.
        options: Those of the command line, with _ for -.

    Raises:
        UsageError: A run has no such option, or it can't have this value.
    """
    if isinstance(strategy, str):
        return read_values({**options, "strategy": strategy})
    kind = type(strategy)
    settings: dict[str, Any] = asdict(strategy) if is_dataclass(strategy) else {}
    return {
        **read_values(options),
        "strategy": next((name for name in STRATEGIES if STRATEGIES[name] is kind), kind.__qualname__),
        "strategy_options": {name: str(value) for name, value in settings.items()},
        "made_strategy": strategy,
    }


@contextmanager
def opened(
    link: Link | None, access: Access, name: str, connect_seconds: float, stop: threading.Event
) -> Iterator[Link]:
    """A caller's own link, or one to an address, closed at the end.

    Raises:
        BrokerError: The broker is unreachable, or refused the login.
        Interrupted: `stop` was set before it answered.
    """
    if link is not None:
        yield link
        return
    made = RabbitLink(LinkSettings(access=access, name=name, connect_seconds=connect_seconds, stop=stop))
    try:
        made.open()
    except BrokerUnreachable as exc:
        if stop.is_set():
            raise Interrupted("Stopped before the broker answered. The same call goes on.") from exc
        raise
    try:
        with CertificateWatch(access):
            yield made
    finally:
        made.close()
