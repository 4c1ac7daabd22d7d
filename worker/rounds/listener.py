"""The receiving side of a worker's process: a thread that hears everything while the other one trains."""

import logging
import secrets
import threading
import time
from collections.abc import Mapping

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
from broker.wire.tensors import Vector
from broker.wire.versions import VERSION, difference
from worker.rounds.failures import told
from worker.rounds.hand_over import HandOver, RoundJob
from worker.rounds.participant import Participant
from worker.rounds.round_starts import Incoming, check_start

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5
_END_SECONDS = 5.0
_FIRST_REPEAT_SECONDS = 0.5
_LONGEST_REPEAT_SECONDS = 10.0
_MOST_AT_ONCE = 200
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
        acks_early: Acknowledge each part as it comes (a swarm: a thousand queues hold the same weights), not
            the whole round start once it is there.
    """

    def __init__(
        self,
        link: Link,
        participants: Mapping[str, Participant],
        hand_over: HandOver,
        stop: threading.Event,
        *,
        task: str | None,
        acks_early: bool,
    ) -> None:
        super().__init__(name="listener", daemon=True)
        self._link = link
        self._participants = participants
        self._hand_over = hand_over
        self._wish_to_end = stop
        self._task = task
        self._acks_early = acks_early
        self._validator = Validator(link, may_send_to_worker, self._heed)
        self._publisher = Publisher(link, stop)
        self._incoming: dict[str, Incoming] = {}
        self._shared: tuple[RoundKey, Vector] | None = None
        self._to_join: set[str] = set()
        self._repeat_at = 0.0
        self._repeat_seconds = _FIRST_REPEAT_SECONDS
        self._token = secrets.token_hex(_TOKEN_BYTES)
        self._refusal: DataError | None = None
        self._told_versions: set[int] = set()
        self._session = 0  # the coordinator's that was heard last
        self._ended: dict[str, int] = {}
        self._single_reader = SingleReader(link, names.worker_queue(next(iter(participants))))
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
        event = self._link.receive(0.0 if self._has_due() else _WAIT_SECONDS)
        if isinstance(event, Delivery):
            self._on_delivery(event)
        elif event is not None:
            self._on_connection(event)
        self._single_reader.check(time.monotonic(), is_idle=event is None)
        if self._wish_to_end.is_set():
            self._hand_over.stop_all()
        if (event is None or len(self._to_join) >= _MOST_AT_ONCE) and self._has_due():
            self._join()

    # --- saying who is there -------------------------------------------------------------------------------

    def _has_due(self) -> bool:
        return (
            bool(self._to_join) and self._single_reader.is_confirmed and time.monotonic() >= self._repeat_at
        )

    def _join(self) -> None:
        """Say who is there; unheard (no coordinator yet), it is said again with growing delays."""
        workers = sorted(self._to_join)[:_MOST_AT_ONCE]
        is_heard = self._publisher.try_send(
            [outgoing(self._joined(worker), names.COORDINATOR) for worker in workers]
        )
        if is_heard:
            self._to_join.difference_update(workers)
            self._repeat_seconds = _FIRST_REPEAT_SECONDS
            if not self.has_joined.is_set() and not self._to_join:
                self.has_joined.set()
                logger.info("Registered with the coordinator's queue; waiting for a round.")
            return
        self._repeat_at = time.monotonic() + self._repeat_seconds
        self._repeat_seconds = min(2 * self._repeat_seconds, _LONGEST_REPEAT_SECONDS)

    def _joined(self, worker: str) -> Joined:
        participant = self._participants[worker]
        data = participant.data
        return Joined(
            worker=worker,
            classes=data.classes,
            num_examples=0 if participant.evaluate_only else data.num_train_examples,
            examples_per_class=participant.rules.examples_per_class(data),
            num_test_examples=participant.rules.num_test_examples(data),
            evaluate_only=participant.evaluate_only,
            task=self._task,
            held=self._hand_over.held(worker),
            announced=self._hand_over.announced(worker),
            inputs=data.inputs,
            token=self._token,
            holds=data.holds,
        )

    def _on_connection(self, event: Connection) -> None:
        """What wasn't acknowledged comes again after a reconnect; who we are is said again."""
        for incoming in self._incoming.values():
            incoming.deliveries.clear()
        if event is Connection.LOST:
            self._single_reader.pause()
        else:
            self._single_reader.begin(time.monotonic())
            self._to_join.update(self._participants)
            self._repeat_at = 0.0

    # --- what comes in -------------------------------------------------------------------------------------

    def _on_delivery(self, delivery: Delivery) -> None:
        message = self._validator.open(delivery)
        if message is None:
            return
        worker = delivery.queue.removeprefix("worker.")
        try:
            is_settled = self._take(worker, message, delivery)
        except Exception as exc:  # noqa: BLE001 - unacknowledged, it would end this worker at every start
            self._give_up(worker, message, delivery, exc)
            is_settled = True
        if is_settled:
            self._link.ack([delivery])
        if self._refusal is not None:
            raise self._refusal

    def _heed(self, exc: ProtocolError, envelope: Envelope, delivery: Delivery) -> bool:
        """Deal with what can't be read; whether that is all, and nothing need go to `dead`.

        What is of another version may come from a coordinator of now, or be left from before an upgrade: it ends
        nothing, and nothing can be said back that its sender would understand. A newer coordinator is told once more
        who is there, and refuses this worker by name. A round start of this version with a field too many is declined.
        """
        worker = delivery.queue.removeprefix("worker.")
        if isinstance(exc, OtherVersion):
            if envelope.type not in (Refused.TYPE, Ping.TYPE):  # these are meant for a process of before
                self._on_other_version(worker, envelope)
            return True
        key = _key_in(envelope)
        if envelope.type == RoundStart.TYPE and key is not None:
            self._let_go(worker)
            self._hand_over.decline(worker, key, str(exc))
        return False

    def _on_other_version(self, worker: str, envelope: Envelope) -> None:
        if envelope.version not in self._told_versions:
            self._told_versions.add(envelope.version)
            logger.warning(
                "Left unread, a %s: %s. If it is not from before an upgrade, this worker takes part in nothing.",
                envelope.type,
                difference("the coordinator", envelope.version, "this worker"),
            )
        if envelope.version > VERSION and envelope.type in (RollCall.TYPE, RoundStart.TYPE):
            self._to_join.add(worker)
            self._repeat_at = 0.0

    def _give_up(self, worker: str, message: Message, delivery: Delivery, error: Exception) -> None:
        """Put a message that can't be taken out of the way; a round that it was for is declined, not left open."""
        if not isinstance(error, ProtocolError):
            logger.error("Can't take a %s.", message.TYPE, exc_info=error)
        self._validator.bury(delivery, told(error))
        incoming = self._incoming.pop(worker, None)
        start = message if isinstance(message, RoundStart) else incoming and incoming.start
        if incoming is not None:
            self._link.ack(incoming.deliveries)
        if start:
            self._hand_over.decline(worker, start.held, told(error))

    def _take(self, worker: str, message: Message, delivery: Delivery) -> bool:
        """Act on one message; False when its delivery stays unacknowledged until the round start is whole."""
        if isinstance(message, RoundStart):
            return self._on_start(worker, message, delivery)
        if isinstance(message, Part):
            return self._on_part(worker, message, delivery)
        self._on_word(worker, message)
        return True

    def _on_word(self, worker: str, message: Message) -> None:
        if isinstance(message, RollCall):
            self._hear_session(message.session)
            self._to_join.add(worker)
            self._repeat_at = 0.0
        elif isinstance(message, Ping):
            if self._single_reader.hear(message) and not self.has_joined.is_set():
                self._to_join.update(self._participants)
        elif isinstance(message, RoundClosed):
            self._on_closed(worker, message)
        elif isinstance(message, UploadAgain):
            logger.warning("The coordinator lost parts of the update; sending it again.")
            self._hand_over.upload_again(worker)
        elif isinstance(message, RunFinished):
            self._on_finished(worker, message)
        elif isinstance(message, Refused):
            self._on_refused(message)
        else:
            raise ProtocolError(f"A worker takes no {message.TYPE}.")

    def _hear_session(self, session: int) -> None:
        """A roll call's is that of now, also if the clock was set back: what seems to be later is forgotten."""
        if session:
            self._session = session
            self._ended = {run_id: ended for run_id, ended in self._ended.items() if ended <= session}

    def _on_refused(self, refused: Refused) -> None:
        """The end, once it is acknowledged; what is meant for a former process, with data since mended, is ignored."""
        if refused.token == self._token:
            self._refusal = DataError(refused.reason)
        else:
            logger.debug("Ignored what a former process was told: %s", refused.reason)

    def _on_closed(self, worker: str, closed: RoundClosed) -> None:
        if self._hand_over.close(worker, closed.run_id, closed.round_number):
            logger.warning("Round %d has closed without this worker's update.", closed.round_number)

    def _on_finished(self, worker: str, finished: RunFinished) -> None:
        self._hand_over.close(worker, finished.run_id, None)
        if finished.session:
            self._ended = dict([*self._ended.items(), (finished.run_id, finished.session)][-_MOST_ENDED:])
        if not self._hand_over.is_run_over.is_set():
            logger.info(
                "Training finished: the run is %s after %d rounds.", finished.outcome, finished.rounds
            )
            self._hand_over.is_run_over.set()

    def _on_start(self, worker: str, start: RoundStart, delivery: Delivery) -> bool:
        check_start(start)
        if start.held == self._hand_over.held(worker) or self._is_old(worker, start):
            return True
        incoming = self._incoming.get(worker)
        if incoming is None or incoming.start.held != start.held:
            self._let_go(worker)
            incoming = self._shared_copy(start) or Incoming(start, self._hand_over.take_spare())
            self._incoming[worker] = incoming
        return self._advance(worker, incoming, delivery)

    def _is_old(self, worker: str, start: RoundStart) -> bool:
        """Whether it is of an earlier session, of a run that has ended, or of a round before the one that is known."""
        if 0 < start.session < self._session or 0 < start.session <= self._ended.get(start.run_id, -1):
            return True
        self._session = max(self._session, start.session)
        held = self._hand_over.held(worker)
        if held is None or (held.run_id, self._hand_over.session(worker)) != (start.run_id, start.session):
            return False
        return _order(start.held) < _order(held)

    def _shared_copy(self, start: RoundStart) -> Incoming | None:
        """In a swarm the second logical worker finds the weights that the first one received."""
        if self._shared is None or self._shared[0] != start.held or start.parts == 0:
            return None
        return Incoming.of(start, self._shared[1])

    def _on_part(self, worker: str, part: Part, delivery: Delivery) -> bool:
        """A part of a round start that isn't awaited (older, or received already) is dropped."""
        incoming = self._incoming.get(worker)
        if incoming is None or not incoming.take(part):
            return True
        return self._advance(worker, incoming, delivery)

    def _advance(self, worker: str, incoming: Incoming, delivery: Delivery) -> bool:
        if self._acks_early:
            self._link.ack([delivery])
        else:
            incoming.deliveries.append(delivery.without_body())  # its values are in the vector
        if incoming.is_complete:
            del self._incoming[worker]
            self._begin(worker, incoming)
            self._link.ack(incoming.deliveries)
        return False

    def _begin(self, worker: str, incoming: Incoming) -> None:
        start = incoming.start
        self._shared = (start.held, incoming.vector) if self._acks_early else None
        self._hand_over.is_run_over.clear()
        self._hand_over.begin(
            RoundJob(
                worker=worker,
                start=start,
                weights=incoming.vector,
                key=start.held,
                session=start.session,
            )
        )

    def _let_go(self, worker: str) -> None:
        """Acknowledge what came of a round start that a newer one replaces."""
        older = self._incoming.pop(worker, None)
        if older is not None:
            self._link.ack(older.deliveries)


def _key_in(envelope: Envelope) -> RoundKey | None:
    run_id, number, attempt = envelope.run_id, envelope.round_number, envelope.attempt
    if run_id is None or number is None or attempt is None:
        return None
    return RoundKey(run_id=run_id, round_number=number, attempt=attempt)


def _order(key: RoundKey) -> tuple[int, int]:
    return key.round_number, key.attempt
