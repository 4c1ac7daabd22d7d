"""A network that breaks between nodes that run: the smaller part takes nothing, and who notices goes to the others."""

from collections.abc import Callable, Iterator

import pytest

from broker.hosting import private
from broker.hosting.management import Management
from tests.brokers import wait_until
from tests.cluster.apart import NodeApart, nodes_apart
from tests.cluster.conftest import Nodes, connected_to, running_for
from tests.cluster.test_nodes import assert_all_is_well
from tests.faults.stage import Stage

pytestmark = pytest.mark.soak

_ROUNDS = 60  #: two minutes: some of them before, some without the node, some afterwards
_SEEN_SECONDS = 60.0
_GONE_SECONDS = 120.0  #: a connection that is silent costs two heartbeats, one that confirms nothing a minute
_GOES_ON_SECONDS = 30.0
_HEALED_SECONDS = 240.0


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeApart]]:
    """Nodes that can be cut off."""
    with nodes_apart(tmp_path_factory.mktemp("apart")) as started:
        yield started


@pytest.fixture
def stage(apart: list[NodeApart], make_stage: Callable[..., Stage]) -> Stage:
    """A stage behind their addresses, on a virtual host of its own with quorum queues."""
    nodes = Nodes(list(apart))
    return make_stage(nodes.at(nodes.add_vhost()))


@pytest.mark.parametrize("cables", [("inner",), ("inner", "outer")], ids=["from-the-nodes", "from-everybody"])
def test_a_node_is_cut_off(apart: list[NodeApart], stage: Stage, cables: tuple[str, ...]) -> None:
    """The node that the coordinator is at, from the other two or from clients as well. With the cable in again the
    cluster is whole, and the run ends as an undisturbed one, in the same attempt; no hand is needed.

    The coordinator goes to another node, whether its own one ends its connections (RabbitMQ 3 pauses), confirms
    nothing more (4 keeps them), or is silent. Whether the run goes on meanwhile is printed, for a worker that only
    waits at a node of 4 that keeps it doesn't notice: see deploy/README.md.
    """
    stage.workers(train_seconds=1.5)
    coordinator = stage.coordinator(rounds=_ROUNDS, run={"deadline_seconds": 600.0})
    stage.wait(lambda: stage.has_begun("w3", 2), 60, "round 2")
    whole = Management(apart[0].management_url)
    stage.wait(lambda: "coordinator (consume)" in connected_to(whole, apart), 60, "the coordinator's node")
    at = connected_to(whole, apart)["coordinator (consume)"]
    lost = next(node for node in apart if node.node == at)
    others = [node for node in apart if node is not lost]
    left = Management(others[0].management_url)
    lost.cut(*cables)
    try:
        stage.wait(lambda: running_for(others[0]) == {each.node for each in others}, _SEEN_SECONDS, "its end")
        both = {"coordinator (consume)", "coordinator (publish)"}
        stage.wait(
            lambda: both <= connected_to(left, others).keys(), _GONE_SECONDS, "the coordinator elsewhere"
        )
        number = stage.committed_round
        goes_on = private.wait_until(lambda: stage.committed_round >= number + 2, _GOES_ON_SECONDS)
        print(
            f"cut off {', '.join(cables)}: the run goes on: {goes_on}, {len(connected_to(left, others))} connections"
        )
    finally:
        lost.mend(*cables)
    assert coordinator.is_running, "the run was over before the cable was in again"
    for node in apart:
        wait_until(lambda node=node: len(running_for(node)) == 3, _HEALED_SECONDS, what=f"all at {node.node}")  # type: ignore[misc]
    assert_all_is_well(stage, coordinator, _ROUNDS)
    assert ", attempt " not in coordinator.said, coordinator.said
