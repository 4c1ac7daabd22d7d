"""What comes in for the open round: updates judged, fetched and added, and what of that is on disk."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping

from broker.link.seam import Delivery
from broker.wire.messages import Declined, SwarmDeclined, UpdateAnnounced
from broker.wire.settings import Precision
from broker.wire.tensors import FLOAT32, INLINE_BYTES, Layout, sections_of
from broker.wire.transfer import Digest, item_bytes
from coordinator.folder.checkpoint import Checkpoint
from coordinator.learning.aggregation import examine, flaw_in_sum
from coordinator.learning.rounds import Round, RoundRecord, Verdict
from coordinator.learning.strategies import Aggregate, MeanAggregate
from coordinator.play.log_text import listed, told_of
from coordinator.play.open_round.fetching import Fetched, Fetcher
from coordinator.play.open_round.tools import Tools

logger = logging.getLogger(__name__)

_REASON_LENGTH = 2000
_REASONS_LENGTH = (
    4 * 2**20
)  #: of all in a round: a swarm that declines with long ones must not fill the checkpoint
_LEAST_REASON = 100
_MOST_LOOKED_AHEAD = 16  #: upload queues at a time
_MOST_TORN = 4  #: uploads of one worker in an attempt that were announced and not all there


class Taking:
    """What is collected in one attempt at a round.

    Args:
        tools: Of the run.
        base: The committed state that the round begins with.
        the_round: Its answers so far.
        aggregate: What its updates are collected in; None where it only measures.
        held_digest: Of the model that was sent.
        precision: What the updates are asked for in.
        ask_again: Has workers publish updates again, by their upload_ids.

    Attributes:
        staging: Memory of the size of a model, where each update is put together.
        update_bytes: What the accepted updates weighed on the wire.
    """

    def __init__(
        self,
        tools: Tools,
        base: Checkpoint,
        the_round: Round,
        aggregate: Aggregate | None,
        *,
        held_digest: str,
        precision: Precision,
        ask_again: Callable[[Mapping[str, str]], None],
        update_bytes: int = 0,
    ) -> None:
        self.round = the_round
        self.aggregate = aggregate
        self.update_bytes = update_bytes
        self._tools = tools
        self._base = base
        self._held_digest = held_digest
        self._ask_again = ask_again
        self.staging = tools.spares.take(sections_of(base.layout).size if aggregate else 0, FLOAT32)
        session = tools.session
        self._fetcher = Fetcher(
            session.link,
            session.validator,
            self.staging[: sections_of(base.layout).num_up],
            base.vector,
            base.layout,
            the_round.record.part_bytes,
            session.stop,
            session.roster,
            precision=precision,
            early=tools.early,
            is_audited=tools.folder.audit.is_kept,
        )
        self._unsaved: set[str] = set()  # whose answers the last checkpoint lacks
        self._num_torn: Counter[str] = Counter()
        self._next_ahead = 0

    @property
    def record(self) -> RoundRecord:
        """What is fixed."""
        return self.round.record

    def keep(self) -> None:
        """Fsync the round as it is."""
        arrays = self.aggregate.save() if self.aggregate else []
        self._tools.folder.keep_open(self.record, self.round.answers, arrays)
        self._unsaved.clear()

    def keep_if_due(self) -> None:
        """Write a checkpoint of what is held, and let the broker forget it: it gives no more than its prefetch."""
        unacknowledged = self._tools.unacknowledged
        if unacknowledged.is_due:
            self.keep()
            unacknowledged.release()

    def take(self, delivery: Delivery, update: UpdateAnnounced) -> None:
        """Judge an announced update, fetch it, add it, and hold its deliveries until a checkpoint covers them.

        Raises:
            LinkLost: The connection went away; the broker still has everything.
        """
        unacknowledged = self._tools.unacknowledged
        verdict, reason = self.round.judge(update, self._base.num_classes)
        if verdict is Verdict.DISCARDED or (update.base and update.base != self._held_digest):
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
            self._ask_again({update.worker: update.upload_id})
            unacknowledged.hold(delivery, fetched.deliveries)
            return
        largest, flaw = self._examined(update, fetched)
        reason = fetched.flaw or flaw if fetched.is_whole else "its parts were not there, time and again"
        verdict = Verdict.REJECTED if reason else Verdict.ACCEPTED
        self._bury_if_wrong(delivery, update, verdict, reason)
        unacknowledged.hold(delivery, fetched.deliveries)
        if verdict is Verdict.ACCEPTED:
            self._add(update, fetched)
            self._tools.folder.make_room()
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
            **told_of(self.record),
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
        self._tools.folder.audit.hold("declined", **told_of(self.record), **sender, reason=reason)
        now = self._tools.session.clock.now()
        for worker in workers:
            self.round.decline(worker, reason, now)
        self._unsaved.update(workers)
        self._tools.unacknowledged.hold(delivery)
        return True

    def _may_ask_again(self, worker: str) -> bool:
        self._num_torn[worker] += 1
        return self._num_torn[worker] < _MOST_TORN

    def look_ahead(self) -> None:
        """Nothing is to be done: take out what has been uploaded so far, of some workers after the other."""
        session = self._tools.session
        has_parts = self.aggregate is not None and self.staging.nbytes > INLINE_BYTES
        if not (has_parts and session.link.takes_messages):
            return
        trainers = [worker for worker in self.round.unanswered if self.round.trains(worker)]
        alone = [worker for worker in trainers if session.roster.is_alone(worker)]
        first = self._next_ahead if self._next_ahead < len(alone) else 0
        self._next_ahead = first + _MOST_LOOKED_AHEAD
        with session.until_link_is_back():
            for worker in alone[first : self._next_ahead]:
                self._fetcher.look_ahead(worker)


def shortened(reason: str, num_invited: int) -> str:
    """Why one of so many can't answer, as it is kept and told."""
    share = max(_LEAST_REASON, _REASONS_LENGTH // num_invited)
    return reason[: min(_REASON_LENGTH, share)]


def _travelled(precision: Precision, layout: Layout) -> int:
    """The bytes of an update's values on the wire."""
    sections = sections_of(layout)
    statistics = sections.num_up - sections.num_trainable
    return sections.num_trainable * item_bytes(precision) + statistics * FLOAT32.itemsize
