"""`worker check` as a command beside a real RabbitMQ: what it finds, its exit codes, and that it leaves nothing."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker, free_ports
from tests.brokers import wait_until
from tests.system.test_command_line import command, start


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.arange(30) % 3)
    return tmp_path / "d.npz"


def checked(amqp_url: str, *words: str) -> tuple[int, dict[str, Any], str]:
    done = command("worker", "check", "--name", "site-1", "--json", *words, amqp_url=amqp_url)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_ready_site_is_told_so_and_nothing_is_left(
    vhost: str, broker: PrivateBroker, management: Management, data: Path
) -> None:
    """No queue, no binding; a worker of this name that runs is seen, and not disturbed."""
    words = ("--data", str(data), "--management-url", broker.management_url)
    code, found, _ = checked(vhost, *words)
    assert (code, found["exit_code"], found["data_problem"], found["broker"]["problem"]) == (0, 0, None, None)
    assert found["broker"]["is_login_accepted"]
    assert abs(found["broker"]["clock_seconds"]) <= 2  # it is this machine's own
    assert (found["broker"]["num_readers"], found["broker"]["has_coordinator"]) == (None, False)
    name = unquote(urlsplit(vhost).path[1:])
    assert management.queues(name) == []
    log = data.parent / "w.log"
    worker = start(log, "worker", "run", "--name", "site-1", "--data", str(data), amqp_url=vhost)
    try:
        wait_until(lambda: b"registering" in log.read_bytes(), 60)
        wait_until(lambda: checked(vhost, *words)[1]["broker"]["num_readers"] == 1, 60)
        story = log.read_text()
        for line in ("27 training and 3 test examples", "float32 of shape 4", "what --share metrics says"):
            assert line in story
    finally:
        worker.terminate()
        assert worker.wait(60) == 0


def test_each_exit_code_has_its_reason(vhost: str, data: Path) -> None:
    """3 for the broker, 5 for the data, also where both are at fault; and both are told."""
    parts = urlsplit(vhost)
    refused = parts._replace(netloc=f"{parts.username}:wrong@{parts.hostname}:{parts.port}").geturl()
    code, found, _ = checked(refused, "--data", str(data))
    assert (code, found["broker"]["is_login_accepted"]) == (3, False)
    assert "refused" in found["broker"]["problem"]
    assert found["data"]["num_train_examples"] == 27
    (port,) = free_ports(1)
    nowhere = f"amqp://guest:guest@localhost:{port}/%2F"
    folder = data.parent / "set" / "NORMAL"
    folder.mkdir(parents=True)
    (folder / "a.nii").write_bytes(b"x")
    code, found, story = checked(nowhere, "--data", str(folder.parent), "--connect-seconds", "1")
    assert (code, found["data"]) == (5, None)
    assert "two classes or more" in found["data_problem"]
    assert found["broker"]["problem"] is not None
    assert found["broker"]["clock_seconds"] is None
    assert "Traceback" not in story
