"""The rounds over the broker: invites workers, judges what they answer, commits, and goes on after any interruption."""

import json
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from broker import names
from broker.card import ModelCard
from broker.errors import Interrupted, LinkLost, ModelDiverged, QuorumNotReached, RunStopped
from broker.likeness import common_inputs, is_other_scale, scale_difference, shape_difference
from broker.link import Delivery, Link, outgoing, upload_queue
from broker.logs import LogContext
from broker.messages import (
    Declined,
    Mode,
    Outcome,
    Refused,
    RollCall,
    RoundClosed,
    RunFinished,
    TrainingSettings,
    UpdateAnnounced,
    UploadAgain,
)
from broker.tensors import FLOAT32, INLINE_BYTES, PART_BYTES, Array, InputFacts, Layout, Sections
from coordinator.aggregation import UpdateSum, capacity, examine, scale_exponent
from coordinator.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    OpenRound,
    read_checkpoint,
    read_open_round,
    write_checkpoint,
    write_open_round,
)
from coordinator.fetching import Fetcher
from coordinator.form import refuse_other_rate
from coordinator.history import Row, flat, row_of, with_measures, write_history
from coordinator.identity import keep_identity
from coordinator.invitations import Invitation, addressed, groups_of
from coordinator.journal import Journal
from coordinator.measures import Figures
from coordinator.membership import Member, Roster, num_selected, select
from coordinator.model_process import BuiltModel, ModelProcess
from coordinator.options import RunOptions
from coordinator.rounds import Round, RoundRecord, Step, Verdict, suspect
from coordinator.session import Session, Watch
from coordinator.strategies import first_states, next_weights
from coordinator.view import Phase, RunView, describe
from coordinator.wording import described, listed, measured, reasons

logger = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 0.5
_PRESENCE_SECONDS = 5.0
_ROLL_CALL_SECONDS = 30.0
_HISTORY_SECONDS = 1.0
_SAVE_SECONDS = 300.0
_REUNION_SECONDS = 5.0
_REASON_LENGTH = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended: its history, and where its model is."""

    history: list[Row]
    rounds: int
    num_dead: int
    is_stopped: bool = False


@dataclass(slots=True, kw_only=True)
class _Opened:
    """The open round with all that belongs to it."""

    round: Round
    total: UpdateSum | None
    invitation: Invitation
    fetcher: Fetcher
    update_bytes: int = 0


class Run:
    """One training over the broker; its folder holds everything that a later process needs to go on.

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
        self._link = link
        self._options = options
        self._models = models
        self._stop = stop
        self._log = log
        self._strategy = options.make_strategy()
        self._mail = self._session.mail
        self._inbox = self._session.inbox
        self._clock = self._session.clock
        self._journal = Journal(link)
        self._roster = Roster()  # of those who can take part in this run
        self._unfit: dict[str, str] = {}
        self._is_to_stop = self._is_to_stop_now = False
        self._opened: _Opened | None = None
        self._state: Checkpoint | None = None
        self._built: Future[BuiltModel] | None = None
        self._buffer = np.empty(0, FLOAT32)
        self._sums = np.empty(0, np.int64)
        self._asked: set[str] = set()
        self._odd: set[str] = set()
        self._trained_on: InputFacts | None = None
        self._presence_at = self._history_at = float("-inf")

    # --- the course of a run -------------------------------------------------------------------------------

    def play(self) -> Summary:
        """Play all rounds that are left, and measure the last model.

        Raises:
            QuorumNotReached: Too few workers joined or answered; the last closed round's model is saved.
            NameInUse: Another coordinator works on this virtual host.
            Interrupted: `stop` was set.
        """
        self._load()
        self._session.begin(self)
        for member in list(self._session.roster.members.values()):
            self._enrol(member)
        outcome: Outcome | None = "failed"
        try:
            self._prepare()
            while self._committed.round_number < self._options.rounds and not self._is_to_stop:
                self._play_round("train")
            self._await_reunion()
            if self._committed.round_number > 0 and not self._is_measured():
                self._play_round("evaluate")
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
            num_dead=self._inbox.num_dead,
            is_stopped=outcome == "stopped",
        )

    def stop_after_round(self, *, now: bool = False) -> None:
        """Let the run end after the round under way, or (`now`) give that round up; its last model is kept."""
        self._is_to_stop = True
        self._is_to_stop_now = self._is_to_stop_now or now

    def each_turn(self, act: Callable[[], None]) -> None:
        """Have something done at every turn of the loop, e.g. show how far the run is."""
        self._session.errand = act

    def view(self) -> RunView:
        """What a person wants to know of it at this moment."""
        opened, state, options = self._opened, self._state, self._options
        return RunView(
            folder=options.out.name,
            task=options.task.name,
            phase=self._phase,
            rounds=options.rounds,
            closed_rounds=state.round_number if state else 0,
            workers=options.workers,
            quorum=options.needed,
            classes=state.classes if state else (),
            record=opened.round.record if opened else None,
            answers=dict(opened.round.answers) if opened else {},
            seconds_open=opened.round.seconds_open(self._clock.now()) if opened else 0.0,
            update_bytes=opened.update_bytes if opened else 0,
            history=state.history if state else [],
            present=self._roster.trainers,
            unfit=dict(self._unfit),
            is_stopping=self._is_to_stop,
            settings=self._settings,
            strategy=options.strategy,
        )

    def _tell(self) -> str:
        members = self._session.roster.members.values()
        return json.dumps(describe(members, self._session.sightings, self.view()))

    @property
    def _settings(self) -> TrainingSettings:
        """How the workers train in the round that is open, or the next."""
        history = self._state.history if self._state else []
        return self._options.settings(len(history) or 1, epochs_before=sum(row.epochs for row in history))

    @property
    def _phase(self) -> Phase:
        if self._state is None:
            return "building"
        if self._opened is None:
            return "waiting"
        return "training" if self._opened.round.record.mode == "train" else "measuring"

    @property
    def _committed(self) -> Checkpoint:
        assert self._state is not None  # noqa: S101 - set by _prepare before any round
        return self._state

    def _load(self) -> None:
        """Take up what is on disk, before the first delivery comes; else have the model built meanwhile."""
        if (self._options.out / CHECKPOINT_FILE).exists():
            self._state = read_checkpoint(self._options.out)
            refuse_other_rate(self._state.model_json, self._options.settings(1).learning_rate)
        keep_identity(self._options, closed_rounds=self._state.round_number if self._state else 0)
        if self._state is not None:
            self._log.update(run=self._state.run_id)
            logger.info("Going on after round %d in %s.", self._state.round_number, self._options.out)
            self._resume()
        else:
            self._built = Future()
            threading.Thread(target=self._build, args=(self._built,), name="build", daemon=True).start()

    def _build(self, built: Future[BuiltModel]) -> None:
        options = self._options
        try:
            built.set_result(
                self._models.build(options.task, seed=options.seed, initial_model=options.initial_model)
            )
        except Exception as exc:  # noqa: BLE001 - carried to the thread that waits for the model
            built.set_exception(exc)

    def _resume(self) -> None:
        state = self._committed
        opened = read_open_round(self._options.out)
        is_open = opened is not None and (
            (opened.record.run_id, opened.record.round_number, opened.record.first_attempt)
            == (state.run_id, state.round_number + 1, state.next_attempt)
        )
        if opened is not None and is_open:
            logger.info(
                "Round %d was open; it goes on with the %d answers on disk and what the broker holds.",
                opened.record.round_number,
                len(opened.answers),
            )
            self._opened = self._attend(Round(opened.record, self._clock.now(), opened.answers), opened.total)

    def _prepare(self) -> None:
        """Have a model and enough workers, unless a round is open already."""
        if self._state is None:
            self._state = self._first_state()
            write_checkpoint(self._options.out, self._state)
            self._save()
        if self._opened is None and self._committed.round_number < self._options.rounds:
            self._await_workers(self._options.workers)

    def _await_reunion(self) -> None:
        """Nothing is left to train: after a restart wait a moment for those that took part and don't know it."""
        known = set(self._committed.history[-1].accepted)
        deadline = time.monotonic() + _REUNION_SECONDS
        while not known <= self._roster.members.keys() and time.monotonic() < deadline:
            self._turn()

    def _first_state(self) -> Checkpoint:
        built = self._built
        assert built is not None  # noqa: S101 - _load began it
        self._wait_until(built.done)
        model, self._built = built.result(), None
        self._trained_on = model.inputs
        refuse_other_rate(model.model_json, self._options.settings(1).learning_rate)
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self._log.update(run=run_id)
        logger.info("The model has %d parameters.", model.num_parameters)
        states = first_states(self._strategy, Sections(model.layout).num_trainable)
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
            strategy_state=states,
            history=[Row(round=0)],
        )

    def _await_workers(self, number: int) -> None:
        """Wait until so many workers that train are there.

        Raises:
            QuorumNotReached: They were not, at the deadline.
        """
        deadline = self._clock.now() + self._options.deadline_seconds
        told: tuple[int, int] | None = None
        while not self._has_workers(number):
            present = self._roster.trainers
            if told is None or told[0] != len(present) or time.monotonic() - told[1] > _ROLL_CALL_SECONDS:
                told = (len(present), int(time.monotonic()))
                logger.info(
                    "Waiting for workers: %d of %d joined%s.",
                    len(present),
                    number,
                    f" ({listed(present)})" if present else "",
                )
            if self._clock.now() >= deadline:
                raise QuorumNotReached(
                    f"Only {len(present)} of {number} workers joined within "
                    f"{self._options.deadline_seconds:g} s: {listed(present) or 'nobody'}. "
                    "Start more workers, or lower --workers."
                )
            if self._is_to_stop:
                raise RunStopped("Stopped while it waited for workers.")
            if time.monotonic() - self._session.roll_called_at >= _ROLL_CALL_SECONDS:
                self._session.call_roll()
            self._turn()

    def _has_workers(self, number: int) -> bool:
        """Whether enough are there; once they are, their commonest class names become the run's."""
        if len(self._roster.trainers) < number:
            return False
        self._session.look_for_unseen(self)
        if len(self._roster.trainers) < number:
            return False
        if not self._committed.classes:
            self._refuse_unfit()
            counts = Counter(self._roster.members[worker].classes for worker in self._roster.trainers)
            if len(self._roster.trainers) < number:
                return False
            self._state = replace(self._committed, classes=counts.most_common(1)[0][0])
            self._refuse_unfit()
            self._note_inputs()
            self._refuse_unfit()
        return len(self._roster.trainers) >= number

    def _refuse_unfit(self) -> None:
        for member in list(self._roster.members.values()):
            self._refuse_if_unfit(member)

    def _note_inputs(self) -> None:
        """What most sites' examples are like becomes the run's; said if the model was trained on others before."""
        members = self._roster.members
        common = common_inputs(
            {
                worker: facts
                for worker in self._roster.trainers
                if (facts := members[worker].inputs) is not None
            }
        )
        former = self._trained_on
        if common and former:
            words = "the workers' values", "the model was trained on ones"
            difference = scale_difference(common, former, *words)
            if difference:
                logger.warning("Other data than before: %s.", difference)
        self._state = replace(self._committed, inputs=common)

    def _is_measured(self) -> bool:
        return self._committed.history[-1].is_measured

    def _finish(self, outcome: Outcome | None) -> None:
        """Bring what follows beside the rounds up to date, and let the workers know."""
        try:
            if self._state is not None:
                self._tell_end(outcome)
                self._write_history()
            if not self._models.flush(_SAVE_SECONDS):
                logger.error("The model was not saved within %g s.", _SAVE_SECONDS)
        except LinkLost:
            logger.warning("The broker is away; the workers learn of the end when they ask.")

    def _write_history(self) -> None:
        write_history(self._options.out, self._committed.history)

    def _tell_end(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return  # the same command line goes on with this run: the workers stay
        state = self._committed
        message = RunFinished(run_id=state.run_id, rounds=state.round_number, outcome=outcome)
        for group in groups_of(sorted(self._roster.members)):
            self._mail.send([addressed(message, group)])
        if self._session.is_lasting:
            self._journal.release()  # of a round that will never close
        if outcome == "done" or self._session.is_lasting:
            for worker in self._roster.members:
                if state.vector.nbytes > INLINE_BYTES:
                    with self._session.until_link_is_back():
                        self._link.purge(names.upload_queue(worker))

    # --- one round -----------------------------------------------------------------------------------------

    def _play_round(self, mode: Mode) -> None:
        opened = self._opened or self._open(mode)
        while True:
            step = opened.round.next_step(self._clock.now())
            if step is Step.CLOSE:
                try:
                    self._close(opened)
                except ModelDiverged as exc:
                    opened = self._give_up_update(opened, str(exc))
                else:
                    return
            if step is Step.RETRY:
                opened = self._retry(opened)
            self._turn()

    def _open(self, mode: Mode) -> _Opened:
        if mode == "train":
            self._await_workers(self._fewest_present())
        state, options = self._committed, self._options
        number = state.round_number + 1
        trainers = self._roster.trainers
        fraction = options.fraction if mode == "train" else 1.0
        selected = select(trainers, fraction, (options.seed, number, state.next_attempt))
        evaluators = tuple(self._roster.evaluators)
        invited = selected + evaluators
        record = RoundRecord(
            run_id=state.run_id,
            round_number=number,
            first_attempt=state.next_attempt,
            attempt=state.next_attempt,
            mode=mode,
            selected=selected,
            evaluators=evaluators,
            num_examples={worker: self._roster.members[worker].num_examples for worker in invited},
            scale_exponent=scale_exponent(self._roster.num_examples(selected)),
            part_bytes=PART_BYTES,
            quorum=options.needed,
            deadline_seconds=options.deadline_seconds,
            grace_seconds=options.grace_seconds,
        )
        total = self._new_total(record) if mode == "train" else None
        opened = self._attend(Round(record, self._clock.now()), total)
        self._announce(opened)
        return opened

    def _new_total(self, record: RoundRecord) -> UpdateSum:
        """An empty sum, in the memory of the last one if that is free: fresh pages are dear."""
        layout, values, self._sums = self._committed.layout, self._sums, np.empty(0, np.int64)
        fits = values.size == Sections(layout).num_trainable
        return UpdateSum(layout, record.scale_exponent, values if fits else None)

    def _fewest_present(self) -> int:
        """The least number of present workers of which the fraction invites a quorum."""
        number = self._options.needed
        while num_selected(self._options.fraction, number) < self._options.needed:
            number += 1
        return number

    def _attend(self, the_round: Round, total: UpdateSum | None) -> _Opened:
        """Make ready what the round needs; nothing is sent."""
        record, state = the_round.record, self._committed
        self._log.update(round=record.round_number)
        sections = Sections(state.layout)
        if record.mode == "train" and self._buffer.size != sections.size:
            self._buffer = np.empty(sections.size, FLOAT32)
        staging = self._buffer[: sections.num_up]
        return _Opened(
            round=the_round,
            total=total,
            invitation=Invitation(record, state, self._settings, last_round=self._options.rounds),
            fetcher=Fetcher(self._link, self._inbox, staging, state.layout, record.part_bytes, self._stop),
        )

    def _announce(self, opened: _Opened) -> None:
        """Fsync the record, then let the round start go out to those who have not answered."""
        self._opened = opened
        self._asked.clear()
        self._write_open_round(opened)
        record, invited = opened.round.record, opened.round.unanswered
        again = f", attempt {record.attempt}" if record.attempt > record.first_attempt else ""
        if record.mode == "train":
            logger.info(
                "Round %d of %d%s: %s invited.",
                record.round_number,
                self._options.rounds,
                again,
                listed(invited),
            )
        else:
            logger.info(
                "Measuring the model of round %d: %s invited.", record.round_number - 1, listed(invited)
            )
        opened.invitation.send(self._mail, invited)
        self._presence_at = self._session.roll_called_at = time.monotonic()

    def _write_open_round(self, opened: _Opened) -> None:
        write_open_round(
            self._options.out,
            OpenRound(record=opened.round.record, answers=opened.round.answers, total=opened.total),
        )

    def _retry(self, opened: _Opened) -> _Opened:
        """Begin the next attempt: what was accepted stays, the rest are invited again.

        Raises:
            QuorumNotReached: No attempt is left.
        """
        the_round, options = opened.round, self._options
        record = the_round.record
        self._look_for_absent(the_round.unanswered)
        if record.attempt - record.first_attempt >= options.retries:
            raise QuorumNotReached(
                f"Round {record.round_number} has {the_round.num_accepted} of {record.quorum} updates after "
                f"{record.attempt - record.first_attempt + 1} attempts. No answer: "
                f"{listed(the_round.unanswered) or 'none'}; rejected: {reasons(the_round.rejected) or 'none'}. "
                f"The model of round {record.round_number - 1} is saved; the same command goes on from there."
            )
        logger.warning(
            "Round %d has %d of %d updates; trying again without waiting for %s.",
            record.round_number,
            the_round.num_accepted,
            record.quorum,
            listed(the_round.unanswered) or "anyone",
        )
        accepted = {worker: the_round.answers[worker] for worker in the_round.accepted}
        next_record = the_round.next_attempt(self._reinvited(the_round), tuple(self._roster.evaluators))
        again = self._attend(Round(next_record, self._clock.now(), accepted), opened.total)
        again.update_bytes = opened.update_bytes
        self._announce(again)
        return again

    def _give_up_update(self, opened: _Opened, reason: str) -> _Opened:
        """With these updates the model fails: the one that made it so is rejected, and the others are asked again.

        Raises:
            ModelDiverged: It is no single one's fault, or no attempt is left; the last model stays.
        """
        the_round, record = opened.round, opened.round.record
        accepted = {worker: the_round.answers[worker] for worker in the_round.accepted}
        culprit = suspect(accepted)
        sizes = ", ".join(f"{worker} {answer.largest:.3g}" for worker, answer in accepted.items())
        if culprit is None or record.attempt - record.first_attempt >= self._options.retries:
            raise ModelDiverged(
                f"Round {record.round_number} is not committed: {reason}. Largest change of a weight: {sizes[:500]}. "
                f"The model of round {record.round_number - 1} stays. Try a lower --learning-rate."
            )
        why = f"with its update {reason} (largest changes: {sizes[:500]})"
        logger.warning("Round %d without %s: %s.", record.round_number, culprit, why)
        again = self._attend(the_round.without(culprit, why, self._clock.now()), self._new_total(record))
        self._announce(again)
        return again

    def _reinvited(self, the_round: Round) -> dict[str, int]:
        """Who is invited to the next attempt: present workers that have not been accepted, as many as before."""
        record = the_round.record
        candidates = [worker for worker in self._roster.trainers if worker not in the_round.accepted]
        wanted = len(record.selected) - the_round.num_accepted
        if self._options.fraction < 1 and len(candidates) > wanted > 0:
            seed = (self._options.seed, record.round_number, record.attempt + 1)
            candidates = list(select(candidates, wanted / len(candidates), seed))
        fresh = {worker: self._roster.members[worker].num_examples for worker in candidates}
        room = capacity(record.scale_exponent) - sum(record.num_examples.values())
        chosen: dict[str, int] = {}
        for worker, number in fresh.items():
            extra = number - record.num_examples.get(worker, 0)
            if extra <= room:
                room -= extra
                chosen[worker] = number
        return chosen

    def _close(self, opened: _Opened) -> None:
        """Commit the round: from here on it is closed for ever."""
        the_round = opened.round
        seconds = the_round.seconds_open(self._clock.now())
        former, closed = self._committed, self._closed_state(opened, seconds)
        write_checkpoint(self._options.out, closed, self._check if opened.total else lambda _aside: None)
        self._state, self._opened = closed, None
        if opened.total is not None:
            # The staging buffer holds the new weights; the old ones make room. The next sum takes this one's memory:
            # fresh pages cost a third of a second with 100 MB.
            self._buffer, self._sums = former.vector, opened.total.values
        self._journal.release()
        self._tell_closed(the_round)
        self._after_commit(the_round, seconds)

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

    def _closed_state(self, opened: _Opened, seconds: float) -> Checkpoint:
        """What is to be committed; the new weights are computed in the staging buffer."""
        state, record = self._committed, opened.round.record
        history = with_measures(state.history, opened.round, self._work_out)
        if opened.total is None:
            return replace(state, next_attempt=record.attempt + 1, history=history)
        strategy_state = tuple(vector.copy() for vector in state.strategy_state)
        return replace(
            state,
            round_number=record.round_number,
            next_attempt=1,
            vector=next_weights(self._strategy, state.vector, opened.total, strategy_state, out=self._buffer),
            strategy_state=strategy_state,
            history=[*history, self._row_of(opened, seconds)],
        )

    def _row_of(self, opened: _Opened, seconds: float) -> Row:
        return row_of(
            opened.round,
            epochs=self._settings.epochs,
            update_bytes=opened.update_bytes,
            seconds=seconds,
            work_out=self._work_out,
        )

    def _tell_closed(self, the_round: Round) -> None:
        """Tell those whose update is not in; the others drop theirs at the next round start."""
        record, accepted = the_round.record, set(the_round.accepted)
        closed = RoundClosed(run_id=record.run_id, round_number=record.round_number)
        for group in groups_of([worker for worker in record.invited if worker not in accepted]):
            self._mail.send([addressed(closed, group)])
        late = the_round.unanswered
        if late and record.mode == "train":
            logger.warning("Late in round %d: %s.", record.round_number, listed(late))
        for worker in self._look_for_absent(late):
            with self._session.until_link_is_back():
                self._link.purge(names.worker_queue(worker))

    def _after_commit(self, the_round: Round, seconds: float) -> None:
        record, history = the_round.record, self._committed.history
        if record.mode == "train":
            logger.info(
                "Round %d closed after %.1f s with %d of %d updates%s.",
                record.round_number,
                seconds,
                the_round.num_accepted,
                len(record.selected),
                measured(history[-1].metrics),
            )
        last = history[-2] if record.mode == "train" else history[-1]
        if last.test:
            logger.info(
                "The model of round %d on the workers' test images%s.", last.round, measured(last.test)
            )
        if last.central:
            logger.info(
                "The model of round %d on the central test images%s.", last.round, measured(last.central)
            )
        self._save()
        if time.monotonic() - self._history_at > _HISTORY_SECONDS:
            self._history_at = time.monotonic()
            self._write_history()

    def _save(self) -> None:
        """Have model.keras and curves.png follow; the newest state wins."""
        state = self._committed
        last = state.history[-1]
        if len(state.classes) < 2:
            return  # nobody has joined: there is nothing to say which class is which
        card = ModelCard(
            task=state.task,
            classes=state.classes,
            run_id=state.run_id,
            round_number=state.round_number,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            num_examples=last.num_examples,
            shape=state.input_shape,
            metrics={name: value for name, value in flat(last).items() if isinstance(value, float)},
            training=self._options.training,
            inputs=state.inputs,
        )
        self._models.save(self._options.out / CHECKPOINT_FILE, self._options.out / "model.keras", card)

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
        self._session.turn(self, self._patience())
        if self._opened is not None and self._session.claim.is_held:
            self._look_after(self._opened)

    def _patience(self) -> float:
        if self._opened is None:
            return _LONGEST_WAIT_SECONDS / 5
        return min(_LONGEST_WAIT_SECONDS, self._opened.round.seconds_left(self._clock.now()) + 0.001)

    def on_update(self, delivery: Delivery, update: UpdateAnnounced) -> None:
        """Judge an announced update, fetch it, add it, and hold its deliveries until a checkpoint covers them."""
        opened = self._opened
        if opened is None or not opened.round.is_current(update):
            logger.debug("Discarded an update of %s for round %d.", update.worker, update.round_number)
            self._link.ack([delivery])
            return
        verdict, reason = opened.round.judge(update)
        largest = 0.0
        parts: list[Delivery] = []
        if verdict is Verdict.ACCEPTED and opened.round.trains(update.worker):
            fetched = opened.fetcher.fetch(update)
            parts = fetched.held
            if not fetched.is_whole:
                self._ask_again(update.worker, update.upload_id)
                self._journal.hold(delivery, parts)
                return
            largest, flaw = examine(opened.fetcher.out, self._committed.layout)
            reason = fetched.flaw or flaw
            verdict = Verdict.REJECTED if reason else Verdict.ACCEPTED
        if verdict is Verdict.REJECTED:
            self._inbox.bury(delivery, f"{update.worker}: {reason}")
        self._journal.hold(delivery, parts)
        if verdict is not Verdict.DISCARDED:
            self._settle(opened, update, verdict, reason, largest)

    def _settle(
        self, opened: _Opened, update: UpdateAnnounced, verdict: Verdict, reason: str | None, largest: float
    ) -> None:
        if verdict is Verdict.ACCEPTED and opened.total is not None and opened.round.trains(update.worker):
            opened.total.add(opened.fetcher.out, update.num_examples)
            opened.update_bytes += _travelled(update, self._committed.layout)
        opened.round.settle(update, verdict, reason, self._clock.now(), largest=largest)
        for roster in (self._roster, self._session.roster):
            roster.set_present(update.worker, is_present=True)
        logger.debug("%s: %s after %.1f s.", update.worker, verdict.value, update.seconds)

    def _ask_again(self, worker: str, upload_id: str) -> None:
        assert self._opened is not None  # noqa: S101 - asked for in an open round alone
        if self._look_for_absent([worker]):
            return  # it says again who it is when it is back; a queue made for it would be left behind
        logger.warning("The update of %s is not all there; asking for it again.", worker)
        record = self._opened.round.record
        again = UploadAgain(
            run_id=record.run_id, round_number=record.round_number, worker=worker, upload_id=upload_id
        )
        with self._session.until_link_is_back():
            self._link.declare([upload_queue(worker)])
            self._mail.send([outgoing(again, names.worker_queue(worker))])

    def on_declined(self, delivery: Delivery, declined: Declined) -> None:
        """Go on without a worker that can't answer."""
        opened = self._opened
        record = opened.round.record if opened else None
        key = (declined.run_id, declined.round_number)
        if opened and record and key == (record.run_id, record.round_number):
            if declined.attempt >= record.attempt and declined.worker not in opened.round.answers:
                logger.warning("%s can't answer: %s", declined.worker, declined.reason[:_REASON_LENGTH])
                opened.round.decline(declined.worker, declined.reason[:_REASON_LENGTH], self._clock.now())
            self._journal.hold(delivery)
        else:
            self._link.ack([delivery])

    def on_away(self, worker: str) -> None:
        """Count a worker as away."""
        self._roster.set_present(worker, is_present=False)

    def on_joined(self, member: Member, *, is_news: bool) -> None:
        """Let a worker take part, also in the open round."""
        was_known = member.worker in self._roster.members
        if not self._enrol(member):
            return
        if is_news:
            logger.info("%s joined%s: %s.", member.worker, " again" if was_known else "", described(member))
        if self._opened is not None:
            self._consider(self._opened, member)

    def _enrol(self, member: Member) -> bool:
        """Count a worker as one of this run's, if it can be; whether it is."""
        if member.task is not None and member.task != self._options.task.name:
            return False
        self._unfit.pop(member.worker, None)
        self._roster.add(member)
        return not self._refuse_if_unfit(member)

    def _refuse_if_unfit(self, member: Member) -> bool:
        """Send a worker away whose classes are not the run's or don't fit the model; whether it was."""
        state = self._state
        if state is None:
            return False
        reason = None
        if state.classes and member.classes != state.classes:
            reason = f"its classes are {listed(member.classes)}; this run's are {listed(state.classes)}"
        elif len(member.classes) != state.num_classes:
            reason = (
                f"it has {len(member.classes)} classes; the model of {state.task} has {state.num_classes}"
            )
        reason = reason or self._unlikeness(state, member)
        if reason is None:
            return False
        self._roster.remove(member.worker)
        self._unfit[member.worker] = reason
        if self._session.is_lasting:
            logger.info("%s takes no part in this run: %s.", member.worker, reason)
            return True
        logger.warning("Refused %s: %s.", member.worker, reason)
        told = f"The coordinator refused {member.worker}: {reason}."
        refused = Refused(worker=member.worker, reason=told, token=member.token)
        self._mail.try_send([outgoing(refused, names.worker_queue(member.worker))])
        return True

    def _unlikeness(self, state: Checkpoint, member: Member) -> str | None:
        """Why a worker's examples can't be of this run; what is merely odd about them is said once."""
        if member.inputs is None:
            return None
        flaw = shape_difference(member.inputs, state.input_shape)
        if flaw is not None or state.inputs is None:
            return flaw
        difference = scale_difference(member.inputs, state.inputs)
        if difference and is_other_scale(member.inputs, state.inputs, state.input_shape):
            return f"{difference}. Bring them to one scale at every site"
        if difference and member.worker not in self._odd:
            self._odd.add(member.worker)
            logger.warning("%s takes part, but %s.", member.worker, difference)
        return None

    def _consider(self, opened: _Opened, member: Member) -> None:
        """See to it that a worker that joined during a round takes part in it, once."""
        the_round, worker = opened.round, member.worker
        held = member.held
        record = the_round.record
        if worker in the_round.answers or held == opened.invitation.held:
            self._asked.discard(worker)
            if worker not in the_round.answers and member.announced is not None:
                # Its announcement would have come before this word: the queue lost it.
                self._ask_again(worker, member.announced)
            return
        if worker not in record.invited:
            if self._options.fraction < 1 or not self._has_room(record, member):
                return
            if self._look_for_absent([worker]):
                return  # its word had waited in the queue
            the_round.invite(worker, member.num_examples, evaluate_only=member.evaluate_only)
            self._write_open_round(opened)
        elif worker not in self._asked:
            # Its word may be older than the round start in its queue: asked now, it answers after that.
            self._asked.add(worker)
            self._mail.try_send([outgoing(RollCall(), names.worker_queue(worker), is_transient=True)])
            return
        self._asked.discard(worker)
        logger.info("Round %d is sent to %s.", record.round_number, worker)
        opened.invitation.send(self._mail, [worker])

    def _has_room(self, record: RoundRecord, member: Member) -> bool:
        invited = sum(record.num_examples[worker] for worker in record.selected)
        return member.evaluate_only or invited + member.num_examples <= capacity(record.scale_exponent)

    # --- looking after an open round -----------------------------------------------------------------------

    def _look_after(self, opened: _Opened) -> None:
        if self._journal.is_due:
            self._write_open_round(opened)
            self._journal.release()
        now = time.monotonic()
        if now - self._presence_at >= _PRESENCE_SECONDS:
            self._presence_at = now
            opened.round.note_away(frozenset(self._look_for_absent(opened.round.unanswered)))
        if now - self._session.roll_called_at >= _ROLL_CALL_SECONDS and opened.round.unanswered:
            self._session.call_roll()

    def _look_for_absent(self, workers: list[str]) -> list[str]:
        return self._session.look_for_absent(self, workers)


def _travelled(update: UpdateAnnounced, layout: Layout) -> int:
    """The bytes of an update's values on the wire."""
    sections = Sections(layout)
    item_bytes = {"float32": 4, "float16": 2, "int8": 1}[update.precision]
    return sections.num_trainable * item_bytes + (sections.num_up - sections.num_trainable) * FLOAT32.itemsize
