"""From the command line to a worker that takes part: connect, serve, leave."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from broker.command import Stop
from broker.errors import EXIT_DONE, BrokerUnreachable
from broker.link.address import without_password
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.logs import LogContext
from worker.console import Console
from worker.rounds.own_trainer import OwnTraining
from worker.rounds.participant import KerasTrainer, Participant, Trainer
from worker.rounds.private_parts import PrivateParts, default_folder
from worker.rounds.worker_loop import WorkerLoop

logger = logging.getLogger(__name__)

_LAST_SECONDS = 10.0  # what leaving may take


class PooledTrainer(Trainer, Protocol):
    """A trainer of several processes; see `worker.processes.pool`."""

    num_at_once: int
    has_left_behind: bool

    def close(self) -> None:
        """End them."""


@dataclass(frozen=True, slots=True)
class LinkTo:
    """Where the broker is, and what this process is called there."""

    amqp_url: str
    name: str


def take_part(
    participants: list[Participant],
    link_to: LinkTo,
    log: LogContext,
    *,
    task: str | None,
    once: bool,
    deterministic: bool,
    connect_seconds: float,
    state: Path | None = None,
    is_swarm: bool = False,
    trusted_modules: tuple[str, ...] = (),
    reader: str | None = None,
    make_pool: Callable[[], PooledTrainer] | None = None,
) -> None:
    """Connect and serve until told to stop.

    Args:
        participants: One, or a swarm's.
        link_to: The broker.
        log: Told which run and round the story is about.
        task: The only one to take part in; None takes part in any.
        once: Leave after one run.
        deterministic: Same seed, same bits.
        connect_seconds: How long the first connection is tried.
        state: Where weights are kept that stay at this site; None takes this user's own folder.
        is_swarm: Whether the participants are a swarm's.
        trusted_modules: A model may hold what these register.
        reader: The name by which a swarm's queues are called, if not by that of its workers.
        make_pool: Makes a trainer of several processes, in the place of one in this process.

    Raises:
        BrokerUnreachable: Nothing answered in that time.
        NameInUse: Another process reads this name's queue.
        DataError: The coordinator refused this worker.
    """
    with Stop(limit_seconds=_LAST_SECONDS) as stop:
        pool = make_pool() if make_pool is not None else None
        trainer = pool or (
            OwnTraining(ending=stop.event)
            if participants[0].has_trainer
            else KerasTrainer(
                deterministic=deterministic,
                ending=stop.event,
                trusted_modules=trusted_modules,
                private=PrivateParts(state or default_folder(), saves_model=not is_swarm),
            )
        )
        link = RabbitLink(
            LinkSettings(
                amqp_url=link_to.amqp_url,
                name=link_to.name,
                connect_seconds=connect_seconds,
                stop=stop.event,
            )
        )
        try:
            if not _is_open(link, stop):
                return
            logger.info("Connected to %s; registering %s.", without_password(link_to.amqp_url), link_to.name)
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
                at_once=pool.num_at_once if pool else 1,
            ).serve()
        finally:
            link.close()
            if pool is not None:
                pool.close()
    if stop.signal_number is not None or trainer.has_left_behind:
        _end_process()


def _is_open(link: RabbitLink, stop: Stop) -> bool:
    """Connect; False when told to stop before the broker answered."""
    try:
        link.open()
    except BrokerUnreachable:
        if stop.event.is_set():
            return False
        raise
    return True


def _end_process() -> None:
    """Leave without the seconds that TensorFlow takes to be torn down: all is said, sent and closed by now."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_DONE)
