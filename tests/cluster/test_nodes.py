"""What befalls a cluster's nodes in a run: it goes on by itself, with the same bits, and nobody trains twice."""

import itertools
import random
import shutil
import statistics
from datetime import datetime

import pytest

from tests.brokers import control
from tests.cluster.conftest import Nodes
from tests.faults.stage import Actor, Stage, passed

_LOST, _AGAIN = "Reconnecting", "Connected to the broker again"


def assert_all_is_well(stage: Stage, coordinator: Actor, rounds: int) -> None:
    """The run ended by itself, as an undisturbed one does, and leaves nothing in the queues."""
    assert coordinator.ended(120) == 0, stage.story
    stage.assert_same_bits(rounds=rounds)
    stage.assert_nobody_trained_twice()
    assert stage.leftovers() == {}
    assert stage.num_ready("dead") == 0
    gaps = sorted(gap for actor in stage.actors for gap in gaps_of(actor))
    took = rounds_of(coordinator)
    print(
        f"\nreconnected {len(gaps)} times, after {', '.join(f'{gap:.0f}' for gap in gaps)} s; "
        f"a round took {statistics.median(took):.0f} s, the longest {max(took):.0f} s"
    )


def rounds_of(coordinator: Actor) -> list[float]:
    """How long each round took by the clock on the wall, times without a broker included."""
    lines = coordinator.said.splitlines()
    closed = [at_of(line) for line in lines if " closed after " in line]
    return [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(closed)]


def at_of(line: str) -> datetime:
    """When a line was said."""
    return datetime.fromisoformat(line[:19])


def gaps_of(actor: Actor) -> list[float]:
    """How long an actor was without its connection, each time."""
    lost, gaps = None, []
    for line in actor.said.splitlines():
        if _LOST in line:
            lost = at_of(line)
        elif _AGAIN in line and lost is not None:
            gaps.append((at_of(line) - lost).total_seconds())
            lost = None
    return gaps


def killed_in_a_run(stage: Stage, nodes: Nodes, *, rounds: int, kills: int, seed: int) -> Actor:
    """Kill random nodes, evenly over a run; each is started again at once, and nobody waits until it is there."""
    chance = random.Random(seed)
    stage.workers(train_seconds=1.5)
    coordinator = stage.coordinator(rounds=rounds, run={"deadline_seconds": 600.0})
    for kill in range(kills):
        number = 2 + kill * (rounds - 2) // kills
        stage.wait(lambda number=number: stage.has_begun("w1", number), 180, f"round {number}")  # type: ignore[misc]
        node = chance.choice(nodes.nodes)
        node.kill()
        node.launch()
    return coordinator


def test_six_random_nodes_are_killed_in_a_run(stage: Stage, nodes: Nodes) -> None:
    """30 rounds, about a minute: the next address is used, and each node comes back by itself."""
    coordinator = killed_in_a_run(stage, nodes, rounds=30, kills=6, seed=1)
    assert_all_is_well(stage, coordinator, 30)


@pytest.mark.soak
def test_twenty_random_nodes_are_killed_in_a_run(stage: Stage, nodes: Nodes) -> None:
    """The same for longer: now and then the majority is away, for as long as a node needs to start."""
    coordinator = killed_in_a_run(stage, nodes, rounds=60, kills=20, seed=2)
    assert_all_is_well(stage, coordinator, 60)


@pytest.mark.parametrize("seconds", [15, pytest.param(75, marks=pytest.mark.soak)])
def test_the_majority_is_away_and_comes_back(stage: Stage, nodes: Nodes, seconds: int) -> None:
    """Two of three nodes die while a round is open: the third takes nothing. When they are back the round goes on, in
    the same attempt, and each side has said once that it lost the broker, and once that it is back."""
    stage.workers(train_seconds=6.0)
    coordinator = stage.coordinator(rounds=4, run={"deadline_seconds": 600.0})
    stage.wait(lambda: stage.has_begun("w3", 2), 60, "round 2")
    for node in nodes.nodes[:2]:
        node.kill()
    passed(seconds)
    nodes.start()
    assert_all_is_well(stage, coordinator, 4)
    assert ", attempt " not in coordinator.said, coordinator.said
    assert any(_LOST in actor.said for actor in stage.actors), stage.story
    for actor in stage.actors:
        assert actor.said.count(_LOST) <= 2, actor.said
        assert actor.said.count(_LOST) == actor.said.count(_AGAIN), actor.said


def test_the_nodes_are_restarted_one_after_the_other(stage: Stage, nodes: Nodes) -> None:
    """As they are to be upgraded: each is stopped as it should be, and ready again before the next."""
    stage.workers(train_seconds=1.5)
    coordinator = stage.coordinator(rounds=40, run={"deadline_seconds": 600.0})
    stage.wait(lambda: stage.has_begun("w3", 2), 60, "round 2")
    for node in nodes.nodes:
        node.stop()
        nodes.start()
    assert_all_is_well(stage, coordinator, 40)


def test_a_nodes_disk_is_lost(stage: Stage, nodes: Nodes) -> None:
    """It comes back empty, once a person has told the others that the old one is gone for good. The copies of each
    queue are made on it again."""
    stage.workers(train_seconds=1.5)
    coordinator = stage.coordinator(rounds=30, run={"deadline_seconds": 600.0})
    stage.wait(lambda: stage.has_begun("w3", 2), 60, "round 2")
    lost, other = nodes.nodes[2], nodes.nodes[0]
    lost.kill()
    shutil.rmtree(lost.home / "data")
    control(other, "forget_cluster_node", lost.node)
    nodes.start()
    control(other, "grow", lost.node, "all", program="rabbitmq-queues")
    assert_all_is_well(stage, coordinator, 30)
