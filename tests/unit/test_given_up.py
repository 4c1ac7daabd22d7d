"""A round that has failed for good, and the same command once what was wrong is mended."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import ModelDiverged, QuorumNotReached
from tests.faults.actors import undisturbed
from tests.unit.test_relay import SIZE, Tree, bits

WORKERS = {"a": 10, "b": 20, "c": 30}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    for event in (made.stop, *made.ends):
        event.set()
    made.threads.shutdown(wait=True, cancel_futures=True)


def play(tree: Tree, **options: Any) -> Any:
    return tree.play(
        **{"workers": 3, "rounds": 2, "retries": 0, "deadline_seconds": 20.0, "relays": (), **options}
    )


def assert_goes_on(tree: Tree) -> None:
    done = play(tree)
    assert np.array_equal(bits(done.state.vector), bits(undisturbed(WORKERS, rounds=2, size=SIZE)))


def test_workers_that_could_not_answer_are_asked_again_by_the_same_command(tree: Tree) -> None:
    """The declines of before counted for the round that was taken up again: it ended at once, for ever."""
    ends = [tree.worker("top", name, number, fails=True) for name, number in WORKERS.items()]
    with pytest.raises(QuorumNotReached):
        play(tree)
    for end in ends:
        end()
    for name, number in WORKERS.items():
        tree.worker("top", name, number)
    assert_goes_on(tree)


def test_what_was_accepted_is_kept_and_nobody_trains_it_twice(tree: Tree) -> None:
    """Of three one could not answer: it alone trains for the new attempt."""
    ends = [tree.worker("top", name, number, fails=name == "c") for name, number in WORKERS.items()]
    with pytest.raises(QuorumNotReached):
        play(tree)
    for end in ends:
        end()
    for name, number in WORKERS.items():
        tree.worker("top", name, number)
    assert_goes_on(tree)
    for name in "ab":
        assert tree.notes().count(f'"began", "worker": "{name}", "round": 1, "mode": "train"') == 1


def test_updates_that_make_the_model_fail_do_not_come_back(tree: Tree) -> None:
    """All of them do, so it is no single one's fault: with mended workers the same command goes on."""
    ends = [tree.worker("top", name, number, spoils=1e4) for name, number in WORKERS.items()]
    with pytest.raises(ModelDiverged):
        play(tree)
    for end in ends:
        end()
    for name, number in WORKERS.items():
        tree.worker("top", name, number)
    assert_goes_on(tree)
