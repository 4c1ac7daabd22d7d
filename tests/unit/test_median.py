"""The coordinate-wise median: numpy's own, whatever the size, across a restart, and with bounded memory."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.errors import CheckpointError
from broker.wire.tensors import Kind, Layout, TensorSpec
from coordinator.learning.spares import Spares
from coordinator.learning.strategies import Aggregate, side_by_side
from coordinator.learning.strategies.median import Median

_KINDS: tuple[tuple[int, Kind], ...] = ((5, "trainable"), (1, "statistic"), (1, "variance"), (2, "frozen"))
LAYOUT: Layout = tuple(TensorSpec(dtype="float32", shape=(size,), kind=kind) for size, kind in _KINDS)


def spool(folder: Path, layout: Layout = LAYOUT) -> Aggregate:
    return Median().collect(layout, 40, folder / "updates", Spares())


def result(aggregate: Aggregate, weights: np.ndarray) -> np.ndarray:
    return aggregate.next_weights(weights, (), np.empty_like(weights))


_updates = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 30)), elements=st.floats(-100, 100, width=32)
)


@given(_updates)
def test_the_values_of_one_coordinate_become_their_median(values: np.ndarray) -> None:
    """Odd or even in number."""
    assert np.array_equal(Median().combine(values), np.median(values.astype(np.float64), axis=0))


def test_trainable_weights_move_statistics_are_taken_and_frozen_ones_stay(tmp_path: Path) -> None:
    """Three workers, of which one is far off: neither its weights nor its variance count."""
    aggregate = spool(tmp_path)
    updates = [[1, 2, 3, 4, 5, 0.5, 1.0], [1, 2, 3, 4, 7, 0.7, 2.0], [-9e4, 9e4, 9e4, -9e4, 6, 1e9, 1e12]]
    for worker, update in zip("abc", updates, strict=True):
        aggregate.add(worker, np.array(update, np.float32), 10)
    found = result(aggregate, np.array([10, 10, 10, 10, 10, 3, 3, 8, 9], np.float32))
    assert found.tolist() == np.array([11, 12, 13, 14, 16, 0.7, 2.0, 8, 9], np.float32).tolist()


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_what_is_read_at_once_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Memory is bounded by so many values of all updates together."""
    monkeypatch.setattr(side_by_side, "_VALUES_AT_ONCE", at_once)
    layout = (TensorSpec(dtype="float32", shape=(101,), kind="trainable"),)
    aggregate, updates = (
        spool(tmp_path, layout),
        np.random.default_rng(0).normal(size=(4, 101)).astype(np.float32),
    )
    for number, update in enumerate(updates):
        aggregate.add(f"w{number}", update, 1)
    expected = np.median(updates.astype(np.float64), axis=0).astype(np.float32)
    assert np.array_equal(result(aggregate, np.zeros(101, np.float32)), expected)


def test_a_restarted_coordinator_goes_on_with_what_is_on_disk(tmp_path: Path) -> None:
    """What was saved is whole, and what it lacks is added."""
    first, rows = spool(tmp_path), np.random.default_rng(1).random((3, 7)).astype(np.float32)
    for worker, row in zip("ab", rows, strict=False):
        first.add(worker, row, 5)
    assert first.save() == []
    second = spool(tmp_path)
    second.restore(np.empty(0, np.uint8), {"a": 5, "b": 5})
    second.add("c", rows[2], 5)
    weights = np.zeros(9, np.float32)
    assert result(second, weights)[:7].tolist() == np.median(rows, axis=0).tolist()
    assert second.num_examples == 15


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_missing_or_torn_update_is_named(tmp_path: Path, damage: str) -> None:
    """Never averaged without a word."""
    first = spool(tmp_path)
    first.add("a", np.zeros(7, np.float32), 5)
    path = tmp_path / "updates" / "a"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match="updates/a"):
        spool(tmp_path).restore(np.empty(0, np.uint8), {"a": 5})


def test_what_an_earlier_round_left_does_not_count(tmp_path: Path) -> None:
    """A coordinator that was killed between commit and clean-up."""
    first = spool(tmp_path)
    first.add("old", np.full(7, 100, np.float32), 5)
    second = spool(tmp_path)
    second.add("new", np.ones(7, np.float32), 5)
    assert result(second, np.zeros(9, np.float32))[0] == 1.0
    assert [path.name for path in (tmp_path / "updates").iterdir()] == ["new"]
    second.end(Spares())
    assert not (tmp_path / "updates").exists()
