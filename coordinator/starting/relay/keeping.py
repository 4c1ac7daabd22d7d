"""The round start that a relay plays below, on disk: after a restart it goes on without waiting for the one above."""

from pathlib import Path

from broker.wire import codec
from broker.wire.fields import to_plain
from broker.wire.messages import RoundStart
from broker.wire.tensors import FLOAT32, Vector
from coordinator.folder.checkpoint import (
    ROUND_FILE,
    OpenRound,
    read_open_round,
    read_sealed,
    write_sealed,
)

START_FILE = "round-start"
_MAGIC = b"warren round start 1\n"


def keep_start(folder: Path, start: RoundStart, weights: Vector) -> None:
    """Fsync a round start, before anybody below is told of it; the part of an earlier one is no longer there then.

    Raises:
        CheckpointError: It can't be written.
    """
    forget_start(folder)
    header = {name: value for name, value in to_plain(start).items() if name != "weights"}
    write_sealed(folder / START_FILE, _MAGIC, codec.pack(header), [weights])


def read_start(folder: Path) -> tuple[RoundStart, Vector, OpenRound] | None:
    """The round start, its weights, and what has come of it; None where nobody below was told of one.

    Raises:
        CheckpointError: It can't be read, or is not ours.
    """
    opened, file = read_open_round(folder), folder / START_FILE
    if opened is None or not file.exists():
        return None
    start, body = read_sealed(file, _MAGIC, RoundStart)
    return start, body.view(FLOAT32), opened


def forget_start(folder: Path) -> None:
    """Nobody goes on with it: first what came of it, for that is nothing without it."""
    (folder / ROUND_FILE).unlink(missing_ok=True)
    (folder / START_FILE).unlink(missing_ok=True)
