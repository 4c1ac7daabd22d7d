"""The open round with all that belongs to it: what was sent, what is collected, what the broker still holds for it."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from broker.audit import named
from broker.link.seam import Delivery
from broker.wire.messages import Declined, SwarmDeclined, UpdateAnnounced
from broker.wire.settings import TrainingSettings
from coordinator.folder.checkpoint import Checkpoint
from coordinator.folder.history import row_of, with_measures, within_bounds
from coordinator.learning.measures import WorkOut
from coordinator.learning.membership import Member
from coordinator.learning.rounds import Round, RoundRecord
from coordinator.learning.strategies import Aggregate
from coordinator.play.log_text import told_of
from coordinator.play.open_round.guests import Guests
from coordinator.play.open_round.round_start import Invitation
from coordinator.play.open_round.taking import Taking
from coordinator.play.open_round.tools import Tools


class LiveRound:
    """One attempt at a round: its guests, and what is taken of them.

    Args:
        tools: Of the run.
        base: The committed state that it begins with.
        the_round: Its answers so far.
        settings: How the workers train.
        last_round: The last one that is asked for.
        aggregate: What its updates are collected in; None where it only measures.
        update_bytes: What the accepted updates weighed on the wire.

    Attributes:
        round: Who answered, and what is to be done next.
    """

    def __init__(
        self,
        tools: Tools,
        base: Checkpoint,
        the_round: Round,
        settings: TrainingSettings,
        last_round: int,
        aggregate: Aggregate | None,
        update_bytes: int = 0,
    ) -> None:
        self.round = the_round
        self.aggregate = aggregate
        self._tools = tools
        self._base = base
        self._settings = settings
        self._last_round = last_round
        invitation = Invitation(
            the_round.record, base, settings, last_round=last_round, squeezing=tools.squeezing
        )
        self._held_digest = invitation.held.digest
        self._guests = Guests(tools, base, the_round, invitation, self.keep)
        self._taking = Taking(
            tools,
            base,
            the_round,
            aggregate,
            held_digest=self._held_digest,
            precision=settings.precision,
            ask_again=self._guests.ask_again,
            update_bytes=update_bytes,
        )

    @property
    def record(self) -> RoundRecord:
        """What is fixed."""
        return self.round.record

    @property
    def update_bytes(self) -> int:
        """What the accepted updates weighed on the wire."""
        return self._taking.update_bytes

    def send(self) -> None:
        """Fsync the record, then let the round start go out to those who have not answered."""
        invited = named(self.round.unanswered)
        told = told_of(self.record)
        self._tools.folder.audit.hold("round-opened", **told, mode=self.record.mode, invited=invited)
        self.keep()
        self._guests.invite_all()
        self._tools.session.roll_called_at = time.monotonic()

    def keep(self) -> None:
        """Fsync the round as it is."""
        self._taking.keep()

    def take(self, delivery: Delivery, update: UpdateAnnounced) -> None:
        """Judge an announced update, fetch it, add it, and hold its deliveries until a checkpoint covers them.

        Raises:
            LinkLost: The connection went away; the broker still has everything.
        """
        self._taking.take(delivery, update)

    def decline(self, delivery: Delivery, declined: Declined | SwarmDeclined) -> bool:
        """Go on without workers that can't answer; whether that is news, and not of an earlier attempt or a repeat."""
        return self._taking.decline(delivery, declined)

    def greet(self, members: Iterable[Member], *, takes_newcomers: bool) -> None:
        """See to it that workers that joined during the round take part in it, once.

        Args:
            members: The workers of one process, fit for this run.
            takes_newcomers: Whether those who were not invited are.
        """
        self._guests.greet(members, takes_newcomers=takes_newcomers)

    # --- looking after it ----------------------------------------------------------------------------------

    def keep_if_due(self) -> None:
        """Write a checkpoint of what is held, and let the broker forget it: it gives no more than its prefetch."""
        self._taking.keep_if_due()

    def look_after(self) -> None:
        """What time asks for: who went away, who came, a roll call."""
        self._guests.look_after()
        if not self.round.is_complete:
            self._tools.session.call_roll_if_due()

    def look_ahead(self) -> None:
        """Nothing is to be done: take out what has been uploaded so far, of some workers after the other."""
        self._taking.look_ahead()

    # --- its end -------------------------------------------------------------------------------------------

    def again(self, the_round: Round, aggregate: Aggregate | None) -> "LiveRound":
        """The next attempt, with an aggregate that holds what its accepted answers add up to."""
        kept = self.update_bytes if aggregate is self.aggregate else 0
        self._tools.spares.give(self._taking.staging)
        return LiveRound(
            self._tools, self._base, the_round, self._settings, self._last_round, aggregate, kept
        )

    def closed(self, seconds: float, work_out: WorkOut, shut_out: Mapping[str, str]) -> Checkpoint:
        """What is to be committed; the new weights are computed in the staging memory, and are its owner then.

        Args:
            seconds: How long it was open.
            work_out: See `measures.pooled`.
            shut_out: Who could not take part, and why.

        Raises:
            ModelDiverged: The step gives NaN or infinity.
        """
        base = self._base
        history = with_measures(base.history, self.round, work_out)
        if self.aggregate is None:
            return replace(base, next_attempt=self.record.attempt + 1, history=history)
        state = tuple(vector.copy() for vector in base.strategy_state)
        row = row_of(
            self.round,
            epochs=self._settings.epochs,
            update_bytes=self.update_bytes,
            seconds=seconds,
            work_out=work_out,
        )
        row = replace(
            row,
            rejected=row.rejected | {who: why for who, why in shut_out.items() if who not in row.accepted},
        )
        vector = self.aggregate.next_weights(base.vector, state, self._taking.staging)
        rest = self._tools.squeezing.squeeze(
            vector,
            base.vector,
            base.rest,
            base.layout,
            held_digest=self._held_digest,
            part_bytes=self.record.part_bytes,
            round_number=self.record.round_number,
        )
        return replace(
            base,
            round_number=self.record.round_number,
            next_attempt=1,
            vector=vector,
            rest=rest,
            strategy_state=state,
            history=within_bounds([*history, row]),
        )

    def end(self) -> None:
        """It is committed: acknowledge what it held, give memory back, and tell those whose update is not in."""
        if self.aggregate is not None:
            self.aggregate.end(self._tools.spares)
            self._tools.spares.give(self._base.vector)  # the staging memory holds the new weights
            self._tools.squeezing.give_back(self._base.rest)
        self._tools.unacknowledged.release()
        self._tools.session.link.ack(self._tools.early.end())
        self._guests.tell_closed()

    def end_part(self) -> None:
        """A relay's part of a round is over: once that is on disk, acknowledge, and tell those who are not in it."""
        self.keep()
        self._tools.unacknowledged.release()
        self._tools.session.link.ack(self._tools.early.end())
        self._guests.tell_closed()
