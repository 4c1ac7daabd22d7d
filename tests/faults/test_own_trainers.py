"""Coordinator and workers are killed while trainers of the sites' own train a task of arrays: scikit-learn's, real."""

import signal

import numpy as np
import pytest

from tests.faults.actors import Break
from tests.faults.stage import WORKERS, Stage
from tests.own_trainers import Federation

EXAMPLE = "worker.examples.sklearn_logistic"
SECONDS = 120  # three processes import scikit-learn at once

STEPS = {
    "with one of three updates accepted": Break(point="settle", when="after", count=4),
    "between checkpoint and model.npz": Break(point="save", count=3),
}


def assert_same_model(stage: Stage, rounds: int = 3) -> None:
    """The run ended with the arrays that the same trainers give undisturbed, in the checkpoint and in model.npz."""
    alone = Federation(EXAMPLE, tuple(WORKERS))
    for number in range(1, rounds + 1):
        alone.play(number)
    assert stage.committed_round == rounds, stage.story
    assert np.array_equal(stage.checkpoint.vector, alone.vector), stage.story
    model = dict(np.load(stage.out / "model.npz"))
    assert all(np.array_equal(model[name], value) for name, value in alone.arrays.items())
    assert sorted(path.name for path in stage.out.glob("*model*")) == ["model.npz"]
    assert stage.leftovers(WORKERS) == {}, stage.story


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_coordinator_goes_on_with_the_same_arrays(stage: Stage, step: str) -> None:
    """Killed at this step, and started again with the same command line: the same bits as undisturbed, and no half
    model.npz beside them."""
    workers = stage.workers(example=EXAMPLE)
    first = stage.coordinator(example=EXAMPLE, breaks=(STEPS[step],))
    assert first.ended(SECONDS) == -signal.SIGKILL, stage.story
    second = stage.coordinator(example=EXAMPLE)
    assert [actor.ended(SECONDS) for actor in [second, *workers]] == [0, 0, 0, 0], stage.story
    assert_same_model(stage)


def test_a_worker_killed_in_its_trainer_answers_the_same_round(stage: Stage) -> None:
    """SIGKILL in the second `fit`, started again: it is sent the open round, and its trainer, made anew, gives what
    the first one would have."""
    others = stage.workers("w2", "w3", example=EXAMPLE)
    first = stage.worker("w1", example=EXAMPLE, breaks=(Break(point="fit", when="after", count=2),))
    coordinator = stage.coordinator(example=EXAMPLE)
    assert first.ended(SECONDS) == -signal.SIGKILL, stage.story
    second = stage.worker("w1", example=EXAMPLE)
    assert [actor.ended(SECONDS) for actor in [coordinator, second, *others]] == [0, 0, 0, 0], stage.story
    assert_same_model(stage)
    assert all(row.attempt == 1 for row in stage.checkpoint.history[1:])
