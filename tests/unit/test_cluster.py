"""The nodes of a private cluster as they are written down, and what is shown of them."""

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.cli import _table, main
from broker.errors import BrokerError
from broker.hosting import probe
from broker.hosting.private import PrivateBroker
from broker.hosting.starting import cluster


@pytest.fixture
def nodes(tmp_path: Path) -> list[PrivateBroker]:
    first = PrivateBroker(home=tmp_path / "5700", port=5700, management_port=15700, user="me", vhost="lab")
    return cluster.new_nodes(first, [5700, 5701, 5702])


def test_the_nodes_of_a_cluster_find_each_other(nodes: list[PrivateBroker]) -> None:
    """By one list of names, one secret that nobody else may read, and one name server; login and virtual host are
    those that were asked for."""
    assert [node.port for node in nodes] == [5700, 5701, 5702]
    assert nodes[0].management_port == 15700
    assert len({node.management_port for node in nodes}) == 3
    assert {node.epmd_port for node in nodes} - {None}
    for shared in ("conf", "cluster", "epmd_port", "user", "password", "vhost"):
        assert len({getattr(node, shared) for node in nodes}) == 1
    for at, node in enumerate(nodes, 1):
        assert f"cluster_formation.classic_config.nodes.{at} = {node.node}" in nodes[0].conf
    cookies = [node.home / ".erlang.cookie" for node in nodes]
    assert len({cookie.read_text() for cookie in cookies}) == 1
    assert all(stat.S_IMODE(cookie.stat().st_mode) == 0o400 for cookie in cookies)


def test_a_broker_alone_is_the_one_node_of_itself(tmp_path: Path) -> None:
    """So that whoever starts or ends a broker need not ask which kind it is."""
    alone = PrivateBroker(home=tmp_path / "5700", port=5700, management_port=15700)
    assert cluster.nodes_of(alone) == [alone]


def test_nodes_take_the_first_free_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a port was asked for it is that one, or none."""
    monkeypatch.setattr(probe, "is_free", lambda port: port not in (5700, 5702))
    assert cluster.ports_for(3, 5700, tmp_path, is_exact=False) == [5701, 5703, 5704]
    with pytest.raises(BrokerError, match="Port 5700 is taken"):
        cluster.ports_for(3, 5700, tmp_path, is_exact=True)


def test_status_shows_the_nodes_of_a_cluster() -> None:
    """Which one is down, and which does not see which; of a single node nothing is said."""
    node = {"name": "a", "is_running": True, "memory_bytes": 138_000_000, "cut_off_from": ["c"]}
    down = {"name": "b", "is_running": False, "memory_bytes": 0, "cut_off_from": []}
    found = {
        "version": "4",
        "virtual_host": "/",
        "memory_bytes": 0,
        "alarms": [],
        "queues": [],
        "certificates": [],
        "connections": [],
    }
    text = _table({**found, "nodes": [node, down]})
    assert "a     running  138 MB  c" in text
    assert "b     down     0 MB    -" in text
    assert "running" not in _table({**found, "nodes": [node]})


def test_a_cluster_for_trying_is_for_this_machine_alone(tmp_path: Path) -> None:
    """Two nodes have no majority without each other; others reach none of them."""
    for words, said in (
        (["--nodes", "3", "--tls", "--admin", "me"], "without --tls"),
        (["--nodes", "2"], "2"),
    ):
        answer = CliRunner().invoke(main, ["up", *words, "--home", str(tmp_path)])
        assert answer.exit_code == 2
        assert said in answer.output
