"""A round closes when it should, judges before it changes, and keeps what was accepted across attempts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from broker.wire.messages import UpdateAnnounced
from broker.wire.scores import AnswerCounts
from coordinator.learning.rounds import Answer, Round, RoundRecord, Step, Verdict, suspect

RECORD = RoundRecord(
    run_id="run", round_number=3, first_attempt=1, attempt=1, mode="train", selected=("a", "b", "c"), evaluators=(),
    num_examples={"a": 10, "b": 10, "c": 10}, scale_exponent=39, part_bytes=4 << 20, quorum=2,
    deadline_seconds=100, grace_seconds=5,
)  # fmt: skip

COUNTS = AnswerCounts(per_class=np.array([[2, 1], [1, 1]]), bins=np.array([[5, 9], [1, 1], [0, 1]], np.int32))


def update(worker: str, **changes: object) -> UpdateAnnounced:
    announced = UpdateAnnounced(
        worker=worker, run_id="run", round_number=3, attempt=1, upload_id=f"of-{worker}", num_examples=10,
        metrics={"loss": 1.0}, states={}, global_metrics={}, global_states={}, counts=None,
        num_test_examples=0, precision="float32", scales=(), parts=1,
        update=None, digest="", seconds=2.0,
    )  # fmt: skip
    return replace(announced, **changes)  # type: ignore[arg-type]


def accept(the_round: Round, *workers: str, now: float = 0.0) -> None:
    for worker in workers:
        assert the_round.judge(update(worker), 2) == (Verdict.ACCEPTED, None)
        the_round.settle(update(worker), Verdict.ACCEPTED, None, now)


def test_a_round_closes_at_once_when_all_selected_have_answered() -> None:
    """Nobody waits for a grace time when nobody is missing."""
    the_round = Round(RECORD, 0.0)
    accept(the_round, "a", "b", "c")
    assert the_round.next_step(0.0) is Step.CLOSE


def test_a_quorum_closes_after_its_grace_and_not_at_the_deadline() -> None:
    """Two of three at 10 s: wait until 15 s."""
    the_round = Round(RECORD, 0.0)
    accept(the_round, "a", "b", now=10.0)
    assert [the_round.next_step(now) for now in (10.0, 14.9, 15.0)] == [Step.WAIT, Step.WAIT, Step.CLOSE]
    assert the_round.seconds_left(12.0) == 3.0


def test_below_the_quorum_the_deadline_means_another_attempt() -> None:
    """One of two at the deadline is retried, never closed."""
    the_round = Round(RECORD, 0.0)
    accept(the_round, "a")
    assert [the_round.next_step(now) for now in (99.9, 100.0)] == [Step.WAIT, Step.RETRY]


def test_when_all_answered_and_too_few_were_right_nobody_waits_for_the_deadline() -> None:
    """Two rejections of three leave one: the round is retried at once."""
    the_round = Round(RECORD, 0.0)
    accept(the_round, "a")
    for worker in ("b", "c"):
        the_round.settle(update(worker), Verdict.REJECTED, "NaN", 1.0)
    assert the_round.next_step(1.0) is Step.RETRY


def test_an_evaluator_that_has_left_does_not_make_up_a_quorum() -> None:
    """e measured in the first attempt and is gone in the next one: there is still no update to average."""
    the_round = Round(replace(RECORD, quorum=1, evaluators=("e",)), 0.0)
    measures = update("e", parts=0, num_examples=0)
    the_round.settle(measures, Verdict.ACCEPTED, None, 1.0)
    again = Round(the_round.next_attempt({"a": 10}, ()), 100.0, {"e": the_round.answers["e"]})
    assert again.num_accepted == 0
    assert [again.next_step(now) for now in (100.0, 110.0, 199.0, 200.0)] == [Step.WAIT] * 3 + [Step.RETRY]


def test_the_next_attempt_keeps_what_was_accepted() -> None:
    """a's update stays in the mean; b and the newcomer d are invited besides."""
    the_round = Round(RECORD, 0.0)
    accept(the_round, "a")
    record = the_round.next_attempt({"b": 10, "d": 12}, ())
    again = Round(record, 200.0, {"a": the_round.answers["a"]})
    assert (record.attempt, record.selected) == (2, ("a", "b", "d"))
    assert again.unanswered == ["b", "d"]
    assert again.next_step(200.0) is Step.WAIT
    accept(again, "d", now=210.0)
    assert again.next_step(215.0) is Step.CLOSE


@pytest.mark.parametrize(
    "changes",
    [{"run_id": "other"}, {"round_number": 2}, {"round_number": 4}, {"attempt": 0}],
    ids=str,
)
def test_what_belongs_elsewhere_is_discarded_and_changes_nothing(changes: dict[str, object]) -> None:
    """Late, early, or of another run: normal, and never in the mean."""
    the_round = Round(RECORD, 0.0)
    assert the_round.judge(update("stranger"), 2) == (Verdict.DISCARDED, None)
    assert the_round.judge(update("a", **changes), 2) == (Verdict.DISCARDED, None)
    assert the_round.answers == {}


def test_the_first_accepted_update_of_a_worker_counts_and_a_second_is_discarded() -> None:
    """At least once on the wire, in effect once."""
    the_round = Round(RECORD, 0.0)
    accept(the_round, "a")
    assert the_round.judge(update("a", upload_id="second"), 2)[0] is Verdict.DISCARDED


@pytest.mark.parametrize(
    "changes",
    [
        {"num_examples": 11}, {"num_examples": 0}, {"num_examples": -5}, {"metrics": {"loss": float("nan")}},
        {"global_metrics": {"auc": float("inf")}}, {"seconds": float("nan")}, {"num_test_examples": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_announcement_is_rejected_with_its_reason(changes: dict[str, object]) -> None:
    """More examples than declared, or a metric that isn't finite."""
    verdict, reason = Round(RECORD, 0.0).judge(update("a", **changes), 2)
    assert verdict is Verdict.REJECTED
    assert reason and "expected" in reason


def test_an_evaluating_worker_never_counts_towards_the_quorum() -> None:
    """Its metrics are taken, its weights would be refused, and the round waits for two that train."""
    record = replace(RECORD, evaluators=("e",))
    the_round = Round(record, 0.0)
    assert the_round.judge(update("e"), 2)[0] is Verdict.REJECTED
    measured = update("e", parts=0, num_examples=0)
    assert the_round.judge(measured, 2)[0] is Verdict.ACCEPTED
    the_round.settle(measured, Verdict.ACCEPTED, None, 0.0)
    accept(the_round, "a")
    assert the_round.num_accepted == 1
    assert not the_round.has_quorum


def test_a_measuring_round_does_not_wait_for_those_who_went_away() -> None:
    """The last model is measured by whoever is there."""
    the_round = Round(replace(RECORD, mode="evaluate"), 0.0)
    the_round.settle(update("a", parts=0), Verdict.ACCEPTED, None, 0.0)
    assert the_round.next_step(1.0) is Step.WAIT
    the_round.note_away(frozenset({"b", "c"}))
    assert the_round.next_step(1.0) is Step.CLOSE


def test_a_measuring_round_gives_its_workers_the_time_they_need() -> None:
    """The grace time begins with the quorum, not with the round: slow workers are measured, too."""
    the_round = Round(replace(RECORD, mode="evaluate"), 0.0)
    assert [the_round.next_step(now) for now in (50.0, 100.0)] == [Step.WAIT, Step.CLOSE]


def accepted(**largest: float) -> dict[str, Answer]:
    return {
        worker: Answer(upload_id="u", verdict=Verdict.ACCEPTED, largest=size)
        for worker, size in largest.items()
    }


def test_a_model_that_fails_is_the_fault_of_an_update_far_larger_than_all_others() -> None:
    """Nobody is blamed for being a little larger, nor where there is nobody to compare with."""
    assert suspect(accepted(a=0.1, b=60_000.0, c=0.2)) == "b"
    assert suspect(accepted(a=0.1, b=2.0)) is None
    assert suspect(accepted(a=60_000.0)) is None
    assert suspect(accepted(a=0.0, b=0.0, c=0.0)) is None, "statistics alone have no size"
    assert suspect(accepted(a=0.0, b=0.001)) is None


def test_the_attempt_after_a_spoiled_one_asks_all_but_the_culprit_again() -> None:
    """Its answer is rejected with the reason; the sum began anew, so the others answer again."""
    the_round = Round(RECORD, 0.0)
    accept(the_round, "a", "b", "c")
    again = the_round.without("b", "the model answers NaN", 1.0)
    assert (again.record.attempt, again.record.selected, again.unanswered) == (2, ("a", "c"), ["a", "c"])
    assert again.rejected == {"b": "the model answers NaN"}
    assert again.judge(update("b", attempt=2), 2) == (Verdict.DISCARDED, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"states": {"auc": np.array([np.nan])}},
        {"states": {"auc": np.zeros((2, 2))}},
        {"global_states": {"auc": np.zeros(1 << 15)}},
        {"metrics": {f"m{number}": 0.0 for number in range(65)}},
        {"metrics": {"=HYPERLINK(evil)": 0.0}},
        {"metrics": {"a\nround": 0.0}},
        {"metrics": {"m" * 101: 0.0}},
        {"global_metrics": {"loss": 1.7e308}, "num_test_examples": 2**39},
        {"num_test_examples": 2**50},
        {"states": {"auc": np.array([1e300])}},
        {"counts": COUNTS, "num_test_examples": 4},
        {
            "counts": replace(COUNTS, bins=np.array([[9, 9], [1, 1], [1, 0]], np.int32)),
            "num_test_examples": 3,
        },
        {"counts": replace(COUNTS, per_class=np.array([[2, 1], [3, 0]])), "num_test_examples": 3},
        {"counts": replace(COUNTS, per_class=np.array(3)), "num_test_examples": 3},
        {"counts": replace(COUNTS, per_class=np.array([[2, 1, 0], [1, 1, 0]])), "num_test_examples": 3},
    ],
)
def test_measures_that_can_not_be_are_rejected(changes: dict[str, Any]) -> None:
    """Sums that are no numbers, and counts of more examples than there were, or of classes that the model lacks."""
    verdict, reason = Round(RECORD, 0.0).judge(update("a", **changes), 2)
    assert verdict is Verdict.REJECTED
    assert reason


def test_who_only_evaluates_trains_on_nothing() -> None:
    """A claim of examples would be taken for an update's weight by a coordinator that is started again."""
    record = replace(RECORD, evaluators=("e",), num_examples={**RECORD.num_examples, "e": 0})
    verdict, reason = Round(record, 0.0).judge(update("e", num_examples=5, parts=0), 2)
    assert verdict is Verdict.REJECTED
    assert "metrics alone" in (reason or "")


def test_counts_that_add_up_are_accepted() -> None:
    """Two of class 0, one of class 1, one answer of each right."""
    assert Round(RECORD, 0.0).judge(update("a", counts=COUNTS, num_test_examples=3), 2) == (
        Verdict.ACCEPTED,
        None,
    )
