"""`worker check` as a command beside a real RabbitMQ: what it finds, its exit codes, and that it leaves nothing."""

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker, free_ports
from broker.link.access import Access
from broker.link.address import without_password
from tests.brokers import wait_until
from tests.system.test_command_line import command, start
from worker.site import reaching


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


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A port that speaks TLS with a certificate for localhost, two days valid, and that certificate as PEM."""
    pem, key = tmp_path / "server.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-out", str(pem), "-keyout", str(key)]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=shake_hands, args=(server, context), daemon=True).start()
        yield server.getsockname()[1], pem.read_text()


def shake_hands(server: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            stream, _ = server.accept()
        except OSError:
            return  # the test is over
        try:
            context.wrap_socket(stream, server_side=True).close()
        except OSError:
            stream.close()


def test_the_brokers_certificate_is_shown_where_it_is_trusted(certified: tuple[int, str]) -> None:
    """Whose it is, who signed it, and for how long it is good: what expires stops every site on one day."""
    port, ca = certified
    url = f"amqps://w:p@localhost:{port}/%2F"
    shown = dict(reaching._seen(Access(amqp_url=url, ca=ca)))["tls"]
    assert shown is not None
    assert (shown.subject, shown.issuer, shown.days_left) == ("localhost", "localhost", 1)
    assert shown.version.startswith("TLSv1.")
    assert not [*reaching._seen(Access(amqp_url=url))]  # of nobody's authority
    assert not [*reaching._seen(Access(amqp_url=f"amqp://w:p@localhost:{port}/%2F"))]


def test_of_several_addresses_those_that_can_not_be_used_are_told(vhost: str) -> None:
    """The site is ready, for another node takes it; whoever runs the cluster hears which one does not."""
    (port,) = free_ports(1)
    dead = urlsplit(vhost)._replace(netloc=f"guest:guest@localhost:{port}").geturl()
    found = reaching.reach(Access(amqp_url=f"{dead},{vhost}"), "site-1", connect_seconds=5.0)
    assert (found.problem, found.is_login_accepted) == (None, True)
    ((where, problem),) = found.problems_at.items()
    assert where == without_password(dead)
    assert "connection refused" in problem
