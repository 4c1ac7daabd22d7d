"""`broker up --nodes 3` as a person types it: one list of addresses, quorum queues, and an end that leaves nothing."""

import json
import os
import signal
from pathlib import Path

import pytest

from broker.hosting import private
from broker.hosting.private import PrivateBroker, free_ports
from tests.brokers import need_rabbitmq
from tests.system.test_command_line import command


@pytest.mark.usefixtures("nodes")  # three nodes less to start beside these
def test_a_cluster_is_up_goes_down_and_is_up_again(tmp_path: Path) -> None:
    """What is invited holds all addresses; a node that dies is shown as down; the others answer in its place."""
    need_rabbitmq()
    (port,) = free_ports(1)
    home = ("--home", str(tmp_path))
    first = f"amqp://guest:guest@localhost:{port}/%2F"
    try:
        started = command("broker", "up", "--nodes", "3", "--port", str(port), *home, amqp_url=first)
        assert started.returncode == 0, started.stderr
        urls = started.stdout.splitlines()[0]
        assert urls.count("amqp://") == 3
        invited = command("broker", "invite", "w", *home, amqp_url=first)
        assert invited.stdout.count("amqp://w:") == 3
        ports = [int(url.rpartition(":")[2].partition("/")[0]) for url in urls.split(",")]
        dead = PrivateBroker.recorded(tmp_path / str(ports[0]))
        assert dead is not None
        dead.kill()
        shown = json.loads(command("broker", "status", "--json", *home, amqp_url=urls).stdout)
        assert [node["is_running"] for node in shown["nodes"]].count(False) <= 1
        assert {queue["name"] for queue in shown["queues"]} >= {"worker.w", "upload.w"}
        again = command("broker", "up", "--nodes", "3", "--port", str(port), *home, amqp_url=first)
        assert again.stdout.splitlines()[0] == urls, again.stderr
        ended = command("broker", "down", *home, amqp_url=urls)
        assert ended.stdout.count("ended amqp://") == 3
        once_more = command("broker", "up", *home, amqp_url=first)
        assert once_more.stdout.splitlines()[0] == urls, once_more.stderr
    finally:
        command("broker", "down", "--all", "--delete-data", "--yes", *home, amqp_url=first)
        for pid in (pid for each in tmp_path.glob("[0-9]*") for pid in private._pids(each)):
            os.kill(pid, signal.SIGKILL)
    assert list(tmp_path.glob("[0-9]*")) == []
