"""The side below of a relay: a thread in the place of the coordinator at its own broker."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from broker.errors import Interrupted, LinkLost, QuorumNotReached, WarrenError
from broker.wire import names
from broker.wire.messages import Joined, RoundStart, RunFinished
from broker.wire.tensors import Vector
from coordinator.learning.membership import Member
from coordinator.play.log_text import listed
from coordinator.play.open_round.round_start import addressed, groups_of
from coordinator.play.open_round.tools import Tools
from coordinator.play.run_view import describe
from coordinator.presence.session import DeclineCame, Event, UpdateCame, WorkersCame
from coordinator.starting.relay.gathered import alike, word_of
from coordinator.starting.relay.keeping import forget_start, keep_start, read_start
from coordinator.starting.relay.part import Part, PartialSum, RelayOptions
from coordinator.status import status_json

logger = logging.getLogger(__name__)

_TURN_SECONDS = 0.1
_NEWS_SECONDS = (
    2.0  #: between two words of the same relay: above no more than twenty in half a minute are heard
)
_LOOK_SECONDS = 5.0


class Region(threading.Thread):
    """Plays rounds below as they are opened above.

    Args:
        tools: With the session at the relay's own broker.
        options: Of the relay.

    Attributes:
        on_news: Called when `word` or `reason` is another.
        word: What is said above of those who are there; None before enough have come.
        reason: Why no round is taken for now; empty: it is.
        failure: What ended it, if that was no wish.
    """

    def __init__(self, tools: Tools, options: RelayOptions) -> None:
        super().__init__(name="region", daemon=True)
        self.on_news: Callable[[], None] = lambda: None
        self.word: Joined | None = None
        self.reason = ""
        self.failure: Exception | None = None
        self.has_gathered = threading.Event()
        self._tools = tools
        self._session = tools.session
        self._session.tell = self._tell
        self._options = options
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._part: Part | None = None
        self._waiting: Future[PartialSum] | None = None
        self._members: list[Member] = []
        self._odd: dict[str, str] = {}
        self._above = 0  # the session of the coordinator above that was heard last
        self._looked_at = self._told_at = float("-inf")
        self._num_told = -1

    # --- what is asked of it, from any thread ------------------------------------------------------------------

    def begin(self, start: RoundStart, weights: Vector) -> "Future[PartialSum]":
        """Play this round, or go on with it; the future has its sum, or why there is none."""
        future: Future[PartialSum] = Future()
        self._orders.put(lambda: self._begin(start, weights, future))
        return future

    def give_up(self, start: RoundStart) -> None:
        """Above the round has closed without this relay."""
        self._orders.put(lambda: self._give_up(start))

    def finish(self, finished: RunFinished) -> None:
        """Let the workers know that a run is over; returns once they are told, or this is to end."""
        is_told = threading.Event()
        self._orders.put(lambda: self._finish(finished, is_told))
        while not (is_told.wait(_TURN_SECONDS) or self._session.stop.is_set()):
            pass

    # --- the thread --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Hear and play until told to end; a failure is left for the other thread to raise."""
        try:
            self._resume()
            self._session.begin()
            while True:
                self._turn()
        except Interrupted:
            pass
        except LinkLost as exc:
            self.failure = None if self._session.stop.is_set() else exc
        except Exception as exc:  # noqa: BLE001 - raised where it ends the process
            self.failure = exc
        finally:
            self._session.stop.set()

    def _turn(self) -> None:
        while self._session.is_ready and not self._orders.empty():
            self._orders.get()()
        self._decide(self._session.next_event(_TURN_SECONDS))
        part = self._part
        if part is not None and not part.is_over:
            # Also before the claim is proven: the ping that does so may wait behind all that is held.
            part.live.keep_if_due()
        if part is not None and self._session.single_reader.is_confirmed:
            if not part.is_over:
                part.live.look_after()
            if part.step():
                self._tell_end(part)
        if self._session.is_ready:
            self._look_around()

    def _resume(self) -> None:
        kept = read_start(self._options.out)
        if kept is None:
            return
        start, weights, opened = kept
        self._above = start.session
        self._part = Part(self._tools, start, weights)
        self._part.resume(opened)
        logger.info(
            "Round %d was open; it goes on with the %d answers on disk and what the broker holds.",
            start.round_number,
            len(opened.answers),
        )

    # --- rounds ------------------------------------------------------------------------------------------------

    def _begin(self, start: RoundStart, weights: Vector, future: "Future[PartialSum]") -> None:
        self._waiting = future
        if start.session > self._above:
            # As the coordinator above may go on from an older copy: what its workers know of later rounds is void.
            self._session.number = max(int(time.time() * 1000), self._session.number + 1)
            self._above = start.session
        try:
            self._play(start, weights)
        except WarrenError as exc:
            future.set_exception(exc)

    def _play(self, start: RoundStart, weights: Vector) -> None:
        part = self._part
        if part is None or not part.is_of(start):
            former = part.live.record if part is not None else None
            self._leave_part()
            keep_start(self._options.out, start, weights)
            part = Part(self._tools, start, weights)
            part.open(self._members, self._options, former)
            self._part = part
        elif part.failure:
            part.try_again(self._members)
        elif part.is_over:
            self._tell_end(part)

    def _leave_part(self) -> None:
        """Whoever has not answered the last round need not go on with it."""
        part, self._part = self._part, None
        if part is not None and not part.is_over:
            part.live.end_part()

    def _give_up(self, start: RoundStart) -> None:
        if self._part is not None and self._part.is_of(start):
            self._leave_part()
            forget_start(self._options.out)

    def _tell_end(self, part: Part) -> None:
        """Hand on what has come of a round to whoever waits for it."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return  # after a restart: it is asked for once more
        if part.failure:
            waiting.set_exception(QuorumNotReached(part.failure))
            return
        logger.info("Round %d: %d updates summed.", part.start.round_number, part.live.round.num_accepted)
        waiting.set_result(part.answer())

    def _finish(self, finished: RunFinished, is_told: threading.Event) -> None:
        session, part = self._session, self._part
        is_ours = part is not None and part.start.run_id == finished.run_id
        workers = {*session.roster.members, *(part.live.record.invited if part else ())}
        readers = sorted(session.roster.by_reader(workers))
        message = RunFinished(
            run_id=finished.run_id,
            rounds=finished.rounds,
            outcome=finished.outcome,
            session=session.number,
        )
        for group in groups_of(readers):
            session.publisher.send([addressed(message, group)])
        if is_ours:
            self._tools.unacknowledged.release()
            self._part = None
            forget_start(self._options.out)
        is_told.set()

    # --- what comes in -----------------------------------------------------------------------------------------

    def _decide(self, event: Event | None) -> None:
        part = self._part if self._part is not None and not self._part.is_over else None
        if isinstance(event, UpdateCame):
            self._take_update(event, part)
        elif isinstance(event, DeclineCame):
            key = event.declined.run_id, event.declined.round_number
            if part is not None and key == (part.live.record.run_id, part.live.record.round_number):
                part.live.decline(event.delivery, event.declined)
            else:
                self._session.link.ack([event.delivery])
        elif isinstance(event, WorkersCame):
            self._looked_at = float("-inf") if self.word is None else self._looked_at
            if part is not None:
                part.live.greet(event.members, takes_newcomers=False)

    def _take_update(self, event: UpdateCame, part: Part | None) -> None:
        session, update = self._session, event.update
        with session.until_link_is_back():
            if part is not None and part.live.round.is_current(update):
                part.live.take(event.delivery, update)
                return
            session.link.ack([event.delivery])
            if update.parts and session.roster.is_alone(update.worker):
                session.link.purge(names.upload_queue(update.worker))

    # --- who is there ------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """See who is there, and have it said above if that is news."""
        now = time.monotonic()
        if now - self._looked_at < _NEWS_SECONDS:
            return
        self._looked_at = now
        self._members, odd = alike(self._session.roster.members.values())
        if len(self._members) >= self._options.workers and self.word is None:
            self._session.look_for_unseen()  # they may have gone an hour ago
            self._members, odd = alike(self._session.roster.members.values())
        self._look_for_absent(now)
        for worker in odd.keys() - self._odd.keys():
            logger.warning("%s takes no part: %s.", worker, odd[worker])
        self._odd = odd
        self._say(len(self._members))

    def _look_for_absent(self, now: float) -> None:
        is_open = self._part is not None and not self._part.is_over
        if not is_open and now - self._told_at >= _LOOK_SECONDS:
            self._told_at = now
            self._session.look_after_present()
        if len(self._members) < self._options.workers:
            self._session.call_roll_if_due()

    def _say(self, number: int) -> None:
        wanted, former = self._options.workers, (self.word, self.reason)
        if number >= wanted:
            self.word, self.reason = word_of(self._options.name, self._members), ""
            self.has_gathered.set()
        else:
            self.reason = f"{number} of {wanted} workers behind this relay are there"
            if number != self._num_told:
                who = listed(member.worker for member in self._members)
                logger.info(
                    "Waiting for workers: %d of %d joined%s.", number, wanted, f" ({who})" if who else ""
                )
        self._num_told = number
        if self.word is not None and (self.word, self.reason) != former:
            self.on_news()

    def _tell(self) -> str:
        return status_json(describe(self._session.roster.members.values(), self._session.sightings, None))
