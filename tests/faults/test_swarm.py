"""A swarm, one process of many workers with one queue, is killed, or its coordinator is."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.actors import Break
from tests.faults.conftest import MakeStage
from tests.faults.stage import SMALL_PARTS, Stage

COUNT = 12
SWARM = {f"s.{number}": 10 for number in range(1, COUNT + 1)}
IN_PARTS = 40_000  #: floats: three parts of 64 KiB, in one upload queue


def both(vhost: str, make_stage: MakeStage, size: int) -> Stage:
    return make_stage(vhost, size=size, patches=SMALL_PARTS)


SIZES = pytest.mark.parametrize("size", [1000, IN_PARTS])


@SIZES
def test_a_killed_swarm_goes_on(vhost: str, make_stage: MakeStage, size: int) -> None:
    """SIGKILL in the middle of round 2, started again: it says that none of its workers holds the round, those without
    an answer get it once more, and the bits are those of an undisturbed run. Its queues are gone with it."""
    stage = both(vhost, make_stage, size)
    first = stage.swarm(COUNT, train_seconds=0.1)
    coordinator = stage.coordinator(run={"workers": COUNT})
    stage.wait(lambda: stage.has_begun("s.5", 2), 30, "round 2")
    first.kill()
    second = stage.swarm(COUNT)
    assert [actor.ended() for actor in (coordinator, second)] == [0, 0], stage.story
    stage.assert_same_bits(workers=SWARM)
    assert all(row.attempt == 1 for row in stage.checkpoint.history[1:])
    link = stage.link()
    assert [link.consumers(queue) for queue in ("worker.s", "upload.s")] == [None, None]


@SIZES
def test_a_killed_coordinator_goes_on_with_a_swarm(vhost: str, make_stage: MakeStage, size: int) -> None:
    """SIGKILL in the middle of round 2: what is on disk stays, the broker gives back the rest, parts and all, and no
    worker of the swarm trains a round twice."""
    stage = both(vhost, make_stage, size)
    swarm = stage.swarm(COUNT)
    first = stage.coordinator(
        run={"workers": COUNT},
        breaks=(Break(point="settle", when="after", count=COUNT + 5),),
        patches={"coordinator.play.open_round.unacknowledged:MOST_HELD": 3},
    )
    assert first.ended() == -signal.SIGKILL, stage.story
    second = stage.coordinator(run={"workers": COUNT})
    assert [actor.ended() for actor in (second, swarm)] == [0, 0], stage.story
    stage.assert_same_bits(workers=SWARM)
    stage.assert_nobody_trained_twice()
    assert stage.leftovers(["s"]) == {}, stage.story


def test_a_coordinator_comes_back_to_more_answers_than_it_is_given_at_once(stage: Stage) -> None:
    """Killed at the first of 300, it starts anew once all wait: the broker gives it 256 and no more until it has
    acknowledged some, and its ping, by which it knows that it is the one coordinator, waits behind the rest."""
    many = {f"s.{number}": 10 for number in range(1, 301)}
    swarm = stage.swarm(len(many))
    first = stage.coordinator(rounds=1, run={"workers": len(many)}, breaks=(Break(point="settle"),))
    assert first.ended() == -signal.SIGKILL, stage.story
    stage.wait(lambda: stage.num_ready("coordinator") >= len(many), 60, "all answers")
    second = stage.coordinator(rounds=1, run={"workers": len(many)})
    assert [actor.ended() for actor in (second, swarm)] == [0, 0], stage.story
    stage.assert_same_bits(rounds=1, workers=many)
    stage.assert_nobody_trained_twice()


def test_a_purged_upload_queue_costs_a_swarm_no_round(vhost: str, make_stage: MakeStage) -> None:
    """The parts of several workers are lost while they are uploaded: each is asked for its own again, and what others
    have uploaded behind them is not lost with that."""
    stage = both(vhost, make_stage, IN_PARTS)
    swarm = stage.swarm(COUNT)
    coordinator = stage.coordinator(
        run={"workers": COUNT},
        breaks=(stage.hold("fetch", count=3 * COUNT + 4),),
        patches={"coordinator.play.open_round.fetching:_PATIENCE_SECONDS": 0.3},
    )
    stage.reached("fetch")
    stage.link().purge("upload.s")
    stage.let_go("fetch")
    assert [actor.ended() for actor in (coordinator, swarm)] == [0, 0], stage.story
    coordinator.says("is not all there")
    stage.assert_same_bits(workers=SWARM)
    stage.assert_nobody_trained_twice()


def test_a_swarm_of_two_processes_gives_the_same_bits(stage: Stage) -> None:
    """One of the two that train is killed in round 2: its worker is trained again by another one in its place, nothing
    is missing, and they end with the swarm."""
    swarm = stage.swarm(COUNT, processes=2, train_seconds=0.1)
    coordinator = stage.coordinator(run={"workers": COUNT})
    stage.wait(lambda: stage.has_begun("s.3", 2), 60, "round 2")
    first, *_ = {note["pid"] for note in stage.notes()}
    os.kill(first, signal.SIGKILL)
    assert [actor.ended() for actor in (coordinator, swarm)] == [0, 0], stage.story
    swarm.says("it is started again")
    stage.assert_same_bits(workers=SWARM)
    pids = {note["pid"] for note in stage.notes()}
    assert len(pids) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_processes_of_a_killed_swarm_end(stage: Stage) -> None:
    """SIGKILL leaves no orphan that trains for nobody, and no file."""
    swarm = stage.swarm(COUNT, processes=2, train_seconds=0.2)
    stage.coordinator(run={"workers": COUNT})
    stage.wait(lambda: len({note["pid"] for note in stage.notes()}) == 2, 60, "two processes")
    pids = {note["pid"] for note in stage.notes()}
    folder = Path(Path(f"/proc/{min(pids)}/cmdline").read_text().rstrip("\0").split("\0")[-2])
    assert folder.is_dir()
    swarm.kill()
    stage.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20, "their end")
    assert not folder.exists()
