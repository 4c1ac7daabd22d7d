"""From a command, or a call from Python, to a worker that takes part: connect, serve, leave."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from broker.audit import AUDIT_FILE, AuditLog, user
from broker.command import Stop
from broker.errors import EXIT_DONE, BrokerUnreachable, UsageError
from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Link
from broker.link.validity import CertificateWatch
from broker.logs import LogContext
from broker.wire.versions import release
from worker.learning.console import Console
from worker.rounds.own_trainer import OwnTraining
from worker.rounds.participant import KerasTrainer, Participant, Trainer
from worker.rounds.private_parts import PrivateParts
from worker.rounds.worker_loop import WorkerLoop
from worker.site.resting import Resting, default_folder

logger = logging.getLogger(__name__)

LAST_SECONDS = 10.0  #: what leaving may take


class EndingTrainer(Trainer, Protocol):
    """A trainer that ends: `KerasTrainer`, `OwnTraining`, or several processes (`worker.processes.pool`)."""

    @property
    def num_at_once(self) -> int:
        """How many may be trained at the same time."""

    @property
    def has_left_behind(self) -> bool:
        """Whether something is still trained that nobody waits for."""

    def close(self) -> None:
        """End what belongs to it."""


@dataclass(frozen=True, slots=True)
class LinkTo:
    """Where the broker is, and what this process is called there."""

    access: Access
    name: str


def take_part(
    participants: list[Participant],
    link_to: LinkTo,
    log: LogContext,
    *,
    task: str | None,
    once: bool,
    deterministic: bool,
    connect_seconds: float | None,
    state: Path | None = None,
    is_swarm: bool = False,
    trusted_modules: tuple[str, ...] = (),
    reader: str | None = None,
    make_pool: Callable[[], EndingTrainer] | None = None,
    resting: Resting | None = None,
    audit: Path | None = None,
) -> None:
    """Connect and serve until a signal says to stop.

    Args:
        participants: One, or a swarm's.
        link_to: The broker.
        log: Told which run and round the story is about.
        task: The only one to take part in; None takes part in any.
        once: Leave after one run.
        deterministic: Same seed, same bits.
        connect_seconds: How long the first connection is tried; None: until told to stop.
        state: Where weights are kept that stay at this site; None takes this user's own folder.
        is_swarm: Whether the participants are a swarm's.
        trusted_modules: A model may hold what these register.
        reader: The name by which a swarm's queues are called, if not by that of its workers.
        make_pool: Makes a trainer of several processes, in the place of one in this process.
        resting: When no rounds are taken.
        audit: The audit log's file; None: none is kept.

    Raises:
        UsageError: The audit log can't be written.
        BrokerUnreachable: Nothing answered in that time.
        NameInUse: Another process reads this name's queue.
        DataError: The coordinator refused this worker.
    """
    audit_log = AuditLog(audit)
    audit_log.check()
    with Stop(limit_seconds=LAST_SECONDS) as stop:
        make = make_pool or partial(
            trainer_of,
            participants,
            deterministic=deterministic,
            ending=stop.event,
            trusted_modules=trusted_modules,
            private=PrivateParts(state or default_folder(), saves_model=not is_swarm),
        )
        with closing(make()) as trainer, connected(link_to, connect_seconds, stop.event) as link:
            if link is not None:
                _note_start(audit_log, reader or participants[0].name, len(participants), link_to)
                WorkerLoop(
                    link,
                    participants,
                    trainer,
                    stop=stop.event,
                    log=log,
                    console=Console(),
                    task=task,
                    once=once,
                    is_swarm=is_swarm,
                    reader=reader,
                    at_once=trainer.num_at_once,
                    resting=resting,
                    audit_log=audit_log,
                ).serve()
    end_process_if_left(stop, has_left_behind=trainer.has_left_behind)


def _note_start(audit_log: AuditLog, worker: str, number: int, link_to: LinkTo) -> None:
    where = {"version": release(), "broker": link_to.access.address}
    audit_log.note("started", worker=worker, number=number, user=user(), **where)


def trainer_of(
    participants: list[Participant],
    *,
    deterministic: bool,
    ending: threading.Event,
    trusted_modules: tuple[str, ...] = (),
    private: PrivateParts | None = None,
) -> EndingTrainer:
    """What trains these participants: Keras, or trainers of their own."""
    if participants[0].has_trainer:
        return OwnTraining(ending=ending)
    return KerasTrainer(
        deterministic=deterministic, ending=ending, trusted_modules=trusted_modules, private=private
    )


@contextmanager
def connected(link_to: LinkTo, connect_seconds: float | None, stop: threading.Event) -> Iterator[Link | None]:
    """A link that is closed at the end; None when told to stop before the broker answered.

    Raises:
        BrokerUnreachable: Nothing answered in that time.
        LoginRefused: The broker refused the login.
    """
    link = RabbitLink(
        LinkSettings(access=link_to.access, name=link_to.name, connect_seconds=connect_seconds, stop=stop)
    )
    if not _is_open(link, stop):
        yield None
        return
    try:
        logger.info("Connected to %s; registering %s.", link_to.access.address, link_to.name)
        with CertificateWatch(link_to.access):
            yield link
    finally:
        link.close()


def audit_file(asked: str | None, state: Path | None, name: str) -> Path | None:
    """Where a worker's audit log is.

    Args:
        asked: As --audit says: a file, or "none"; one that can't be written ends nothing unless it was asked for.
        state: As --state says.
        name: The worker's.
    """
    if asked is not None:
        return None if asked == "none" else Path(asked)
    file = (state or default_folder()) / name / AUDIT_FILE
    try:
        AuditLog(file).check()
    except UsageError as exc:
        logger.warning("%s No audit log is kept; --audit FILE chooses another place.", exc)
        return None
    logger.info("What leaves is noted in %s.", file)
    return file


def _is_open(link: RabbitLink, stop: threading.Event) -> bool:
    """Connect; False when told to stop before the broker answered."""
    try:
        link.open()
    except BrokerUnreachable:
        if stop.is_set():
            return False
        raise
    return True


def end_process_if_left(stop: Stop, *, has_left_behind: bool) -> None:
    """End a command that was told to stop, or whose model goes on unheeded, without tearing TensorFlow down.

    That takes seconds; all is said, sent and closed by now.
    """
    if stop.signal_number is None and not has_left_behind:
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_DONE)
