"""One round as a state machine: each answer is judged before anything changes, and time is passed in.

opened → answers → closed   all selected have answered, or the quorum is there and its grace has run out,
                            or the deadline has come with the quorum
                 → retried  the deadline has come without the quorum: attempt + 1 keeps what was accepted
                 → failed   no attempt is left
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

import numpy as np

from broker.errors import ProtocolError
from broker.wire.limits import MOST_EXAMPLES, require_measures
from broker.wire.messages import Mode, UpdateAnnounced
from broker.wire.scores import AnswerCounts, flaw_in_counts
from broker.wire.settings import Summed
from broker.wire.tensors import Array
from coordinator.learning.aggregation import LIMIT
from coordinator.learning.measures import Measurement
from coordinator.learning.membership import Member, RelayShare

_LARGEST_MEASURE = 3.4e38  #: of float32, in which it was computed; sums of such over all examples are finite
_LARGEST_SUM = 1e100  #: of what a metric keeps: a thousand workers' sums are finite
_SHOWN_VALUES = 8
_FAR_LARGER = 30.0  #: times; honest updates of one round are of one size, give or take what their data do
_MOST_STATES = 1 << 14  #: values that one metric may keep: an AUC has 800


class Verdict(Enum):
    """What becomes of an announced update. A verdict never acknowledges by itself."""

    ACCEPTED = "accepted"
    DISCARDED = "discarded"  #: right, but late, repeated, or of another round: normal
    REJECTED = "rejected"  #: wrong: copied to `dead`, counted and shown, never any part of it in the mean


class Step(Enum):
    """What a round wants next."""

    WAIT = "wait"
    CLOSE = "close"
    RETRY = "retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What is fixed when a round opens; a restarted coordinator goes on with exactly this.

    Attributes:
        first_attempt: Announcements of earlier attempts are of a round of the same number that was given up.
        selected: Workers that train (in an evaluation round: that evaluate).
        evaluators: Workers that only evaluate; they never count towards the quorum.
        num_examples: What each invited worker declared; its update may not claim more.
        scale_exponent: See `aggregation.scale_exponent`.
        most_weight: In examples; what an update was trained on beyond that doesn't count.
        relays: The invited relays, each with what it is counted with.
    """

    run_id: str
    round_number: int
    first_attempt: int
    attempt: int
    mode: Mode
    selected: tuple[str, ...]
    evaluators: tuple[str, ...]
    num_examples: dict[str, int]
    scale_exponent: int
    part_bytes: int
    quorum: int
    deadline_seconds: float
    grace_seconds: float
    most_weight: int = MOST_EXAMPLES
    relays: dict[str, RelayShare] = field(default_factory=dict)

    def weight(self, answer: "Answer | UpdateAnnounced") -> int:
        """How much an accepted update weighs in the mean."""
        return min(answer.num_examples, self.most_weight) if answer.summed is None else answer.summed.weight

    def reserved(self, worker: str) -> int:
        """How much the update of an invited worker may weigh."""
        share = self.relays.get(worker)
        return min(self.num_examples.get(worker, 0), self.most_weight) if share is None else share.weight

    @property
    def invited(self) -> tuple[str, ...]:
        """Everyone who was sent the round start."""
        return self.selected + self.evaluators


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How one worker answered.

    Attributes:
        upload_id: Of the update that settled it; empty when the worker declined.
        reason: Why it was rejected or declined.
        largest: The largest |Δ| of its update: whose it was, should the model fail.
        summed: Of a relay, whose update is its workers' sum.
    """

    upload_id: str
    verdict: Verdict
    num_examples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    states: dict[str, Array] = field(default_factory=dict)
    global_metrics: dict[str, float] = field(default_factory=dict)
    global_states: dict[str, Array] = field(default_factory=dict)
    counts: AnswerCounts | None = None
    num_test_examples: int = 0
    seconds: float = 0.0
    reason: str | None = None
    largest: float = 0.0
    summed: Summed | None = None

    @property
    def _num_workers(self) -> int:
        return 1 if self.summed is None else self.summed.num_workers

    @property
    def training(self) -> Measurement:
        """How its training went."""
        return Measurement(
            num_examples=self.num_examples,
            metrics=self.metrics,
            states=self.states,
            num_workers=self._num_workers,
        )

    @property
    def test(self) -> Measurement:
        """How good it found the global model that the round began with."""
        return Measurement(
            num_examples=self.num_test_examples,
            metrics=self.global_metrics,
            states=self.global_states,
            counts=self.counts,
            num_workers=self._num_workers,
        )


class Round:
    """The answers to one round start."""

    def __init__(self, record: RoundRecord, now: float, answers: Mapping[str, Answer] | None = None) -> None:
        self.answers: dict[str, Answer] = dict(answers or {})
        self._away: frozenset[str] = frozenset()
        self._seat(record)
        self._opened_at = now
        self._quorum_at = now if self.has_quorum else None

    def _seat(self, record: RoundRecord) -> None:
        """Take a record, and know at once who is in it, and who has not answered: there may be ten thousand."""
        self.record = record
        self._selected = frozenset(record.selected)
        self._invited = frozenset(record.invited)
        self._unanswered = dict.fromkeys(each for each in record.invited if each not in self.answers)
        self._num_accepted = len(self._selected.intersection(self.accepted))

    @property
    def accepted(self) -> list[str]:
        """Workers whose answer counts, in order of acceptance."""
        return [worker for worker, answer in self.answers.items() if answer.verdict is Verdict.ACCEPTED]

    @property
    def rejected(self) -> dict[str, str]:
        """Workers whose answer was wrong, with the reason."""
        return {
            worker: answer.reason or ""
            for worker, answer in self.answers.items()
            if answer.verdict is Verdict.REJECTED
        }

    @property
    def unanswered(self) -> list[str]:
        """Invited workers without an answer."""
        return list(self._unanswered)

    @property
    def is_complete(self) -> bool:
        """Whether all who are invited have answered."""
        return not self._unanswered

    def waits_for(self, worker: str) -> bool:
        """Whether this one is invited and has not answered."""
        return worker in self._unanswered

    def has_invited(self, worker: str) -> bool:
        """Whether this one is invited."""
        return worker in self._invited

    @property
    def num_accepted(self) -> int:
        """Accepted answers that count towards the quorum: of those that train, not of an evaluator that has left."""
        return self._num_accepted

    @property
    def has_quorum(self) -> bool:
        """Whether enough answers were accepted to close."""
        return self.num_accepted >= self.record.quorum

    def is_current(self, update: UpdateAnnounced) -> bool:
        """Whether this announcement belongs to this round at all."""
        return (update.run_id, update.round_number) == (self.record.run_id, self.record.round_number) and (
            update.attempt >= self.record.first_attempt
        )

    def judge(self, update: UpdateAnnounced, num_classes: int) -> tuple[Verdict, str | None]:
        """Judge an announcement by its form, before its parts are fetched; changes nothing.

        Args:
            update: As it came over the wire.
            num_classes: The model's.
        """
        if not self.is_current(update) or update.worker in self.answers:
            return Verdict.DISCARDED, None
        if not self.has_invited(update.worker):
            return Verdict.DISCARDED, None
        flaw = self._flaw_in(update, num_classes)
        return (Verdict.REJECTED, flaw) if flaw else (Verdict.ACCEPTED, None)

    def trains(self, worker: str) -> bool:
        """Whether this round takes an update of weights from this worker."""
        return self.record.mode == "train" and worker in self._selected

    def _flaw_in(self, update: UpdateAnnounced, num_classes: int) -> str | None:
        trains = self.trains(update.worker)
        declared = self.record.num_examples.get(update.worker, 0)
        if trains and not 1 <= update.num_examples <= declared:
            return f"expected 1 to {declared} examples as declared, got {update.num_examples}"
        if not trains and (update.parts or update.update is not None or update.num_examples):
            return "expected metrics alone, got weights, or examples that they were trained on"
        return self._flaw_in_share(update) or _flaw_in_measures(update, num_classes)

    def _flaw_in_share(self, update: UpdateAnnounced) -> str | None:
        """A sum is taken of a relay, and of it nothing else; it weighs no more than it was counted with."""
        share, summed = self.record.relays.get(update.worker), update.summed
        if share is None or summed is None:
            return (
                None
                if share is None and summed is None
                else "expected an update of a worker, or a sum of a relay, got the other"
            )
        lowest, most = (1, share.weight) if self.trains(update.worker) else (0, 0)
        fits = lowest <= summed.weight <= most and 1 <= summed.num_workers <= share.num_workers
        if summed.scale_exponent != self.record.scale_exponent:
            return f"expected a sum of the scale 2^{self.record.scale_exponent}, got one of 2^{summed.scale_exponent}"
        if fits and 0 <= summed.largest <= LIMIT:
            return None
        return f"expected a sum of {share.num_workers} workers that weighs {lowest} to {most}, got {summed}"

    def settle(
        self,
        update: UpdateAnnounced,
        verdict: Verdict,
        reason: str | None,
        now: float,
        *,
        largest: float = 0.0,
    ) -> None:
        """Take a judged announcement as this worker's one answer."""
        self._answer(
            update.worker,
            Answer(
                upload_id=update.upload_id,
                verdict=verdict,
                num_examples=update.num_examples,
                metrics=update.metrics,
                states=update.states,
                global_metrics=update.global_metrics,
                global_states=update.global_states,
                counts=update.counts,
                num_test_examples=update.num_test_examples,
                seconds=update.seconds,
                reason=reason,
                largest=largest,
                summed=update.summed,
            ),
            now,
        )

    def decline(self, worker: str, reason: str, now: float) -> None:
        """Take a worker's word that it can't answer."""
        if self.waits_for(worker):
            declined = Answer(upload_id="", verdict=Verdict.REJECTED, reason=reason)
            self._answer(worker, declined, now)

    def _answer(self, worker: str, answer: Answer, now: float) -> None:
        self.answers[worker] = answer
        self._unanswered.pop(worker, None)
        self._num_accepted += answer.verdict is Verdict.ACCEPTED and worker in self._selected
        if self._quorum_at is None and self.has_quorum:
            self._quorum_at = now

    def invite(self, members: Sequence[Member]) -> None:
        """Let more workers take part."""
        record = self.record
        more = {member.worker: member.num_examples for member in members}
        shares = {member.worker: member.share(record.most_weight) for member in members}
        record = replace(
            record,
            selected=(*record.selected, *(each.worker for each in members if not each.evaluate_only)),
            evaluators=(*record.evaluators, *(each.worker for each in members if each.evaluate_only)),
            num_examples={**record.num_examples, **more},
            relays=record.relays | {worker: share for worker, share in shares.items() if share},
        )
        self._seat(record)

    def note_away(self, workers: frozenset[str]) -> None:
        """Say which unanswered workers nobody reads for; an evaluation does not wait for these."""
        self._away = workers

    def next_step(self, now: float) -> Step:
        """What is to be done at this moment."""
        if self._all_answered() and (self.has_quorum or self.record.mode == "evaluate"):
            return Step.CLOSE
        if self._quorum_at is not None and now >= self._quorum_at + self.record.grace_seconds:
            return Step.CLOSE
        # With nobody left to answer, another attempt helps only those that could not; else one who joins is awaited.
        is_hopeless = self._all_answered() and bool(self.rejected)
        if is_hopeless or now >= self._opened_at + self.record.deadline_seconds:
            return self._step_at_deadline()
        return Step.WAIT

    def _all_answered(self) -> bool:
        if self.record.mode == "evaluate" and len(self._unanswered) <= len(self._away):
            return not self._unanswered.keys() - self._away
        return not self._unanswered

    def _step_at_deadline(self) -> Step:
        return Step.CLOSE if self.has_quorum or self.record.mode == "evaluate" else Step.RETRY

    def seconds_left(self, now: float) -> float:
        """How long until time alone could change the next step."""
        times = [self._opened_at + self.record.deadline_seconds]
        if self._quorum_at is not None:
            times.append(self._quorum_at + self.record.grace_seconds)
        return max(0.0, min(times) - now)

    def seconds_open(self, now: float) -> float:
        """How long this attempt has been open."""
        return now - self._opened_at

    def without(self, worker: str, reason: str, now: float) -> "Round":
        """The next attempt, at which one worker's answer is rejected and the others are to answer again."""
        rejected = replace(self.answers[worker], verdict=Verdict.REJECTED, reason=reason)
        record = replace(
            self.record,
            attempt=self.record.attempt + 1,
            selected=tuple(each for each in self.record.selected if each != worker),
        )
        return Round(record, now, {worker: rejected})

    @property
    def weights(self) -> dict[str, int]:
        """The workers whose updates count, each with how much its own does."""
        trained = [worker for worker in self.accepted if self.trains(worker)]
        return {worker: self.record.weight(self.answers[worker]) for worker in trained}

    @property
    def _counted(self) -> dict[str, int]:
        """What each relay was told that its workers were counted with."""
        return {relay: self.record.num_examples[relay] for relay in self.record.relays}

    def next_attempt(
        self,
        num_examples: dict[str, int],
        evaluators: tuple[str, ...],
        relays: Mapping[str, RelayShare] = MappingProxyType({}),
    ) -> RoundRecord:
        """The record of the next attempt: what was accepted stays, these workers are invited besides.

        Args:
            num_examples: The workers to invite, each with what it declared.
            evaluators: The workers that only evaluate.
            relays: Those of them that are relays; one that was counted before stays what it was counted with.
        """
        kept = dict.fromkeys(worker for worker in self.accepted if worker in self._selected)
        return replace(
            self.record,
            attempt=self.record.attempt + 1,
            selected=tuple(kept | dict.fromkeys(num_examples)),
            evaluators=evaluators,
            num_examples=self.record.num_examples | num_examples | self._counted,
            relays={**relays, **self.record.relays},
        )


def suspect(answers: Mapping[str, Answer]) -> str | None:
    """Whose update made a model fail: the one that is far larger than all others; None where none is.

    Args:
        answers: The accepted ones, by worker.
    """
    sizes = sorted((answer.largest, worker) for worker, answer in answers.items())
    if len(sizes) < 2:
        return None
    (second, _), (largest, worker) = sizes[-2:]
    return worker if second and largest >= _FAR_LARGER * second else None


def _flaw_in_measures(update: UpdateAnnounced, num_classes: int) -> str | None:
    try:
        for named in (update.metrics, update.global_metrics, update.states, update.global_states):
            require_measures(named)
    except ProtocolError as exc:
        return str(exc)
    values = [*update.metrics.values(), *update.global_metrics.values(), update.seconds]
    if not all(abs(value) <= _LARGEST_MEASURE for value in values):
        return f"expected finite metrics, got {values[:_SHOWN_VALUES]}"
    for name, state in (*update.states.items(), *update.global_states.items()):
        if state.ndim != 1 or state.dtype != np.float64 or state.size > _MOST_STATES or not _is_finite(state):
            return f"expected up to {_MOST_STATES} finite sums of the metric {name}, got others"
    if not 0 <= update.num_test_examples < MOST_EXAMPLES:
        return f"expected a number of test examples, got {update.num_test_examples}"
    if update.counts is None:
        return None
    return flaw_in_counts(update.counts, num_classes, update.num_test_examples)


def _is_finite(state: Array) -> bool:
    return bool((np.abs(state) <= _LARGEST_SUM).all())
