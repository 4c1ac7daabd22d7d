"""What somebody on the network learns of a password: nothing."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker import cli, command
from broker.errors import BrokerError, BrokerUnreachable
from broker.hosting import probe
from broker.hosting.management import Management
from broker.hosting.private import free_ports
from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from tests.brokers import started_broker

ROOT = Path(__file__).parents[2]


@contextmanager
def listening(location: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """A web server that notes the Authorization of each request, and points elsewhere; its port and notes."""
    heard: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization", ""))
            self.send_response(200 if location is None else 302)
            if location is not None:
                self.send_header("Location", location)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def eavesdropper() -> Iterator[tuple[int, list[bytes]]]:
    """Something that takes connections and notes the first bytes of each."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    stream, _ = server.accept()
                except OSError:
                    return
                with stream:
                    stream.settimeout(2)
                    heard.append(stream.recv(1000))

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("WARREN_", "AMQP"))
    }
    return subprocess.run(
        [sys.executable, "-m", *words],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("words", [["status"], ["invite", "a"], ["revoke", "a"]], ids=" ".join)
def test_an_eavesdropper_hears_no_login_of_an_administrator(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The enemy listens on the network between an administrator and the broker's host, whose AMQP is encrypted. It
    waits for the commands that ask the management API at its usual port, to read the password there. They ask it by
    https."""
    with eavesdropper() as (port, heard):
        ports = {kind: (scheme, port) for kind, (scheme, _) in command._MANAGEMENT.items()}
        monkeypatch.setattr(command, "_MANAGEMENT", ports)
        given = ["--amqp-url", "amqps://admin:SECRET@127.0.0.1/", "--home", str(tmp_path)]
        answer = CliRunner().invoke(cli.main, [*words, *given])
    assert answer.exit_code == 3
    assert heard
    assert all(each[:1] == b"\x16" for each in heard), "the first byte of TLS's handshake"
    assert "SECRET" not in answer.stderr


def test_a_page_that_points_elsewhere_is_not_followed() -> None:
    """The enemy holds the host of a management page, or the way to it, and answers with a redirect to a host of its
    own, in the clear, to be sent the password there. Nothing is sent there; the answer is told as it is."""
    with listening() as (port, heard):
        elsewhere = f"http://127.0.0.1:{port}/api/overview"
        with listening(elsewhere) as (first, asked):
            with pytest.raises(BrokerError, match="answered 302"):
                Management(f"http://admin:SECRET@localhost:{first}").overview()
            assert asked
    assert heard == []


def test_a_certificate_of_nobody_s_gets_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The enemy stands between a worker and the broker, with a certificate that it made itself, and waits for the
    login. Management API, link and `broker up` say at once that the certificate is not trusted, and what to give if it
    is one's own; with that they work, over TLS."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "ca.pem"]  # fmt: skip
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    port, page = free_ports(2)
    files = {"cacertfile": "ca.pem", "certfile": "ca.pem", "keyfile": "key.pem"}
    conf = (
        f"listeners.ssl.1 = 127.0.0.1:{port}",
        *(f"ssl_options.{option} = {tmp_path / name}" for option, name in files.items()),
        "management.ssl.ip = 127.0.0.1",
        f"management.ssl.port = {page}",
        *(f"management.ssl.{option} = {tmp_path / name}" for option, name in files.items()),
    )
    amqps, https = f"amqps://guest:guest@localhost:{port}/", f"https://guest:guest@localhost:{page}"
    with started_broker(tmp_path / "home", conf=conf):
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(BrokerUnreachable, match=r"not trusted .*SSL_CERT_FILE"):
            Management(https).overview()
        link = RabbitLink(LinkSettings(access=Access(amqp_url=amqps), name="test", connect_seconds=60))
        with pytest.raises(BrokerUnreachable, match=r"not trusted .*SSL_CERT_FILE"):
            link.open()
        assert probe.ask(amqps) is probe.Answer.UNTRUSTED
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert Management(https).overview()["rabbitmq_version"]
        assert probe.ask(amqps) is probe.Answer.READY
        link = RabbitLink(LinkSettings(access=Access(amqp_url=amqps), name="test"))
        link.open()
        link.close()


WRONG = [
    "amqp://admin:SECRET", "https://admin:SEC/RET@host:15672", "https://admin:SECRET@host:port", "admin:SECRET@host",
    "http://admin:SECRET@host:15672/#/queues", "https//admin:SECRET@host",
]  # fmt: skip


@pytest.mark.parametrize("page", WRONG)
def test_a_slip_shows_no_password(page: str) -> None:
    """The enemy reads logs, and looks over shoulders. An administrator mistypes the management page's address: the
    error names it without what is between the user and the last '@'."""
    answer = run("broker", "status", "--management-url", page)
    assert answer.returncode == 2
    assert not any(secret in answer.stdout + answer.stderr for secret in ("SEC", "RET"))
