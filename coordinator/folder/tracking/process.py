"""The process that tells trackers, seen from the coordinator: started with a run, and let end with it."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from broker.errors import Interrupted

logger = logging.getLogger(__name__)

_END_SECONDS = 60.0  # MLflow alone takes seconds to be imported


@contextmanager
def tracked(run: Path, kinds: Sequence[str]) -> Iterator[None]:
    """Have trackers follow a run as long as this lasts; none is waited for but at the end, and then not for long.

    Args:
        run: Its folder.
        kinds: From `coordinator.folder.tracking.kinds`; with none no process is started.
    """
    if not kinds:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "coordinator.folder.tracking.follower", str(run), *kinds],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the libraries' chatter
        encoding="utf-8",
        errors="replace",
        env=_environment(),
    )
    relay = threading.Thread(target=_relay, args=(_pipe(process.stdout),), name="trackers", daemon=True)
    relay.start()
    outcome = "FAILED"
    try:
        yield
        outcome = "FINISHED"
    except Interrupted:
        outcome = ""
        raise
    finally:
        _end(process, outcome)
        relay.join()
        _pipe(process.stdout).close()


def _end(process: "subprocess.Popen[str]", outcome: str) -> None:
    with suppress(BrokenPipeError):  # it has ended: its own words said why
        _pipe(process.stdin).write(f"{outcome}\n")
        _pipe(process.stdin).close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        logger.warning("The trackers did not take everything within %g s.", _END_SECONDS)
        process.kill()
        process.wait()
        return
    if process.returncode:
        logger.warning("The process that tells the trackers ended with exit code %d.", process.returncode)


def _relay(words: IO[str]) -> None:
    for line in words:
        logger.warning("%s", line.strip())


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # noqa: S101 - Popen was asked for both
    return stream


def _environment() -> dict[str, str]:
    """This process's own, with this very package to be found."""
    root, given = str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, given)))}
