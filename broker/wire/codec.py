"""The only file that imports msgpack: plain values to bytes and back, within strict limits."""

import struct
from collections.abc import Sequence
from typing import Any

import msgpack

from broker.errors import ProtocolError

MAX_BODY_BYTES = 15 * 1024 * 1024  #: under RabbitMQ 4's default limit of 16 MiB

_BIN32 = 0xC6  #: stands before binary data of 64 KiB and more in msgpack, with its length in four octets
_BIN32_HEADER = struct.Struct(">BL")
_LARGE_BYTES = 64 * 1024
_HEAD_BYTES = 4096  #: what comes before a part's data takes a few hundred
_MOST_VALUES = 500_000  #: in one message; a layout of a thousand tensors has some 6,000
_STRICT: dict[str, Any] = {"raw": False, "strict_map_key": True, "timestamp": 0}


def pack(value: dict[str, Any]) -> bytes:
    """Encode a map of None, bool, int, float, str, binary data, lists and maps.

    Large binary data at the end of the map is copied once; msgpack would copy it three times.
    """
    name, last = next(reversed(value.items()), ("", None))
    if not isinstance(last, bytes | memoryview) or len(last) < _LARGE_BYTES:
        return bytes(msgpack.packb(value, use_bin_type=True))
    packer = msgpack.Packer(use_bin_type=True, autoreset=False)
    packer.pack_map_header(len(value))
    for key, each in value.items():
        packer.pack(key)
        if key != name:
            packer.pack(each)
    return b"".join((packer.bytes(), _BIN32_HEADER.pack(_BIN32, len(last)), last))


def pack_value(value: Any) -> bytes:
    """Encode what may stand in a map."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def packed_list(values: Sequence[bytes]) -> bytes:
    """A list of values that are encoded already, as `pack` would encode it."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(len(values))
    return b"".join((packer.bytes(), *values))


class PackedMap:
    """A map that grows, of values that are encoded already: each is encoded once, however often the map is wanted."""

    def __init__(self) -> None:
        self._num_values = 0
        self._pairs = bytearray()

    def put(self, name: str, packed: bytes) -> None:
        """Add a value that is not in it."""
        self._num_values += 1
        self._pairs += pack_value(name)
        self._pairs += packed

    def packed(self) -> bytes:
        """The map as `pack` would encode it."""
        packer = msgpack.Packer(autoreset=False)
        packer.pack_map_header(self._num_values)
        return bytes(packer.bytes() + self._pairs)


class _Budget:
    """So many values may be unpacked: 15 MB of empty lists are 15 million objects, and a gigabyte."""

    def __init__(self, most_values: int) -> None:
        self._left = most_values

    def spend(self, container: Any) -> Any:
        """Count a list or a map that has been built."""
        self._left -= 1 + len(container)
        if self._left < 0:
            raise ValueError("too many values")
        return container


def unpack(data: bytes, *, limit: int = MAX_BODY_BYTES, most_values: int = _MOST_VALUES) -> Any:
    """Decode what `pack` made; large binary data at the end of a map is a view of `data`.

    Args:
        data: The packed bytes.
        limit: How many there may be.
        most_values: How many values there may be in all lists and maps together.

    Raises:
        ProtocolError: The data is larger than `limit`, truncated, or no msgpack of ours.
    """
    if len(data) > limit:
        raise ProtocolError(f"Expected at most {limit} bytes, got {len(data)}.")
    try:
        if len(data) < _LARGE_BYTES:
            return msgpack.unpackb(data, **_STRICT)
        large, spend = _unpack_large(data), _Budget(most_values).spend
        if large is not None:
            return large
        most = min(most_values, len(data))
        return msgpack.unpackb(
            data, **_STRICT, list_hook=spend, object_hook=spend, max_array_len=most, max_map_len=most
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as exc:
        raise ProtocolError(f"Expected msgpack. {type(exc).__name__}: {exc}") from exc


def _unpack_large(data: bytes) -> dict[str, Any] | None:
    """The map whose last value is binary data up to the end, that one as a view; None if it isn't made like that."""
    unpacker = msgpack.Unpacker(**_STRICT)
    unpacker.feed(data[:_HEAD_BYTES])
    fields: dict[str, Any] = {}
    try:
        size = unpacker.read_map_header()
        for _ in range(size - 1):
            name = unpacker.unpack()
            fields[name] = unpacker.unpack()
        name = unpacker.unpack()
        kind, length = _BIN32_HEADER.unpack_from(data, unpacker.tell())
    except (ValueError, TypeError, struct.error, msgpack.exceptions.UnpackException):
        return None
    begin = unpacker.tell() + _BIN32_HEADER.size
    if (
        size < 1
        or (kind, begin + length) != (_BIN32, len(data))
        or not all(isinstance(key, str) for key in (*fields, name))
    ):
        return None
    return fields | {name: memoryview(data)[begin:]}
