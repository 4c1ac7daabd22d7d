"""Values handed from a process to its own children: large arrays lie in files that all of them map, and no one copies.

Nothing here reads what comes from elsewhere: the folder and the pipes belong to one process and its children.
"""

import io
import itertools
import os
import shutil
import struct
import tempfile
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import IO, Any

import numpy as np

from broker.errors import DataError
from broker.wire.tensors import Array, Vector

_SHARED_BYTES = 64 * 1024  #: an array of this size and more lies in a file
_LEAST_ROOM_BYTES = 2**29  #: or what is shared lies on the disk
_LENGTH = struct.Struct("<Q")
_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, where there is one
_LOCK = type(threading.Lock())


def make_folder() -> Path:
    """A folder for what is shared, in memory if it can be; whoever outlives the others removes it.

    A container has 64 MB there, unless it was given more.
    """
    has_room = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _LEAST_ROOM_BYTES
    in_memory = _MEMORY if has_room else None
    return Path(tempfile.mkdtemp(prefix="warren-", dir=in_memory))


def write_vector(path: Path, vector: Vector) -> None:
    """Lay a vector where children read it; under its name there is all of it or nothing."""
    aside = path.with_suffix(".new")
    with aside.open("wb") as stream:
        np.save(stream, vector, allow_pickle=False)
    aside.replace(path)


def map_array(path: Path) -> Array:
    """An array in a file; its pages are the same memory in every process that maps them."""
    mapped: Array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    return mapped


class _Sharing(ForkingPickler):
    """Encodes values for a process of our own, with large arrays left in a folder."""

    def __init__(self, stream: IO[bytes], folder: Path) -> None:
        super().__init__(stream, 5)
        self._folder = folder
        self._numbers = itertools.count()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, _LOCK):
            return threading.Lock, ()
        if isinstance(value, np.ndarray) and value.nbytes >= _SHARED_BYTES and not value.dtype.hasobject:
            path = self._folder / f"array-{next(self._numbers)}.npy"
            np.save(path, value, allow_pickle=False)
            return map_array, (path,)
        return NotImplemented


def share(folder: Path, value: Any) -> None:
    """Leave a value in a folder for children to take.

    Raises:
        DataError: It holds what can't be in two processes.
    """
    stream = io.BytesIO()
    try:
        _Sharing(stream, folder).dump(value)
    except Exception as exc:  # a person's own object may raise anything when it is to be sent
        raise DataError(
            f"This data can't be shared by several processes: {exc}. Expected arrays or images; try --processes 1."
        ) from exc
    (folder / "shared").write_bytes(stream.getvalue())


def take_shared(folder: Path) -> Any:
    """The value that was left there."""
    return ForkingPickler.loads((folder / "shared").read_bytes())


def write_frame(stream: IO[bytes], value: Any) -> None:
    """Send a value through a pipe.

    Raises:
        OSError: The other side is gone.
    """
    body = ForkingPickler.dumps(value)
    stream.write(_LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any:
    """The next value of a pipe.

    Raises:
        EOFError: The other side is gone.
    """
    (size,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    return ForkingPickler.loads(_read(stream, size))


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
