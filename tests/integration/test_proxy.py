"""The network's page behind the proxy of deploy/proxy: a real nginx with TLS; the state behind the page is made up."""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from broker.hosting.private import free_ports
from broker.web.http_server import PageServer
from broker.web.listening import listen
from coordinator.page.app import CAPS, create_app
from coordinator.page.serve_options import ServeOptions
from tests.brokers import wait_until
from tests.unit.test_network_page import TOKEN, FakeScheduler
from tests.unit.test_status import serving

NAME = "fl.example.org"
EXAMPLE = Path(__file__).parents[2] / "deploy" / "proxy" / "nginx.conf"
AROUND = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/warren.conf;
}}
"""


class Proxy:
    """A browser's side of it: TLS with the certificate checked, and the public name in each request."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._port = port
        self._context = ssl.create_default_context(cafile=certificate)

    def connection(self) -> http.client.HTTPConnection:
        """To the port here, under the name there."""
        made = http.client.HTTPConnection(NAME, self._port)
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=20)
        made.sock = self._context.wrap_socket(plain, server_hostname=NAME)
        return made

    def ask(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        connection = self.connection()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Host": NAME, **given})
        answer = connection.getresponse()
        answer.text = answer.read().decode()  # type: ignore[attr-defined]
        connection.close()
        return answer

    def is_up(self) -> bool:
        with suppress(OSError):
            return self.ask("GET", "/livez").status == 200
        return False


def self_signed(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "fullchain.pem", folder / "privkey.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}",
            "-addext", f"subjectAltName=DNS:{NAME}", "-out", str(certificate), "-keyout", str(key)]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    return certificate, key


def configured(folder: Path, port: int, page_port: int, *, adds_header: bool) -> Path:
    """The example with this test's ports and files; a proxy that adds no header is one line shorter."""
    text = EXAMPLE.read_text(encoding="utf-8")
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl", "    listen [::]:443 ssl;\n": "",
        "127.0.0.1:5000": f"127.0.0.1:{page_port}", f"/etc/letsencrypt/live/{NAME}": str(folder),
    }  # fmt: skip
    if not adds_header:
        changes["        proxy_set_header X-Forwarded-For $remote_addr;\n"] = ""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "warren.conf").write_text(text, encoding="utf-8")
    whole = folder / "nginx.conf"
    whole.write_text(AROUND.format(folder=folder), encoding="utf-8")
    return whole


@pytest.fixture
def scheduler(tmp_path: Path) -> FakeScheduler:
    runs = tmp_path / "runs"
    runs.mkdir()
    made = FakeScheduler(runs)
    made.latest.show(serving([], {}, None), None, [])
    return made


@pytest.fixture(params=[True, False], ids=["as in the example", "without its header"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path, scheduler: FakeScheduler) -> Iterator[Proxy]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "nginx must be installed (Debian: apt install nginx-light)"
        )
    certificate, _ = self_signed(tmp_path)
    asked = ServeOptions(host="127.0.0.1", port=0, runs=tmp_path, token=TOKEN, public_name=NAME)
    stop = threading.Event()
    app = create_app(scheduler, access=asked.access, stop=stop)  # type: ignore[arg-type]
    [port] = free_ports(1)
    with listen("127.0.0.1", 0) as listener, PageServer(app, listener, CAPS):
        config = configured(tmp_path, port, listener.getsockname()[1], adds_header=request.param)
        with subprocess.Popen([nginx, "-c", str(config), "-e", "stderr"]) as process:
            try:
                made = Proxy(port, certificate)
                wait_until(made.is_up, 20, what="an answer through nginx")
                yield made
            finally:
                stop.set()
                process.terminate()


def launch(proxy: Proxy, **headers: str) -> int:
    body = json.dumps({"task": "mnist"})
    return proxy.ask("POST", "/api/launch", body, Content_Type="application/json", **headers).status


def test_nginx_lets_nobody_in_without_a_token(proxy: Proxy, scheduler: FakeScheduler) -> None:
    """Whether it adds a header or none; a script's token is passed on, and a browser logs in with it and launches."""
    assert proxy.ask("GET", "/api/state").status == 401
    assert launch(proxy) == 403
    assert scheduler.launched == []
    assert proxy.ask("GET", "/api/state", X_Warren_Token=TOKEN).status == 200
    assert proxy.ask("GET", "/metrics", Authorization=f"Bearer {TOKEN}").status == 200

    led = proxy.ask("GET", "/")
    assert (led.status, led.headers["Location"]) == (303, "/login")
    own: dict[str, str] = {"Origin": f"https://{NAME}", "Sec_Fetch_Site": "same-origin"}
    form: dict[str, str] = {"Content_Type": "application/x-www-form-urlencoded", **own}
    logged_in = proxy.ask("POST", "/login", f"token={TOKEN}", **form)
    assert (logged_in.status, logged_in.headers["Location"]) == (303, "/")
    cookie, *rules = logged_in.headers["Set-Cookie"].split("; ")
    assert {"Secure", "HttpOnly", "SameSite=Strict"} <= set(rules)
    page = proxy.ask("GET", "/", Cookie=cookie)
    assert page.status == 200
    assert page.headers["Strict-Transport-Security"]
    assert launch(proxy, Cookie=cookie, Origin="https://evil.example") == 403
    assert launch(proxy, Cookie=cookie, **own) == 202


def test_the_stream_comes_through_nginx_as_it_happens(proxy: Proxy, scheduler: FakeScheduler) -> None:
    """An event is not held back until more have come."""
    connection = proxy.connection()
    connection.request("GET", "/events", headers={"Host": NAME, "X-Warren-Token": TOKEN})
    answer = connection.getresponse()

    def next_state() -> Any:
        while not (line := answer.readline()).startswith(b"data: "):
            assert line
        return json.loads(line.removeprefix(b"data: "))

    first = next_state()
    scheduler.latest.show(serving([], {}, None, num_dead=7), None, [])
    second = next_state()
    connection.close()
    assert (first["num_dead"], second["num_dead"]) == (0, 7)
