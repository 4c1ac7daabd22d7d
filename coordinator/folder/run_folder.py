"""One run's folder: everything in it that is fsynced, and in which order."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from broker import audit
from broker.model.arrays import NPZ
from coordinator.files import Room
from coordinator.folder.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    OpenRound,
    PackedRounds,
    read_checkpoint,
    read_open_round,
    write_checkpoint,
    write_open_round,
)
from coordinator.folder.history import Row, write_history
from coordinator.folder.keepsakes import Keepsakes
from coordinator.folder.run_json import keep_identity
from coordinator.learning.measure_names import COLUMNS, GENERAL_COLUMNS
from coordinator.learning.rounds import Answer, RoundRecord
from coordinator.options import RunOptions

KERAS_FILE = "model.keras"
ARRAYS_FILE = f"model{NPZ}"  #: of a task of arrays

_HISTORY_SECONDS = 1.0
_UPDATES = "updates"


def model_file(folder: Path) -> Path:
    """The model of a run, whichever kind it is; there may be none yet."""
    arrays = folder / ARRAYS_FILE
    return arrays if arrays.is_file() else folder / KERAS_FILE


class RunFolder:
    """The folder of one run.

    Args:
        path: Where it is.
        audit_log: What is held there is on disk before what rests on it is.
    """

    def __init__(self, path: Path, audit_log: audit.AuditLog = audit.OFF) -> None:
        self.path = path
        self.audit = audit_log
        self._history_at = float("-inf")
        self._packed = PackedRounds()
        self._room: Room | None = None

    @property
    def checkpoint(self) -> Path:
        """The committed state's file."""
        return self.path / CHECKPOINT_FILE

    def model(self, *, is_arrays: bool) -> Path:
        """The model that follows it: Keras's, or named arrays."""
        return self.path / (ARRAYS_FILE if is_arrays else KERAS_FILE)

    @property
    def updates(self) -> Path:
        """Where a round's aggregate may keep updates."""
        return self.path / _UPDATES

    def keepsakes(self, every: int | None) -> Keepsakes:
        """What is kept of earlier rounds: the best model, and that of each so many rounds."""
        return Keepsakes(self.checkpoint, every)

    def read(self) -> Checkpoint | None:
        """The committed state; None in a new folder.

        Raises:
            CheckpointError: It can't be read, or is not ours.
        """
        return read_checkpoint(self.path) if self.checkpoint.exists() else None

    def read_open_round(self, state: Checkpoint) -> OpenRound | None:
        """The round that is open after a committed state; one that was closed or given up is none.

        Raises:
            CheckpointError: It can't be read, or is not ours.
        """
        opened = read_open_round(self.path)
        following = state.run_id, state.round_number + 1, state.next_attempt
        record = opened.record if opened else None
        is_open = record and (record.run_id, record.round_number, record.first_attempt) == following
        return opened if is_open else None

    def keep_identity(self, options: RunOptions, state: Checkpoint | None) -> int:
        """Write run.json, or hold the options against it.

        Returns:
            After which round more rounds were asked for the last time; 0 if they never were.

        Raises:
            UsageError: The folder holds another task, strategy or seed.
            CheckpointError: run.json can't be read or written.
        """
        return keep_identity(options, closed_rounds=state.round_number if state else 0)

    def commit(self, state: Checkpoint, check: Callable[[Path], None] = lambda _aside: None) -> None:
        """Commit: until this returns the round is open, after it closed for ever.

        Raises:
            CheckpointError: It can't be written; the former one is intact.
        """
        self.audit.flush(is_synced=True)
        room, self._room = self._room, None
        if room is not None:
            room.end()
        write_checkpoint(self.path, state, check)

    def make_room(self) -> None:
        """A round will be committed soon: begin to make the file, for the pages of a large one are dear."""
        self._room = self._room or Room.beside(self.checkpoint)

    def give_up_room(self) -> None:
        """Nothing will be committed."""
        room, self._room = self._room, None
        if room is not None:
            room.give_up()

    def keep_open(self, record: RoundRecord, answers: dict[str, Answer], arrays: list[NDArray[Any]]) -> None:
        """Fsync the open round.

        Raises:
            CheckpointError: It can't be written; the former one is intact.
        """
        self.audit.flush()
        write_open_round(self.path, record, answers, arrays, self._packed)

    def write_history(
        self, rows: list[Row], *, is_general: bool = False, at_most_each_second: bool = False
    ) -> None:
        """Bring history.csv and workers.csv up to date; a model that is no classifier has no column for accuracy."""
        if at_most_each_second and time.monotonic() - self._history_at <= _HISTORY_SECONDS:
            return
        self._history_at = time.monotonic()
        write_history(self.path, rows, GENERAL_COLUMNS if is_general else COLUMNS)
