"""Steps from model to model instead of models: whoever dies or comes late, all train from the same bits."""

import signal

import numpy as np
import pytest

from broker.wire.tensors import Vector
from coordinator.learning.aggregation import UpdateSum, scale_exponent
from coordinator.learning.squeezing import Rest, Squeezing
from coordinator.learning.strategies.averages import FedAvg
from tests.faults.actors import Break, first_weights, layout_of_size, update_of, worker_seed
from tests.faults.conftest import MakeStage
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, WORKERS, Stage
from tests.steps import next_weights

INT8 = {"download_precision": "int8"}
PART_BYTES = 64 * 1024


def undisturbed_steps(workers: dict[str, int], *, rounds: int, size: int = MANY_PARTS) -> Vector:
    """The global model after so many rounds of which all workers were told by steps of int8."""
    held, squeezing, layout = first_weights(size, 0), Squeezing("int8", 0), layout_of_size(size)
    rest: Rest | None = None
    for number in range(1, rounds + 1):
        total = UpdateSum(layout, scale_exponent(sum(workers.values())))
        for worker, num_examples in workers.items():
            total.add(update_of(held, worker_seed(0, number, worker)), num_examples)
        wanted = next_weights(FedAvg(), held, total, ())
        rest = squeezing.squeeze(
            wanted, held, rest, layout, held_digest="", part_bytes=PART_BYTES, round_number=number
        )
        held = wanted
    return held


@pytest.fixture
def thin(vhost: str, make_stage: MakeStage) -> Stage:
    """A stage with a model of 25 parts."""
    return make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS)


def assert_all_trained_alike(stage: Stage, rounds: int = 3) -> None:
    """In each round all workers began with the same bits, and the run ended with those of an undisturbed one."""
    begun = {(note["round"], note["weights"]) for note in stage.notes()}
    assert sorted(number for number, _ in begun) == list(range(1, rounds + 1)), stage.story
    stage.assert_bits(undisturbed_steps(WORKERS, rounds=rounds), rounds)
    assert stage.leftovers() == {}, stage.story


def test_from_the_second_round_on_steps_travel(thin: Stage) -> None:
    """One whole copy to everybody, then a quarter of it a round, also for the measuring at the end; the model is close
    to what whole copies lead to, and the checkpoint keeps what was cut off."""
    workers = thin.workers(verbose=True)
    coordinator = thin.coordinator(run=INT8)
    assert [actor.ended() for actor in [coordinator, *workers]] == [0, 0, 0, 0], thin.story
    assert_all_trained_alike(thin)
    thin.assert_nobody_trained_twice()
    rest = thin.checkpoint.rest
    assert rest is not None
    assert 0 < max(rest.scales) * np.abs(rest.values.astype(int)).max() < 0.01


KILLS = {
    "with one of three updates accepted": Break(point="settle", when="after", count=4),
    "between averaging and checkpoint": Break(point="average", when="after", count=2),
    "between checkpoint and acknowledgement": Break(point="release", count=2),
    "with 10 of 25 parts of a step sent": Break(point="send-part", count=25 + 11),
}


@pytest.mark.parametrize("step", KILLS)
def test_a_coordinator_killed_among_steps_goes_on_to_the_same_bits(thin: Stage, step: str) -> None:
    """The model that the workers hold, and what was cut off, are in the checkpoint: the next coordinator sends whole
    copies once, and then steps again."""
    workers = thin.workers()
    first = thin.coordinator(run=INT8, breaks=(KILLS[step],))
    assert first.ended() == -signal.SIGKILL, thin.story
    second = thin.coordinator(run=INT8)
    assert [actor.ended() for actor in [second, *workers]] == [0, 0, 0, 0], thin.story
    assert_all_trained_alike(thin)
    thin.assert_nobody_trained_twice()


def test_a_worker_that_was_killed_gets_a_whole_copy(thin: Stage) -> None:
    """It holds no model that a step could lead on from, says so, and gets the same bits whole."""
    others = thin.workers("w2", "w3")
    first = thin.worker("w1", train_seconds=1.0)
    coordinator = thin.coordinator(run=INT8)
    thin.wait(lambda: thin.has_begun("w1", 2), 30, "round 2")
    first.kill()
    second = thin.worker("w1")
    assert [actor.ended() for actor in [coordinator, second, *others]] == [0, 0, 0, 0], thin.story
    assert_all_trained_alike(thin)
    assert all(row.attempt == 1 for row in thin.checkpoint.history[1:])


def test_whoever_was_not_invited_gets_a_whole_copy(thin: Stage) -> None:
    """Of three workers two take part in a round: the third has missed a model. All begin with the same bits."""
    workers = thin.workers()
    coordinator = thin.coordinator(rounds=5, run=INT8 | {"fraction": 0.7})
    assert [actor.ended() for actor in [coordinator, *workers]] == [0, 0, 0, 0], thin.story
    begun = {(note["round"], note["weights"]) for note in thin.notes()}
    assert len(begun) == 5, thin.story
    assert len(thin.notes()) == 10
    assert all(row.attempt == 1 for row in thin.checkpoint.history[1:])


def test_a_swarm_keeps_one_model_for_all_of_its_workers(thin: Stage) -> None:
    """It is told each step once, and all of them train from what that leads to."""
    swarm = thin.swarm(3)
    coordinator = thin.coordinator(run=INT8 | {"workers": 3})
    assert [actor.ended() for actor in [coordinator, swarm]] == [0, 0], thin.story
    thin.assert_bits(undisturbed_steps({f"s.{number}": 10 for number in (1, 2, 3)}, rounds=3), 3)
    thin.assert_nobody_trained_twice()
    assert thin.leftovers() == {}, thin.story
