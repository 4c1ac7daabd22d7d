"""The life of an experiment through kills: it ends at the same round, with the same best model."""

import hashlib
import signal

import pytest

from tests.faults.actors import Break, undisturbed
from tests.faults.stage import WORKERS, Stage

# The stand-in's loss falls in each round: as what is to rise, round 1 is the best for ever.
RUN = {"rounds": 9, "stop_when": "max:val_loss", "patience": 2, "keep_every": 2}
KILLS = {
    "with the best round held, and the next not committed": Break(point="checkpoint", count=3),
    "with the next round committed, and the best not saved": Break(point="save", count=3),
    "with the end decided, and not the last model measured": Break(point="release", count=4),
}


def text_of(stage: Stage, round_number: int) -> str:
    """What the stand-in writes as the model of a round."""
    vector = undisturbed(WORKERS, rounds=round_number, size=stage.size)
    return f"{round_number} {hashlib.sha256(vector.tobytes()).hexdigest()}\n"


def assert_ended_at_round_4(stage: Stage) -> None:
    """Round 1 is the best, 2 and 3 are no better, which is known once 4 is closed."""
    models = {path.name: path.read_text() for path in stage.out.glob("*.keras")}
    assert models == {
        "model.keras": text_of(stage, 4),
        "best.keras": text_of(stage, 1),
        "model-0002.keras": text_of(stage, 2),
        "model-0004.keras": text_of(stage, 4),
    }, stage.story
    last = stage.checkpoint.history[-1]
    assert (last.round, last.is_measured) == (4, True)
    assert "val_loss has not become better for 2 rounds" in last.stopped
    assert list(stage.out.glob(".held-*")) == []


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_coordinator_ends_where_it_would_have(stage: Stage, kill: str) -> None:
    """Whenever it is killed: what it decides follows from the folder. Asked again, it is done; asked for more rounds,
    it goes on, and has as much patience again."""
    workers = stage.workers()
    first = stage.coordinator(breaks=(KILLS[kill],), run=RUN)
    assert first.ended() == -signal.SIGKILL, stage.story
    second = stage.coordinator(run=RUN)
    assert [actor.ended() for actor in [second, *workers]] == [0, 0, 0, 0], stage.story
    assert "Enough after round 4 of 9" in second.said
    assert_ended_at_round_4(stage)
    stage.assert_nobody_trained_twice()
    if KILLS[kill].point == "release":
        again = stage.coordinator(run=RUN)
        assert again.ended() == 0, stage.story
        assert_ended_at_round_4(stage)
        stage.workers(
            once=False
        )  # the end that they were told of while they were away may wait in their queues
        more = stage.coordinator(run=RUN | {"rounds": 10})
        assert more.ended() == 0, stage.story
        assert stage.committed_round == 7, stage.story
