"""The coordinator's place at the broker: its queue, its claim, who is there; one for a run, or for many in a row."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from broker import audit
from broker.allowance import Allowance
from broker.errors import BrokerError, Interrupted, LinkLost, ProtocolError
from broker.link.publisher import Publisher
from broker.link.seam import Connection, Delivery, Link, coordinator_queue, dead_queue, outgoing
from broker.link.single_reader import WAIT_SECONDS, SingleReader
from broker.link.validator import Validator, may_send_to_coordinator
from broker.wire import names
from broker.wire.messages import (
    Declined,
    Joined,
    Launch,
    LaunchAnswered,
    Left,
    Message,
    Ping,
    Progress,
    RollCall,
    StatusAsked,
    StatusTold,
    SwarmDeclined,
    SwarmJoined,
    SwarmLeft,
    UpdateAnnounced,
)
from broker.wire.statistics import StatisticsRefused, StatisticsTold
from broker.wire.swarms import each_joined
from coordinator.learning.membership import Member, Roster
from coordinator.presence.clock import ConnectedClock
from coordinator.presence.strangers import Strangers

logger = logging.getLogger(__name__)

PREFETCH = 256
_PROBE_SECONDS = 2.0
_ROLL_CALL_SECONDS = 30.0
_ROLL_CALL_SECONDS_EACH = 0.01
_MOST_WORDS = 20  #: of one worker that it comes or goes; the roll call asks again whoever was not heard
_WORDS_SECONDS = 30.0
_MOST_LOOKED_AFTER = 50  #: asking for one queue's readers takes a third of a millisecond


@dataclass(frozen=True, slots=True)
class UpdateCame:
    """An update was announced; whoever plays acknowledges it."""

    delivery: Delivery
    update: UpdateAnnounced


@dataclass(frozen=True, slots=True)
class DeclineCame:
    """A worker can't answer; whoever plays acknowledges it."""

    delivery: Delivery
    declined: Declined | SwarmDeclined


@dataclass(frozen=True, slots=True)
class WorkersCame:
    """Workers of one process said that they are there; news is of whom that wasn't known."""

    members: list[Member]
    news: frozenset[str]


Event = UpdateCame | DeclineCame | WorkersCame


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The last that was heard of a worker.

    Attributes:
        at: Seconds since 1970.
    """

    at: float
    progress: Progress | None = None


def refuse_launch(_launch: Launch) -> LaunchAnswered:
    """What a coordinator says that plays one run only."""
    return LaunchAnswered(
        run="",
        reason="This coordinator trains one run (`coordinator run`). Wait for its end, and start `coordinator serve`.",
    )


def ignore_statistics(_delivery: Delivery, _told: StatisticsTold | StatisticsRefused) -> None:
    """What a coordinator does with the answer to a question of before its start."""


def tell_nothing() -> str:
    """What a coordinator says that has nothing to tell."""
    return "{}"


class Session:
    """The link with all that lasts longer than a run.

    Args:
        is_lasting: It stays between runs: a worker that does not fit a run may fit the next, and isn't sent away.
        standby: Wait for ever behind another coordinator.
        audit_log: Told who comes and goes, what is refused, and by whoever plays here of each round.

    Attributes:
        roster: Everyone who joined since this process started.
        sightings: When and with what each was heard last.
        on_launch: Takes or refuses a launch.
        on_statistics: Takes what a worker tells of its examples.
        tell: What goes on, as JSON.
        errand: Done at every turn, e.g. what another thread asks for.
        is_idle: Nothing had come in when it was looked last.
        number: When this process became the one coordinator, in milliseconds since 1970; 0 before.
    """

    def __init__(
        self,
        link: Link,
        *,
        stop: threading.Event,
        is_lasting: bool = False,
        standby: bool = False,
        audit_log: audit.AuditLog = audit.OFF,
    ) -> None:
        self.link = link
        self.audit = audit_log
        self.stop = stop
        self.is_lasting = is_lasting
        self.publisher = Publisher(link, stop)
        strangers = Strangers(self.publisher, audit_log)
        self.validator = Validator(link, may_send_to_coordinator, strangers.heed, audit_log=audit_log)
        self.single_reader = SingleReader(
            link, names.COORDINATOR, wait_seconds=None if standby else WAIT_SECONDS
        )
        self.clock = ConnectedClock(link.seconds_still)
        self.roster = Roster()
        self.sightings: dict[str, Sighting] = {}
        self.roll_called_at = float("-inf")
        self.on_launch: Callable[[Launch], LaunchAnswered] = refuse_launch
        self.on_statistics: Callable[[Delivery, StatisticsTold | StatisticsRefused], None] = ignore_statistics
        self.tell: Callable[[], str] = tell_nothing
        self.errand: Callable[[], None] = lambda: None
        self.is_idle = True
        self.number = 0
        self._has_begun = False
        self._words = Allowance(_MOST_WORDS, _WORDS_SECONDS)
        self._looked_after = 0
        self._unseen: set[str] = set()  # known by a word that may have waited in the queue
        self._probe: Future[None] | None = None
        self._probed_at = float("-inf")

    def begin(self) -> None:
        """Claim the place of the one coordinator of this virtual host; a second call does nothing."""
        if self._has_begun:
            return
        self._has_begun = True
        self.link.declare([coordinator_queue(), dead_queue()])
        self.link.consume([names.COORDINATOR], prefetch=PREFETCH)
        self.single_reader.begin(time.monotonic())

    @property
    def is_ready(self) -> bool:
        """Whether this process is the one coordinator, and has asked who is there."""
        return self.single_reader.is_confirmed and self.roll_called_at > float("-inf")

    def next_event(self, patience_seconds: float) -> Event | None:
        """What happened next; None when nothing did for so long, or nothing that concerns a run.

        Raises:
            Interrupted: `stop` was set.
            NameInUse: Another coordinator works on this virtual host.
        """
        if self.stop.is_set():
            raise Interrupted("Stopped. The same command line goes on where this run is.")
        self.errand()
        received = self.link.receive(patience_seconds)
        self.is_idle = received is None
        event = None
        if isinstance(received, Delivery):
            event = self._on_delivery(received)
        elif received is not None:
            self._on_connection(received)
        self.single_reader.check(time.monotonic(), is_idle=received is None)
        if self.single_reader.is_confirmed and not self.is_ready:
            self.number = int(time.time() * 1000)
            self.call_roll()
        self._keep_time()
        return event

    def _keep_time(self) -> None:
        """Deadlines stand still without the claim; whether the broker takes messages is known by trying alone."""
        if not self.single_reader.is_confirmed:
            self.clock.lost()
            return
        self.clock.restored()
        now = time.monotonic()
        if now - self._probed_at >= _PROBE_SECONDS and (self._probe is None or self._probe.done()):
            self._probed_at = now
            self._probe = self.link.post(self.single_reader.ping())

    def call_roll(self) -> None:
        """Ask all workers to say that they are there."""
        self.roll_called_at = time.monotonic()
        self.link.post(outgoing(self.roll_call(), names.EVERY_WORKER, is_transient=True))

    def roll_call(self) -> RollCall:
        """The question who is there, of this session."""
        return RollCall(session=self.number)

    def call_roll_if_due(self) -> None:
        """Ask again after half a minute (of thousands, who all answer, later): a queue may have been emptied."""
        seconds = _ROLL_CALL_SECONDS + len(self.roster.members) * _ROLL_CALL_SECONDS_EACH
        if time.monotonic() - self.roll_called_at >= seconds:
            self.call_roll()

    @contextmanager
    def until_link_is_back(self) -> Iterator[None]:
        """A link lost in the middle changes nothing: the delivery comes again after the reconnect.

        Nor is a worker's queue that can't be used the coordinator's end: somebody else reads it exclusively, or made
        it with other arguments.
        """
        try:
            yield
        except LinkLost as exc:
            logger.debug("Given back to the broker: %s", exc)
        except BrokerError as exc:
            logger.warning("%s", exc)

    # --- who is there --------------------------------------------------------------------------------------

    def look_for_absent(self, workers: Iterable[str]) -> list[str]:
        """Those of these workers whose queue nobody reads; told once each.

        A broker that takes no messages does not know its queues' readers either.
        """
        workers = list(workers)
        if not (workers and self.link.takes_messages):
            return []
        self._unseen.difference_update(workers)
        absent: list[str] = []
        readers = self.roster.by_reader(workers)
        with self.until_link_is_back():
            unread = set(self.link.unread([*map(names.worker_queue, readers)]))
            for reader in readers:
                if names.worker_queue(reader) in unread:
                    absent += readers[reader]
                    self._note_gone(reader, readers[reader], logging.WARNING, "went away without a word")
        return absent

    def _note_gone(self, reader: str, workers: Iterable[str], level: int, how: str) -> None:
        """Note that a process is away; told if it was thought to be there."""
        gone = [worker for worker in workers if self.roster.is_present(worker)]
        for worker in gone:
            self.roster.set_present(worker, is_present=False)
        if gone:
            self.audit.note("gone", worker=reader, number=len(gone), how=how)
        if gone == [reader]:
            logger.log(level, "%s %s.", reader, how)
        elif gone:
            logger.log(level, "%s %s, with %d workers.", reader, how, len(gone))

    def look_for_unseen(self) -> None:
        """Find out who has gone of those who are known by a word alone: that may have waited for an hour."""
        self.look_for_absent(sorted(self._unseen))

    def look_after_present(self) -> None:
        """Ask for some of those who count as present, the others in turn, so that a page shows who went away."""
        members = self.roster.members.values()
        present = self.roster.by_reader(member.worker for member in members if member.is_present)
        readers = [*present]
        if self._looked_after >= len(readers):
            self._looked_after = 0
        some = readers[self._looked_after : self._looked_after + _MOST_LOOKED_AFTER]
        self._looked_after += len(some)
        self.look_for_absent(worker for reader in some for worker in present[reader])

    def _see(self, message: Message) -> None:
        """Note when a worker that has joined was heard last; of others nothing is kept."""
        worker = getattr(message, "worker", None)
        if isinstance(worker, str):
            self._note_seen(worker, message if isinstance(message, Progress) else None)

    def _note_seen(self, worker: str, progress: Progress | None = None) -> None:
        if worker in self.roster.members:
            former = self.sightings.get(worker)
            progress = progress or (former.progress if former else None)
            self.sightings[worker] = Sighting(at=time.time(), progress=progress)

    # --- what comes in -------------------------------------------------------------------------------------

    def _on_connection(self, event: Connection) -> None:
        if event is Connection.LOST:
            self.single_reader.pause()
        else:
            self.single_reader.begin(time.monotonic())
            self._unseen.update(self.roster.members)
            self.call_roll()

    def _on_delivery(self, delivery: Delivery) -> Event | None:
        message = self.validator.open(delivery)
        if message is None:
            return None
        event = self._act_on(delivery, message)
        self._see(message)
        return event

    def _act_on(self, delivery: Delivery, message: Message) -> Event | None:
        if isinstance(message, UpdateAnnounced):
            return UpdateCame(delivery, message)
        if isinstance(message, Declined | SwarmDeclined):
            return DeclineCame(delivery, message)
        event = self._on_word(delivery, message)
        self.link.ack([delivery])
        return event

    def _on_word(self, delivery: Delivery, message: Message) -> Event | None:
        if isinstance(message, Joined):
            took = self._words.take(message.worker)
            return self._on_joined([message], message.worker, delivery) if took else None
        if isinstance(message, SwarmJoined):
            return self._on_swarm(delivery, message) if self._words.take(message.worker) else None
        if isinstance(message, Left | SwarmLeft):
            if self._words.take(message.worker):
                self._on_left(message)
        elif isinstance(message, Ping):
            self.single_reader.hear(message)
        elif isinstance(message, Launch):
            self._on_launch(delivery, message)
        elif isinstance(message, StatisticsTold | StatisticsRefused):
            self.on_statistics(delivery, message)
        elif isinstance(message, StatusAsked):
            self._reply(message.reply_to, StatusTold(state=self.tell()))
        elif not isinstance(message, Progress):
            self.validator.bury(delivery, f"A coordinator takes no {message.TYPE}.")
        return None

    def _on_swarm(self, delivery: Delivery, word: SwarmJoined) -> Event | None:
        """Many join in one word; whoever an earlier process of the name spoke for, and this one doesn't, is gone."""
        try:
            joined = list(each_joined(word))
        except ProtocolError as exc:
            self.validator.bury(delivery, str(exc))
            return None
        came = self._on_joined(joined, word.worker, delivery)
        for member in self.roster.of_reader(word.worker):
            if member.token != word.token:
                self.roster.set_present(member.worker, is_present=False)
        for member in came.members:
            self._note_seen(member.worker)
        return came

    def _on_joined(self, joined: list[Joined], reader: str, delivery: Delivery) -> WorkersCame:
        news = frozenset(each.worker for each in joined if not self.roster.is_present(each.worker))
        self._unseen |= news
        self._tell_pause(joined[0], reader)
        if news or not self.roster.knows(joined[0]):
            told = {"account": delivery.user_id, "version": joined[0].release or None}
            num_examples = sum(each.num_examples for each in joined)
            self.audit.note("joined", worker=reader, number=len(joined), num_examples=num_examples, **told)
        return WorkersCame([self.roster.join(each, reader) for each in joined], news)

    def _tell_pause(self, joined: Joined, reader: str) -> None:
        """Say once that a process takes no rounds for now, and that it does again: all its workers do alike."""
        former = self.roster.members.get(joined.worker)
        if joined.pause and (former is None or former.pause != joined.pause):
            logger.info("%s takes no rounds for now: %s.", reader, joined.pause)
        elif former is not None and former.pause and not joined.pause:
            logger.info("%s takes rounds again.", reader)

    def _on_left(self, left: Left | SwarmLeft) -> None:
        is_swarm = isinstance(left, SwarmLeft)
        workers = [each.worker for each in self.roster.of_reader(left.worker)] if is_swarm else [left.worker]
        self._note_gone(left.worker, workers, logging.INFO, "left for good" if left.for_good else "left")
        if left.for_good:
            for worker in workers:
                self.roster.forget(worker)

    def _on_launch(self, delivery: Delivery, launch: Launch) -> None:
        """Without a queue for the answer, a person finds a refused launch in `dead`, with the reason."""
        answer = self.on_launch(launch)
        told = {"folder": answer.run or None, "reason": answer.reason, "account": delivery.user_id}
        event = "launched" if answer.reason is None else "launch-refused"
        if answer.reason is not None:
            logger.warning("Refused to launch %.100r: %s", launch.task, answer.reason)
        self.audit.note(event, task=launch.task, **told)
        if launch.reply_to is not None:
            self._reply(launch.reply_to, answer)
        elif answer.reason is not None:
            self.validator.bury(delivery, answer.reason)

    def _reply(self, queue: str, answer: Message) -> None:
        if names.is_reply_queue(queue):
            self.publisher.try_send([outgoing(answer, queue, is_transient=True)])

    def forget(self, event: Event | None) -> None:
        """What is left of a run that is over is acknowledged; who comes is told."""
        if isinstance(event, UpdateCame | DeclineCame):
            self.link.ack([event.delivery])
        elif isinstance(event, WorkersCame) and event.news:
            is_one = len(event.members) == 1
            logger.info("%s joined.", event.members[0].worker if is_one else event.members[0].reader)
