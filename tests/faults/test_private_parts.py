"""Workers are killed in a run with --private: Keras, real, and files on their disks."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.wire import codec
from coordinator.folder.checkpoint import read_checkpoint
from tests.faults.actors import Break
from tests.faults.stage import Actor, Stage

SECONDS = 120  # three processes import TensorFlow at once
RUN = {"workers": 2, "private": ("dense_1/*",), "deterministic": True, "batch_size": 20}


@pytest.fixture
def data(tmp_path: Path) -> str:
    """60 small pictures of noise in ten classes."""
    x = np.random.default_rng(0).integers(0, 255, (60, 28, 28, 1), dtype=np.uint8)
    y = np.arange(60) % 10
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    return str(tmp_path / "data.npz")


def kept(state: Path, worker: str) -> Any:
    """What lies on a worker's disk: the round, and the private values before and after it."""
    (path,) = (state / worker).glob("*.private")
    return codec.unpack(path.read_bytes(), limit=path.stat().st_size)


def ended(stage: Stage, *actors: Actor) -> None:
    assert [actor.ended(SECONDS) for actor in actors] == [0] * len(actors), stage.story


def test_killed_workers_keep_their_last_finished_rounds_weights_and_give_the_same_bits(
    stage: Stage, data: str
) -> None:
    """SIGKILL in round 2 just before one's private weights are written, and just after the other's: on the disks lie
    those of round 1, and those of round 2 with what it began with. Started again, both train round 2 as if nothing had
    been: the global weights and both disks are the same as undisturbed, bit for bit."""
    calm = stage.folder / "calm"
    at_rest = [stage.worker(name, data=data, state=str(calm)) for name in ("w1", "w2")]
    ended(
        stage,
        stage.coordinator(rounds=2, run=RUN, data=data, out=stage.folder / "calm-run"),
        *at_rest,
    )
    state = stage.folder / "state"
    kill: Any = lambda when: (Break(point="keep-private", when=when, count=2),)  # noqa: E731
    first = stage.worker("w1", data=data, state=str(state), breaks=kill("before"))
    second = stage.worker("w2", data=data, state=str(state), breaks=kill("after"))
    coordinator = stage.coordinator(rounds=2, run=RUN, data=data)
    assert [first.ended(SECONDS), second.ended(SECONDS)] == [-signal.SIGKILL] * 2, stage.story
    before, after = kept(state, "w1"), kept(state, "w2")
    assert (before["round_number"], after["round_number"]) == (1, 2)
    assert before["after"] == kept(calm, "w1")["before"]
    assert after == kept(calm, "w2")
    again = [stage.worker(name, data=data, state=str(state)) for name in ("w1", "w2")]
    ended(stage, coordinator, *again)
    for worker in ("w1", "w2"):
        assert kept(state, worker) == kept(calm, worker)
    assert kept(state, "w1") != kept(state, "w2"), "each has its own"
    undisturbed = read_checkpoint(stage.folder / "calm-run").vector
    assert np.array_equal(stage.checkpoint.vector.view(np.uint32), undisturbed.view(np.uint32)), stage.story
