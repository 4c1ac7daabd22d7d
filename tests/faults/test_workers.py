"""Workers die, are away, come late, are slow, or are told to stop."""

import signal
import time

import pytest

from tests.brokers import at_load
from tests.faults.actors import Break
from tests.faults.conftest import MakeStage
from tests.faults.forwarder import Forwarder
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, Stage, passed

#: Nothing is taken out of an upload queue before its update is announced.
NOT_AHEAD: dict[str, float] = {"coordinator.play.open_round.taking:_MOST_LOOKED_AHEAD": 0}


def test_a_worker_killed_while_training_answers_the_same_round(stage: Stage) -> None:
    """SIGKILL in mid-training, started again: `joined` says that it holds no round, the open one is sent again, and it
    computes what the first would have. The others train nothing twice."""
    others = stage.workers("w2", "w3")
    first = stage.worker("w1", train_seconds=1.0)
    coordinator = stage.coordinator()
    stage.wait(lambda: stage.has_begun("w1", 2), 30, "round 2")
    first.kill()
    second = stage.worker("w1")
    assert [actor.ended() for actor in [coordinator, second, *others]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits()
    rounds = [note["round"] for note in stage.notes() if note["worker"] == "w1"]
    assert rounds == [1, 2, 2, 3]
    assert all(row.attempt == 1 for row in stage.checkpoint.history[1:])


def test_a_worker_away_for_ten_seconds_costs_ten_seconds(stage: Stage) -> None:
    """Killed, and started again after 10 s: the round waits for it (quorum = workers), and ends as soon as its own
    training is done: no heartbeat verdict, no deadline, no next round to wait for."""
    others = stage.workers("w2", "w3")
    first = stage.worker("w1", train_seconds=30)
    coordinator = stage.coordinator(rounds=1)
    stage.wait(lambda: stage.has_begun("w1", 1), 30, "round 1")
    first.kill()
    passed(10)
    begun = time.time()
    second = stage.worker("w1", train_seconds=1.0)
    assert [actor.ended() for actor in [coordinator, second, *others]] == [0, 0, 0, 0], stage.story
    (ended,) = (note["at"] for note in stage.notes("ended") if note["worker"] == "w1")
    assert ended - begun < 1.0 + 5
    assert stage.checkpoint.history[1].attempt == 1
    stage.assert_same_bits(rounds=1)


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_half_an_upload_is_never_mixed_with_the_next(
    vhost: str, make_stage: MakeStage, looks_ahead: bool
) -> None:
    """Killed after 10 of 25 parts, started again: the queue holds 10 parts of an upload that was never announced, and
    25 of the next. The coordinator reads past the 10, or has taken them out already and lets go of them; the bits are
    the same in this round and the one after."""
    stage = make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS | ({} if looks_ahead else NOT_AHEAD))
    others = stage.workers("w2", "w3")
    first = stage.worker("w1", breaks=(Break(point="upload-part", count=11),))
    coordinator = stage.coordinator()
    assert first.ended() == -signal.SIGKILL
    assert looks_ahead or stage.num_ready("upload.w1") == 10
    second = stage.worker("w1")
    assert [actor.ended() for actor in [coordinator, second, *others]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits()
    assert stage.leftovers() == {}


def test_an_upload_that_was_cut_goes_on_from_there(vhost: str, make_stage: MakeStage) -> None:
    """The line is cut with 21 of 25 parts written down, one under way at a time: what the broker has confirmed by then
    is not sent again, so that its queue holds each part once, but for the one that was under way."""
    with Forwarder(vhost) as forwarder:
        stage = make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS | NOT_AHEAD)
        one_at_a_time = {"broker.link.rabbitmq.publishing:_WINDOW_BYTES": 1}
        breaks = (stage.hold("upload-part", count=21), stage.hold("announce"))
        thin = stage.worker("w1", amqp_url=forwarder.amqp_url, patches=one_at_a_time, breaks=breaks)
        others = stage.workers("w2", "w3")
        coordinator = stage.coordinator(rounds=1)
        stage.reached("upload-part")
        forwarder.drop()
        stage.let_go("upload-part")
        stage.reached("announce")
        assert stage.num_ready("upload.w1") in (25, 26)
        stage.let_go("announce")
        assert [actor.ended() for actor in [coordinator, thin, *others]] == [0, 0, 0, 0], stage.story
        stage.assert_same_bits(rounds=1)
        stage.assert_nobody_trained_twice()
        assert stage.leftovers() == {}, stage.story


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_killed_around_its_announcement_counts_once(
    vhost: str, make_stage: MakeStage, when: str
) -> None:
    """All parts are there, and the announcement is not yet, or just not known to be: it trains again, uploads again,
    and counts once."""
    stage = make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS)
    others = stage.workers("w2", "w3")
    first = stage.worker("w1", breaks=(Break(point="announce", when=when),))
    coordinator = stage.coordinator(rounds=2)
    assert first.ended() == -signal.SIGKILL
    second = stage.worker("w1")
    assert [actor.ended() for actor in [coordinator, second, *others]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=2)
    assert stage.leftovers() == {}


def test_a_worker_offline_for_three_rounds_takes_part_in_the_fourth(stage: Stage) -> None:
    """It dies in round 1; rounds 1 to 4 close without it. When it is back it trains the round that is open then, and
    none of those it missed: what waited in its queue was emptied."""
    workers = stage.workers("w1", "w2", train_seconds=0.3)
    first = stage.worker("w3", breaks=(Break(point="train"),))
    coordinator = stage.coordinator(rounds=8, run={"quorum": 2, "grace_seconds": 0.5})
    assert first.ended() == -signal.SIGKILL
    stage.wait_for_round(4, 60)
    second = stage.worker("w3")
    assert [actor.ended() for actor in [coordinator, second, *workers]] == [0, 0, 0, 0], stage.story
    trained = [note["round"] for note in stage.notes() if note["worker"] == "w3"]
    assert trained, stage.story
    assert min(trained) >= 5, stage.story
    history = stage.checkpoint.history
    assert all("w3" not in row.accepted for row in history[1:5])
    assert "w3" in history[-1].accepted, stage.story


def test_a_worker_that_joins_mid_round_is_used(stage: Stage) -> None:
    """It starts while the others train: it is invited to the open round, and its update counts."""
    workers = stage.workers("w1", "w2", train_seconds=4)
    coordinator = stage.coordinator(rounds=1, run={"workers": 2})
    stage.wait(lambda: stage.has_begun("w1", 1), 30, "round 1")
    late = stage.worker("w3")
    assert [actor.ended() for actor in [coordinator, late, *workers]] == [0, 0, 0, 0], stage.story
    assert sorted(stage.checkpoint.history[1].accepted) == ["w1", "w2", "w3"]


def test_sigterm_ends_a_worker_in_mid_training(stage: Stage) -> None:
    """Told to stop: it leaves the training at the next batch, says Left, and exits with 0 within 2 seconds; the
    coordinator knows at once."""
    stage.workers("w2", "w3", train_seconds=60)
    worker = stage.worker("w1", train_seconds=60)
    coordinator = stage.coordinator()
    stage.wait(lambda: stage.has_begun("w1", 1), 30, "round 1")
    assert worker.terminate() < at_load(2)
    assert worker.ended() == 0
    coordinator.says("w1 left.")


def test_a_straggler_is_told_and_stops(stage: Stage) -> None:
    """One of three is much slower. The round closes at the quorum plus the grace time, not at the deadline; the slow
    one is told, stops training, and history names it as late."""
    workers = stage.workers("w1", "w2")
    slow = stage.worker("w3", train_seconds=60, once=False)
    coordinator = stage.coordinator(
        rounds=1, run={"quorum": 2, "grace_seconds": 1.0, "deadline_seconds": 50.0}
    )
    slow.says("Round 1 has closed without this worker's update.")
    stage.wait(lambda: bool(stage.notes("stopped")), 30, "the end of the training")
    assert slow.is_running
    row = stage.checkpoint.history[1]
    assert row.late == ("w3",)
    assert 1.0 <= row.seconds < at_load(6)
    coordinator.says("Late in round 1: w3")
    assert slow.terminate() < at_load(2)
    assert [actor.ended() for actor in [coordinator, *workers]] == [0, 0, 0], stage.story


def test_a_worker_that_cannot_train_says_so_and_the_round_ends(stage: Stage) -> None:
    """Its data can't be read, in each attempt. It says Declined each time: the run ends with exit code 4 as soon as
    all have answered, and not at the third deadline; history and the error name it."""
    stage.workers("w1", "w2", once=False)
    stage.worker("w3", fails=True, once=False)
    coordinator = stage.coordinator()
    assert coordinator.ended() == 4
    coordinator.says("w3: the images can't be read")
    assert stage.committed_round == 0
