"""Three nodes that can be cut off: each in a network namespace, with a cable to the others and one to clients.

What goes over a cable that is down is lost in silence, as with a switch that lost its power: nobody is told that a
connection is over.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.hosting.private import PrivateBroker
from broker.hosting.starting import cluster
from tests.brokers import CLUSTER_SECONDS, need_rabbitmq

_PORT, _MANAGEMENT_PORT, _EPMD_PORT = 5672, 15672, 4369  # nothing else is in their networks
_COOKIE = ".erlang.cookie"
_NOT_SEEN_SECONDS = 5  #: a node that says nothing for so long is taken for gone; 60 by default


@dataclass(frozen=True, kw_only=True)
class NodeApart(PrivateBroker):
    """One node in a network namespace.

    Attributes:
        namespace: Its network's name.
        inner: Its address among the nodes.
        outer: Its address as clients know it.
    """

    namespace: str
    inner: str
    outer: str

    @property
    def node(self) -> str:
        """Erlang's name for it."""
        return f"warren@{self.inner}"

    @property
    def _host(self) -> str:
        return self.outer

    def cut(self, *cables: str) -> None:
        """Pull the far ends of these cables out."""
        self._switch(cables, "down")

    def mend(self, *cables: str) -> None:
        """Put them in again."""
        self._switch(cables, "up")

    def _switch(self, cables: tuple[str, ...], state: str) -> None:
        lan, _, number = self.namespace.rpartition("-")
        for cable in cables:
            _do("ip", "-n", lan, "link", "set", f"{cable}{number}", state)

    def _listeners(self) -> list[str]:
        return [
            f"listeners.tcp.1 = {self.outer}:{self.port}",
            f"management.tcp.ip = {self.outer}",
            f"management.tcp.port = {self.management_port}",
            "loopback_users = none",
        ]

    def _environment(self, epmd_port: int, node_port: int) -> dict[str, str]:
        interface = f"-kernel inet_dist_use_interface {{{self.inner.replace('.', ',')}}}"
        return PrivateBroker._environment(self, epmd_port, node_port) | {
            "RABBITMQ_USE_LONGNAME": "true",
            "ERL_EPMD_ADDRESS": self.inner,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join([interface, *self.erlang]),
        }

    def _launch(self, program: Path) -> None:
        inside = self.home / "inside"
        inside.write_text(f'#!/bin/sh\nexec ip netns exec {self.namespace} {program} "$@"\n')
        inside.chmod(0o700)
        PrivateBroker._launch(self, inside)


@contextmanager
def nodes_apart(folder: Path) -> Iterator[list[NodeApart]]:
    """Three of them as one cluster; all is gone at the end. They skip where nobody may make networks."""
    need_rabbitmq()
    need_networks()
    lan, third = f"warren-{secrets.token_hex(3)}", 1 + secrets.randbelow(254)
    with ExitStack() as stack:
        _add_namespace(lan, stack)
        _bridge(lan, "inner")
        _bridge(lan, "outer")
        _join(lan, third, stack)
        nodes = [_node(folder, lan, third, number) for number in (1, 2, 3)]
        for number, node in enumerate(nodes, start=1):
            _add_namespace(node.namespace, stack)
            _do("ip", "-n", node.namespace, "link", "set", "lo", "up")
            _plug(lan, node.namespace, "inner", node.inner, number)
            _plug(lan, node.namespace, "outer", node.outer, number)
        _share_cookie(nodes)
        cluster.start(list(nodes), seconds=CLUSTER_SECONDS)
        yield nodes


def _node(folder: Path, lan: str, third: int, number: int) -> NodeApart:
    names = [f"warren@10.78.{third}.{each}" for each in (1, 2, 3)]
    return NodeApart(
        home=folder / f"node-{number}",
        port=_PORT,
        management_port=_MANAGEMENT_PORT,
        epmd_port=_EPMD_PORT,
        namespace=f"{lan}-{number}",
        inner=f"10.78.{third}.{number}",
        outer=f"10.79.{third}.{number}",
        erlang=(f"-kernel net_ticktime {_NOT_SEEN_SECONDS}",),
        conf=(
            "cluster_formation.peer_discovery_backend = classic_config",
            *(f"cluster_formation.classic_config.nodes.{at} = {name}" for at, name in enumerate(names, 1)),
            "cluster_partition_handling = pause_minority",
            "vm_memory_high_watermark.relative = 0.2",
        ),
    )


def _share_cookie(nodes: list[NodeApart]) -> None:
    secret = secrets.token_hex(20)
    for node in nodes:
        node.home.mkdir(parents=True)
        cookie = node.home / _COOKIE
        cookie.write_text(secret)
        cookie.chmod(0o400)


def need_networks() -> None:
    """Skip, and say why, where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("only root can make networks")
    if shutil.which("ip") is None:
        pytest.skip("ip is not here: apt-get install iproute2")
    trial = f"warren-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    _do("ip", "netns", "delete", trial)


def _add_namespace(name: str, stack: ExitStack) -> None:
    _do("ip", "netns", "add", name)
    stack.callback(_do, "ip", "netns", "delete", name)
    stack.callback(_end_all_in, name)


def _end_all_in(namespace: str) -> None:
    """Nodes, and the name server of each; who only waits for a namespace would keep it for ever."""
    listed = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True
    ).stdout.split()
    for pid in listed:
        subprocess.run(["kill", "-KILL", pid], capture_output=True, check=False)  # it may be gone


def _bridge(lan: str, name: str) -> None:
    _do("ip", "-n", lan, "link", "add", name, "type", "bridge")
    _do("ip", "-n", lan, "link", "set", name, "up")


def _join(lan: str, third: int, stack: ExitStack) -> None:
    """This machine's own cable to where clients are."""
    card = f"w{lan.removeprefix('warren-')}"
    _do("ip", "link", "add", card, "type", "veth", "peer", "name", "clients", "netns", lan)
    stack.callback(_do, "ip", "link", "delete", card)
    _do("ip", "-n", lan, "link", "set", "clients", "master", "outer", "up")
    _do("ip", "address", "add", f"10.79.{third}.254/24", "dev", card)
    _do("ip", "link", "set", card, "up")


def _plug(lan: str, namespace: str, cable: str, address: str, number: int) -> None:
    port = f"{cable}{number}"
    _do("ip", "-n", lan, "link", "add", port, "type", "veth", "peer", "name", cable, "netns", namespace)
    _do("ip", "-n", lan, "link", "set", port, "master", cable, "up")
    _do("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", cable)
    _do("ip", "-n", namespace, "link", "set", cable, "up")


def _do(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
