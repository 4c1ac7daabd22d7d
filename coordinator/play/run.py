"""The rounds over the broker: asks the session for the next event, and decides; goes on after any interruption."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from broker import audit
from broker.allowance import Allowance
from broker.errors import Interrupted, LinkLost, LoginRefused, ModelDiverged, QuorumNotReached, RunStopped
from broker.link.seam import Link
from broker.logs import LogContext
from broker.wire import names
from broker.wire.messages import Mode, Outcome, RunFinished
from broker.wire.tensors import INLINE_BYTES, InputFacts
from coordinator.folder.checkpoint import Checkpoint
from coordinator.folder.history import Row
from coordinator.folder.run_folder import RunFolder
from coordinator.keras.process import BuiltModel, Models
from coordinator.learning.rounds import Step
from coordinator.learning.spares import Spares
from coordinator.learning.squeezing import Squeezing
from coordinator.learning.strategies import OfTheMean
from coordinator.options import RunOptions
from coordinator.play.admission import Admission
from coordinator.play.attempts import Attempts
from coordinator.play.committed import Committed
from coordinator.play.gathering import Gathering
from coordinator.play.inviting import fewest_present
from coordinator.play.open_round.fetching import empty_upload_queue
from coordinator.play.open_round.live_round import LiveRound
from coordinator.play.open_round.round_start import addressed, groups_of
from coordinator.play.open_round.tools import Tools
from coordinator.play.open_round.unacknowledged import Unacknowledged
from coordinator.play.run_view import Phase, RunView, describe
from coordinator.play.story import tell_closed, tell_enough, tell_waiting, too_few
from coordinator.presence.broker_room import BrokerRoom
from coordinator.presence.seldom import Seldom
from coordinator.presence.session import DeclineCame, Event, Session, UpdateCame
from coordinator.status import status_json

logger = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 0.5
_TELL_SECONDS = 30.0
_REUNION_SECONDS = 5.0
_MOST_PURGES = 3  #: of one worker's upload queue
_PURGES_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended: its history, and the state that it reached."""

    history: list[Row]
    rounds: int
    num_dead: int
    state: Checkpoint
    is_stopped: bool = False

    @property
    def reason(self) -> str | None:
        """Why it ended before its last round, if it did so by itself."""
        return self.history[-1].stopped or None


class Run:
    """One training over the broker; its folder holds everything that a later process needs to go on.

    It asks the session for the next event, and decides. What it decides with is in four places: who takes part
    (`Gathering`), what is reached (`Committed`), how rounds are opened (`Attempts`), and the open one (`LiveRound`).

    Args:
        session: The place at the broker where to play, if it lasts longer than this run.
        folder: Where what is committed is kept; the folder of the options, unless another is given.
        room: What the broker has room for, where workers were invited.
        audit_log: Told what happens, unless the session has one.
    """

    def __init__(
        self,
        link: Link,
        options: RunOptions,
        models: Models,
        *,
        stop: threading.Event,
        log: LogContext,
        session: Session | None = None,
        folder: RunFolder | None = None,
        room: BrokerRoom | None = None,
        audit_log: audit.AuditLog = audit.OFF,
    ) -> None:
        self._session = session or Session(link, stop=stop, standby=options.standby, audit_log=audit_log)
        if session is None:
            self._session.tell = self._tell
        self._options = options
        self._models = models
        self._stop = stop
        folder = folder or RunFolder(options.out, self._session.audit)
        self._tools = Tools(
            session=self._session,
            folder=folder,
            unacknowledged=Unacknowledged(link),
            strategy=options.make_strategy(),
            spares=Spares(),
            squeezing=Squeezing(options.download_precision, options.seed),
            room=room,
        )
        takes_sums = isinstance(self._tools.strategy, OfTheMean)
        has_accounts = link.account == names.COORDINATOR  # workers on the same one would not be heard
        relays = options.relays if has_accounts else None
        self._admission = Admission(
            self._session.roster, options.task.name, takes_sums=takes_sums, relays=relays
        )
        self._committed = Committed(options, folder, models, log)
        self._gathering = Gathering(self._session, self._admission, self._committed, options)
        self._attempts = Attempts(self._tools, self._committed, options, self._admission, log)
        self._is_to_stop = self._is_to_stop_now = False
        self._live: LiveRound | None = None
        self._purges = Allowance(_MOST_PURGES, _PURGES_SECONDS)

    # --- the course of a run -------------------------------------------------------------------------------

    def play(self) -> Summary:
        """Play all rounds that are left, and measure the last model.

        Raises:
            QuorumNotReached: Too few workers joined or answered; the last closed round's model is saved.
            NameInUse: Another coordinator works on this virtual host.
            Interrupted: `stop` was set.
        """
        try:
            return self._played()
        finally:
            self._committed.give_up_room()

    def _played(self) -> Summary:
        built: Future[BuiltModel] | None = None
        if self._committed.read():
            self._live = self._attempts.resumed()
        else:
            built = _building(self._models, self._options)
        self._session.begin()
        self._gathering.admit_known()
        self._wait_until(lambda: self._session.is_ready)
        outcome: Outcome | None = "failed"
        try:
            if built is not None:
                self._begin_with(built)
            self._play_rounds()
            outcome = "stopped" if self._is_to_stop else "done"
        except RunStopped:
            outcome = "stopped"
        except Interrupted:
            outcome = None
            raise
        except LoginRefused:
            outcome = None
            raise
        except LinkLost as exc:
            if self._stop.is_set():
                outcome = None
                raise Interrupted(
                    "Stopped while the broker was away. The same command line goes on."
                ) from exc
            raise
        finally:
            self._finish(outcome)
        return Summary(
            history=self._committed.present.history,
            rounds=self._committed.present.round_number,
            num_dead=self._session.validator.num_dead,
            state=self._committed.present,
            is_stopped=outcome == "stopped",
        )

    def _begin_with(self, built: Future[BuiltModel]) -> None:
        """Wait for the model, commit it as round 0, and wait for workers."""
        self._wait_until(built.done)
        model = built.result()
        self._committed.begin(model, self._tools.strategy)
        self._gathering.admit_again()
        if self._options.rounds > 0:
            self._await_workers(self._options.workers, trained_on=model.inputs)

    def _play_rounds(self) -> None:
        committed, rounds = self._committed, self._options.rounds
        if self._live is None and self._has_more_rounds():
            self._await_workers(self._options.workers)
        while self._has_more_rounds():
            self._play_round("train")
        tell_enough(committed.standing, committed.present.round_number, rounds)
        self._await_reunion()
        if committed.present.round_number > 0 and not committed.present.history[-1].is_measured:
            self._play_round("evaluate")

    def _has_more_rounds(self) -> bool:
        if self._live is not None and self._live.record.mode == "train":
            return True  # it was open when an earlier process ended
        committed = self._committed
        is_last = committed.present.round_number >= self._options.rounds or self._is_to_stop
        return not (is_last or committed.standing.enough)

    def stop_after_round(self, *, now: bool = False) -> None:
        """Let the run end after the round under way, or (`now`) give that round up; its last model is kept."""
        self._is_to_stop = True
        self._is_to_stop_now = self._is_to_stop_now or now

    def each_turn(self, act: Callable[[], None]) -> None:
        """Have something done at every turn of the loop, e.g. show how far the run is."""
        self._session.errand = act

    def _play_round(self, mode: Mode) -> None:
        if self._live is None:
            if mode == "train":
                self._await_workers(fewest_present(self._options))
            self._live = self._attempts.first(mode)
        live = self._live
        while True:
            step = live.round.next_step(self._session.clock.now())
            if step is not Step.WAIT and live.round.unanswered and self._take_waiting(live):
                continue
            if step is Step.CLOSE:
                try:
                    self._close(live)
                except ModelDiverged as exc:
                    self._live = live = self._attempts.without_culprit(live, str(exc))
                else:
                    return
            if step is Step.RETRY:
                self._live = live = self._attempts.next(live)
            self._turn()

    def _take_waiting(self, live: LiveRound) -> bool:
        """At the deadline take the answers that wait, perhaps behind what held us up; whether there was any."""
        num_answers, end = len(live.round.answers), time.monotonic() + _LONGEST_WAIT_SECONDS
        self._turn(0.0)
        while time.monotonic() < end and not self._session.is_idle:
            self._turn(0.0)
        return len(live.round.answers) > num_answers

    def _close(self, live: LiveRound) -> None:
        """Commit the round, and let its workers and its files follow.

        Raises:
            ModelDiverged: Its model answers NaN; the round is open still.
        """
        seconds = live.round.seconds_open(self._session.clock.now())
        shut_out = self._admission.paused | self._session.validator.floods() | self._admission.unfit
        closed = self._committed.close(live, seconds, shut_out)
        self._live = None
        live.end()
        tell_closed(live.round, closed.history, seconds, is_general=closed.is_general)
        self._committed.follow()

    # --- waiting -------------------------------------------------------------------------------------------

    def _await_workers(self, number: int, trained_on: InputFacts | None = None) -> None:
        """Wait until so many workers that train are there.

        Args:
            number: How many.
            trained_on: What the model to start from was trained on.

        Raises:
            QuorumNotReached: They were not, at the deadline.
        """
        clock = self._session.clock
        deadline = clock.now() + self._options.deadline_seconds
        told: tuple[list[str], float] | None = None
        looking = Seldom()
        while True:
            if looking.is_due:
                with looking.doing():
                    if self._has_workers(number, trained_on):
                        return
                    present = self._admission.trainers
                    if told is None or told[0] != present or time.monotonic() - told[1] > _TELL_SECONDS:
                        told = (present, time.monotonic())
                        tell_waiting(present, number, self._admission.paused)
            if clock.now() >= deadline:
                raise QuorumNotReached(
                    too_few(
                        self._admission.trainers,
                        number,
                        self._admission.paused,
                        self._options.deadline_seconds,
                    )
                )
            if self._is_to_stop:
                raise RunStopped("Stopped while it waited for workers.")
            self._session.call_roll_if_due()
            self._turn()

    def _has_workers(self, number: int, trained_on: InputFacts | None) -> bool:
        """Whether they are there and fit; then what they have in common is the run's."""
        if not self._gathering.has(number):
            return False
        self._session.look_for_unseen()
        if self._gathering.has(number):
            self._gathering.settle(trained_on)
        return self._gathering.has(number)

    def _await_reunion(self) -> None:
        """Nothing is left to train: after a restart wait a moment for those that took part and don't know it."""
        known = set(self._committed.present.history[-1].accepted)
        deadline = time.monotonic() + _REUNION_SECONDS
        while not known <= {each.worker for each in self._admission.members} and time.monotonic() < deadline:
            self._turn()

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._turn()

    # --- what comes in -------------------------------------------------------------------------------------

    def _turn(self, patience_seconds: float | None = None) -> None:
        """Take one event, or let a moment pass.

        Args:
            patience_seconds: How long to wait for it; by default as long as nothing else is to be done.

        Raises:
            Interrupted: `stop` was set.
            RunStopped: A person gave the run up.
        """
        if self._is_to_stop_now:
            raise RunStopped("Stopped in the middle of a round.")
        event = self._session.next_event(self._patience() if patience_seconds is None else patience_seconds)
        self._decide(event)
        if self._live is not None:
            # Also before the claim is proven: the ping that does so may wait behind all that is held.
            self._live.keep_if_due()
            if self._session.single_reader.is_confirmed:
                self._live.look_after()
                if self._session.is_idle and patience_seconds is None:
                    self._live.look_ahead()

    def _patience(self) -> float:
        if self._live is None:
            return _LONGEST_WAIT_SECONDS / 5
        left = self._live.round.seconds_left(self._session.clock.now())
        return min(_LONGEST_WAIT_SECONDS, left + 0.001)

    def _decide(self, event: Event | None) -> None:
        if event is None:
            return
        if isinstance(event, UpdateCame):
            self._take_update(event)
        elif isinstance(event, DeclineCame):
            self._take_decline(event)
        elif (came := self._gathering.welcome(event)) and self._live is not None:
            self._live.greet(came, takes_newcomers=self._options.fraction >= 1)

    def _take_update(self, event: UpdateCame) -> None:
        update, live = event.update, self._live
        with self._session.until_link_is_back():
            if live is not None and live.round.is_current(update):
                live.take(event.delivery, update)
                return
            logger.debug("Discarded an update of %s for round %d.", update.worker, update.round_number)
            self._session.link.ack([event.delivery])
            if update.parts and self._may_empty(update.worker):
                # Left there, the parts of late updates would fill its queue up to its limit.
                self._session.link.purge(names.upload_queue(update.worker))

    def _may_empty(self, worker: str) -> bool:
        return self._is_alone(worker) and self._purges.take(worker)

    def _is_alone(self, worker: str) -> bool:
        """Whether nothing but its own updates is in its upload queue; what a swarm's holds is read past instead."""
        return self._session.roster.is_alone(worker)

    def _take_decline(self, event: DeclineCame) -> None:
        declined, live = event.declined, self._live
        key = (declined.run_id, declined.round_number)
        if live is not None and key == (live.record.run_id, live.record.round_number):
            is_news = live.decline(event.delivery, declined)
            with self._session.until_link_is_back():
                # What is there after an earlier attempt's word may be the answer to this one.
                if is_news and self._may_empty(declined.worker):
                    empty_upload_queue(self._session.link, self._session.validator, declined.worker)
        else:
            self._session.link.ack([event.delivery])

    # --- its end -------------------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome | None) -> None:
        """Let the workers know, and bring what follows beside the rounds up to date."""
        try:
            if self._committed.state is not None:
                self._tell_end(self._committed.state, outcome)
            self._committed.finish(outcome)
        except LinkLost:
            logger.warning("The broker is away; the workers learn of the end when they ask.")

    def _tell_end(self, state: Checkpoint, outcome: Outcome | None) -> None:
        if outcome is None:
            return  # the same command line goes on with this run: the workers stay
        session = self._session
        readers = sorted(session.roster.by_reader(self._everyone_of(state)))
        message = RunFinished(
            run_id=state.run_id, rounds=state.round_number, outcome=outcome, session=session.number
        )
        for group in groups_of(readers):
            session.publisher.send([addressed(message, group)])
        session.roster.models.clear()  # they keep nothing of a run that is over
        if session.is_lasting:
            self._tools.unacknowledged.release()  # of a round that will never close
            session.link.ack(self._tools.early.end())
        if (outcome == "done" or session.is_lasting) and state.vector.nbytes > INLINE_BYTES:
            for reader in readers:
                with session.until_link_is_back():
                    session.link.purge(names.upload_queue(reader))

    def _everyone_of(self, state: Checkpoint) -> set[str]:
        """Who may wait for the run's end: whoever a restarted coordinator has not heard of again, too."""
        members = {each.worker for each in self._admission.members}
        return members.union(*(row.accepted for row in state.history))

    # --- what is seen of it --------------------------------------------------------------------------------

    def view(self) -> RunView:
        """What a person wants to know of it at this moment."""
        live, state, options = self._live, self._committed.state, self._options
        return RunView(
            folder=options.out.name,
            task=options.task.name,
            phase=self._phase,
            rounds=options.rounds,
            closed_rounds=state.round_number if state else 0,
            workers=options.workers,
            quorum=options.needed,
            classes=state.classes if state else (),
            record=live.record if live else None,
            answers=dict(live.round.answers) if live else {},
            seconds_open=live.round.seconds_open(self._session.clock.now()) if live else 0.0,
            update_bytes=live.update_bytes if live else 0,
            history=state.history if state else [],
            present=self._admission.trainers,
            unfit=dict(self._admission.unfit),
            is_stopping=self._is_to_stop,
            settings=self._committed.settings,
            strategy=options.strategy,
            standing=self._committed.standing,
            stop_when=options.stop_when,
            patience=options.patience,
            private=options.private,
            num_private=sum(spec.kind == "private" for spec in state.layout) if state else 0,
        )

    def _tell(self) -> str:
        members = self._session.roster.members.values()
        return status_json(describe(members, self._session.sightings, self.view()))

    @property
    def _phase(self) -> Phase:
        if self._committed.state is None:
            return "building"
        if self._live is None:
            return "waiting"
        return "training" if self._live.record.mode == "train" else "measuring"


def _building(models: Models, options: RunOptions) -> Future[BuiltModel]:
    """Have the model built in another thread, while the broker is connected to."""
    built: Future[BuiltModel] = Future()

    def build() -> None:
        try:
            built.set_result(
                models.build(
                    options.task,
                    seed=options.seed,
                    initial_model=options.initial_model,
                    private=options.private,
                    normalize=options.normalize,
                )
            )
        except Exception as exc:  # noqa: BLE001 - carried to the thread that waits for the model
            built.set_exception(exc)

    threading.Thread(target=build, name="build", daemon=True).start()
    return built
