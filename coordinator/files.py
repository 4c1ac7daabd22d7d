"""Files that are either whole or not there: written aside, fsynced, renamed."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from broker.disk import sync
from broker.errors import CheckpointError, NameInUse, WarrenError

Chunk = bytes | memoryview


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
    aside = path.with_name(f".{path.name}.new")
    try:
        with aside.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        check(aside)
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
