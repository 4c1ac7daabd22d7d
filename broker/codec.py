"""The only file that imports msgpack: plain values to bytes and back, within strict limits."""

from typing import Any

import msgpack

from broker.errors import ProtocolError

MAX_BODY_BYTES = 15 * 1024 * 1024  #: under RabbitMQ 4's default limit of 16 MiB


def pack(value: Any) -> bytes:
    """Encode None, bool, int, float, str, bytes, lists and dicts of str keys."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def unpack(data: bytes, *, limit: int = MAX_BODY_BYTES) -> Any:
    """Decode what `pack` made.

    Raises:
        ProtocolError: The data is larger than `limit`, truncated, or no msgpack of ours.
    """
    if len(data) > limit:
        raise ProtocolError(f"Expected at most {limit} bytes, got {len(data)}.")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, timestamp=0)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as exc:
        raise ProtocolError(f"Expected msgpack. {type(exc).__name__}: {exc}") from exc
