"""Files that are either whole or not there: written aside, fsynced, renamed."""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

from broker.disk import sync
from broker.errors import CheckpointError, NameInUse, WarrenError

Chunk = bytes | memoryview

_LARGE_BYTES = 16 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024
_TIMES_FREE = 8  #: the open round is written meanwhile, perhaps twice, with eight bytes a value


def write_atomically(
    path: Path, chunks: Iterable[Chunk], check: Callable[[Path], None] = lambda _aside: None
) -> None:
    """Write a file so that a crash at any instant leaves the old one or the new one.

    Args:
        path: The file.
        chunks: What it is to hold.
        check: Looks at what is written before it takes its place; what it raises leaves the old file.

    Raises:
        CheckpointError: There is no space left, or no permission; the old file is intact.
    """
    aside = _aside(path)
    try:
        with aside.open("r+b" if is_file(aside) else "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        check(aside)
        with _freed_aside(path):
            aside.replace(path)
            sync(path.parent)
    except OSError as exc:
        aside.unlink(missing_ok=True)
        raise CheckpointError(
            f"Can't write {path}: {exc.strerror or exc}. What was saved before is intact; "
            "make room or give permission, and run the same command again."
        ) from exc
    except WarrenError:
        aside.unlink(missing_ok=True)
        raise


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


class Room:
    """A file aside, of the size of the one that it is to replace, made in a thread before its content is known.

    Fresh pages of some hundred megabytes take half a second; `write_atomically` then writes over what is there. Where
    the disk is nearly full there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_enough = threading.Event()
        self._thread = threading.Thread(target=self._make, name="room", daemon=True)
        self._thread.start()

    @classmethod
    def beside(cls, path: Path) -> Self | None:
        """Begin to make room for a file's successor, if it is large."""
        try:
            size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
        except OSError:
            return None
        return cls(path) if size >= _LARGE_BYTES and free >= _TIMES_FREE * size else None

    def _make(self) -> None:
        try:
            with _aside(self._path).open("wb", buffering=0) as stream:
                left, piece = self._path.stat().st_size, bytes(_PIECE_BYTES)
                while left > 0 and not self._is_enough.is_set():
                    left -= stream.write(piece[:left])
        except OSError:  # it is tried in earnest later; until then others need the space
            with suppress(OSError):
                _aside(self._path).unlink(missing_ok=True)

    def end(self) -> None:
        """What is there is enough: from now on nobody writes to it."""
        self._is_enough.set()
        self._thread.join()

    def give_up(self) -> None:
        """Nothing will take its place there."""
        self.end()
        _aside(self._path).unlink(missing_ok=True)


@contextmanager
def _freed_aside(path: Path) -> Iterator[None]:
    """Hold the file that is about to be replaced: giving back the pages of a large one takes long, and nobody waits."""
    try:
        former = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield  # there is none, or it can't be read
        return
    is_large = os.fstat(former).st_size >= _LARGE_BYTES
    try:
        yield
    finally:
        if is_large:
            threading.Thread(target=os.close, args=(former,), name="free", daemon=True).start()
        else:
            os.close(former)


def is_file(path: Path) -> bool:
    """Whether there is such a file; a path that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def make_folder(folder: Path) -> None:
    """Create a run's folder.

    Raises:
        CheckpointError: It can't be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CheckpointError(
            f"Can't create the folder {folder}: {exc.strerror or exc}. Try another --out."
        ) from exc


def lock_folder(folder: Path, *, wait: bool, stop: threading.Event) -> IO[bytes]:
    """Hold a run's folder for this process as long as the returned file is open; a killed process lets go at once.

    Args:
        folder: The run's folder.
        wait: Wait for another process to let go.
        stop: Ends that wait.

    Raises:
        NameInUse: Another coordinator holds it.
        CheckpointError: The folder can't be written.
    """
    try:
        stream = (folder / ".lock").open("ab")
    except OSError as exc:
        raise CheckpointError(f"Can't write in {folder}: {exc.strerror or exc}. Try another --out.") from exc
    while not _try_lock(stream):
        if not wait or stop.wait(0.2):
            stream.close()
            raise NameInUse(
                f"Another coordinator works on {folder}. Choose another --out, or add --standby to take over "
                "when it ends."
            )
    return stream


def _try_lock(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
