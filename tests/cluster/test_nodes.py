"""What befalls a cluster's nodes in a run: it goes on by itself, with the same bits, and nobody trains twice."""

import itertools
import os
import random
import shutil
import signal
import statistics
import time
from datetime import datetime

import pytest

from broker.hosting import private
from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker
from tests.brokers import CLUSTER_SECONDS, at_load, control
from tests.cluster.conftest import Majority, Nodes, connected_to, running_for
from tests.faults.stage import Actor, Stage, passed

_WENT = ("Reconnecting.", "The broker has not confirmed a message", "Connecting anew")
_CAME = ("Connected to the broker again.", "The broker takes messages again.")
_RECONNECTED_SECONDS = 3.0  #: from an address that went away to another one
_LONGER_SECONDS = 10.0  #: that a round may last in which this happens


def assert_all_is_well(stage: Stage, coordinator: Actor, rounds: int) -> None:
    """The run ended by itself, as an undisturbed one does, and leaves nothing in the queues."""
    assert coordinator.ended(120) == 0, stage.story
    stage.assert_same_bits(rounds=rounds)
    stage.assert_nobody_trained_twice()
    assert stage.leftovers() == {}
    assert stage.num_ready("dead") == 0


def assert_little_is_lost(stage: Stage, coordinator: Actor, majority: Majority) -> None:
    """Each side of each link is at another address within seconds, and a round is little longer for it.

    What no client can mend does not count: the time in which fewer than two nodes took connections. Both bounds grow
    with the load where more is to be done than there are cores: three nodes of Erlang start beside the run.
    """
    gaps = [(who, mendable(majority, lost, there)) for who, lost, there in stage.gaps()]
    took = [mendable(majority, *each) for each in itertools.pairwise(closed_at(coordinator))]
    usual, load = statistics.median(took), at_load(1.0)
    told = (
        f"reconnected {len(gaps)} times, after {', '.join(f'{gap:.1f}' for gap in sorted(gap for _, gap in gaps))} s; "
        f"a round took {usual:.0f} s, the longest {max(took):.0f} s; without a majority for "
        f"{majority.seconds_away(0.0, time.time()):.0f} s; {load:.1f} times what the cores can do"
    )
    print(f"\n{told}")
    assert gaps, stage.story
    assert max(gap for _, gap in gaps) <= _RECONNECTED_SECONDS * load, f"{told}\n{gaps}\n{stage.story}"
    assert max(took) - usual <= _LONGER_SECONDS * load, f"{told}\n{stage.story}"


def mendable(majority: Majority, begin: float, end: float) -> float:
    """How much of this time there were enough nodes."""
    return end - begin - majority.seconds_away(begin, end)


def closed_at(coordinator: Actor) -> list[float]:
    """When each round was closed, by the clock on the wall: times without a broker are in between."""
    lines = coordinator.said.splitlines()
    return [datetime.fromisoformat(line[:19]).timestamp() for line in lines if " closed after " in line]


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


def test_six_random_nodes_are_killed_in_a_run(stage: Stage, nodes: Nodes, majority: Majority) -> None:
    """30 rounds, about a minute: the next address is used, and each node comes back by itself."""
    coordinator = killed_in_a_run(stage, nodes, rounds=30, kills=6, seed=1)
    assert_all_is_well(stage, coordinator, 30)
    assert_little_is_lost(stage, coordinator, majority)


@pytest.mark.soak
def test_twenty_random_nodes_are_killed_in_a_run(stage: Stage, nodes: Nodes, majority: Majority) -> None:
    """The same for longer: now and then the majority is away, for as long as a node needs to start."""
    coordinator = killed_in_a_run(stage, nodes, rounds=60, kills=20, seed=2)
    assert_all_is_well(stage, coordinator, 60)
    assert_little_is_lost(stage, coordinator, majority)


@pytest.mark.parametrize(
    ("seconds", "is_left"),
    [
        (15, False),
        pytest.param(75, False, marks=pytest.mark.soak),
        pytest.param(75, True, marks=pytest.mark.soak),
    ],
)
def test_the_majority_is_away_and_comes_back(
    stage: Stage, nodes: Nodes, majority: Majority, seconds: int, is_left: bool
) -> None:
    """Two of three nodes are dead while a round is open, and the third takes nothing, for longer than the round may
    last. Each side says once that it is so, whatever befalls its two connections, and once that it is over; the round
    goes on in the same attempt.

    The coordinator is at the node that dies last, or at the one that is left over.
    """
    stage.workers(train_seconds=6.0)
    coordinator = stage.coordinator(rounds=5, run={"deadline_seconds": max(30.0, 0.8 * seconds)})
    # A quorum queue that is made just before a node is killed may be lost, or keep the node's reader.
    stage.wait(lambda: stage.has_begun("w3", 2), 60, "round 2")
    nodes.nodes[0].kill()
    stage.wait(
        lambda: len(connected_to(nodes.management, nodes.nodes[1:])) == 2 * len(stage.actors),
        60,
        "the next node",
    )
    stage.wait(lambda: stage.has_begun("w3", 3), 60, "round 3")
    words = {actor.name: len(actor.said) for actor in stage.actors}
    at = connected_to(nodes.management, nodes.nodes[1:])["coordinator (consume)"]
    begun = time.time()
    next(node for node in nodes.nodes[1:] if (node.node == at) is not is_left).kill()
    passed(seconds)
    nodes.start()
    assert_all_is_well(stage, coordinator, 5)
    away = majority.seconds_away(begun, time.time())
    assert away >= seconds, f"the majority was away for {away:.0f} s alone"
    assert ", attempt " not in coordinator.said, coordinator.said
    for actor in stage.actors:
        assert_one_line_each_way(actor.name, actor.said[words[actor.name] :])


def assert_one_line_each_way(who: str, said: str) -> None:
    """That the broker is away, as a connection that ended or as one that confirms nothing, and that it is back."""
    went, came = (sum(said.count(each) for each in words) for words in (_WENT, _CAME))
    assert (went, came) == (1, 1), f"{who}:\n{said}"


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


@pytest.mark.soak
def test_a_node_is_frozen(stage: Stage, nodes: Nodes) -> None:
    """As a virtual machine is that is moved, or swaps: it neither answers nor ends. Who is there waits for two of its
    heartbeats, and goes to the others.

    When it runs again a node of RabbitMQ 4 is with the others at once, and nobody has to do anything. One of 3.10
    notices that it was alone, pauses and comes back; or it doesn't, and stays apart: the nodes say so, the run does not
    mind, and a person restarts it.
    """
    stage.workers(train_seconds=1.5)
    coordinator = stage.coordinator(rounds=60, run={"deadline_seconds": 600.0})
    stage.wait(lambda: stage.has_begun("w3", 2), 60, "round 2")
    there = "coordinator (consume)"
    stage.wait(lambda: there in connected_to(nodes.management, nodes.nodes), 60, "the coordinator's node")
    at = connected_to(nodes.management, nodes.nodes)[there]
    frozen = next(node for node in nodes.nodes if node.node == at)
    others = [node for node in nodes.nodes if node is not frozen]
    signal_all(frozen, signal.SIGSTOP)
    try:
        stage.wait(lambda: running_for(others[0]) == {each.node for each in others}, 60, "its end")
        passed(45)  # two heartbeats, and some rounds without it
    finally:
        signal_all(frozen, signal.SIGCONT)
    if nodes.version < (4, 0):
        stage.wait(
            lambda: is_whole(nodes) or is_told_apart(nodes, frozen),
            60,
            "one cluster, or a partition that is told",
        )
        stage.wait_for_round(stage.committed_round + 3, 90)
        if not is_whole(nodes):
            frozen.stop()
            frozen.start(seconds=CLUSTER_SECONDS)
    assert coordinator.is_running, "the run was over before the node was back"
    stage.wait(lambda: is_whole(nodes), 30, "one cluster")
    assert_all_is_well(stage, coordinator, 60)


def signal_all(node: PrivateBroker, number: int) -> None:
    """Send a signal to all processes of a node."""
    for pid in private._pids(node.home):
        os.kill(pid, number)


def is_whole(nodes: Nodes) -> bool:
    """Whether each node says that all run, and none that it was ever apart from another."""
    return all(len(running_for(node)) == len(nodes.nodes) for node in nodes.nodes) and not any(
        each.get("partitions") for each in nodes.management.nodes()
    )


def is_told_apart(nodes: Nodes, frozen: PrivateBroker) -> bool:
    """Whether a node that runs tells of a partition: the others say that it does not run, and it says so of them."""
    own = Management(frozen.management_url, timeout_seconds=5)
    return (
        own.is_ready()
        and any(each.get("partitions") for each in own.nodes())
        and len(running_for(frozen)) < 3
    )
