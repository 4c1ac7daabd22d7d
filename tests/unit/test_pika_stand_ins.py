"""What stands in for pika's own framing does the same to the bit, and tells when pika no longer calls it."""

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.frame
import pytest
from pika.adapters.base_connection import BaseConnection
from pika.adapters.utils import io_services_utils
from pika.channel import ContentFrameAssembler
from pika.connection import Connection as PikaConnection

from broker.link.rabbitmq import pika_stand_ins
from broker.link.rabbitmq.pika_stand_ins import LeanConnection, find_flaws, stand_in

CHANNEL = 3
BODY_LENGTH = 1000  # of a frame, so that messages of a few kB have several


class Connection(LeanConnection):  # type: ignore[misc] # pika is untyped here
    """Without a socket: what it would do with frames is noted."""

    def __init__(self) -> None:
        self._frame_buffer = bytearray()
        self._body_max_length = BODY_LENGTH
        self.bytes_received = 0
        self.sent: list[bytes] = []
        self.messages: list[bytes] = []
        self.others: list[type] = []
        self._assembler = ContentFrameAssembler()

    def _process_frame(self, frame: Any) -> None:
        if isinstance(frame, pika.frame.Heartbeat):
            self.others.append(type(frame))
            return
        whole = self._assembler.process(frame)
        if whole is not None:
            self.messages.append(whole[2])

    def _output_marshaled_frames(self, frames: list[bytes]) -> None:
        self.sent += frames


def marshalled(bodies: list[bytes]) -> bytes:
    """The frames of deliveries as pika itself makes them, a heartbeat after each."""
    stream = b""
    for body in bodies:
        method = pika.spec.Basic.Deliver("tag", 1, False, "warren", "key")
        stream += pika.frame.Method(CHANNEL, method).marshal()
        stream += pika.frame.Header(CHANNEL, len(body), pika.BasicProperties()).marshal()
        for begin in range(0, len(body), BODY_LENGTH):
            stream += pika.frame.Body(CHANNEL, body[begin : begin + BODY_LENGTH]).marshal()
        stream += pika.frame.Heartbeat().marshal()
    return stream


@pytest.mark.parametrize("largest", [1, 7, 8, 500, 1008, 100_000])
def test_messages_come_whole_however_the_stream_is_cut(largest: int) -> None:
    """Bodies, heartbeats and the count of bytes are the same, whatever pieces TCP delivers."""
    generator = random.Random(largest)
    bodies = [generator.randbytes(size) for size in (0, 1, BODY_LENGTH, 5 * BODY_LENGTH + 1, 3)]
    stream = marshalled(bodies)
    connection = Connection()
    at = 0
    while at < len(stream):
        size = generator.randint(1, largest)
        connection._on_data_available(stream[at : at + size])
        at += size
    assert connection.messages == bodies
    assert connection.others == [pika.frame.Heartbeat] * len(bodies)
    assert connection.bytes_received == len(stream), "pika's heartbeat looks at this"


def test_a_frame_without_its_end_is_an_error_as_it_is_in_pika() -> None:
    """A stream out of step is never read on."""
    stream = marshalled([b"x" * 10]).replace(b"x" * 10 + b"\xce", b"x" * 10 + b"\x00")
    with pytest.raises(pika.exceptions.InvalidFrameError):
        Connection()._on_data_available(stream)


@pytest.mark.parametrize("size", [0, 1, BODY_LENGTH, 5 * BODY_LENGTH + 1])
def test_a_message_is_cut_into_the_frames_that_pika_makes(size: int) -> None:
    """What goes out is to the byte what pika itself would send."""
    body = bytes(size)
    method = pika.spec.Basic.Publish(exchange="warren", routing_key="key")
    theirs, ours = Connection(), Connection()
    pika.SelectConnection._send_message(theirs, CHANNEL, method, (pika.BasicProperties(), body))
    ours._send_message(CHANNEL, method, (pika.BasicProperties(), body))
    assert ours.sent == theirs.sent


READS = "it does not read 256 KiB at a time"
RECEIVES = "received messages do not pass through ours"
SENDS = "published messages do not pass through ours"


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """As in a process that has not told anything yet."""
    stand_in.cache_clear()
    stand_in()
    stand_in.cache_clear()
    yield
    stand_in.cache_clear()


Break = Callable[[pytest.MonkeyPatch], None]


def reads_by_another_name(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(io_services_utils._AsyncTransportBase, "_MAX_RECV_BYTES")


def reads_without_the_attribute(patch: pytest.MonkeyPatch) -> None:
    """It is still there, and nobody looks at it."""

    def consume(transport: Any) -> None:
        transport._protocol.data_received(transport._sock.recv(4096))

    patch.setattr(io_services_utils._AsyncTransportBase, "_consume", consume)


def receives_by_another_method(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BaseConnection, "_proto_data_received", PikaConnection._on_data_available)


def processes_by_another_method(patch: pytest.MonkeyPatch) -> None:
    """Ours is called, and has nobody to hand a body to."""
    process = PikaConnection._process_frame

    def on_data_available(connection: Any, data: bytes) -> None:
        used, frame = pika.frame.decode_frame(data)
        connection.bytes_received += used
        process(connection, frame)

    patch.setattr(PikaConnection, "_on_data_available", on_data_available)
    patch.delattr(PikaConnection, "_process_frame")


def counts_by_another_name(patch: pytest.MonkeyPatch) -> None:
    """The heartbeat would look at a number that stands still."""
    patch.setattr(PikaConnection, "bytes_received", property(lambda _: 0, lambda _, __: None), raising=False)


def body_frames_of_another_make(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pika.frame, "Body", lambda channel, body, is_last: None)


def sends_by_another_method(patch: pytest.MonkeyPatch) -> None:
    def send_method(connection: Any, channel: int, method: Any, content: Any = None) -> None:
        if content:
            PikaConnection._send_message(connection, channel, method, content)
        else:
            connection._send_frame(pika.frame.Method(channel, method))

    patch.setattr(PikaConnection, "_send_method", send_method)


def writes_by_another_method(patch: pytest.MonkeyPatch) -> None:
    """Ours is called, and its frames go nowhere."""

    def send_frame(connection: Any, frame: Any) -> None:
        connection._adapter_emit_data(frame.marshal())

    patch.setattr(PikaConnection, "_send_frame", send_frame)
    patch.delattr(PikaConnection, "_output_marshaled_frames")


@pytest.mark.parametrize(
    ("change", "flaws"),
    [
        (reads_by_another_name, [READS]),
        (reads_without_the_attribute, [READS]),
        (receives_by_another_method, [RECEIVES]),
        (processes_by_another_method, [RECEIVES]),
        (counts_by_another_name, [RECEIVES]),
        (body_frames_of_another_make, [RECEIVES, SENDS]),
        (sends_by_another_method, [SENDS]),
        (writes_by_another_method, [SENDS]),
    ],
    ids=lambda each: each.__name__ if callable(each) else None,
)
def test_a_pika_that_has_changed_is_noticed(
    change: Break, flaws: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are private: whether they are there says less than whether pika calls them."""
    change(monkeypatch)
    assert find_flaws() == flaws


def test_with_the_pika_that_is_here_all_is_in_place(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said."""
    stand_in()
    assert find_flaws() == []
    assert [each for each in caplog.records if each.name == pika_stand_ins.__name__] == []


def test_what_no_longer_does_its_work_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the process, however many links it opens."""
    reads_by_another_name(monkeypatch)
    sends_by_another_method(monkeypatch)
    stand_in()
    stand_in()
    (told,) = [each for each in caplog.records if each.levelno == logging.WARNING and "pika" in each.msg]
    assert f"{READS}, {SENDS}" in told.getMessage()
    assert pika.__version__ in told.getMessage()
