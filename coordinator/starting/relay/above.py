"""The side above of a relay: a worker whose training is a round below. The one place here that knows of workers."""

import logging
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from broker.audit import AUDIT_FILE, AuditLog
from broker.errors import Interrupted, UsageError
from broker.link.access import Access
from broker.link.address import host_and_port, vhost_of
from broker.link.seam import Link
from broker.logs import LogContext
from broker.wire.messages import Joined, RoundStart
from broker.wire.tensors import FLOAT32, Vector
from coordinator.files import lock_folder, make_folder
from coordinator.folder.run_folder import RunFolder
from coordinator.learning.spares import Spares
from coordinator.learning.strategies import FedAvg
from coordinator.play.open_round.tools import Tools
from coordinator.play.open_round.unacknowledged import Unacknowledged
from coordinator.presence.broker_room import BrokerRoom, room_at
from coordinator.presence.session import Session
from coordinator.starting.api import opened
from coordinator.starting.relay.part import PartialSum, RelayOptions
from coordinator.starting.relay.region import Region
from worker.learning.console import Console
from worker.learning.results import Report
from worker.rounds.own_site import OwnSite
from worker.rounds.participant import Participant, Trained
from worker.rounds.uploading import Measured
from worker.rounds.worker_loop import WorkerLoop
from worker.site.resting import Resting

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_END_SECONDS = 10.0
_NO_TRAINER: Any = None  #: it trains nothing itself


@dataclass(frozen=True, slots=True, kw_only=True)
class _Behind(Participant):
    """All behind a relay, as one worker."""

    region: Region

    def word(self) -> Joined:
        """What is said of them."""
        assert self.region.word is not None  # noqa: S101 - nothing is said before they have gathered
        return self.region.word

    @property
    def statistics_refusal(self) -> str | None:
        """Theirs are not asked for by way of a relay."""
        return "This is a relay: ask the coordinator of its workers' own broker for statistics."


class _Standing(Resting):
    """A relay takes no rounds while too few of its workers are there."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        self._region = region

    @property
    def reason(self) -> str:
        """Why it takes no round now."""
        return self._region.reason


class _Passing:
    """In the place of a training: the round is passed on, and what comes back is summed."""

    def __init__(self, region: Region, stop: threading.Event) -> None:
        self._region = region
        self._stop = stop

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
        """Have the round played below.

        Raises:
            QuorumNotReached: Too few of the workers answered.
        """
        del participant, report
        future = self._region.begin(start, weights)
        while not _is_done(future):
            if self._stop.is_set():
                return None  # it goes on after a restart
            if stop.is_set():
                self._region.give_up(start)
                return None
        return _trained(future.result())


def _is_done(future: "Future[PartialSum]") -> bool:
    return bool(wait([future], _LOOK_SECONDS).done)


def _trained(part: PartialSum) -> Trained:
    integers = part.integers
    measured = Measured(
        num_examples=part.num_examples,
        metrics=part.training.metrics,
        states=dict(part.training.states),
        global_metrics=part.test.metrics,
        global_states=dict(part.test.states),
        counts=part.test.counts,
        num_test_examples=part.test.num_examples,
        seconds=part.seconds,
        summed=part.summed,
    )
    # The bytes of each integer travel in the place of two values.
    return Trained(
        vector=None if integers is None else integers.astype("<i8").view(FLOAT32), measured=measured
    )


def relay(
    below: Link,
    above: Link,
    options: RelayOptions,
    stop: threading.Event,
    log: LogContext,
    *,
    once: bool = False,
    room: BrokerRoom | None = None,
) -> None:
    """Pass rounds on from one broker to another until told to stop.

    Args:
        below: The link to the relay's own broker, where it is the coordinator.
        above: The link to the broker of the coordinator above.
        options: Of the relay; its folder is there, and nobody else's.
        stop: The wish to end; set when it has ended.
        log: Told which run and round the story is about.
        once: Leave after one run.
        room: What its own broker has room for, where workers were invited.

    Raises:
        NameInUse: Another process is the coordinator below, or goes by this name above.
        DataError: The coordinator above refused this relay.
        CheckpointError: Its folder can't be written.
    """
    audit_log = AuditLog(options.out / AUDIT_FILE)
    tools = Tools(
        session=Session(below, stop=stop, is_lasting=True, audit_log=audit_log),
        folder=RunFolder(options.out, audit_log),
        unacknowledged=Unacknowledged(below),
        strategy=FedAvg(),
        spares=Spares(),
        room=room,
    )
    region = Region(tools, options)
    region.start()
    try:
        while not (region.has_gathered.wait(_LOOK_SECONDS) or stop.is_set()):
            pass
        if not stop.is_set():
            _serve(above, region, options, stop, log, audit_log, once=once)
    finally:
        stop.set()
        region.join(_END_SECONDS)
    if region.failure is not None:
        raise region.failure


def _serve(
    above: Link,
    region: Region,
    options: RelayOptions,
    stop: threading.Event,
    log: LogContext,
    audit_log: AuditLog,
    *,
    once: bool,
) -> None:
    nothing = OwnSite(trainer=_NO_TRAINER, called="a relay", num_train_examples=0)
    loop = WorkerLoop(
        above,
        [_Behind(name=options.name, data=nothing, region=region)],
        _Passing(region, stop),
        stop=stop,
        log=log,
        console=Console(),
        once=once,
        resting=_Standing(region),
        audit_log=audit_log,
        on_finished=region.finish,
    )
    region.on_news = loop.say_joined
    loop.serve()


def _places(access: Access) -> set[tuple[str, int, str]]:
    return {(*host_and_port(url), vhost_of(url)) for url in access.amqp_urls}


def play_relay(
    options: RelayOptions,
    below: Access,
    above: Access,
    connect_seconds: float,
    stop: threading.Event,
    log: LogContext,
    *,
    once: bool = False,
    management_url: str | None = None,
) -> None:
    """The same for a command: hold the folder, connect to both brokers, and let go of all in the reverse order.

    Raises:
        WarrenError: See `relay`, or a broker is unreachable, or it is the same on both sides.
    """
    if same := _places(below) & _places(above):
        host, port, vhost = min(same)
        raise UsageError(
            f"Both sides are the broker at {host}:{port} with the virtual host {vhost!r}: this relay would be a worker "
            "of itself. Expected its own broker as --invitation or AMQP_URL, and the one above as --above."
        )
    make_folder(options.out)
    try:
        with (
            lock_folder(options.out, wait=False, stop=stop),
            opened(None, below, "coordinator", connect_seconds, stop) as link_below,
            opened(None, above, f"worker {options.name}", connect_seconds, stop) as link_above,
        ):
            room = room_at(below, management_url)
            relay(link_below, link_above, options, stop, log, once=once, room=room)
    except Interrupted:
        logger.info("Stopped. The same command line goes on.")
