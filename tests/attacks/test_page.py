"""Visitors of the two pages who mean harm: others are answered, memory stays small, the log has no traceback.

Both pages stand on the server that they are served by, in this process; a state and a model are made up.
"""

import http.client
import io
import json
import logging
import re
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from broker.web import http_server, listening
from broker.web.http_server import Caps, PageServer
from coordinator.page import app as network
from tests.brokers import at_load, wait_until
from tests.unit.test_clinic import an_xray, look_at_brightness
from tests.unit.test_network_page import HERE, FakeScheduler
from tests.unit.test_status import serving
from worker.clinic import app as clinic
from worker.clinic.current_model import Classifier, ModelSource
from worker.clinic.gradcam import Look
from worker.data.images import Pixels

Address = str


@contextmanager
def page_of(app: object, caps: Caps) -> Iterator[Address]:
    with listening.listen("127.0.0.1", 0) as listener, PageServer(app, listener, caps):  # type: ignore[arg-type]
        yield urlsplit(listening.address_of(listener, "127.0.0.1")).netloc


@pytest.fixture
def scheduler(tmp_path: Path) -> FakeScheduler:
    made = FakeScheduler(tmp_path)
    made.latest.show(serving([], {}, None), None, [])
    return made


@pytest.fixture
def page(scheduler: FakeScheduler) -> Iterator[Address]:
    """The network's page."""
    stop = threading.Event()
    app = network.create_app(scheduler, access=HERE, stop=stop)  # type: ignore[arg-type]
    with page_of(app, network.CAPS) as address:
        yield address
        stop.set()


class Doctor:
    """The clinic's page with a model that waits until the test lets it look."""

    def __init__(self, folder: Path) -> None:
        self.may_look = threading.Event()
        self.may_look.set()
        model = Classifier(card=None, shape=(20, 20, 1), classes=("A", "B"), look=self.look)
        self.app = clinic.create_app(ModelSource(folder / "model.keras", lambda _: model))

    def look(self, pixels: Pixels) -> Look:
        self.may_look.wait(60)
        return look_at_brightness(pixels)


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    return Doctor(tmp_path)


@pytest.fixture
def clinic_page(doctor: Doctor) -> Iterator[Address]:
    with page_of(doctor.app, clinic._CAPS) as address:
        yield address
        doctor.may_look.set()


def ask(address: Address, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """One request as a browser makes it."""
    connection = http.client.HTTPConnection(address, timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body or None, given)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def raw(address: Address, data: bytes) -> tuple[int, bytes]:
    """What comes back for these bytes."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with suppress(OSError):  # the server may have heard enough
            connection.sendall(data)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


def is_alive(address: Address, path: str = "/healthz") -> bool:
    return ask(address, "GET", path)[0] == 200


def listen(address: Address) -> socket.socket:
    """An open event stream whose first event has come."""
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    connection.recv(4096)
    return connection


def png(side: int, depth: int, colour: int) -> bytes:
    """A black square of a few kB."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    row, packer = b"\0" + bytes(side * channels * depth // 8), zlib.compressobj()
    data = b"".join([packer.compress(row) for _ in range(side)]) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@contextmanager
def memory() -> Iterator[Callable[[], int]]:
    """How many MB more this process had at most since the beginning."""
    status = Path("/proc/self/status")

    def at(name: str) -> int:
        return int(re.findall(rf"{name}:\s+(\d+) kB", status.read_text())[0]) // 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = at("VmRSS")
    yield lambda: at("VmHWM") - before


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is sent, nothing here is a bug, and no traceback fills the log."""
    caplog.set_level(logging.WARNING)
    yield
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


# The network's page


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", {431, 414}),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", {431}),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", {431}),
        (b"GET /" + b"%00" * 5000 + b" HTTP/1.1\r\nHost: HOST\r\n\r\n", {404}),
        (b"GET /api/runs/%ff%00 HTTP/1.1\r\nHost: HOST\r\n\r\n", {404}),
        (b"GET http://[ HTTP/1.1\r\nHost: HOST\r\n\r\n", {400, 404}),
        (b"GET / HTTP/1.1\r\nHost: [\r\n\r\n", {403}),
        (b"POST /api/stop HTTP/1.1\r\nHost: HOST\r\nOrigin: http://[\r\nContent-Length: 0\r\n\r\n", {403}),
        (b"POST /api/launch HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n", {400}),
        (b"POST /api/launch HTTP/1.1\r\nHost: HOST\r\nContent-Length: 9999999999999\r\n\r\n", {413}),
        (b"POST /api/launch HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip\r\n\r\n", {501}),
        (b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", {400, 405}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
        (b"\0" * 70_000, {431}),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_a_line(page: Address, data: bytes, codes: set[int]) -> None:
    """Whoever reaches the port sends anything at all, and wants a traceback, a busy loop or the end of the server."""
    code, said = raw(page, data.replace(b"HOST", page.encode()))
    assert code in codes, said
    assert json.loads(said)["error"]
    assert is_alive(page)


def test_sixty_four_listeners_starve_nobody(page: Address) -> None:
    """A visitor opens event streams, and wants the page to have no thread left for anybody else.

    With 64 of them the state is there in less than a tenth of a second; one more is told to ask for that instead, and
    gets in when another has hung up.
    """
    with ExitStack() as stack:
        listeners = [stack.enter_context(listen(page)) for _ in range(64)]
        seconds = []
        for _ in range(10):
            began = time.monotonic()
            assert is_alive(page, "/api/state")
            seconds.append(time.monotonic() - began)
        assert sorted(seconds)[5] < at_load(0.1), seconds
        assert ask(page, "GET", "/events")[0] == 503
        listeners[0].close()
        wait_until(lambda: ask_events(page) == 200, 30, what="a place for another one")


def test_open_streams_do_not_keep_the_server_from_ending(scheduler: FakeScheduler) -> None:
    """A visitor keeps 64 event streams open: the server ends in two seconds, on a busy machine in three."""
    stop = threading.Event()
    app = network.create_app(scheduler, access=HERE, stop=stop)  # type: ignore[arg-type]
    with ExitStack() as stack:
        with page_of(app, network.CAPS) as address:
            for _ in range(64):
                stack.enter_context(listen(address))
            stop.set()
            began = time.monotonic()
        assert time.monotonic() - began < at_load(3)


def test_a_listener_that_reads_nothing_is_hung_up_on(
    scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visitor opens streams and reads none of what comes: neither memory nor a thread is held for long."""
    monkeypatch.setattr(http_server, "_SILENT_SECONDS", 1)
    monkeypatch.setattr(http_server, "_LOOK_SECONDS", 1)
    monkeypatch.setattr(network, "_MOST_LISTENERS", 2)
    stop = threading.Event()
    app = network.create_app(scheduler, access=HERE, stop=stop)  # type: ignore[arg-type]
    with page_of(app, network.CAPS) as address, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(listen(address))
        assert ask_events(address) == 503

        def another_gets_in() -> bool:
            # A state of 1 MB, another one each time: what the system takes for a client is soon full.
            scheduler.latest.show(serving([], {}, None, num_dead=time.time_ns(), tasks=large), None, [])
            return ask_events(address) == 200

        large = tuple("x" * 100_000 for _ in range(10))
        wait_until(another_gets_in, 30, what="a place for another one")
        stop.set()


def ask_events(address: Address) -> int:
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", "/events")
    try:
        with connection.getresponse() as answer:
            return answer.status
    finally:
        connection.close()


def test_slow_and_silent_clients_lose_their_places(
    scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visitor takes every connection there is, and says nothing, or a letter now and then.

    They are cut off, and whoever comes then is answered.
    """
    for name, value in (("_CROWDED_SECONDS", 0.5), ("_HEADER_SECONDS", 0.5), ("_LOOK_SECONDS", 1)):
        monkeypatch.setattr(http_server, name, value)
    app = network.create_app(scheduler, access=HERE, stop=threading.Event())  # type: ignore[arg-type]
    caps = Caps(threads=4, connections=60, body_bytes=1000, bodies_bytes=1000)
    with page_of(app, caps) as address, ExitStack() as stack:
        host, port = address.split(":")
        taken = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(100)]
        for connection in taken[::2]:
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        began = time.monotonic()
        assert is_alive(address)
        assert time.monotonic() - began < at_load(10)


def test_a_proxy_does_not_make_a_stranger_local(page: Address, scheduler: FakeScheduler) -> None:
    """Someone behind a proxy on this machine wants to launch without the token: the server keeps who forwarded it."""
    for name in ("X_Forwarded_For", "Forwarded", "X_Real_IP", "Via"):
        body = b'{"task": "mnist"}'
        code, _ = ask(
            page, "POST", "/api/launch", body, Content_Type="application/json", **{name: "192.0.2.7"}
        )
        assert code == 403
    assert scheduler.launched == []


def test_a_body_that_is_too_large_is_heard_out_and_dropped(page: Address) -> None:
    """A visitor posts 300 MB: they are told so, and nothing of it stays in memory or on the disk."""
    with memory() as grown:
        code, said = ask(page, "POST", "/api/launch", bytes(300 << 20), Content_Type="application/json")
        assert code == 413
        assert json.loads(said)["error"]
        assert grown() < 400  # 300 of these are the client's own
    assert is_alive(page)


@pytest.mark.parametrize("script", ["coordinator/page/static", "worker/clinic/static"])
def test_what_others_wrote_is_text_to_the_scripts(script: str) -> None:
    """A worker calls itself, a class or a reason `<img onerror=…>`: the pages never read a text as HTML or as code."""
    root = Path(__file__).parents[2]
    found = [path for path in (root / script).iterdir() if path.suffix == ".js"]
    assert found
    for path in found:
        code = path.read_text(encoding="utf-8")
        assert not re.search(
            r"(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|Function\(|srcdoc", code
        )
    for path in (root / script).parent.glob("templates/*.html"):
        assert "|safe" not in path.read_text(encoding="utf-8").replace(" ", "")


# The clinic


def test_six_huge_images_at_once_cost_nothing(clinic_page: Address) -> None:
    """A visitor sends six PNGs of 154 kB that hold 79 million pixels each, and wants the memory of a small hospital PC.

    Each is refused for its size before any of it is decoded.
    """
    huge = [png(8900, 16, 0), png(8900, 16, 6)] * 3
    with memory() as grown, ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(
                lambda image: ask(clinic_page, "POST", "/predict", image, Content_Type="image/png"), huge
            )
        )
        assert grown() < 50
    assert [code for code, _ in answers] == [400] * 6
    assert all("8900 × 8900 pixels" in json.loads(said)["error"] for _, said in answers)


def test_the_largest_images_are_decoded_one_at_a_time(clinic_page: Address) -> None:
    """A visitor sends four of 49 million pixels, which are taken: they cost the memory of one; small ones go first."""
    large, small = png(7000, 16, 0), an_xray()

    def predict(image: bytes) -> tuple[int, float]:
        began = time.monotonic()
        code, _ = ask(clinic_page, "POST", "/predict", image, Content_Type="image/png")
        return code, time.monotonic() - began

    with memory() as grown, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(predict, large) for _ in range(4)]
        code, seconds = predict(small)
        assert (code, all(each.done() for each in answers)) == (200, False)
        assert seconds < at_load(10)
        assert [each.result()[0] for each in answers] == [200] * 4
        assert grown() < 600


def test_a_form_of_many_images_has_a_budget(clinic_page: Address) -> None:
    """A visitor puts thirty images of 49 million pixels into one form of 2 MB: four are looked at."""
    image, border = png(7000, 8, 0), b"--b"
    part = (
        border
        + b'\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        + image
        + b"\r\n"
    )
    body = part * 30 + border + b"--\r\n"
    code, said = ask(clinic_page, "POST", "/predict", body, Content_Type="multipart/form-data; boundary=b")
    assert code == 200
    assert ["error" in each for each in json.loads(said)] == [False] * 4 + [True] * 26


def test_who_waits_too_long_is_told_to_come_again(doctor: Doctor, clinic_page: Address) -> None:
    """A visitor sends forty requests at once: twelve may wait, the others are told at once, and the page is there."""
    doctor.may_look.clear()
    with ThreadPoolExecutor(40) as pool:
        waiting = [
            pool.submit(ask, clinic_page, "POST", "/predict", an_xray(), Content_Type="image/png")
            for _ in range(40)
        ]
        wait_until(lambda: sum(each.done() for each in waiting) == 28, 20, what="28 answers")
        assert is_alive(clinic_page)
        doctor.may_look.set()
        answers = [each.result() for each in waiting]
    assert sorted(code for code, _ in answers) == [200] * 12 + [503] * 28
    assert all("Busy" in json.loads(said)["error"] for code, said in answers if code == 503)


def test_uploads_that_never_end_hold_a_bounded_memory(clinic_page: Address) -> None:
    """A visitor begins twelve uploads of 49 MB and ends none: above 250 MB nothing is kept, and that one is told."""
    host, port = clinic_page.split(":")
    size, chunk = 49 << 20, bytes(1 << 20)
    head = f"POST /predict HTTP/1.1\r\nHost: {clinic_page}\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n\r\n"
    with memory() as grown, ExitStack() as stack:
        uploads = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(12)
        ]
        for upload in uploads:
            upload.sendall(head.encode())
            for _ in range(48):
                upload.sendall(chunk)
        assert is_alive(clinic_page)
        uploads[-1].sendall(chunk)
        assert b" 503 " in uploads[-1].recv(4096)
        assert grown() < 450
    wait_until(lambda: ask(clinic_page, "POST", "/predict", an_xray())[0] == 415, 20, what="room again")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_upload_never_touches_the_disk(
    clinic_page: Address, monkeypatch: pytest.MonkeyPatch, is_chunked: bool
) -> None:
    """A thief of the disk looks for patients: left alone, the server would spool what is larger than 512 kB."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was opened")

    for name in ("TemporaryFile", "SpooledTemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    pixels = np.random.default_rng(0).integers(0, 255, (2000, 2000), np.uint8)
    buffer = io.BytesIO()
    from PIL import Image

    Image.fromarray(pixels).save(buffer, "PNG")
    body = buffer.getvalue()
    assert len(body) > 3 << 20
    connection = http.client.HTTPConnection(clinic_page, timeout=60)
    sent = (body[at : at + 100_000] for at in range(0, len(body), 100_000)) if is_chunked else body
    connection.request("POST", "/predict", sent, {"Content-Type": "image/png"}, encode_chunked=is_chunked)
    assert connection.getresponse().status == 200
    connection.close()
