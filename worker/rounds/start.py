"""From the command line to a worker that takes part: connect, serve, leave."""

import logging
import os
import sys
from dataclasses import dataclass

from broker.command import Stop
from broker.errors import EXIT_DONE, BrokerUnreachable
from broker.link.address import without_password
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.logs import LogContext
from broker.model.trust import NOTHING, Trusted
from worker.console import Console
from worker.rounds.own_trainer import OwnTraining
from worker.rounds.participant import KerasTrainer, Participant
from worker.rounds.worker_loop import WorkerLoop

logger = logging.getLogger(__name__)

_LAST_SECONDS = 10.0  # what leaving may take


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
    is_swarm: bool = False,
    trusted: Trusted = NOTHING,
    reader: str | None = None,
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
        is_swarm: Whether the participants are a swarm's.
        trusted: Registered names of parts of one's own that a model may hold.
        reader: The name by which a swarm's queues are called, if not by that of its workers.

    Raises:
        BrokerUnreachable: Nothing answered in that time.
        NameInUse: Another process reads this name's queue.
        DataError: The coordinator refused this worker.
    """
    with Stop(limit_seconds=_LAST_SECONDS) as stop:
        trainer = (
            OwnTraining(ending=stop.event)
            if participants[0].has_trainer
            else KerasTrainer(deterministic=deterministic, ending=stop.event, trusted=trusted)
        )
        link = RabbitLink(
            LinkSettings(
                amqp_url=link_to.amqp_url,
                name=link_to.name,
                connect_seconds=connect_seconds,
                stop=stop.event,
            )
        )
        if not _is_open(link, stop):
            return
        try:
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
            ).serve()
        finally:
            link.close()
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
