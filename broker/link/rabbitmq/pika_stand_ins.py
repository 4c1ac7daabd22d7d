"""All that stands in for private parts of pika 1.4, and the rehearsal that tells when it no longer does.

pika as it comes reads large messages in small pieces and copies them time and again. Nothing here changes what is
sent or received, only how fast: with another pika, all of it can go but for `cut`, which pika has no public way to do.
"""

import itertools
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pika
import pika.exceptions
import pika.frame
from pika.adapters.select_connection import SelectConnection
from pika.adapters.utils import io_services_utils

logger = logging.getLogger(__name__)

_READ_BYTES = 256 * 1024
_FRAME_HEADER = struct.Struct(">BHL")  #: type, channel, size of the payload; one octet ends a frame


class LeanConnection(SelectConnection):  # type: ignore[misc] # pika is untyped here
    """pika's connection without most of its copies: with those of msgpack, a tenth of a round of 100 MB models.

    pika copies each byte of a large message four times on the way in and three times on the way out; here it is once.
    Both methods stand in for private ones of pika 1.4, and rest on its frame classes.
    """

    _body_left = 0  # bytes of the body frame that is under way, and its end octet
    _body_channel = 0
    _beginning = b""  # of a frame, too short to tell what it is, or of one without a body

    def _on_data_available(self, data_in: bytes) -> None:
        """Hand on pieces of body frames as they come, as views; all other frames are small, and left to pika."""
        data = self._beginning + data_in if self._beginning else data_in
        self._beginning = b""
        view, at = memoryview(data), 0
        while at < len(data):
            if self._body_left:
                at += self._take_body(view[at : at + self._body_left])
            elif len(data) - at < _FRAME_HEADER.size:
                break
            else:
                kind, channel, size = _FRAME_HEADER.unpack_from(data, at)
                end = at + _FRAME_HEADER.size + size + 1
                if kind == pika.spec.FRAME_BODY:
                    at += _FRAME_HEADER.size
                    self.bytes_received += _FRAME_HEADER.size
                    self._body_channel, self._body_left = channel, size + 1
                elif end > len(data):
                    break
                else:
                    super()._on_data_available(data[at:end])
                    at = end
        self._beginning = data[at:]

    def _take_body(self, piece: memoryview) -> int:
        """Hand on what came of a body frame; pika counts up to the size of the message, whatever the pieces."""
        self.bytes_received += len(piece)
        self._body_left -= len(piece)
        payload = piece if self._body_left else piece[:-1]
        if not self._body_left and piece[-1] != pika.spec.FRAME_END:
            raise pika.exceptions.InvalidFrameError("Invalid FRAME_END marker")
        if payload:
            self._process_frame(pika.frame.Body(self._body_channel, payload))
        return len(piece)

    def _send_message(self, channel_number: int, method: Any, content: tuple[Any, bytes]) -> None:
        """Cut a message into frames."""
        properties, body = content
        frames = [
            pika.frame.Method(channel_number, method).marshal(),
            pika.frame.Header(channel_number, len(body), properties).marshal(),
        ]
        view, end = memoryview(body), bytes([pika.spec.FRAME_END])
        for begin in range(0, len(body), self._body_max_length):
            piece = view[begin : begin + self._body_max_length]
            header = _FRAME_HEADER.pack(pika.spec.FRAME_BODY, channel_number, len(piece))
            frames.append(b"".join((header, piece, end)))
        self._output_marshaled_frames(frames)

    def cut(self, reason: str) -> None:
        """End it at once, socket and all: a broker that is silent answers no close. pika tells of a lost connection."""
        self._terminate_stream(pika.exceptions.StreamLostError(reason))


@cache
def stand_in() -> None:
    """Put in place what is no connection, and say in the log what no longer does its work; once in a process."""
    _read_more_at_once()
    if flaws := find_flaws():
        logger.warning(
            "pika %s is not as Warren's stand-ins expect it: %s. Large models may take two or three times as long, or "
            "fail; pika 1.4.4 is known to work.",
            pika.__version__,
            ", ".join(flaws),
        )


def _read_more_at_once() -> None:
    """With 256 KiB pika as it comes receives large parts two to three times as fast.

    pika 1.4 reads 4 KiB at a time, each in a turn of its own. The attribute is private, and gone in later pika.
    """
    transport: Any = getattr(io_services_utils, "_AsyncTransportBase", None)
    if hasattr(transport, "_MAX_RECV_BYTES"):
        transport._MAX_RECV_BYTES = _READ_BYTES


# --- the rehearsal -----------------------------------------------------------------------------------------

_CHANNEL = 1
_SMALLEST_FRAME = 4096  #: that AMQP allows
_BODY = bytes(range(256)) * 40  #: of three frames


def find_flaws() -> list[str]:
    """Which stand-ins pika no longer calls, or which no longer do what pika itself would do, in words for the log.

    Each is tried in pika's own machinery, without a network: an attribute that is there proves nothing.
    """
    rehearsals: dict[str, Callable[[], bool]] = {
        "it does not read 256 KiB at a time": _reads_much_at_once,
        "received messages do not pass through ours": _receives_by_ours,
        "published messages do not pass through ours": _sends_by_ours,
        "a connection to a silent broker is not cut": _is_cut,
    }
    return [flaw for flaw, goes_well in rehearsals.items() if not _goes_well(goes_well)]


def _goes_well(rehearse: Callable[[], bool]) -> bool:
    try:
        return rehearse()
    except Exception as exc:
        logger.debug("A rehearsal with pika failed.", exc_info=exc)  # whatever a pika of another make raises
        return False


class _Reader:
    """A socket, the loop that tells that it has bytes, and the one that takes them: notes how many are asked for."""

    num_asked = 0

    def fileno(self) -> int:
        return -1

    def set_reader(self, _fd: int, on_readable: Callable[[], None]) -> None:
        self.be_readable = on_readable

    def recv(self, size: int) -> bytes:
        self.num_asked = size
        return bytes(size)

    def data_received(self, _data: bytes) -> None:
        pass


def _reads_much_at_once() -> bool:
    reader = _Reader()
    io_services_utils._AsyncPlaintextTransport(reader, reader, reader)
    reader.be_readable()
    return reader.num_asked == _READ_BYTES


class _Wire:
    """In place of a socket: keeps what is written."""

    def __init__(self) -> None:
        self.written, self.is_aborted = b"", False

    def abort(self) -> None:
        self.is_aborted = True

    def write(self, data: bytes) -> None:
        self.written += data


class _Rehearsed(LeanConnection):
    """Notes that pika calls what stands in for it."""

    num_taken = num_sent = 0

    def _take_body(self, piece: memoryview) -> int:
        self.num_taken += 1
        return super()._take_body(piece)

    def _send_message(self, channel_number: int, method: Any, content: tuple[Any, bytes]) -> None:
        self.num_sent += 1
        super()._send_message(channel_number, method, content)

    def hear(self, channel_number: int, method: Any) -> None:
        """The broker says something."""
        self._proto_data_received(pika.frame.Method(channel_number, method).marshal())


@contextmanager
def _rehearsed() -> Iterator[tuple[_Rehearsed, Any, _Wire]]:
    """A connection with an open channel, as if a broker had greeted it; and what it writes."""
    spec, wire = pika.spec, _Wire()
    connection = _Rehearsed(pika.ConnectionParameters(), internal_connection_workflow=False)
    try:
        connection._proto_connection_made(wire)
        connection.hear(0, spec.Connection.Start(server_properties={}, mechanisms="PLAIN"))
        connection.hear(0, spec.Connection.Tune(frame_max=_SMALLEST_FRAME))
        connection.hear(0, spec.Connection.OpenOk())
        channel = connection.channel(on_open_callback=lambda _channel: None)
        connection.hear(_CHANNEL, spec.Channel.OpenOk())
        yield connection, channel, wire
    finally:
        connection.ioloop.close()


def _receives_by_ours() -> bool:
    """A delivery in pieces comes whole, through our method."""
    bodies: list[bytes] = []
    with _rehearsed() as (connection, channel, _):
        channel.basic_consume("queue", lambda *message: bodies.append(message[-1]), consumer_tag="tag")
        connection.hear(_CHANNEL, pika.spec.Basic.ConsumeOk("tag"))
        delivery = _marshalled(pika.spec.Basic.Deliver("tag", 1, False, "exchange", "key"))
        before = connection.bytes_received
        for piece in (delivery[:100], delivery[100:6000], delivery[6000:]):
            connection._proto_data_received(piece)
        is_counted = connection.bytes_received - before == len(delivery)  # pika's heartbeat looks at this
        return bodies == [_BODY] and is_counted and connection.num_taken > 0


def _sends_by_ours() -> bool:
    """What a publish writes is to the byte what pika's frame classes make of it, through our method."""
    with _rehearsed() as (connection, channel, wire):
        wire.written = b""
        channel.basic_publish("exchange", "key", _BODY, pika.BasicProperties())
        method = pika.spec.Basic.Publish(exchange="exchange", routing_key="key")
        return wire.written == _marshalled(method) and connection.num_sent == 1


def _is_cut() -> bool:
    with _rehearsed() as (connection, _, wire):
        connection.cut("a rehearsal")
        return wire.is_aborted


def _marshalled(method: Any) -> bytes:
    """A message in the frames that pika's own classes make."""
    piece_size = _SMALLEST_FRAME - _FRAME_HEADER.size - 1
    frames = itertools.chain(
        [
            pika.frame.Method(_CHANNEL, method),
            pika.frame.Header(_CHANNEL, len(_BODY), pika.BasicProperties()),
        ],
        (pika.frame.Body(_CHANNEL, _BODY[at : at + piece_size]) for at in range(0, len(_BODY), piece_size)),
    )
    return b"".join(frame.marshal() for frame in frames)
