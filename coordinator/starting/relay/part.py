"""A relay's part of a round: played below as it was opened above, and what is sent up of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from broker.errors import ModelError, QuorumNotReached, UsageError
from broker.wire.messages import RoundStart
from broker.wire.settings import RelayTerms, Summed
from broker.wire.tensors import Vector
from coordinator.folder.checkpoint import Checkpoint, OpenRound
from coordinator.learning.exact_sum import Integers
from coordinator.learning.measures import Measurement, together
from coordinator.learning.membership import Member, RelayShare
from coordinator.learning.rounds import Answer, Round, RoundRecord, Step
from coordinator.learning.strategies import FedAvg, MeanAggregate
from coordinator.play.log_text import listed, reasons
from coordinator.play.open_round.live_round import LiveRound
from coordinator.play.open_round.tools import Tools

_Counted = tuple[int, int, int]  #: examples, workers, weight

_SHARE_OF_DEADLINE = 0.9  #: of the one above: there must be time for the sum to travel


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """What a person asks of a relay.

    Attributes:
        name: What it is called above.
        out: Its folder; what it is at goes on there.
        workers: How many of its workers must be there, or it takes no round.
        quorum: Accepted updates that its sum rests on at least; None: all who are invited.
        deadline_seconds: After which it closes its part on the quorum, or declines; None: nine tenths of what is left
            above.
        grace_seconds: How long others are waited for once the quorum is there.

    Raises:
        UsageError: The quorum is above the workers.
    """

    name: str
    out: Path
    workers: int = 2
    quorum: int | None = None
    deadline_seconds: float | None = None
    grace_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.quorum is not None and self.quorum > self.workers:
            raise UsageError(
                f"Expected a --quorum of at most --workers, {self.workers}, got {self.quorum}: a round that "
                "it takes with so few could not be answered."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialSum:
    """What goes up.

    Attributes:
        integers: The sum, int64; None where the round only measures.
        num_examples: What the updates in it were trained on.
        training: How the training went, of all together.
        test: How good all together found the global model.
        seconds: Of the slowest.
    """

    integers: Integers | None
    summed: Summed
    num_examples: int
    training: Measurement
    test: Measurement
    seconds: float


class Part:
    """One round, as far as it is this relay's.

    Attributes:
        start: What was told above.
        live: The round below.
        is_over: It is closed: what is in it goes up, and nothing more comes in.
        failure: Why nothing can go up yet; another attempt above goes on with what was accepted.
    """

    def __init__(self, tools: Tools, start: RoundStart, weights: Vector) -> None:
        self.start = start
        self.is_over = False
        self.failure = ""
        self._tools = tools
        self._base = _base_of(start, weights)
        self.live: LiveRound

    def open(self, members: Iterable[Member], options: RelayOptions, former: RoundRecord | None) -> None:
        """Invite those of these that the coordinator above has counted.

        Args:
            members: Who is there, sorted.
            options: Of the relay.
            former: The round before: workers take no attempt for news that is not after those they know.

        Raises:
            ModelError: The coordinator above counts no relays.
            QuorumNotReached: Nobody is there, or fewer than the quorum.
        """
        terms = self.start.relay
        if terms is None:
            raise ModelError(
                "The coordinator above does not treat this as a relay: it may be an older Warren."
            )
        chosen = _within(terms, members)
        if len(chosen) < (options.quorum or 1):
            raise QuorumNotReached(
                f"{len(chosen)} of {options.quorum or 1} workers behind this relay take part in this round: the others "
                "came after they were counted."
            )
        shares = {member.worker: member.share(terms.most_weight) for member in chosen}
        attempt = _attempt_after(former, self.start)
        record = RoundRecord(
            run_id=self.start.run_id,
            round_number=self.start.round_number,
            first_attempt=attempt,
            attempt=attempt,
            mode=self.start.mode,
            selected=tuple(member.worker for member in chosen),
            evaluators=(),
            num_examples={member.worker: member.num_examples for member in chosen},
            scale_exponent=self.start.scale_exponent,
            part_bytes=self.start.part_bytes,
            quorum=options.quorum or len(chosen),
            deadline_seconds=options.deadline_seconds or _SHARE_OF_DEADLINE * self.start.deadline_seconds,
            grace_seconds=options.grace_seconds,
            most_weight=terms.most_weight,
            relays={worker: share for worker, share in shares.items() if share is not None},
        )
        self.live = self._living(Round(record, self._now()))
        self.live.send()

    def resume(self, opened: OpenRound) -> None:
        """Go on with what is on disk."""
        the_round = Round(opened.record, self._now(), opened.answers)
        self.live = self._living(the_round)
        if self.live.aggregate is not None:
            self.live.aggregate.restore(opened.arrays, the_round.weights)

    def _living(self, the_round: Round) -> LiveRound:
        tools, layout = self._tools, self._base.layout
        aggregate = None
        if the_round.record.mode == "train":
            exponent = the_round.record.scale_exponent
            aggregate = FedAvg().collect(layout, exponent, tools.folder.updates, tools.spares)
        return LiveRound(tools, self._base, the_round, self.start.settings, self.start.last_round, aggregate)

    def _now(self) -> float:
        return self._tools.session.clock.now()

    def is_of(self, start: RoundStart) -> bool:
        """Whether this is what another round start, or attempt, asks for."""
        ours, theirs = self.start, start
        return (ours.run_id, ours.round_number, ours.mode, ours.digest, ours.scale_exponent, ours.relay) == (
            theirs.run_id,
            theirs.round_number,
            theirs.mode,
            theirs.digest,
            theirs.scale_exponent,
            theirs.relay,
        )

    def try_again(self, members: Iterable[Member]) -> None:
        """What was accepted stays, and these are invited besides, as far as they were counted above."""
        the_round, self.failure = self.live.round, ""
        accepted = {worker: the_round.answers[worker] for worker in the_round.accepted}
        record, terms = the_round.record, self.start.relay
        taken = (
            _counted(record.num_examples[worker], record.relays.get(worker), record.most_weight)
            for worker in accepted
        )
        others = _within(terms, (member for member in members if member.worker not in accepted), taken)
        shares = {member.worker: member.share(record.most_weight) for member in others}
        again = the_round.next_attempt(
            {member.worker: member.num_examples for member in others},
            (),
            {worker: share for worker, share in shares.items() if share is not None},
        )
        self.live = self.live.again(Round(again, self._now(), accepted), self.live.aggregate)
        self.live.send()

    def step(self) -> bool:
        """Do what is to be done at this moment; whether that was the end of it, one way or the other."""
        the_round = self.live.round
        if self.is_over or self.failure:
            return False
        step = the_round.next_step(self._now())
        if step is Step.CLOSE and the_round.num_accepted:
            self.live.end_part()
            self.is_over = True
        elif step is not Step.WAIT:
            self.live.keep()
            self._tools.unacknowledged.release()
            self.failure = (
                f"{the_round.num_accepted} of {the_round.record.quorum} workers behind this relay answered. No answer: "
                f"{listed(the_round.unanswered) or 'none'}; rejected: {reasons(the_round.rejected) or 'none'}."
            )
        return step is not Step.WAIT

    def answer(self) -> PartialSum:
        """What goes up, once it is over."""
        the_round, aggregate = self.live.round, self.live.aggregate
        answers = [the_round.answers[worker] for worker in the_round.accepted]
        total = aggregate.total if isinstance(aggregate, MeanAggregate) else None
        trained = answers if total else []
        return PartialSum(
            integers=total.as_one if total else None,
            summed=Summed(
                num_workers=sum(map(_num_workers, answers)),
                weight=total.num_examples if total else 0,
                largest=max((answer.largest for answer in trained), default=0.0),
                scale_exponent=the_round.record.scale_exponent,
                is_fine=total is not None and bool(total.lows.size),
            ),
            num_examples=sum(answer.num_examples for answer in trained),
            training=together(answer.training for answer in trained),
            test=together(answer.test for answer in answers),
            seconds=max(answer.seconds for answer in answers),
        )


def _num_workers(answer: Answer) -> int:
    return answer.summed.num_workers if answer.summed else 1


def _within(
    terms: RelayTerms | None, members: Iterable[Member], taken: Iterable[_Counted] = ()
) -> list[Member]:
    """Those who fit into what was counted above: whoever came since waits for the next round.

    Args:
        terms: What was counted; None: nobody.
        members: Who is there.
        taken: What is in the sum already.
    """
    if terms is None:
        return []
    room = terms.num_examples, terms.num_workers, terms.weight
    for each in taken:
        room = _less(room, each)
    chosen: list[Member] = []
    for member in members:
        left = _less(room, _counted(member.num_examples, member.share(terms.most_weight), terms.most_weight))
        if min(left) >= 0:
            room = left
            chosen.append(member)
    return chosen


def _counted(num_examples: int, share: RelayShare | None, most_weight: int) -> _Counted:
    if share is None:
        return num_examples, 1, min(num_examples, most_weight)
    return num_examples, share.num_workers, share.weight


def _less(room: _Counted, taken: _Counted) -> _Counted:
    return room[0] - taken[0], room[1] - taken[1], room[2] - taken[2]


def _attempt_after(former: RoundRecord | None, start: RoundStart) -> int:
    is_same = former is not None and (former.run_id, former.round_number) == (
        start.run_id,
        start.round_number,
    )
    return max(start.attempt, former.attempt + 1) if former is not None and is_same else start.attempt


def _base_of(start: RoundStart, weights: Vector) -> Checkpoint:
    """What the round begins with, as far as it is told."""
    return Checkpoint(
        run_id=start.run_id,
        task=start.task,
        classes=start.classes,
        round_number=start.round_number - 1,
        next_attempt=start.attempt,
        model_json=start.model,
        input_shape=(),
        num_classes=len(start.classes),
        layout=start.layout,
        vector=weights,
        integers=start.integers,
        strategy_state=(),
        history=[],
        inputs=start.inputs,
        needs=start.needs,
        is_general=start.needs is not None,
    )
