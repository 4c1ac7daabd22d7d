"""What stands in for pika's own framing does the same to the bit, however the socket cuts the stream."""

import random
from typing import Any

import pika
import pika.frame
import pytest
from pika.channel import ContentFrameAssembler

from broker.link.rabbitmq.rabbit_link import _LeanConnection

CHANNEL = 3
BODY_LENGTH = 1000  # of a frame, so that messages of a few kB have several


class Connection(_LeanConnection):  # type: ignore[misc] # pika is untyped here
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


def test_pika_has_what_we_stand_in_for() -> None:
    """They are private: a pika that renames them would no longer call ours."""
    for name in ("_on_data_available", "_send_message", "_process_frame", "_output_marshaled_frames"):
        assert hasattr(pika.SelectConnection, name)
