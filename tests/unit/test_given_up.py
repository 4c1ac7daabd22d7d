"""A round that has failed for good, and the same command once what was wrong is mended."""

from typing import Any

import numpy as np
import pytest

from broker.errors import ModelDiverged, QuorumNotReached, WarrenError
from coordinator.play.run import Summary
from tests.faults.actors import undisturbed
from tests.unit.test_relay import SIZE, Tree, bits, tree

__all__ = ["tree"]

WORKERS = {"a": 10, "b": 20, "c": 30}


def play(tree: Tree) -> Summary:
    return tree.play(workers=3, rounds=2, retries=0, deadline_seconds=20.0, relays=())


def fails_and_goes_on(tree: Tree, error: type[WarrenError], **flawed: dict[str, Any]) -> None:
    """A run with these flaws ends; the same command with workers that have none comes to the bits of such a run."""
    ends = [tree.worker("top", name, number, **flawed.get(name, {})) for name, number in WORKERS.items()]
    with pytest.raises(error):
        play(tree)
    for end in ends:
        end()
    for name, number in WORKERS.items():
        tree.worker("top", name, number)
    done = play(tree)
    assert np.array_equal(bits(done.state.vector), bits(undisturbed(WORKERS, rounds=2, size=SIZE)))


def test_workers_that_could_not_answer_are_asked_again_by_the_same_command(tree: Tree) -> None:
    """The declines of before counted for the round that was taken up again: it ended at once, for ever."""
    fails_and_goes_on(tree, QuorumNotReached, **{name: {"fails": True} for name in WORKERS})


def test_what_was_accepted_is_kept_and_nobody_trains_it_twice(tree: Tree) -> None:
    """Of three one could not answer: it alone trains for the new attempt."""
    fails_and_goes_on(tree, QuorumNotReached, c={"fails": True})
    for name in "ab":
        assert tree.notes().count(f'"began", "worker": "{name}", "round": 1, "mode": "train"') == 1


def test_updates_that_make_the_model_fail_do_not_come_back(tree: Tree) -> None:
    """All of them do, so it is no single one's fault: with mended workers the same command goes on."""
    fails_and_goes_on(tree, ModelDiverged, **{name: {"spoils": 1e4} for name in WORKERS})
