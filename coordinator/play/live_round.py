"""The open round with all that belongs to it: what was sent, what is collected, what the broker still holds for it."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from broker.allowance import Allowance
from broker.audit import named
from broker.link.seam import Delivery, outgoing
from broker.wire import names
from broker.wire.messages import Declined, RoundClosed, SwarmDeclined, UpdateAnnounced, UploadAgain
from broker.wire.settings import Precision, TrainingSettings
from broker.wire.tensors import FLOAT32, INLINE_BYTES, Layout, sections_of
from broker.wire.transfer import Digest
from coordinator.folder.checkpoint import Checkpoint
from coordinator.folder.history import row_of, with_measures, within_bounds
from coordinator.folder.run_folder import RunFolder
from coordinator.learning.aggregation import capacity, examine, flaw_in_sum
from coordinator.learning.measures import WorkOut
from coordinator.learning.membership import Member
from coordinator.learning.rounds import Round, RoundRecord, Verdict
from coordinator.learning.spares import Spares
from coordinator.learning.squeezing import Squeezing
from coordinator.learning.strategies import Aggregate, MeanAggregate, Strategy
from coordinator.play.fetching import EarlyParts, Fetched, Fetcher
from coordinator.play.log_text import listed
from coordinator.play.round_start import Invitation, each_addressed
from coordinator.play.unacknowledged import Unacknowledged
from coordinator.presence.broker_room import BrokerRoom
from coordinator.presence.seldom import Seldom
from coordinator.presence.session import Session

logger = logging.getLogger(__name__)

_PRESENCE_SECONDS = 5.0
_MOST_LOOKED_AFTER = 500  #: at once: nothing is read while so many queues are asked about
_REASON_LENGTH = 2000
_REASONS_LENGTH = (
    4 * 2**20
)  #: of all in a round: a swarm that declines with long ones must not fill the checkpoint
_LEAST_REASON = 100
_MOST_SENT = 5  #: round starts to one worker that says it has none, at once
_SENT_AGAIN_SECONDS = 30.0
_MOST_LOOKED_AHEAD = 16  #: upload queues at a time
_MOST_TORN = 4  #: uploads of one worker in an attempt that were announced and not all there
_ITEM_BYTES: dict[Precision, int] = {"float32": 4, "float16": 2, "int8": 1, "local32": 4, "local64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What every round of a run is played with; the room is None where nobody was invited."""

    session: Session
    folder: RunFolder
    unacknowledged: Unacknowledged
    strategy: Strategy
    spares: Spares
    room: BrokerRoom | None = None
    early: EarlyParts = field(default_factory=EarlyParts)
    squeezing: Squeezing = field(default_factory=Squeezing)


class LiveRound:
    """One attempt at a round.

    Args:
        tools: Of the run.
        base: The committed state that it begins with.
        the_round: Its answers so far.
        settings: How the workers train.
        last_round: The last one that is asked for.
        aggregate: What its updates are collected in; None where it only measures.

    Attributes:
        round: Who answered, and what is to be done next.
        update_bytes: What the accepted updates weighed on the wire.
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
        self.update_bytes = update_bytes
        self._tools = tools
        self._base = base
        self._settings = settings
        self._last_round = last_round
        self._invitation = Invitation(
            the_round.record, base, settings, last_round=last_round, squeezing=tools.squeezing
        )
        self._staging = tools.spares.take(sections_of(base.layout).size if aggregate else 0, FLOAT32)
        session = tools.session
        self._fetcher = Fetcher(
            session.link,
            session.validator,
            self._staging[: sections_of(base.layout).num_up],
            base.vector,
            base.layout,
            the_round.record.part_bytes,
            session.stop,
            session.roster,
            early=tools.early,
            is_audited=tools.folder.audit.is_kept,
        )
        self._asked: set[str] = set()
        self._unsaved: set[str] = set()  # whose answers the last checkpoint lacks
        self._num_torn: Counter[str] = Counter()
        self._sent = Allowance(_MOST_SENT, _SENT_AGAIN_SECONDS)
        self._next_ahead = 0
        self._presence = Seldom(_PRESENCE_SECONDS)
        self._presence.put_off()
        self._unlooked: list[str] = []  # whom this time has not come to yet
        self._away: set[str] = set()
        self._newcomers: dict[str, Member] = {}
        self._inviting = Seldom()

    @property
    def record(self) -> RoundRecord:
        """What is fixed."""
        return self.round.record

    def send(self) -> None:
        """Fsync the record, then let the round start go out to those who have not answered."""
        invited = named(self.round.unanswered)
        self._tools.folder.audit.hold("round-opened", **self._told, mode=self.record.mode, invited=invited)
        self.keep()
        self._invite(self.round.unanswered)
        self._presence.put_off()
        self._tools.session.roll_called_at = time.monotonic()

    @property
    def _told(self) -> dict[str, object]:
        """Which round this is, to the audit log."""
        record = self.record
        return {"run": record.run_id, "round": record.round_number, "attempt": record.attempt}

    def keep(self) -> None:
        """Fsync the round as it is."""
        arrays = self.aggregate.save() if self.aggregate else []
        self._tools.folder.keep_open(self.record, self.round.answers, arrays)
        self._unsaved.clear()

    # --- what comes in -------------------------------------------------------------------------------------

    def take(self, delivery: Delivery, update: UpdateAnnounced) -> None:
        """Judge an announced update, fetch it, add it, and hold its deliveries until a checkpoint covers them.

        Raises:
            LinkLost: The connection went away; the broker still has everything.
        """
        unacknowledged = self._tools.unacknowledged
        verdict, reason = self.round.judge(update, self._base.num_classes)
        if verdict is Verdict.DISCARDED or (update.base and update.base != self._invitation.held.digest):
            self._put_away(delivery, update.worker)
            return
        if verdict is not Verdict.ACCEPTED or not self.round.trains(update.worker):
            self._bury_if_wrong(delivery, update, verdict, reason)
            unacknowledged.hold(delivery)
            self._note(delivery, update, verdict, reason)
            self._settle(update, verdict, reason, 0.0)
            return
        fetched = self._fetcher.fetch(update)
        if not fetched.is_whole and self._may_ask_again(update.worker):
            self.ask_again({update.worker: update.upload_id})
            unacknowledged.hold(delivery, fetched.deliveries)
            return
        largest, flaw = self._examined(update, fetched)
        reason = fetched.flaw or flaw if fetched.is_whole else "its parts were not there, time and again"
        verdict = Verdict.REJECTED if reason else Verdict.ACCEPTED
        self._bury_if_wrong(delivery, update, verdict, reason)
        unacknowledged.hold(delivery, fetched.deliveries)
        if verdict is Verdict.ACCEPTED:
            self._add(update, fetched)
        self._note(delivery, update, verdict, reason, fetched.digest)
        self._settle(update, verdict, reason, largest)

    def _examined(self, update: UpdateAnnounced, fetched: Fetched) -> tuple[float, str | None]:
        """The largest value of an update, and why its values can't be accepted."""
        layout = self._base.layout
        if update.summed is None:
            return examine(fetched.vector, layout)
        if not isinstance(self.aggregate, MeanAggregate):
            return 0.0, "expected an update, got a sum"
        exponent = self.record.scale_exponent
        return update.summed.largest, flaw_in_sum(fetched.integers, layout, exponent, update.summed)

    def _add(self, update: UpdateAnnounced, fetched: Fetched) -> None:
        weight, layout = self.record.weight(update), self._base.layout
        if update.summed is not None and isinstance(self.aggregate, MeanAggregate):
            self.aggregate.add_sum(fetched.integers, weight)
            self.update_bytes += fetched.vector.nbytes
        elif self.aggregate is not None:
            self.aggregate.add(update.worker, fetched.vector, weight)
            self.update_bytes += _travelled(update.precision, layout)

    def _put_away(self, delivery: Delivery, *workers: str) -> None:
        """Acknowledge what changes nothing; but a repeat of an answer that is not on disk yet may be all there is."""
        if not self._unsaved.isdisjoint(workers):
            self._tools.unacknowledged.hold(delivery)
        else:
            self._tools.session.link.ack([delivery])

    def _note(
        self,
        delivery: Delivery,
        update: UpdateAnnounced,
        verdict: Verdict,
        reason: str | None,
        digest: Digest | None = None,
    ) -> None:
        """Tell the audit log of an answer; it is written before what rests on it."""
        self._tools.folder.audit.hold(
            f"update-{verdict.value}",
            **self._told,
            worker=update.worker,
            account=delivery.user_id,
            upload=update.upload_id,
            num_examples=update.num_examples,
            bytes=digest.num_bytes if digest else 0,
            sha256=digest.sha256 if digest else None,
            reason=reason,
        )

    def _bury_if_wrong(
        self, delivery: Delivery, update: UpdateAnnounced, verdict: Verdict, reason: str | None
    ) -> None:
        if verdict is Verdict.REJECTED:
            self._tools.session.validator.bury(delivery, f"{update.worker}: {reason}")

    def _settle(self, update: UpdateAnnounced, verdict: Verdict, reason: str | None, largest: float) -> None:
        session = self._tools.session
        self.round.settle(update, verdict, reason, session.clock.now(), largest=largest)
        self._unsaved.add(update.worker)
        session.roster.set_present(update.worker, is_present=True)
        logger.debug("%s: %s after %.1f s.", update.worker, verdict.value, update.seconds)

    def decline(self, delivery: Delivery, declined: Declined | SwarmDeclined) -> bool:
        """Go on without workers that can't answer; whether that is news, and not of an earlier attempt or a repeat."""
        is_old = declined.attempt < self.record.attempt
        workers = [] if is_old else list(filter(self.round.waits_for, declined.workers))
        if not workers:
            self._put_away(delivery, *declined.workers)
            return False
        reason = shortened(declined.reason, len(self.record.invited))
        logger.warning("%s can't answer: %s", listed(workers), reason)
        sender = {"worker": declined.worker, "account": delivery.user_id}
        self._tools.folder.audit.hold("declined", **self._told, **sender, reason=reason)
        now = self._tools.session.clock.now()
        for worker in workers:
            self.round.decline(worker, reason, now)
        self._unsaved.update(workers)
        self._tools.unacknowledged.hold(delivery)
        return True

    def _may_ask_again(self, worker: str) -> bool:
        self._num_torn[worker] += 1
        return self._num_torn[worker] < _MOST_TORN

    def ask_again(self, uploads: Mapping[str, str]) -> None:
        """Have workers publish updates again that are not all there.

        Args:
            uploads: The upload_id of each, by worker.
        """
        logger.warning("The update of %s is not all there; asking for it again.", listed(uploads))
        session = self._tools.session
        with session.until_link_is_back():
            for reader, workers in session.roster.by_reader(uploads).items():
                again = UploadAgain(
                    run_id=self.record.run_id,
                    round_number=self.record.round_number,
                    worker=reader,
                    upload_id=uploads[workers[0]] if len(workers) == 1 else "",
                )
                session.publisher.send(list(each_addressed(again, {reader: workers})))

    def greet(self, members: Iterable[Member], *, takes_newcomers: bool) -> None:
        """See to it that workers that joined during the round take part in it, once.

        Args:
            members: The workers of one process, fit for this run.
            takes_newcomers: Whether those who were not invited are.
        """
        torn: dict[str, str] = {}
        newcomers: list[Member] = []
        unasked: list[Member] = []
        without: list[str] = []
        for member in members:
            worker = member.worker
            is_answered = worker in self.round.answers
            if is_answered or member.held == self._invitation.held:
                self._asked.discard(worker)
                if not is_answered and member.announced is not None:
                    # Its announcement would have come before this word: the queue lost it.
                    torn[worker] = member.announced
            elif member.pause:
                continue  # it would decline; once it takes rounds again it says so
            elif not self.round.has_invited(worker):
                newcomers.append(member)
            elif worker not in self._asked:
                unasked.append(member)
            else:
                without.append(worker)
        if torn:
            self.ask_again(torn)
        if unasked:
            self._ask(unasked)
        if without:
            self._send_to(without)
        if takes_newcomers:
            self._newcomers |= {member.worker: member for member in newcomers}
            self._invite_newcomers()

    def _ask(self, members: Sequence[Member]) -> None:
        """Their word may be older than the round start in their queue: asked now, they answer after that."""
        reader, session = members[0].reader, self._tools.session
        if self._sent.take(reader):  # not a model for every word that a worker may say
            self._asked.update(member.worker for member in members)
            roll_call = outgoing(session.roll_call(), names.worker_queue(reader), is_transient=True)
            session.link.post(roll_call)  # ten thousand may be asked: none is waited for

    def _invite_newcomers(self) -> None:
        """Let who came meanwhile take part, all together: each time everyone who takes part is written down anew."""
        if self._newcomers and self._inviting.is_due:
            with self._inviting.doing():
                newcomers, self._newcomers = self._newcomers, {}
                if invited := self._invited_too(list(newcomers.values())):
                    self._send_to(invited)

    def _invited_too(self, members: Sequence[Member]) -> list[str]:
        """Invite more workers, as far as the sum has room for them, and their word had not waited in the queue."""
        record = self.record
        room = capacity(record.scale_exponent) - sum(map(record.reserved, record.selected))
        absent = set(self._tools.session.look_for_absent([member.worker for member in members]))
        chosen: list[Member] = []
        for member in members:
            if member.worker in absent:
                continue
            more = 0 if member.evaluate_only else member.weight(record.most_weight)
            if more <= room:
                room -= more
                chosen.append(member)
        if chosen:
            self.round.invite(chosen)
            self.keep()
        return [member.worker for member in chosen]

    def _send_to(self, workers: Sequence[str]) -> None:
        self._asked.difference_update(workers)
        logger.info("Round %d is sent to %s.", self.record.round_number, listed(workers))
        self._invite(workers)

    def _invite(self, workers: Iterable[str]) -> None:
        """Let the round start go out, once the broker has room for it and for what comes back."""
        session, room, record = self._tools.session, self._tools.room, self.record
        readers = session.roster.by_reader(workers)
        if room is not None:
            processes = {reader: session.roster.num_of_reader(them[0]) for reader, them in readers.items()}
            processes |= dict.fromkeys(readers.keys() & record.relays.keys(), 2)  # eight bytes a value
            room.make(self._base.layout, record.part_bytes, processes)
        self._invitation.send(session.publisher, readers, session.number, record, session.roster.models)

    # --- looking after it ----------------------------------------------------------------------------------

    def keep_if_due(self) -> None:
        """Write a checkpoint of what is held, and let the broker forget it: it gives no more than its prefetch."""
        unacknowledged = self._tools.unacknowledged
        if unacknowledged.is_due:
            self.keep()
            unacknowledged.release()

    def look_after(self) -> None:
        """What time asks for: who went away, who came, a roll call."""
        session = self._tools.session
        if self._presence.is_due:
            self._look_for_away()
        self._invite_newcomers()
        if not self.round.is_complete:
            session.call_roll_if_due()

    def look_ahead(self) -> None:
        """Nothing is to be done: take out what has been uploaded so far, of some workers after the other."""
        session = self._tools.session
        has_parts = self.aggregate is not None and self._staging.nbytes > INLINE_BYTES
        if not (has_parts and session.link.takes_messages):
            return
        trainers = [worker for worker in self.round.unanswered if self.round.trains(worker)]
        alone = [worker for worker in trainers if worker in session.roster.by_reader([worker])]
        first = self._next_ahead if self._next_ahead < len(alone) else 0
        self._next_ahead = first + _MOST_LOOKED_AHEAD
        with session.until_link_is_back():
            for worker in alone[first : self._next_ahead]:
                self._fetcher.look_ahead(worker)

    def _look_for_away(self) -> None:
        """Ask for some of those who have not answered, the others in turn: with many, all at once takes seconds."""
        left = self._unlooked or self.round.unanswered
        some, self._unlooked = left[:_MOST_LOOKED_AFTER], left[_MOST_LOOKED_AFTER:]
        with self._presence.doing(is_last=not self._unlooked):
            self._away.difference_update(some)
            self._away.update(self._tools.session.look_for_absent(filter(self.round.waits_for, some)))
            self.round.note_away(frozenset(self._away))

    # --- its end -------------------------------------------------------------------------------------------

    def again(self, the_round: Round, aggregate: Aggregate | None) -> "LiveRound":
        """The next attempt, with an aggregate that holds what its accepted answers add up to."""
        kept = self.update_bytes if aggregate is self.aggregate else 0
        self._tools.spares.give(self._staging)
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
        vector = self.aggregate.next_weights(base.vector, state, self._staging)
        rest = self._tools.squeezing.squeeze(
            vector,
            base.vector,
            base.rest,
            base.layout,
            held_digest=self._invitation.held.digest,
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
        self._tell_closed()

    def end_part(self) -> None:
        """A relay's part of a round is over: once that is on disk, acknowledge, and tell those who are not in it."""
        self.keep()
        self._tools.unacknowledged.release()
        self._tools.session.link.ack(self._tools.early.end())
        self._tell_closed()

    def _tell_closed(self) -> None:
        """The others drop their updates at the next round start."""
        session, accepted = self._tools.session, set(self.round.accepted)
        closed = RoundClosed(run_id=self.record.run_id, round_number=self.record.round_number)
        others = [worker for worker in self.record.invited if worker not in accepted]
        for word in each_addressed(closed, session.roster.by_reader(others)):
            session.publisher.send([word])
        self._purge(session.roster.by_reader(session.look_for_absent(self.round.unanswered)))

    def _purge(self, readers: Iterable[str]) -> None:
        """So that one that is away for long finds no old rounds."""
        for reader in readers:
            with self._tools.session.until_link_is_back():
                self._tools.session.roster.models.pop(reader, None)
                self._tools.session.link.purge(names.worker_queue(reader))


def shortened(reason: str, num_invited: int) -> str:
    """Why one of so many can't answer, as it is kept and told."""
    share = max(_LEAST_REASON, _REASONS_LENGTH // num_invited)
    return reason[: min(_REASON_LENGTH, share)]


def _travelled(precision: Precision, layout: Layout) -> int:
    """The bytes of an update's values on the wire."""
    sections = sections_of(layout)
    statistics = sections.num_up - sections.num_trainable
    return sections.num_trainable * _ITEM_BYTES[precision] + statistics * FLOAT32.itemsize
