"""Taking part, asked for from Python: the same as the command's, with the result as an object and our errors raised."""

import logging
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from broker.audit import AuditLog, user
from broker.command import DEFAULT_AMQP_URL, Interruptible, checked_amqp_url
from broker.errors import UsageError
from broker.link.access import Access
from broker.link.seam import Link
from broker.logs import LogContext
from broker.wire.messages import RoundStart
from broker.wire.names import check_name
from broker.wire.tensors import Vector
from broker.wire.versions import release
from worker.data.classes import parse_classes
from worker.data.data_set import Dataset, open_data, open_values
from worker.learning.console import Console
from worker.learning.results import Report
from worker.processes.pool import TrainingPool
from worker.rounds.own_site import OwnSite, make_trainer, open_trainer
from worker.rounds.own_trainer import OwnTraining
from worker.rounds.participant import KerasTrainer, Participant, Trained, Trainer
from worker.rounds.private_parts import PrivateParts
from worker.rounds.site_rules import Share, SiteRules
from worker.rounds.start import EndingTrainer, LinkTo, connected
from worker.rounds.worker_loop import WorkerLoop
from worker.site.check import facts_of, line, lines_of
from worker.site.global_models import GlobalModels
from worker.site.memory import require_measurable
from worker.site.resting import PauseSwitch, Resting, default_folder, parse_hours
from worker.tables.table_set import TableSet
from worker.tensorflow import trusted_by

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """What a worker did.

    Attributes:
        name: Its own.
        history: One dict for each round that it answered: `pandas.DataFrame(result.history)`. `global_NAME` is what
            the global weights reached on its test examples, NAME what its training did.
        has_left_behind: Whether a model that took too long is still being worked out in this process.
    """

    name: str
    history: list[dict[str, Any]]
    has_left_behind: bool = False


def run(
    name: str,
    data: Any = None,
    *,
    trainer: Any = None,
    amqp_url: str = DEFAULT_AMQP_URL,
    insecure: bool = False,
    access: Access | None = None,
    connect_seconds: float | None = 10.0,
    link: Link | None = None,
    task: str | None = None,
    once: bool = False,
    classes: str | None = None,
    evaluate_only: bool = False,
    share: Share = "metrics",
    least_examples: int = 1,
    least_steps: int = 1,
    allow_tasks: tuple[str, ...] = (),
    least_participants: int = 1,
    hours: str | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    keep_models: Path | str | None = None,
    keep_last: int = 20,
    seed: int = 0,
    deterministic: bool = False,
    trusted_modules: tuple[str, ...] = (),
    state: Path | str | None = None,
    audit: Path | str | None = None,
    stop: threading.Event | None = None,
    log: LogContext | None = None,
) -> WorkResult:
    """Take part in federated training, as `worker run` does, until `stop` is set or with `once` until a run is over.

    No log is set up: `broker.logs.configure()` sends the story to stderr. Ctrl-C lets the worker leave, and ends the
    call with KeyboardInterrupt.

    Args:
        name: This worker's: a-z, 0-9 and '-'.
        data: (x, y), or ((x_train, y_train), (x_test, y_test)), and after them the classes if you like; or a PATH as
            `worker run --data` takes it. With a trainer: whatever that makes of it.
        trainer: A trainer of one's own: an object as `worker.trainer.OwnTrainer` says; a class or function that makes
            one as `trainer(data=..., worker=...)`; or MODULE:CLASS. None trains Keras models.
        amqp_url: The broker's address.
        insecure: Take an amqp:// address beyond this machine, too.
        access: Address, authority and certificate, such as `broker.link.invitation.read_invitation(path)`, in place of
            the address.
        connect_seconds: How long the first connection is tried; None: until told to stop.
        link: An open link in place of the address; it stays open.
        task: The only one to take part in; None takes part in any.
        once: Leave after one run.
        classes: All classes in the model's order, as "A,B,C"; these data may lack some.
        evaluate_only: Measure each model on these data, and train nothing.
        share: What leaves besides the update: weights, metrics, counts or statistics; deploy/what-leaves.md lists it.
        least_examples: Decline a round that would train on fewer.
        least_steps: Decline a round that would take fewer steps.
        allow_tasks: Decline rounds of tasks whose name fits none of these patterns, as in "chest-*"; none: take any.
        least_participants: Decline a round whose model may rest on fewer workers' updates, as the coordinator tells it.
        hours: Take rounds that begin in these hours alone, as "20-6", of this machine's own time.
        threads: Train with so many, in a process of its own.
        max_memory: Bytes. Train in a process of its own; a round with which both take more is declined.
        keep_models: A folder for each global model that comes.
        keep_last: How many are kept there, the newest.
        seed: Of what is held out for tests.
        deterministic: Same seed, same bits; slower.
        trusted_modules: Models may hold the layers, losses and metrics that these installed modules register.
        state: Where weights are kept that stay at this site, and whether `worker pause` paused this worker; None takes
            this user's own folder.
        audit: A file that a line is appended to for each round that is taken and each update that leaves; None: none.
        stop: Ends the call when it is set, from any thread.
        log: Told which run and round the story is about.

    Returns:
        What it did.

    Raises:
        UsageError: The name is none, or in use; neither data nor a trainer; hours that are none; the audit
            log can't be written.
        DataError: The data can't be used, or the coordinator refused this worker.
        BrokerError: The broker is unreachable, or refused the login.
    """
    rules = SiteRules(
        share=share,
        least_examples=least_examples,
        least_steps=least_steps,
        allow_tasks=tuple(allow_tasks),
        least_participants=least_participants,
    )
    folder = Path(state) if state else default_folder()
    resting = Resting(PauseSwitch(folder, check_name(name)), parse_hours(hours) if hours else None)
    audit_log = AuditLog(Path(audit) if audit else None)
    audit_log.check()
    site = site_of(name, data, trainer, classes, seed=seed, for_training=not evaluate_only)
    for each in lines_of(facts_of(site, _called(trainer or data))):
        logger.info("%s", each)
    logger.info("%s", line("  leaves", f"what --share {share} says; deploy/what-leaves.md lists every field"))
    participant = Participant(
        name=check_name(name),
        data=site,
        evaluate_only=evaluate_only,
        rules=rules,
        trusts=tuple(sorted(trusted_by(trusted_modules))),
    )
    with (
        Interruptible(stop) as ending,
        closing(
            _trainer_of(
                participant,
                ending,
                threads,
                max_memory,
                deterministic=deterministic,
                trusted_modules=trusted_modules,
                private=PrivateParts(folder),
                keeps=GlobalModels(Path(keep_models), keep_last) if keep_models else None,
            )
        ) as training,
    ):
        noting, story = _Noting(training), log or LogContext()
        given = access or Access(amqp_url=checked_amqp_url(amqp_url, insecure=insecure))
        broker = None if link else given.address
        audit_log.note("started", worker=name, user=user(), version=release(), broker=broker, share=share)
        link_to = LinkTo(given, f"worker {name}")
        with nullcontext(link) if link else connected(link_to, connect_seconds, ending) as at:
            if at is not None:
                WorkerLoop(
                    at,
                    [participant],
                    noting,
                    stop=ending,
                    log=story,
                    console=Console(),
                    task=task,
                    once=once,
                    resting=resting,
                    audit_log=audit_log,
                ).serve()
    return WorkResult(name=name, history=noting.history, has_left_behind=training.has_left_behind)


def _trainer_of(
    participant: Participant,
    ending: threading.Event,
    threads: int | None,
    max_memory: int | None,
    *,
    keeps: GlobalModels | None,
    **of_keras: Any,
) -> EndingTrainer:
    """What trains: in this process, or in one of its own that can be told how many threads it has, and be ended."""
    make: Callable[..., KerasTrainer | OwnTraining]
    make = OwnTraining if participant.has_trainer else partial(KerasTrainer, **of_keras)
    make = partial(make, keeps=keeps)
    if max_memory is not None:
        require_measurable()
    if threads is None and max_memory is None:
        return make(ending=ending)
    return TrainingPool([participant], 1, make, threads=threads, max_memory=max_memory)


def site_of(
    name: str, data: Any, trainer: Any, classes: str | None, *, seed: int, for_training: bool
) -> Dataset | TableSet | OwnSite:
    """What takes part: data, or a trainer that has them; see `run`.

    Raises:
        UsageError: Neither is given, or classes with a trainer, which reads its own.
        DataError: They can't be used.
    """
    if trainer is None:
        return open_any(data, classes=classes, seed=seed, for_training=for_training, worker=name)
    if classes is not None:
        raise UsageError("--classes are of data that Warren reads; with --trainer the trainer reads its own.")
    return site_with(trainer, data, name)


def _called(given: Any) -> str:
    """Data or a trainer in the log; values have no name."""
    return str(given) if isinstance(given, str | Path) else type(given).__name__


def open_any(
    data: Any, *, classes: str | None = None, seed: int = 0, for_training: bool = True, worker: str = ""
) -> Dataset | TableSet:
    """Data as a caller gives them: a PATH as `--data` takes it, or values.

    Raises:
        UsageError: There are none.
        DataError: They can't be used.
    """
    if data is None:
        raise UsageError("Expected --data, or --trainer MODULE:CLASS.")
    declared = parse_classes(classes)
    if isinstance(data, str | Path):
        return open_data(str(data), for_training=for_training, seed=seed, classes=declared, worker=worker)
    return open_values(data, for_training=for_training, seed=seed, classes=declared)


def site_with(trainer: Any, data: Any, name: str) -> OwnSite:
    """A site with a trainer of its own; see `run`.

    Raises:
        UsageError: There is no such module or class.
        DataError: The class raised, or it makes no trainer.
    """
    if isinstance(trainer, str):
        return open_trainer(trainer, data=data, worker=name)
    if hasattr(trainer, "fit") and not isinstance(trainer, type):
        return OwnSite.of(trainer, type(trainer).__qualname__)
    return make_trainer(trainer, getattr(trainer, "__qualname__", "trainer"), data=data, worker=name)


class _Noting:
    """A trainer that notes what it answered."""

    def __init__(self, trainer: Trainer) -> None:
        self.history: list[dict[str, Any]] = []
        self._trainer = trainer

    def warm_up(self) -> None:
        """As the trainer does."""
        self._trainer.warm_up()

    def answer(
        self,
        participant: Participant,
        start: RoundStart,
        weights: Vector,
        stop: threading.Event,
        report: Report,
    ) -> Trained | None:
        """As the trainer does."""
        trained = self._trainer.answer(participant, start, weights, stop, report)
        if trained is not None:
            self.history.append(_noted(start, trained))
        return trained


def _noted(start: RoundStart, trained: Trained) -> dict[str, Any]:
    measured = trained.measured
    return {
        "run": start.run_id,
        "task": start.task,
        "round": start.round_number,
        "has_trained": trained.vector is not None,
        "num_examples": measured.num_examples,
        "num_test_examples": measured.num_test_examples,
        "seconds": measured.seconds,
        **measured.metrics,
        **{f"global_{name}": value for name, value in measured.global_metrics.items()},
    }
