"""What the sites' examples are like, asked in two steps before any training: each must answer, or it is named."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from broker.audit import named
from broker.errors import QuorumNotReached
from broker.link.seam import Delivery, outgoing
from broker.wire import names
from broker.wire.statistics import (
    LEAST_FLOOR,
    WORDS,
    Column,
    StatisticsAsked,
    StatisticsRefused,
    StatisticsTold,
    Step,
    columns_of,
)
from coordinator.learning.statistics import (
    Site,
    Statistics,
    common_edges,
    commonest,
    flaw_in,
    flaw_in_columns,
    form_of,
    put_together,
)
from coordinator.presence.session import Session

logger = logging.getLogger(__name__)

_TURN_SECONDS = 0.1
_REPEAT_SECONDS = 10.0
_SETTLED_SECONDS = 10.0  #: after that whoever is there has answered the roll call, or it is gone
_MOST_SAID = 200  # characters of names

Answers = dict[str, StatisticsTold]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyOptions:
    """What is asked of the sites.

    Attributes:
        workers: How many must answer.
        deadline_seconds: For coming, and for each of the two answers.
        bins: Of each histogram.
        floor: Examples of a site that each count rests on.
        shape: What images are decoded for, and other examples held against; empty takes them as they are.
        like: Earlier statistics whose edges to count by: sites that have told by these tell by no others.
    """

    workers: int = 2
    deadline_seconds: float = 600.0
    bins: int = 20
    floor: int = LEAST_FLOOR
    shape: tuple[int, ...] = ()
    like: Statistics | None = None


class Survey:
    """One survey of the sites that are there.

    Args:
        session: The place at the broker; no run is under way there, for it is read by one process alone.
        options: What to ask.
    """

    def __init__(self, session: Session, options: SurveyOptions) -> None:
        self._session = session
        self._options = options
        self._id = secrets.token_hex(8)
        self._asked: StatisticsAsked | None = None
        self._answers: Answers = {}
        self._left_out: dict[str, str] = {}
        session.on_statistics = self._on_answer

    def take(self) -> Statistics:
        """Ask everybody who is there, and put the answers together.

        Raises:
            QuorumNotReached: Too few came, or could and would answer; each is named with its reason.
            NameInUse: Another coordinator works on this virtual host.
            Interrupted: Told to stop.
        """
        self._session.begin()
        self._wait_until(lambda: self._session.is_ready)
        self._gather()
        ranges = self._alike(self._ask(self._trainers, "range"))
        like = self._options.like
        bins, lows, highs = like.edges if like else common_edges(list(ranges.values()), self._options.bins)
        histograms = self._ask(lambda: list(ranges), "histogram", bins=bins, lows=lows, highs=highs)
        ranges = {worker: ranges[worker] for worker in histograms}
        assert self._asked is not None  # noqa: S101 - by `_ask`
        return put_together(
            ranges,
            histograms,
            self._asked,
            list(self._sites(ranges)),
            self._left_out,
            self._columns(next(iter(ranges))),
        )

    def _gather(self) -> None:
        """Wait until enough of those who train are there, and nobody else's word waits; swarms alone are not enough."""
        begun = self._session.clock.now()

        def enough() -> bool:
            present = self._trainers()
            self._leave_out_swarms()
            if self._left_out and not present and self._session.clock.now() - begun >= _SETTLED_SECONDS:
                raise QuorumNotReached(
                    f"Only swarms are there ({', '.join(self._left_out)}), which tell no statistics. Start workers of "
                    "their own: `worker run --share statistics`."
                )
            return len(present) >= self._options.workers and self._session.is_idle

        if not self._wait_until(
            enough, self._options.deadline_seconds, each_turn=self._session.call_roll_if_due
        ):
            present = self._trainers()
            raise QuorumNotReached(
                f"Only {len(present)} of {self._options.workers} workers joined within "
                f"{self._options.deadline_seconds:g} s: {', '.join(present) or 'nobody'}. "
                f"Start more workers, or lower --workers.{' A swarm tells no statistics.' if self._left_out else ''}"
            )
        self._session.look_for_unseen()

    def _leave_out_swarms(self) -> None:
        members = self._session.roster.members.values()
        swarms = {each.reader for each in members if each.is_present and not each.is_alone}
        for swarm in sorted(swarms - self._left_out.keys()):
            self._leave_out(swarm, "a swarm tells no statistics.")

    def _trainers(self) -> list[str]:
        members = self._session.roster.members.values()
        able = (each for each in members if each.is_present and not each.evaluate_only)
        return sorted(each.worker for each in able if each.is_alone)

    def _alike(self, ranges: Answers) -> Answers:
        """Those whose examples have the shape and the columns that most have; the others are named."""
        forms = {worker: form_of(told, self._columns(worker)) for worker, told in ranges.items()}
        common = commonest(forms.values())
        for worker, form in forms.items():
            if form[0] != common[0]:
                self._leave_out(
                    worker, f"its examples have the shape {form[0]}, most sites' have {common[0]}."
                )
            elif form != common:
                ours, theirs = (", ".join(each)[:_MOST_SAID] for each in (form[1], common[1]))
                self._leave_out(worker, f"it has {ours}; most sites have {theirs}.")
        return self._enough({worker: told for worker, told in ranges.items() if forms[worker] == common})

    def _columns(self, worker: str) -> tuple[Column, ...]:
        """What a worker's features are; none of labelled examples, whose features have numbers."""
        return columns_of(self._session.roster.members[worker].holds)

    def _ask(
        self,
        workers: Callable[[], list[str]],
        step: Step,
        *,
        bins: int = 0,
        lows: tuple[float, ...] = (),
        highs: tuple[float, ...] = (),
    ) -> Answers:
        """The answers of those who gave one.

        Args:
            workers: Whom to ask: some may come while others answer.
            step: For what.
            bins: See `StatisticsAsked`.
            lows: The same.
            highs: The same.

        Raises:
            QuorumNotReached: They are too few.
        """
        self._answers = {}
        self._asked = asked = StatisticsAsked(
            asked=f"{self._id}-{step}",
            session=self._session.number,
            step=step,
            shape=self._options.shape,
            floor=self._options.floor,
            bins=bins,
            lows=lows,
            highs=highs,
        )
        asked_at = float("-inf")

        def missing() -> list[str]:
            return [worker for worker in workers() if worker not in self._answers | self._left_out]

        def ask_again() -> None:
            nonlocal asked_at
            if time.monotonic() - asked_at >= _REPEAT_SECONDS:
                asked_at = time.monotonic()
                self._send(asked, missing())

        self._wait_until(lambda: not missing(), self._options.deadline_seconds, each_turn=ask_again)
        for worker in missing():
            self._leave_out(worker, f"it did not answer within {self._options.deadline_seconds:g} s.")
        return self._enough(dict(sorted(self._answers.items())))

    def _send(self, asked: StatisticsAsked, workers: list[str]) -> None:
        """Ask those of them who are there; who went away is named."""
        for worker in self._session.look_for_absent(workers):
            self._leave_out(worker, "it went away.")
        there = [worker for worker in workers if worker not in self._left_out]
        form = {"shape": list(asked.shape) or None, "bins": asked.bins or None, "floor": asked.floor}
        self._session.audit.note("statistics-asked", step=asked.step, workers=named(there), **form)
        logger.info("Asked for the %s, to answer: %s.", WORDS[asked.step], ", ".join(there) or "nobody")
        self._session.publisher.try_send(
            [outgoing(asked, names.worker_queue(worker), is_transient=True) for worker in there]
        )

    def _enough(self, answers: Answers) -> Answers:
        if len(answers) < self._options.workers:
            reasons = " ".join(
                f"{', '.join(worker for worker, its in sorted(self._left_out.items()) if its == reason)}: {reason}"
                for reason in dict.fromkeys(self._left_out.values())
            )
            raise QuorumNotReached(
                f"Only {len(answers)} of {self._options.workers} sites told their statistics: "
                f"{', '.join(sorted(answers)) or 'nobody'}. {reasons}"
            )
        return answers

    def _leave_out(self, worker: str, reason: str) -> None:
        logger.warning("%s has no part in the statistics: %s", worker, reason)
        self._session.audit.note("statistics-refused", worker=worker, reason=reason)
        self._left_out[worker] = reason

    def _on_answer(self, delivery: Delivery, told: StatisticsTold | StatisticsRefused) -> None:
        """Take an answer to the question that is open; one to another question is left from before."""
        member = self._session.roster.members.get(told.worker)
        if self._asked is None or told.asked != self._asked.asked or member is None:
            return
        if told.worker in self._answers | self._left_out:
            return
        if isinstance(told, StatisticsRefused):
            self._leave_out(told.worker, told.reason)
        elif flaw := flaw_in(told, self._asked, member.num_examples) or flaw_in_columns(told, member.holds):
            self._session.validator.bury(delivery, flaw)
            self._leave_out(told.worker, f"it told {flaw}.")
        else:
            self._answers[told.worker] = told
            its = {"account": delivery.user_id, "num_examples": told.num_examples}
            self._session.audit.note("statistics-told", worker=told.worker, step=self._asked.step, **its)

    def _sites(self, ranges: Mapping[str, StatisticsTold]) -> Iterator[Site]:
        for worker, told in ranges.items():
            member = self._session.roster.members[worker]
            counts = zip(member.classes, member.examples_per_class, strict=False)
            yield Site(worker=worker, num_examples=told.num_examples, examples_per_class=dict(counts))

    def _wait_until(
        self,
        holds: Callable[[], bool],
        seconds: float = float("inf"),
        each_turn: Callable[[], None] = lambda: None,
    ) -> bool:
        """Take what comes in until something holds; False when it does not for so long."""
        deadline = self._session.clock.now() + seconds
        while not holds():
            if self._session.clock.now() >= deadline:
                return False
            each_turn()
            self._session.forget(self._session.next_event(_TURN_SECONDS))
        return True
