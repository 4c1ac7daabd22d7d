"""The receiving side of a worker's process: a thread that hears everything while the other one trains."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from broker.envelope import Envelope
from broker.errors import DataError, OtherVersion, ProtocolError
from broker.link.publisher import Publisher
from broker.link.seam import Connection, Delivery, Link, outgoing
from broker.link.single_reader import SingleReader
from broker.link.validator import Validator, may_send_to_worker
from broker.wire import names
from broker.wire.messages import (
    Joined,
    Message,
    Part,
    Ping,
    Refused,
    RollCall,
    RoundClosed,
    RoundKey,
    RoundStart,
    RunFinished,
    UploadAgain,
)
from broker.wire.statistics import StatisticsAsked
from broker.wire.swarms import swarm_words
from broker.wire.versions import VERSION, difference, release
from worker.rounds.failures import told
from worker.rounds.hand_over import HandOver, RoundJob, StatisticsJob
from worker.rounds.participant import Participant
from worker.rounds.round_starts import Incoming, Newest, check_start
from worker.site.resting import Resting

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5
_END_SECONDS = 5.0
_FIRST_REPEAT_SECONDS = 0.5
_LONGEST_REPEAT_SECONDS = 10.0
_TOKEN_BYTES = 8
_MOST_ENDED = 100  #: runs that are remembered to have ended


class Listener(threading.Thread):
    """Hears the coordinator on behalf of all logical workers of this process.

    Args:
        link: Where the worker queues are consumed.
        participants: The logical workers by name.
        hand_over: Where what is to be done is left.
        stop: The wish to end.
        task: The only one to take part in; None takes part in any.
        swarm: The process's own name, by which its queues are called, if they are a swarm's workers.
        resting: When no rounds are taken.
        on_finished: Told of a run's end before that is acknowledged.
    """

    def __init__(
        self,
        link: Link,
        participants: Mapping[str, Participant],
        hand_over: HandOver,
        stop: threading.Event,
        *,
        task: str | None,
        swarm: str | None = None,
        resting: Resting | None = None,
        on_finished: Callable[[RunFinished], None] = lambda _finished: None,
    ) -> None:
        super().__init__(name="listener", daemon=True)
        self._link = link
        self._participants = participants
        self._hand_over = hand_over
        self._wish_to_end = stop
        self._task = task
        self._swarm = swarm
        self._resting = resting or Resting()
        self._on_run_finished = on_finished
        self._pause = ""  # why no round is taken, as the coordinator was told
        self._reader = swarm or next(iter(participants))
        self._validator = Validator(link, may_send_to_worker, self._heed)
        self._publisher = Publisher(link, stop)
        self._incoming: Incoming | None = None
        self._newest: Newest | None = None  # kept by a swarm, and where the next may be a step from it
        self._is_to_join = False
        self._repeat_at = 0.0
        self._repeat_seconds = _FIRST_REPEAT_SECONDS
        self._token = secrets.token_hex(_TOKEN_BYTES)
        self._refusal: DataError | None = None
        self._told_versions: set[int] = set()
        self._session = 0  # the coordinator's that was heard last
        self._ended: dict[str, int] = {}
        self._is_end_told = False
        self._has_begun = False
        self._single_reader = SingleReader(link, names.worker_queue(self._reader))
        self.ending = threading.Event()
        self.has_joined = threading.Event()

    def run(self) -> None:
        """Hear until told to end; a failure is left for the other thread to raise."""
        try:
            self._single_reader.begin(time.monotonic())
            while not self.ending.is_set():
                self._turn()
        except Exception as exc:  # noqa: BLE001 - raised where it ends the process
            self._hand_over.fail(exc)

    def end(self) -> bool:
        """Hear no more; whether this process is the reader of its queue, and not another one of the same name."""
        self.ending.set()
        self.join(_END_SECONDS)
        return self._single_reader.is_confirmed

    def _turn(self) -> None:
        self._look_at_rest()
        event = self._link.receive(0.0 if self._has_due() else _WAIT_SECONDS)
        if isinstance(event, Delivery):
            self._on_delivery(event)
        elif event is not None:
            self._on_connection(event)
        self._single_reader.check(time.monotonic(), is_idle=event is None)
        if self._wish_to_end.is_set():
            self._hand_over.stop_all()
        if event is None and self._has_due():
            self._join()

    def _look_at_rest(self) -> None:
        """Tell when this site takes no rounds from now on, or takes them again; a pause ends what is under way."""
        reason, former = self._resting.reason, self._pause
        if reason == former:
            return
        self._pause = reason
        logger.info("%s.", f"Takes no rounds: {reason}" if reason else "Takes rounds again")
        event = "paused" if reason else "resumed"
        self._hand_over.audit.note(event, worker=self._reader, reason=reason or None)
        if self._resting.is_paused:
            incoming = self._incoming
            self._let_go()
            if incoming is not None:
                self._decline(incoming.workers, incoming.start.held, reason)
            self._hand_over.stand_down(reason)
        self.say_joined()

    # --- saying who is there -------------------------------------------------------------------------------

    def say_joined(self) -> None:
        """Say soon who is there; any thread may ask for it."""
        self._is_to_join = True
        self._repeat_at = 0.0

    def _has_due(self) -> bool:
        return self._is_to_join and self._single_reader.is_confirmed and time.monotonic() >= self._repeat_at

    def _join(self) -> None:
        """Say who is there; unheard (no coordinator yet), it is said again with growing delays."""
        self._is_to_join = not self._publisher.try_send(
            [outgoing(word, names.COORDINATOR) for word in self._words()]
        )
        if not self._is_to_join:
            self._repeat_seconds = _FIRST_REPEAT_SECONDS
            if not self.has_joined.is_set():
                self.has_joined.set()
                told = {"account": self._link.account, "version": release()}
                self._hand_over.audit.note("registered", worker=self._reader, **told)
                logger.info("Registered with the coordinator's queue; waiting for a round.")
            return
        self._repeat_at = time.monotonic() + self._repeat_seconds
        self._repeat_seconds = min(2 * self._repeat_seconds, _LONGEST_REPEAT_SECONDS)

    def _words(self) -> Sequence[Message]:
        joined = [self._joined(worker) for worker in self._participants]
        return joined if self._swarm is None else swarm_words(self._swarm, joined)

    def _joined(self, worker: str) -> Joined:
        return replace(
            self._participants[worker].word(),
            task=self._task,
            held=self._hand_over.held(worker),
            announced=self._hand_over.announced(worker),
            token=self._token,
            pause=self._pause,
            release=release(),
            model=self._newest.digest if self._newest else "",
        )

    def _on_connection(self, event: Connection) -> None:
        """What wasn't acknowledged comes again after a reconnect; who we are is said again."""
        if self._incoming is not None:
            self._incoming.deliveries.clear()
        if event is Connection.LOST:
            self._single_reader.pause()
        else:
            self._single_reader.begin(time.monotonic())
            self.say_joined()

    # --- what comes in -------------------------------------------------------------------------------------

    def _on_delivery(self, delivery: Delivery) -> None:
        message = self._validator.open(delivery)
        if message is None:
            return
        try:
            is_settled = self._take(message, delivery)
        except Exception as exc:  # noqa: BLE001 - unacknowledged, it would end this worker at every start
            self._give_up(message, delivery, exc)
            is_settled = True
        if is_settled:
            self._link.ack([delivery])
        if self._refusal is not None:
            raise self._refusal

    def _heed(self, exc: ProtocolError, envelope: Envelope, _delivery: Delivery) -> bool:
        """Deal with what can't be read; whether that is all, and nothing need go to `dead`.

        What is of another version may come from a coordinator of now, or be left from before an upgrade: it ends
        nothing, and nothing can be said back that its sender would understand. A newer coordinator is told once more
        who is there, and refuses this worker by name. A round start of this version with a field too many is declined.
        """
        if isinstance(exc, OtherVersion):
            if envelope.type not in (Refused.TYPE, Ping.TYPE):  # these are meant for a process of before
                self._on_other_version(envelope)
            return True
        key = _key_in(envelope)
        if envelope.type == RoundStart.TYPE and key is not None:
            self._let_go()
            self._decline(self._participants, key, str(exc))
        return False

    def _on_other_version(self, envelope: Envelope) -> None:
        if envelope.version not in self._told_versions:
            self._told_versions.add(envelope.version)
            logger.warning(
                "Left unread, a %s: %s. If it is not from before an upgrade, this worker takes part in nothing.",
                envelope.type,
                difference("the coordinator", envelope.version, "this worker"),
            )
        if envelope.version > VERSION and envelope.type in (RollCall.TYPE, RoundStart.TYPE):
            self.say_joined()

    def _give_up(self, message: Message, delivery: Delivery, error: Exception) -> None:
        """Put a message that can't be taken out of the way; a round that it was for is declined, not left open."""
        if not isinstance(error, ProtocolError):
            logger.error("Can't take a %s.", message.TYPE, exc_info=error)
        self._validator.bury(delivery, told(error))
        incoming, self._incoming, self._newest = self._incoming, None, None
        if incoming is not None:
            self._link.ack(incoming.deliveries)
        if isinstance(message, RoundStart):
            self._decline(self._meant(message.numbers), message.held, told(error))
        elif incoming is not None:
            self._decline(incoming.workers, incoming.start.held, told(error))

    def _decline(self, workers: Iterable[str], key: RoundKey, reason: str) -> None:
        for worker in workers:
            self._hand_over.decline(worker, key, reason)

    def _meant(self, numbers: bytes) -> list[str]:
        """The workers that a message is for; without numbers, whoever there is."""
        if not numbers:
            return list(self._participants)
        named = names.numbered(self._reader, names.unpack_numbers(numbers))
        return [worker for worker in named if worker in self._participants]

    def _take(self, message: Message, delivery: Delivery) -> bool:
        """Act on one message; False when its delivery stays unacknowledged until the round start is whole."""
        if isinstance(message, RoundStart):
            return self._on_start(message, delivery)
        if isinstance(message, Part):
            return self._on_part(message, delivery)
        self._on_word(message)
        return True

    def _on_word(self, message: Message) -> None:
        if isinstance(message, RollCall):
            self._hear_session(message.session)
            self.say_joined()
        elif isinstance(message, Ping):
            if self._single_reader.hear(message) and not self.has_joined.is_set():
                self._is_to_join = True
        elif isinstance(message, RoundClosed):
            self._on_closed(message)
        elif isinstance(message, UploadAgain):
            self._on_upload_again(message)
        elif isinstance(message, RunFinished):
            self._on_finished(message)
        elif isinstance(message, Refused):
            self._on_refused(message)
        elif isinstance(message, StatisticsAsked):
            self._on_asked(message)
        else:
            raise ProtocolError(f"A worker takes no {message.TYPE}.")

    def _on_asked(self, asked: StatisticsAsked) -> None:
        """Leave a question to the thread that has the data; one of an earlier session is nobody's any more."""
        if self._swarm is None and asked.session >= self._session:
            self._hand_over.jobs.put(StatisticsJob(worker=self._reader, asked=asked))

    def _hear_session(self, session: int) -> None:
        """A roll call's is that of now, also if the clock was set back: what seems to be later is forgotten."""
        if session:
            self._session = session
            self._ended = {run_id: ended for run_id, ended in self._ended.items() if ended <= session}

    def _on_refused(self, refused: Refused) -> None:
        """The end, once it is acknowledged; what is meant for a former process, with data since mended, is ignored."""
        if refused.token == self._token:
            self._hand_over.audit.note("refused", worker=refused.worker, reason=refused.reason)
            self._refusal = DataError(refused.reason)
        else:
            logger.debug("Ignored what a former process was told: %s", refused.reason)

    def _on_upload_again(self, again: UploadAgain) -> None:
        logger.warning("The coordinator lost parts of the update; sending it again.")
        for worker in self._meant(again.numbers) if again.numbers else [again.worker]:
            self._hand_over.upload_again(worker)

    def _on_closed(self, closed: RoundClosed) -> None:
        key = closed.run_id, closed.round_number
        late = [worker for worker in self._meant(closed.numbers) if self._hand_over.close(worker, *key)]
        if late and self._swarm is None:
            logger.warning("Round %d has closed without this worker's update.", closed.round_number)
        elif late:
            logger.warning("Round %d has closed without %d updates.", closed.round_number, len(late))

    def _on_finished(self, finished: RunFinished) -> None:
        for worker in self._participants:
            self._hand_over.close(worker, finished.run_id, None)
        self._newest = None
        self._on_run_finished(finished)
        if finished.session:
            self._ended = dict([*self._ended.items(), (finished.run_id, finished.session)][-_MOST_ENDED:])
        if not self._is_end_told:
            self._is_end_told = True
            logger.info(
                "Training finished: the run is %s after %d rounds.", finished.outcome, finished.rounds
            )
            self._hand_over.end_run()

    def _on_start(self, start: RoundStart, delivery: Delivery) -> bool:
        check_start(start)
        if 0 < start.session < self._session or 0 < start.session <= self._ended.get(start.run_id, -1):
            return True  # of an earlier session, or of a run that has ended
        workers = [worker for worker in self._meant(start.numbers) if self._wants(worker, start)]
        self._session = max(self._session, start.session)
        if workers and (reason := self._why_not(workers[0], start)):
            self._let_go()  # its parts are passed over when they come
            self._decline(workers, start.held, reason)
            workers = []
        if not workers:
            return True
        incoming = self._incoming
        if incoming is None or (incoming.start.held, incoming.start.base) != (start.held, start.base):
            self._let_go()
            incoming = self._incoming = self._expected(start)
        if incoming is None:
            self.say_joined()  # and which model is here: the weights then come whole
            return True
        incoming.account = delivery.user_id or ""
        incoming.workers.update(dict.fromkeys(workers))
        return self._advance(incoming, delivery)

    def _why_not(self, worker: str, start: RoundStart) -> str | None:
        """Why this site takes no part in a round; its rules are the same for all of a process's workers."""
        participant = self._participants[worker]
        trains = participant.trains_in(start)
        return self._resting.reason or participant.rules.refusal_of(start, trains=trains)

    def _wants(self, worker: str, start: RoundStart) -> bool:
        """Whether a round start is news to a worker, and not of a round before the one that it knows."""
        held, session = self._hand_over.held_in(worker)
        if held is None or (held.run_id, session) != (start.run_id, start.session):
            return held != start.held or start.relay is not None  # that may be counted otherwise now
        return _order(start.held) >= _order(held) and held != start.held

    def _expected(self, start: RoundStart) -> Incoming | None:
        """What is to come of a round start; None if that is a step from a model that isn't here."""
        newest = self._newest
        if newest is not None and newest.is_of(start):
            return Incoming.of(start, newest.vector)  # its parts are passed over when they come
        if start.base and (newest is None or not newest.leads_to(start)):
            return None
        is_audited = self._hand_over.audit.is_kept
        return Incoming(
            start, self._hand_over.take_spare(), newest if start.base else None, is_audited=is_audited
        )

    def _on_part(self, part: Part, delivery: Delivery) -> bool:
        """A part of a round start that isn't awaited (older, or received already) is dropped."""
        if self._incoming is None or not self._incoming.take(part):
            return True
        return self._advance(self._incoming, delivery)

    def _advance(self, incoming: Incoming, delivery: Delivery) -> bool:
        incoming.deliveries.append(delivery.without_body())  # its values are in the vector
        if incoming.is_complete:
            self._incoming = None
            self._begin(incoming)
            self._link.ack(incoming.deliveries)
        return False

    def _begin(self, incoming: Incoming) -> None:
        start = incoming.start
        is_kept = self._swarm is not None or start.download_precision != "float32"
        self._newest = Newest(digest=start.digest, vector=incoming.vector) if is_kept else None
        self._is_end_told = False
        if not self._has_begun:
            self._has_begun = True
            self._hand_over.is_run_over.clear()  # it was a run that this process took no part in
        self._hand_over.close_older(start.run_id, start.round_number)
        for worker in incoming.workers:
            self._hand_over.begin(
                RoundJob(
                    worker=worker,
                    start=start,
                    weights=incoming.vector,
                    key=start.held,
                    session=start.session,
                    account=incoming.account,
                    sha256=incoming.sha256,
                )
            )

    def _let_go(self) -> None:
        """Acknowledge what came of a round start that a newer one replaces."""
        older, self._incoming = self._incoming, None
        if older is not None:
            self._link.ack(older.deliveries)


def _key_in(envelope: Envelope) -> RoundKey | None:
    run_id, number, attempt = envelope.run_id, envelope.round_number, envelope.attempt
    if run_id is None or number is None or attempt is None:
        return None
    return RoundKey(run_id=run_id, round_number=number, attempt=attempt)


def _order(key: RoundKey) -> tuple[int, int]:
    return key.round_number, key.attempt
