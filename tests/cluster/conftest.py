"""A cluster of three real nodes on this machine, shared by all tests here; each has a virtual host of its own."""

import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from broker.hosting import probe
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


class Majority(threading.Thread):
    """Looks, ten times a second, whether most of the nodes take connections; without them there is nobody to mend it.

    Args:
        ports: Where the nodes speak AMQP.
    """

    def __init__(self, ports: list[int]) -> None:
        super().__init__(name="majority", daemon=True)
        self._ports = ports
        self._ended = threading.Event()
        self._seen: list[tuple[float, bool]] = []

    def run(self) -> None:
        """Look until told to end."""
        while not self._ended.wait(0.1):
            num_there = sum(not probe.is_free(port) for port in self._ports)
            self._seen.append((time.time(), num_there > len(self._ports) / 2))

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()

    def seconds_away(self, begin: float, end: float) -> float:
        """For how long of this time it was not there."""
        return sum(
            max(min(later, end) - max(at, begin), 0.0)
            for (at, was_there), (later, is_there) in itertools.pairwise(self._seen)
            if not (was_there and is_there)
        )


class Nodes:
    """Three nodes, and what befalls them.

    Attributes:
        nodes: All of them, running or not.
    """

    def __init__(self, nodes: list[PrivateBroker]) -> None:
        self.nodes = nodes
        self.management = Management(",".join(node.management_url for node in nodes))

    @property
    def version(self) -> tuple[int, int]:
        """RabbitMQ's."""
        major, minor, *_ = str(self.management.overview()["rabbitmq_version"]).split(".")
        return int(major), int(minor)

    def start(self) -> None:
        """Start those that are down, and wait until all are ready."""
        cluster.start(self.nodes, seconds=CLUSTER_SECONDS)

    def at(self, vhost: str) -> str:
        """The addresses of all of them."""
        return ",".join(at_vhost(node.amqp_url, vhost) for node in self.nodes)

    def add_vhost(self) -> str:
        """A new virtual host with quorum queues, once it is on all nodes."""
        name, api = f"test-{secrets.token_hex(4)}", self.management.api
        api.put("vhosts", name, body={"defaultqueuetype": "quorum"})
        set_policies(self.management, name)
        wait_until(lambda: len(api.get("vhosts", name)["cluster_state"]) == len(self.nodes), 60)
        return name


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The session's cluster."""
    with started_cluster(tmp_path_factory.mktemp("cluster"), erlang=_ERLANG) as started:
        yield Nodes(started)


@pytest.fixture
def majority(nodes: Nodes) -> Iterator[Majority]:
    """When most of the nodes were there in this test."""
    looking = Majority([node.port for node in nodes.nodes])
    looking.start()
    yield looking
    looking.end()


@pytest.fixture
def vhost(nodes: Nodes) -> Iterator[str]:
    """A virtual host with quorum queues, on nodes that all run; it is deleted at the end."""
    nodes.start()
    name = nodes.add_vhost()
    yield name
    nodes.start()
    nodes.management.delete_vhost(name)


@pytest.fixture
def stage(nodes: Nodes, vhost: str, make_stage: Callable[..., Stage]) -> Stage:
    """A stage behind the three addresses."""
    return make_stage(nodes.at(vhost))


def connected_to(management: Management, running: Sequence[PrivateBroker]) -> dict[str, str]:
    """At which of these nodes each connection is, by its name."""
    there = {node.node for node in running}
    shown = [each for each in management.api.get("connections") if each.get("node") in there]
    return {each["user_provided_name"]: each["node"] for each in shown}


def running_for(node: PrivateBroker) -> set[str]:
    """Which nodes run, as one of them sees it; none while it takes no questions."""
    management = Management(node.management_url, timeout_seconds=5)
    if not management.is_ready():
        return set()
    return {str(each["name"]) for each in management.nodes() if each["running"]}
