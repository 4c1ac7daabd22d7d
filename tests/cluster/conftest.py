"""A cluster of three real nodes on this machine, shared by all tests here; each has a virtual host of its own."""

import secrets
from collections.abc import Callable, Iterator

import pytest

from broker.hosting.management import Management
from broker.hosting.policies import set_policies
from broker.hosting.private import PrivateBroker
from broker.hosting.starting import cluster
from tests.brokers import CLUSTER_SECONDS, at_vhost, started_cluster, wait_until
from tests.faults.conftest import make_stage
from tests.faults.stage import Stage

__all__ = ["make_stage"]

#: A partition is noticed after 5 s, not after 60.
_ERLANG = ("-kernel net_ticktime 5",)


class Nodes:
    """Three nodes, and what befalls them.

    Attributes:
        nodes: All of them, running or not.
    """

    def __init__(self, nodes: list[PrivateBroker]) -> None:
        self.nodes = nodes
        self.management = Management(",".join(node.management_url for node in nodes))

    def start(self) -> None:
        """Start those that are down, and wait until all are ready."""
        cluster.start(self.nodes, seconds=CLUSTER_SECONDS)

    def at(self, vhost: str) -> str:
        """The addresses of all of them."""
        return ",".join(at_vhost(node.amqp_url, vhost) for node in self.nodes)


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The session's cluster."""
    with started_cluster(tmp_path_factory.mktemp("cluster"), erlang=_ERLANG) as started:
        yield Nodes(started)


@pytest.fixture
def vhost(nodes: Nodes) -> Iterator[str]:
    """A virtual host with quorum queues, on nodes that all run; it is deleted at the end."""
    nodes.start()
    name = f"test-{secrets.token_hex(4)}"
    nodes.management.api.put("vhosts", name, body={"defaultqueuetype": "quorum"})
    set_policies(nodes.management, name)
    yield name
    nodes.start()
    nodes.management.delete_vhost(name)


@pytest.fixture
def stage(nodes: Nodes, vhost: str, make_stage: Callable[..., Stage]) -> Stage:
    """A stage behind the three addresses."""
    management = nodes.management
    wait_until(lambda: len(management.api.get("vhosts", vhost)["cluster_state"]) == 3, 60)
    return make_stage(nodes.at(vhost))
