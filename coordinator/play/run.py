"""The rounds over the broker: invites workers, decides on each event, commits, and goes on after any interruption."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from broker.errors import Interrupted, LinkLost, ModelDiverged, QuorumNotReached, RunStopped
from broker.link.seam import Link, outgoing
from broker.logs import LogContext
from broker.model.likeness import scale_difference
from broker.wire import names
from broker.wire.messages import Mode, Outcome, Refused, RunFinished, TrainingSettings
from broker.wire.tensors import INLINE_BYTES, PART_BYTES, Array, InputFacts, sections_of
from coordinator.folder.checkpoint import Checkpoint, card_of
from coordinator.folder.history import Row
from coordinator.folder.run_folder import RunFolder
from coordinator.keras.form import refuse_other_rate
from coordinator.keras.process import BuiltModel, ModelProcess
from coordinator.learning.measures import Figures
from coordinator.learning.membership import Member
from coordinator.learning.rounds import Round, RoundRecord, Step, suspect
from coordinator.learning.spares import Spares
from coordinator.learning.strategies import Aggregate, first_states
from coordinator.options import RunOptions
from coordinator.play.admission import Admission
from coordinator.play.inviting import fewest_present, open_record, reinvited
from coordinator.play.live_round import LiveRound, Tools
from coordinator.play.log_text import described, listed
from coordinator.play.round_start import addressed, groups_of
from coordinator.play.run_view import Phase, RunView, describe
from coordinator.play.status import status_json
from coordinator.play.story import sizes_of, tell_closed, tell_opened, tell_retried, why_not_reached
from coordinator.play.unacknowledged import Unacknowledged
from coordinator.presence.session import DeclineCame, Event, Session, UpdateCame, Watch

logger = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 0.5
_SAVE_SECONDS = 300.0
_TELL_SECONDS = 30.0
_REUNION_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended: its history, and where its model is."""

    history: list[Row]
    rounds: int
    num_dead: int
    is_stopped: bool = False


class Run:
    """One training over the broker; its folder holds everything that a later process needs to go on.

    It asks the session for the next event, and decides. What it decides with is in three places: who may take part
    (`Admission`), what is on disk (`RunFolder`), and the round that is open (`LiveRound`).

    Args:
        watch: Told every message that was accepted for form and sender, e.g. to show progress.
        session: The place at the broker where to play, if it lasts longer than this run.
    """

    def __init__(
        self,
        link: Link,
        options: RunOptions,
        models: ModelProcess,
        *,
        stop: threading.Event,
        log: LogContext,
        watch: Watch = lambda _message: None,
        session: Session | None = None,
    ) -> None:
        self._session = session or Session(link, stop=stop, standby=options.standby, watch=watch)
        if session is None:
            self._session.tell = self._tell
        self._options = options
        self._models = models
        self._stop = stop
        self._log = log
        self._folder = RunFolder(options.out)
        self._tools = Tools(
            session=self._session,
            folder=self._folder,
            unacknowledged=Unacknowledged(link),
            strategy=options.make_strategy(),
            spares=Spares(),
        )
        self._admission = Admission(self._session.roster, options.task.name)
        self._is_to_stop = self._is_to_stop_now = False
        self._live: LiveRound | None = None
        self._state: Checkpoint | None = None

    # --- the course of a run -------------------------------------------------------------------------------

    def play(self) -> Summary:
        """Play all rounds that are left, and measure the last model.

        Raises:
            QuorumNotReached: Too few workers joined or answered; the last closed round's model is saved.
            NameInUse: Another coordinator works on this virtual host.
            Interrupted: `stop` was set.
        """
        self._state = self._folder.read()
        self._check_options(self._state)
        built = None if self._state else self._building()
        if self._state is not None:
            self._resume(self._state)
        self._session.begin()
        for member in list(self._session.roster.members.values()):
            self._admit(member)
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
            history=self._committed.history,
            rounds=self._committed.round_number,
            num_dead=self._session.validator.num_dead,
            is_stopped=outcome == "stopped",
        )

    def _play_rounds(self) -> None:
        if self._live is None and self._committed.round_number < self._options.rounds:
            self._await_workers(self._options.workers)
        while self._committed.round_number < self._options.rounds and not self._is_to_stop:
            self._play_round("train")
        self._await_reunion()
        if self._committed.round_number > 0 and not self._committed.history[-1].is_measured:
            self._play_round("evaluate")

    def stop_after_round(self, *, now: bool = False) -> None:
        """Let the run end after the round under way, or (`now`) give that round up; its last model is kept."""
        self._is_to_stop = True
        self._is_to_stop_now = self._is_to_stop_now or now

    def each_turn(self, act: Callable[[], None]) -> None:
        """Have something done at every turn of the loop, e.g. show how far the run is."""
        self._session.errand = act

    @property
    def _committed(self) -> Checkpoint:
        assert self._state is not None  # noqa: S101 - there is one from `_begin_with` on
        return self._state

    # --- its beginning -------------------------------------------------------------------------------------

    def _check_options(self, state: Checkpoint | None) -> None:
        """Refuse what the folder's run can't go on with.

        Raises:
            UsageError: Another task, strategy or seed, or a learning rate in the place of a schedule.
        """
        if state is not None:
            refuse_other_rate(state.model_json, self._options.settings(1).learning_rate)
        self._folder.keep_identity(self._options, state)

    def _building(self) -> Future[BuiltModel]:
        """Have the model built in another thread, while the broker is connected to."""
        built: Future[BuiltModel] = Future()
        threading.Thread(target=self._build, args=(built,), name="build", daemon=True).start()
        return built

    def _build(self, built: Future[BuiltModel]) -> None:
        options = self._options
        try:
            built.set_result(
                self._models.build(options.task, seed=options.seed, initial_model=options.initial_model)
            )
        except Exception as exc:  # noqa: BLE001 - carried to the thread that waits for the model
            built.set_exception(exc)

    def _resume(self, state: Checkpoint) -> None:
        """Go on after a committed state, with the round that was open then."""
        self._log.update(run=state.run_id)
        logger.info("Going on after round %d in %s.", state.round_number, self._folder.path)
        opened = self._folder.read_open_round(state)
        if opened is None:
            return
        logger.info(
            "Round %d was open; it goes on with the %d answers on disk and what the broker holds.",
            opened.record.round_number,
            len(opened.answers),
        )
        the_round = Round(opened.record, self._session.clock.now(), opened.answers)
        aggregate = self._new_aggregate(opened.record)
        if aggregate is not None:
            accepted = {worker: the_round.answers[worker].num_examples for worker in the_round.accepted}
            aggregate.restore(opened.arrays, {worker: n for worker, n in accepted.items() if n})
        self._live = self._living(the_round, aggregate)

    def _begin_with(self, built: Future[BuiltModel]) -> None:
        """Wait for the model, and commit it as round 0."""
        self._wait_until(built.done)
        model = built.result()
        refuse_other_rate(model.model_json, self._options.settings(1).learning_rate)
        self._state = self._first_state(model)
        self._folder.commit(self._state)
        self._save()
        for member in self._admission.members:
            self._admit(member)
        if self._options.rounds > 0:
            self._await_workers(self._options.workers, trained_on=model.inputs)

    def _first_state(self, model: BuiltModel) -> Checkpoint:
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self._log.update(run=run_id)
        logger.info("The model has %d parameters.", model.num_parameters)
        return Checkpoint(
            run_id=run_id,
            task=self._options.task.name,
            classes=(),
            round_number=0,
            next_attempt=1,
            model_json=model.model_json,
            input_shape=model.input_shape,
            num_classes=model.num_classes,
            layout=model.layout,
            vector=model.vector,
            integers=tuple(model.integers),
            strategy_state=first_states(self._tools.strategy, sections_of(model.layout).num_trainable),
            history=[Row(round=0)],
        )

    # --- who takes part ------------------------------------------------------------------------------------

    def _admit(self, member: Member) -> bool:
        """Look at a worker's word; one that can't take part is told. Whether it can."""
        reason = self._admission.consider(member, self._state)
        if reason is None:
            return member.task in (None, self._options.task.name)
        if self._session.is_lasting:
            logger.info("%s takes no part in this run: %s.", member.worker, reason)
            return False
        logger.warning("Refused %s: %s.", member.worker, reason)
        told = f"The coordinator refused {member.worker}: {reason}."
        refused = Refused(worker=member.worker, reason=told, token=member.token)
        self._session.publisher.try_send([outgoing(refused, names.worker_queue(member.worker))])
        return False

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
        while not self._has_workers(number, trained_on):
            present = self._admission.trainers
            if told is None or told[0] != present or time.monotonic() - told[1] > _TELL_SECONDS:
                told = (present, time.monotonic())
                names_of = f" ({listed(present)})" if present else ""
                logger.info("Waiting for workers: %d of %d joined%s.", len(present), number, names_of)
            if clock.now() >= deadline:
                raise QuorumNotReached(
                    f"Only {len(present)} of {number} workers joined within "
                    f"{self._options.deadline_seconds:g} s: {listed(present) or 'nobody'}. "
                    "Start more workers, or lower --workers."
                )
            if self._is_to_stop:
                raise RunStopped("Stopped while it waited for workers.")
            self._session.call_roll_if_due()
            self._turn()

    def _has_workers(self, number: int, trained_on: InputFacts | None) -> bool:
        if len(self._admission.trainers) < number:
            return False
        self._session.look_for_unseen()
        if len(self._admission.trainers) >= number and not self._committed.classes:
            self._settle_terms(trained_on)
        return len(self._admission.trainers) >= number

    def _settle_terms(self, trained_on: InputFacts | None) -> None:
        """What most of the first workers have becomes the run's: class names, and what the examples are like."""
        self._state = replace(self._committed, classes=self._admission.commonest_classes())
        self._admit_all()
        common = self._admission.common_inputs()
        if common and trained_on:
            words = "the workers' values", "the model was trained on ones"
            difference = scale_difference(common, trained_on, *words)
            if difference:
                logger.warning("Other data than before: %s.", difference)
        self._state = replace(self._committed, inputs=common)
        self._admit_all()

    def _admit_all(self) -> None:
        for member in self._admission.members:
            self._admit(member)

    def _await_reunion(self) -> None:
        """Nothing is left to train: after a restart wait a moment for those that took part and don't know it."""
        known = set(self._committed.history[-1].accepted)
        deadline = time.monotonic() + _REUNION_SECONDS
        while not known <= {each.worker for each in self._admission.members} and time.monotonic() < deadline:
            self._turn()

    # --- one round -----------------------------------------------------------------------------------------

    def _play_round(self, mode: Mode) -> None:
        live = self._live or self._open(mode)
        while True:
            step = live.round.next_step(self._session.clock.now())
            if step is Step.CLOSE:
                try:
                    self._close(live)
                except ModelDiverged as exc:
                    live = self._leave_out(live, str(exc))
                else:
                    return
            if step is Step.RETRY:
                live = self._retry(live)
            self._turn()

    def _open(self, mode: Mode) -> LiveRound:
        if mode == "train":
            self._await_workers(fewest_present(self._options))
        record = open_record(
            self._committed,
            self._options,
            self._admission,
            is_training=mode == "train",
            part_bytes=PART_BYTES,
        )
        the_round = Round(record, self._session.clock.now())
        return self._announce(self._living(the_round, self._new_aggregate(record)))

    def _new_aggregate(self, record: RoundRecord) -> Aggregate | None:
        """What a round's updates are collected in; nothing where it only measures."""
        if record.mode == "evaluate":
            return None
        layout, tools = self._committed.layout, self._tools
        return tools.strategy.collect(layout, record.scale_exponent, self._folder.updates, tools.spares)

    def _living(self, the_round: Round, aggregate: Aggregate | None) -> LiveRound:
        # The evaluation of model N is no round N + 1 to a person.
        shown = the_round.record.round_number - (the_round.record.mode == "evaluate")
        self._log.update(round=shown)
        return LiveRound(
            self._tools, self._committed, the_round, self._settings, self._options.rounds, aggregate
        )

    def _announce(self, live: LiveRound) -> LiveRound:
        """Let an attempt begin."""
        self._live = live
        tell_opened(live.round, self._options.rounds)
        live.send()
        return live

    def _retry(self, live: LiveRound) -> LiveRound:
        """Begin the next attempt: what was accepted stays, the rest are invited again.

        Raises:
            QuorumNotReached: No attempt is left.
        """
        the_round, record = live.round, live.record
        self._session.look_for_absent(the_round.unanswered)
        if not self._has_attempts(record):
            raise QuorumNotReached(why_not_reached(the_round))
        tell_retried(the_round)
        accepted = {worker: the_round.answers[worker] for worker in the_round.accepted}
        evaluators = tuple(self._admission.evaluators)
        next_record = the_round.next_attempt(reinvited(the_round, self._options, self._admission), evaluators)
        now = self._session.clock.now()
        return self._announce(live.again(Round(next_record, now, accepted), live.aggregate))

    def _has_attempts(self, record: RoundRecord) -> bool:
        return record.attempt - record.first_attempt < self._options.retries

    def _leave_out(self, live: LiveRound, reason: str) -> LiveRound:
        """With these updates the model fails: the one that made it so is rejected, and the others are asked again.

        Raises:
            ModelDiverged: It is no single one's fault, or no attempt is left; the last model stays.
        """
        the_round, record = live.round, live.record
        accepted = {worker: the_round.answers[worker] for worker in the_round.accepted}
        culprit = suspect(accepted)
        sizes = sizes_of(accepted)
        if culprit is None or not self._has_attempts(record):
            raise ModelDiverged(
                f"Round {record.round_number} is not committed: {reason}. Largest change of a weight: {sizes}. "
                f"The model of round {record.round_number - 1} stays. Try a lower --learning-rate."
            )
        why = f"with its update {reason} (largest changes: {sizes})"
        logger.warning("Round %d without %s: %s.", record.round_number, culprit, why)
        without = the_round.without(culprit, why, self._session.clock.now())
        if live.aggregate is not None:
            live.aggregate.end(self._tools.spares)
        return self._announce(live.again(without, self._new_aggregate(record)))

    def _close(self, live: LiveRound) -> None:
        """Commit the round: from here on it is closed for ever.

        Raises:
            ModelDiverged: Its model answers NaN; the round is open still.
        """
        seconds = live.round.seconds_open(self._session.clock.now())
        closed = live.closed(seconds, self._work_out)
        self._folder.commit(closed, self._check if live.aggregate else lambda _aside: None)
        self._state, self._live = closed, None
        live.end()
        tell_closed(live.round, closed.history, seconds)
        self._save()
        self._folder.write_history(closed.history, at_most_each_second=True)

    def _check(self, aside: Path) -> None:
        """Refuse to commit a model that no longer answers with numbers.

        Raises:
            ModelDiverged: It does not.
        """
        reason = self._models.check(aside, self._committed.inputs)
        if reason is not None:
            raise ModelDiverged(reason)

    def _work_out(self, sums: Mapping[str, Array]) -> Figures:
        return self._models.work_out(self._committed.model_json, sums)

    # --- what comes in -------------------------------------------------------------------------------------

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._turn()

    def _turn(self) -> None:
        """Take one event, or let a moment pass.

        Raises:
            Interrupted: `stop` was set.
            RunStopped: A person gave the run up.
        """
        if self._is_to_stop_now:
            raise RunStopped("Stopped in the middle of a round.")
        self._decide(self._session.next_event(self._patience()))
        if self._live is not None and self._session.single_reader.is_confirmed:
            self._live.look_after()

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
        elif self._admit(event.member):
            member = event.member
            again = "" if self._admission.is_new(member.worker) else " again"
            if event.is_news:
                logger.info("%s joined%s: %s.", member.worker, again, described(member))
            if self._live is not None:
                self._live.greet(member, takes_newcomers=self._options.fraction >= 1)

    def _take_update(self, event: UpdateCame) -> None:
        update, live = event.update, self._live
        with self._session.until_link_is_back():
            if live is not None and live.round.is_current(update):
                live.take(event.delivery, update)
                return
            logger.debug("Discarded an update of %s for round %d.", update.worker, update.round_number)
            self._session.link.ack([event.delivery])

    def _take_decline(self, event: DeclineCame) -> None:
        declined, live = event.declined, self._live
        key = (declined.run_id, declined.round_number)
        if live is not None and key == (live.record.run_id, live.record.round_number):
            live.decline(event.delivery, declined)
        else:
            self._session.link.ack([event.delivery])

    # --- what follows --------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Have model.keras and curves.png follow; the newest state wins."""
        state = self._committed
        if len(state.classes) < 2:
            return  # nobody has joined: there is nothing to say which class is which
        card = card_of(state, self._options.training)
        self._models.save(self._folder.checkpoint, self._folder.model, card)

    def _finish(self, outcome: Outcome | None) -> None:
        """Bring what follows beside the rounds up to date, and let the workers know."""
        try:
            if self._state is not None:
                self._tell_end(self._state, outcome)
                self._folder.write_history(self._state.history)
            if not self._models.flush(_SAVE_SECONDS):
                logger.error("The model was not saved within %g s.", _SAVE_SECONDS)
        except LinkLost:
            logger.warning("The broker is away; the workers learn of the end when they ask.")

    def _tell_end(self, state: Checkpoint, outcome: Outcome | None) -> None:
        if outcome is None:
            return  # the same command line goes on with this run: the workers stay
        session, workers = self._session, sorted(each.worker for each in self._admission.members)
        message = RunFinished(run_id=state.run_id, rounds=state.round_number, outcome=outcome)
        for group in groups_of(workers):
            session.publisher.send([addressed(message, group)])
        if session.is_lasting:
            self._tools.unacknowledged.release()  # of a round that will never close
        if (outcome == "done" or session.is_lasting) and state.vector.nbytes > INLINE_BYTES:
            for worker in workers:
                with session.until_link_is_back():
                    session.link.purge(names.upload_queue(worker))

    # --- what is seen of it --------------------------------------------------------------------------------

    def view(self) -> RunView:
        """What a person wants to know of it at this moment."""
        live, state, options = self._live, self._state, self._options
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
            settings=self._settings,
            strategy=options.strategy,
        )

    def _tell(self) -> str:
        members = self._session.roster.members.values()
        return status_json(describe(members, self._session.sightings, self.view()))

    @property
    def _settings(self) -> TrainingSettings:
        """How the workers train in the round that is open, or the next."""
        history = self._state.history if self._state else []
        return self._options.settings(len(history) or 1, epochs_before=sum(row.epochs for row in history))

    @property
    def _phase(self) -> Phase:
        if self._state is None:
            return "building"
        if self._live is None:
            return "waiting"
        return "training" if self._live.record.mode == "train" else "measuring"
