"""A run's folder that is none: what would be fsynced is kept in memory, for a run that ends with its process."""

import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from broker.errors import CheckpointError
from coordinator.folder.checkpoint import CHECKPOINT_FILE, Checkpoint, OpenRound
from coordinator.folder.history import Row
from coordinator.folder.keepsakes import Keepsakes
from coordinator.folder.run_folder import RunFolder
from coordinator.folder.standing import Standing
from coordinator.learning.rounds import Answer, RoundRecord
from coordinator.options import RunOptions

_CANDIDATE = "candidate"


class _Nothing(Keepsakes):
    """What is kept where there are no files."""

    def take_up(self, _model: Path, _standing: Standing, _committed_round: int) -> None:
        """Nobody goes on."""

    def hold(self, _model: Path, _number: int, _standing: Standing) -> None:
        """Nothing is held."""

    def hold_last(self, _model: Path, _number: int, _standing: Standing) -> None:
        """Nothing is held."""


class MemoryFolder(RunFolder):
    """Paths are names here, and no file is behind them.

    Only a strategy that needs every update side by side (`median`) gets a folder for them, a temporary one.
    """

    def __init__(self) -> None:
        super().__init__(Path("memory"))
        self._states: dict[str, Checkpoint] = {}
        self._spool = Path(tempfile.gettempdir(), f"warren-{secrets.token_hex(8)}")

    @property
    def updates(self) -> Path:
        """A temporary folder; there is none before an aggregate writes its first update."""
        return self._spool

    def state_at(self, path: Path) -> Checkpoint:
        """What stands at a path: the committed state, or the one that is about to be.

        Raises:
            CheckpointError: Nothing does.
        """
        if path.name not in self._states:
            raise CheckpointError(f"Nothing is kept as {path.name}.")
        return self._states[path.name]

    def read(self) -> Checkpoint | None:
        """The committed state; None before the first one."""
        return self._states.get(CHECKPOINT_FILE)

    def read_open_round(self, _state: Checkpoint) -> OpenRound | None:
        """Nobody goes on with a round that was open when its process ended."""
        return None

    def keep_identity(self, _options: RunOptions, _state: Checkpoint | None) -> int:
        """Nobody comes back with other options."""
        return 0

    def keepsakes(self, every: int | None) -> Keepsakes:
        """Of earlier rounds nothing is kept."""
        return _Nothing(self.checkpoint, every)

    def commit(self, state: Checkpoint, check: Callable[[Path], None] = lambda _aside: None) -> None:
        """Commit, unless `check` raises."""
        self._states[_CANDIDATE] = state
        try:
            check(self.path / _CANDIDATE)
        finally:
            del self._states[_CANDIDATE]
        self._states[CHECKPOINT_FILE] = state

    def make_room(self) -> None:
        """There is no file."""

    def keep_open(
        self, _record: RoundRecord, _answers: dict[str, Answer], _arrays: list[NDArray[Any]]
    ) -> None:
        """The open round is where it is played."""

    def write_history(
        self, _rows: list[Row], *, is_general: bool = False, at_most_each_second: bool = False
    ) -> None:
        """The committed state has it."""

    def close(self) -> None:
        """Remove what a strategy wrote."""
        shutil.rmtree(self._spool, ignore_errors=True)
