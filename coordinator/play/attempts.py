"""Rounds opened, taken up again after a restart, and tried once more."""

import logging
from dataclasses import replace

from broker.errors import ModelDiverged, QuorumNotReached
from broker.logs import LogContext
from broker.wire.messages import Mode
from broker.wire.tensors import PART_BYTES
from coordinator.learning.rounds import Answer, Round, RoundRecord, suspect
from coordinator.learning.strategies import Aggregate
from coordinator.options import RunOptions
from coordinator.play.admission import Admission
from coordinator.play.committed import Committed
from coordinator.play.inviting import open_record, reinvited
from coordinator.play.log_text import told_of
from coordinator.play.open_round.live_round import LiveRound
from coordinator.play.open_round.tools import Tools
from coordinator.play.story import sizes_of, tell_opened, tell_retried, why_not_reached

logger = logging.getLogger(__name__)


class Attempts:
    """Makes the open round of a run; each attempt is a new one.

    Args:
        tools: Of the run.
        committed: What the rounds begin with.
        admission: Who may take part.
    """

    def __init__(
        self,
        tools: Tools,
        committed: Committed,
        options: RunOptions,
        admission: Admission,
        log: LogContext,
    ) -> None:
        self._tools = tools
        self._committed = committed
        self._options = options
        self._admission = admission
        self._log = log

    def resumed(self) -> LiveRound | None:
        """The round that was open when an earlier process ended, with the answers that are on disk."""
        opened = self._tools.folder.read_open_round(self._committed.present)
        if opened is None:
            return None
        logger.info(
            "Round %d was open; it goes on with the %d answers on disk and what the broker holds.",
            opened.record.round_number,
            len(opened.answers),
        )
        the_round = Round(opened.record, self._tools.session.clock.now(), opened.answers)
        aggregate = self._new_aggregate(opened.record)
        if aggregate is not None:
            aggregate.restore(opened.arrays, the_round.weights)
        return self._living(the_round, aggregate)

    def first(self, mode: Mode) -> LiveRound:
        """Open the next round, with those who are there."""
        record = open_record(
            self._committed.present,
            self._options,
            self._admission,
            is_training=mode == "train",
            part_bytes=PART_BYTES,
        )
        if any(number > record.most_weight for number in self._admission.declared(record.selected)):
            logger.info("No update weighs more than %d examples in this round.", record.most_weight)
        the_round = Round(record, self._tools.session.clock.now())
        return self._announced(self._living(the_round, self._new_aggregate(record)))

    def next(self, live: LiveRound) -> LiveRound:
        """Begin the next attempt: what was accepted stays, the rest are invited again.

        Raises:
            QuorumNotReached: No attempt is left.
        """
        the_round = live.round
        self._tools.session.look_for_absent(the_round.unanswered)
        accepted = {worker: the_round.answers[worker] for worker in the_round.accepted}
        if not self._has_more(live.record):
            self._leave(live, accepted)
            raise QuorumNotReached(why_not_reached(the_round))
        tell_retried(the_round)
        evaluators = tuple(self._admission.evaluators)
        invited = reinvited(the_round, self._options, self._admission)
        shares = self._admission.shares(invited, live.record.most_weight)
        next_record = the_round.next_attempt(invited, evaluators, shares)
        now = self._tools.session.clock.now()
        return self._announced(live.again(Round(next_record, now, accepted), live.aggregate))

    def without_culprit(self, live: LiveRound, reason: str) -> LiveRound:
        """With these updates the model fails: the one that made it so is rejected, and the others are asked again.

        Raises:
            ModelDiverged: It is no single one's fault, or no attempt is left; the last model stays.
        """
        the_round, record = live.round, live.record
        accepted = {worker: the_round.answers[worker] for worker in the_round.accepted}
        culprit = suspect(accepted)
        sizes = sizes_of(accepted)
        if culprit is None or not self._has_more(record):
            self._leave(live, {})
            raise ModelDiverged(
                f"Round {record.round_number} is not committed: {reason}. Largest change of a weight: {sizes}. "
                f"The model of round {record.round_number - 1} stays. Try a lower --learning-rate."
            )
        why = f"with its update {reason} (largest changes: {sizes})"
        logger.warning("Round %d without %s: %s.", record.round_number, culprit, why)
        self._tools.folder.audit.hold("update-rejected", **told_of(record), worker=culprit, reason=why)
        without = the_round.without(culprit, why, self._tools.session.clock.now())
        if live.aggregate is not None:
            # First on disk without them: what a kill in between would leave counts files that are gone.
            self._tools.folder.keep_open(without.record, without.answers, [])
            live.aggregate.end(self._tools.spares)
        return self._announced(live.again(without, self._new_aggregate(record)))

    def _leave(self, live: LiveRound, accepted: dict[str, Answer]) -> None:
        """No attempt is left. The same command, later, begins with a new one, and keeps what is accepted.

        What answers the former ones counts no longer: it would end the new one as it has ended these.
        """
        record, aggregate = live.record, live.aggregate
        number = record.attempt + 1
        arrays = aggregate.save() if accepted and aggregate is not None else []
        self._committed.skip_to_attempt(number)
        if accepted:
            later = replace(record, first_attempt=number, attempt=number)
            self._tools.folder.keep_open(later, accepted, arrays)
        self._tools.unacknowledged.release()

    def _has_more(self, record: RoundRecord) -> bool:
        return record.attempt - record.first_attempt < self._options.retries

    def _new_aggregate(self, record: RoundRecord) -> Aggregate | None:
        """What a round's updates are collected in; nothing where it only measures."""
        if record.mode == "evaluate":
            return None
        layout, tools = self._committed.present.layout, self._tools
        return tools.strategy.collect(layout, record.scale_exponent, tools.folder.updates, tools.spares)

    def _living(self, the_round: Round, aggregate: Aggregate | None) -> LiveRound:
        # The evaluation of model N is no round N + 1 to a person.
        shown = the_round.record.round_number - (the_round.record.mode == "evaluate")
        self._log.update(round=shown)
        committed, last_round = self._committed, self._options.rounds
        return LiveRound(self._tools, committed.present, the_round, committed.settings, last_round, aggregate)

    def _announced(self, live: LiveRound) -> LiveRound:
        """Let an attempt begin."""
        tell_opened(live.round, self._options.rounds)
        live.send()
        return live
