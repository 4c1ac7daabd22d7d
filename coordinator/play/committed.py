"""The committed state of a run, which nothing takes back, and what follows it: its files, its model, its history."""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from broker.audit import named, sha256_aside
from broker.errors import ModelDiverged, UsageError
from broker.logs import LogContext
from broker.wire.messages import Outcome
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Array, InputFacts, as_bytes, sections_of
from coordinator.folder.checkpoint import Checkpoint, card_of
from coordinator.folder.history import Row
from coordinator.folder.run_folder import RunFolder
from coordinator.folder.run_index import time_text
from coordinator.folder.standing import Standing, Watch, standing_of
from coordinator.keras.arrays import asked_exactly, refuse_keras_settings
from coordinator.keras.form import compiled_rate, refuse_decay, refuse_other_rate
from coordinator.keras.process import BuiltModel, Models
from coordinator.learning.measures import Figures
from coordinator.learning.strategies import Strategy, first_states
from coordinator.options import RunOptions
from coordinator.play.open_round.live_round import LiveRound

logger = logging.getLogger(__name__)

_SAVE_SECONDS = 300.0


class Committed:
    """What one run has reached.

    Attributes:
        state: The newest one; None until there is a model.
        standing: The best round so far, and whether more are wanted.
    """

    def __init__(self, options: RunOptions, folder: RunFolder, models: Models, log: LogContext) -> None:
        self.state: Checkpoint | None = None
        self._options = options
        self._folder = folder
        self._models = models
        self._log = log
        self.standing = Standing()
        self._watch = Watch(target=options.target, patience=options.patience)
        self._keepsakes = folder.keepsakes(options.keep_every)
        self._compiled_rate: float | None = None
        self._audit = folder.audit

    def read(self) -> bool:
        """Take up what the folder holds; whether that is a run.

        Raises:
            UsageError: One of another task, strategy or seed, or whose model can't be trained with these settings.
            CheckpointError: It can't be read.
        """
        self.state = state = self._folder.read()
        if state is not None:
            self._check_settings(state.model_json)
        since = self._folder.keep_identity(self._options, state)
        if state is not None:
            self._log.update(run=state.run_id)
            logger.info("Going on after round %d in %s.", state.round_number, self._folder.path)
            self._audit.note("run-resumed", **self._told_of(state))
            self._watch = replace(self._watch, since=since)
            self.standing = standing_of(state.history, self._watch)
            self._keepsakes.take_up(self._model, self.standing, state.round_number)
        return state is not None

    def _check_settings(self, model_json: str) -> None:
        """Refuse settings that the model can't be trained with, and remember its own learning rate."""
        learning_rate = self._options.settings(1).learning_rate
        refuse_other_rate(model_json, learning_rate)
        refuse_decay(model_json, learning_rate, self._options.decay)
        refuse_keras_settings(model_json, self.settings)
        self._compiled_rate = compiled_rate(model_json)

    @property
    def present(self) -> Checkpoint:
        """The newest state, of a run that has a model."""
        assert self.state is not None  # noqa: S101 - there is one from `begin` or `read` on
        return self.state

    @property
    def settings(self) -> TrainingSettings:
        """How the workers train in the round that is open, or the next."""
        state = self.state
        history = state.history if state else []
        settings = self._options.settings(
            len(history) or 1,
            epochs_before=sum(row.epochs for row in history),
            compiled_rate=self._compiled_rate,
        )
        return asked_exactly(settings, state.model_json, state.layout) if state else settings

    def begin(self, model: BuiltModel, strategy: Strategy) -> None:
        """Commit a new model as round 0."""
        self._check_settings(model.model_json)
        self.state = self._first_state(model, strategy)
        if self.state.is_general:
            refuse_class_settings(self.settings)
        self._audit.hold("run-started", strategy=self._options.strategy, **self._told_of(self.state))
        self._folder.commit(self.state)
        self.save()

    def _first_state(self, model: BuiltModel, strategy: Strategy) -> Checkpoint:
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
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
            needs=model.needs,
            is_general=model.needs is not None and not model.num_classes,
            parts=model.parts,
            layout=model.layout,
            vector=model.vector,
            integers=tuple(model.integers),
            strategy_state=first_states(strategy, sections_of(model.layout).num_trainable),
            history=[Row(round=0, closed_at=time_text())],
        )

    def settle_as_general(self) -> None:
        """The model is trained on what it needs, and not as a classifier; on disk with the next commit.

        Raises:
            UsageError: The run weighs or picks examples by class.
        """
        refuse_class_settings(self.settings)
        self.state = replace(self.present, is_general=True)

    def settle_classes(self, classes: tuple[str, ...]) -> None:
        """The class names are these from now on; on disk with the next commit."""
        self.state = replace(self.present, classes=classes)

    def settle_inputs(self, inputs: InputFacts | None) -> None:
        """The examples are like this from now on; on disk with the next commit."""
        self.state = replace(self.present, inputs=inputs)

    def skip_to_attempt(self, attempt: int) -> None:
        """The earlier attempts at the next round have failed for good: nothing that answers them counts any more."""
        self.state = replace(self.present, next_attempt=attempt)
        self._folder.commit(self.state)

    def close(self, live: LiveRound, seconds: float, shut_out: Mapping[str, str]) -> Checkpoint:
        """Commit a round: from here on it is closed for ever.

        Args:
            live: The round.
            seconds: How long it was open.
            shut_out: Who could not take part, and why.

        Raises:
            ModelDiverged: Its model answers NaN; the round is open still.
        """
        closed = live.closed(seconds, self._work_out, shut_out)
        if live.aggregate:
            closed = _with_last(closed, replace(closed.history[-1], closed_at=time_text()))
        standing = standing_of(closed.history, self._watch)
        if standing.enough and live.aggregate and closed.round_number < self._options.rounds:
            closed = _with_last(closed, replace(closed.history[-1], stopped=standing.enough))
        self._keepsakes.hold(self._model, self.present.round_number, standing)
        # Arrays answer nothing by themselves: that they are finite numbers has been seen when they were computed.
        is_tried = live.aggregate is not None and not closed.is_arrays
        told = self._told_of(closed)  # worked out while the checkpoint is written
        self._folder.commit(closed, self._check if is_tried else lambda _aside: None)
        self._tell_unknown(standing)
        self.state, self.standing = closed, standing
        self._note_closed(live, seconds, shut_out, told)
        return closed

    def _note_closed(
        self, live: LiveRound, seconds: float, shut_out: Mapping[str, str], told: Mapping[str, object]
    ) -> None:
        """Tell the audit log of a round that is committed."""
        the_round = live.round
        self._audit.note(
            "round-closed",
            mode=the_round.record.mode,
            attempt=the_round.record.attempt,
            seconds=round(seconds, 3),
            accepted=named(the_round.accepted),
            late=named(the_round.unanswered),
            rejected=named(the_round.rejected),
            shut_out=named(shut_out),
            **told,
        )

    def _tell_unknown(self, standing: Standing) -> None:
        """Say once that no round tells what is to become better; the run goes on."""
        if standing.unknown and not self.standing.unknown:
            logger.warning(
                "No round tells %s, so --stop-when %s ends nothing: the run goes on to its last round. There are %s.",
                self._watch.target.measure if self._watch.target else "",
                self._options.stop_when,
                ", ".join(standing.unknown),
            )

    def follow(self) -> None:
        """Have the model, curves.png and the histories follow."""
        self.save()
        state = self.present
        self._folder.write_history(state.history, is_general=state.is_general, at_most_each_second=True)

    def save(self) -> None:
        """Have the model and curves.png follow; the newest state wins."""
        state = self.present
        if len(state.classes) < 2 and not (state.is_arrays or state.is_general):
            return  # nobody has joined: there is nothing to say which class is which
        card = card_of(self.present, self._options.training)
        self._models.save(self._folder.checkpoint, self._model, card)
        self._save_held()

    @property
    def _model(self) -> Path:
        """The newest model's file."""
        return self._folder.model(is_arrays=self.present.is_arrays)

    def _save_held(self) -> None:
        """Have the models follow that are kept for good."""
        for held in self._keepsakes.taken():
            card = card_of(self.present, self._options.training, held.round)
            self._models.save(held.checkpoint, held.model, card, is_held=True)

    def _told_of(self, state: Checkpoint) -> dict[str, object]:
        """Which model this is, to the audit log; its SHA-256 is worked out aside."""
        if not self._audit.is_kept:
            return {}
        model = as_bytes(state.vector)
        return {
            "folder": self._folder.path.name,
            "run": state.run_id,
            "task": state.task,
            "round": state.round_number,
            "bytes": len(model),
            "sha256": sha256_aside(model),
        }

    def give_up_room(self) -> None:
        """Nothing more will be committed."""
        self._folder.give_up_room()

    def finish(self, outcome: Outcome | None) -> None:
        """Wait until what follows is up to date.

        Args:
            outcome: How the run ended; None where it goes on later.
        """
        if self.state is not None:
            self._audit.note("run-ended", outcome=outcome or "interrupted", **self._told_of(self.state))
        if self.state is not None:
            self._keepsakes.hold_last(self._model, self.state.round_number, self.standing)
            self._save_held()
            self._models.draw_workers(self._folder.checkpoint, self._folder.path / "workers.png")
            self._folder.write_history(self.state.history, is_general=self.state.is_general)
        if not self._models.flush(_SAVE_SECONDS):
            logger.error("The model was not saved within %g s.", _SAVE_SECONDS)

    def _check(self, aside: Path) -> None:
        """Refuse to commit a model that no longer answers with numbers.

        Raises:
            ModelDiverged: It does not.
        """
        reason = self._models.check(aside, self.present.inputs)
        if reason is not None:
            raise ModelDiverged(reason)

    def _work_out(self, sums: Mapping[str, Array]) -> Figures:
        if self.present.is_arrays:
            return {}  # there is no metric object that knows what its sums mean
        return self._models.work_out(self.present.model_json, sums)


def _with_last(closed: Checkpoint, row: Row) -> Checkpoint:
    """The state with another row for its last round in its history."""
    return replace(closed, history=[*closed.history[:-1], row])


def refuse_class_settings(settings: TrainingSettings) -> None:
    """Whether a model without classes can be trained so.

    Raises:
        UsageError: It can't: nothing says which example is of which class.
    """
    for name, is_set in (
        ("--class-weight balanced", settings.class_weight != "none"),
        ("--examples-per-class", settings.examples_per_class is not None),
    ):
        if is_set:
            raise UsageError(
                f"The model is no classifier of class numbers, so {name} means nothing. Try without it."
            )
