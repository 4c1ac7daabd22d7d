"""Real brokers for the tests: one per session on free ports, a virtual host of its own for every test."""

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from broker.errors import BrokerUnreachable
from broker.hosting import private
from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker, free_ports
from broker.hosting.starting import cluster

CLUSTER_SECONDS = 300.0  #: that the nodes of a cluster are given to start


def wait_until(condition: Callable[[], bool], seconds: float, *, what: str = "the condition") -> None:
    """Return as soon as the condition holds; fail the test when it does not within this many seconds."""
    assert private.wait_until(condition, seconds), f"{what} did not come true within {seconds} seconds"


def at_load(seconds: float) -> float:
    """What takes at most so long where nothing else computes: more on a machine that has more to do than it has cores.

    For what a person waits for, such as the end of a process; a wait for anything else has room enough in its bound.
    """
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@contextmanager
def started_broker(
    home: Path, *, conf: tuple[str, ...] = (), erlang: tuple[str, ...] = ()
) -> Iterator[PrivateBroker]:
    """A private broker on free ports, for tests that kill it or need settings; gone at the end.

    The shared one of the fixture `broker` must never be killed or stopped.
    """
    need_rabbitmq()
    port, management_port = free_ports(2)
    broker = PrivateBroker(home=home, port=port, management_port=management_port, conf=conf, erlang=erlang)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@contextmanager
def started_cluster(folder: Path, *, erlang: tuple[str, ...] = ()) -> Iterator[list[PrivateBroker]]:
    """Three private nodes on free ports, with quorum queues; gone at the end, whichever of them run then."""
    need_rabbitmq()
    ports = free_ports(4)
    first = PrivateBroker(home=folder / str(ports[0]), port=ports[0], management_port=ports[3])
    nodes = [replace(node, erlang=erlang) for node in cluster.new_nodes(first, ports[:3])]
    try:
        cluster.start(nodes, seconds=CLUSTER_SECONDS)
        yield nodes
    finally:
        for node in nodes:
            node.kill()
        nodes[0].end_epmd()


#: What rabbitmqctl is told to raise an alarm, and to clear it.
ALARMS = {
    "memory": (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.6")),
    "disk": (("set_disk_free_limit", "9000GB"), ("set_disk_free_limit", "50MB")),
}


def control(broker: PrivateBroker, *words: str, program: str = "rabbitmqctl") -> None:
    """Run rabbitmqctl, or another one, against a private broker; it lies beside the server's program."""
    epmd_port = json.loads((broker.home / "broker.json").read_text())["epmd_port"]
    subprocess.run(
        [private.find_program().with_name(program), *words],
        env=broker._environment(epmd_port, 0) | {"RABBITMQ_DIST_PORT": ""},
        check=True,
        capture_output=True,
        timeout=60,
    )


def need_rabbitmq() -> None:
    """Skip where no rabbitmq-server is installed; in CI that is a failure."""
    try:
        private.find_program()
    except BrokerUnreachable as exc:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(exc))


@contextmanager
def fresh_vhost(broker: PrivateBroker, queue_type: str | None = None) -> Iterator[str]:
    """The AMQP URL of a new virtual host; deleted with everything in it at the end.

    Its queues are of this type unless somebody asks for another; None: as WARREN_TEST_QUEUE_TYPE says, or classic.
    """
    management = Management(broker.management_url)
    name = f"test-{secrets.token_hex(4)}"
    queue_type = queue_type or os.environ.get("WARREN_TEST_QUEUE_TYPE", "classic")
    management.api.put("vhosts", name, body={"defaultqueuetype": queue_type})
    try:
        yield at_vhost(broker.amqp_url, name)
    finally:
        management.delete_vhost(name)


def at_vhost(amqp_url: str, vhost: str) -> str:
    """The same broker and login at another virtual host."""
    return urlsplit(amqp_url)._replace(path=f"/{quote(vhost, safe='')}").geturl()
