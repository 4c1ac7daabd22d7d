"""The only file that imports msgpack: plain values to bytes and back, within strict limits."""

import threading
from typing import Any

import msgpack

from broker.errors import ProtocolError

MAX_BODY_BYTES = 15 * 1024 * 1024  #: under RabbitMQ 4's default limit of 16 MiB


class _Local(threading.local):
    """A packer for each thread: it keeps its buffer, which for a part of 4 MB would else grow anew from nothing."""

    def __init__(self) -> None:
        self.packer = msgpack.Packer(use_bin_type=True)


_local = _Local()


def pack(value: Any) -> bytes:
    """Encode None, bool, int, float, str, bytes, lists and dicts of str keys."""
    packed: bytes = _local.packer.pack(value)
    return packed


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
