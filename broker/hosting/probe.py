"""Asks an address whether a broker there takes this login, in as few bytes as AMQP 0-9-1 allows."""

import socket
import ssl
import struct
from enum import Enum
from urllib.parse import unquote, urlsplit

from broker.link.address import host_and_port, vhost_of

__all__ = ["Answer", "ask", "host_and_port", "is_free", "login_of"]

_HEADER = b"AMQP\x00\x00\x09\x01"
_FRAME_END = b"\xce"
_MOST_BYTES = 131_072  # no frame of a handshake is larger
_START_OK, _TUNE, _TUNE_OK, _OPEN, _OPEN_OK, _CLOSE = (
    (10, 11),
    (10, 30),
    (10, 31),
    (10, 40),
    (10, 41),
    (10, 50),
)


class Answer(Enum):
    """What the address said."""

    READY = "a broker that takes this login"
    REFUSED = "a broker that refuses this login"
    FOREIGN = "something that does not speak AMQP 0-9-1"
    UNTRUSTED = "something whose certificate is not trusted"
    NOTHING = "nothing"


class _NotAmqpError(Exception):
    """What was received is no frame of AMQP 0-9-1."""


def ask(amqp_url: str, *, seconds: float = 5, tls: ssl.SSLContext | None = None) -> Answer:
    """Log in at the address and hang up; waits at most about `seconds` for each answer."""
    try:
        stream = _connect(amqp_url, seconds, tls)
    except ssl.SSLCertVerificationError:
        return Answer.UNTRUSTED
    except ssl.SSLError:
        return Answer.FOREIGN
    except OSError:
        return Answer.NOTHING
    with stream:
        try:
            stream.sendall(_HEADER)
            _receive(stream)  # connection.start
        except (OSError, _NotAmqpError):
            return Answer.FOREIGN
        try:
            return _log_in(stream, amqp_url)
        except (OSError, _NotAmqpError):
            return Answer.REFUSED  # a broker that hangs up during the login


def login_of(amqp_url: str) -> tuple[str, str]:
    """The user and password that an AMQP URL names; guest where it names none."""
    parts = urlsplit(amqp_url)
    return unquote(parts.username or "guest"), unquote(parts.password or "guest")


def is_free(port: int) -> bool:
    """Whether nothing listens on this port of this machine."""
    for host in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((host, port), timeout=2).close()
        except OSError:
            continue
        return False
    return True


def _connect(amqp_url: str, seconds: float, tls: ssl.SSLContext | None) -> socket.socket:
    host, port = host_and_port(amqp_url)
    stream = socket.create_connection((host, port), timeout=seconds)
    if urlsplit(amqp_url).scheme != "amqps":
        return stream
    return (tls or ssl.create_default_context()).wrap_socket(stream, server_hostname=host)


def _log_in(stream: socket.socket, amqp_url: str) -> Answer:
    user, password = login_of(amqp_url)
    _send(stream, _START_OK, _start_ok(user, password))
    if _receive(stream)[0] != _TUNE:
        return Answer.REFUSED
    _send(stream, _TUNE_OK, struct.pack(">HIH", 1, _MOST_BYTES, 0))
    _send(stream, _OPEN, _short(vhost_of(amqp_url)) + b"\x00\x00")
    is_open = _receive(stream)[0] == _OPEN_OK
    if is_open:
        _send(stream, _CLOSE, struct.pack(">H", 200) + _short("asked") + b"\x00\x00\x00\x00")
        _receive(stream)  # close-ok: so the broker's log shows no broken connection
    return Answer.READY if is_open else Answer.REFUSED


def _start_ok(user: str, password: str) -> bytes:
    # Without this capability a refused login is answered by silence for seconds.
    capabilities = _short("authentication_failure_close") + b"t\x01"
    name = _short("connection_name") + b"S" + _long(b"broker up")
    properties = _long(_short("capabilities") + b"F" + _long(capabilities) + name)
    return properties + _short("PLAIN") + _long(f"\0{user}\0{password}".encode()) + _short("en_US")


def _short(text: str) -> bytes:
    encoded = text.encode()[:255]
    return bytes([len(encoded)]) + encoded


def _long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _send(stream: socket.socket, method: tuple[int, int], arguments: bytes) -> None:
    payload = struct.pack(">HH", *method) + arguments
    stream.sendall(struct.pack(">BHI", 1, 0, len(payload)) + payload + _FRAME_END)


def _receive(stream: socket.socket) -> tuple[tuple[int, int], bytes]:
    kind, _channel, size = struct.unpack(">BHI", _exactly(stream, 7))
    if kind != 1 or not 4 <= size <= _MOST_BYTES:
        raise _NotAmqpError
    payload = _exactly(stream, size + 1)
    class_id, method_id = struct.unpack(">HH", payload[:4])
    return (class_id, method_id), payload[4:-1]


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        received = stream.recv(size - len(data))
        if not received:
            raise _NotAmqpError
        data += received
    return data
