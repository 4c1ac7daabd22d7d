"""The folder --runs: one folder a run, which of them is unfinished, and which holds a task's last model."""

import csv
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker.errors import CheckpointError, ProtocolError
from broker.wire.fields import from_plain, to_plain
from broker.wire.plain_json import json_text, read_json
from coordinator.files import make_folder, write_atomically
from coordinator.folder.keepsakes import best_beside, round_of
from coordinator.folder.run_folder import model_file
from coordinator.folder.run_json import RUN_FILE, current_settings
from coordinator.learning.measure_names import RESULTS, TEST

logger = logging.getLogger(__name__)

LAUNCH_FILE = "launch.json"
_NUMBERS_FILE = "run-numbers.json"  #: the last number of each TASK-DATE that was given
_MOST_NUMBERS = 1000
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TEXT_COLUMNS = frozenset({"accepted", "late", "rejected", "stopped", "closed_at", "worker"})
_MOST_HISTORY_BYTES = 32 * 1024 * 1024

Cells = dict[str, int | float | str]  #: one row of a table on disk; what is empty there is missing


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """launch.json: what a run was launched with, and how it ended.

    Attributes:
        options: As RunOptions takes them, by option name; texts.
        outcome: "done", "stopped" or "failed"; None while it is unfinished.
        reason: Why it failed, or ended before its last round.
    """

    task: str
    options: dict[str, str]
    launched_at: str
    outcome: str | None = None
    reason: str | None = None
    ended_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SummedSettings:
    """What a run was trained with, as far as its run.json says so."""

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    quorum: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What there is to say of one run.

    Attributes:
        id: The name of its folder.
        rounds: In all, as asked for.
        outcome: See `LaunchRecord`.
        model_file: What its model is called, or will be.
        measures: Of its last model, on the workers' test examples.
        best_round: Whose model best.keras holds; None where there is none.
    """

    id: str
    task: str
    strategy: str
    rounds: int
    closed_rounds: int
    started_at: str
    ended_at: str | None
    outcome: str | None
    reason: str | None
    has_model: bool
    model_file: str
    has_curves: bool
    measures: dict[str, float]
    settings: SummedSettings
    best_round: int | None
    has_workers_picture: bool


class RunIndex:
    """The runs in one folder.

    Raises:
        CheckpointError: The folder can't be created.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder = folder
        self._known: dict[Path, tuple[object, RunSummary]] = {}

    def folder_for(self, task: str, now: datetime) -> Path:
        """The folder of a new run: TASK-DATE-N. No name is given twice, also after a folder is deleted: see `claim`.

        Raises:
            CheckpointError: Which names were given can't be read.
        """
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(task).stem if task.endswith(".keras") else task)
        stem = f"{stem.strip('-.')[:64] or 'run'}-{now:%Y%m%d}"
        taken = [path.name.removeprefix(f"{stem}-") for path in self.folder.glob(f"{stem}-*")]
        last = max((int(each) for each in taken if each.isdecimal()), default=0)
        return self.folder / f"{stem}-{max(last, self._numbers().get(stem, 0)) + 1}"

    def claim(self, folder: Path) -> None:
        """Note that a name is given, before anything is called by it.

        Raises:
            CheckpointError: It can't be noted.
        """
        stem, _, number = folder.name.rpartition("-")
        numbers = self._numbers()
        numbers.pop(stem, None)
        newest = dict([*numbers.items(), (stem, int(number))][-_MOST_NUMBERS:])
        write_atomically(self.folder / _NUMBERS_FILE, [json_text(newest, indent=2).encode() + b"\n"])

    def _numbers(self) -> dict[str, int]:
        path = self.folder / _NUMBERS_FILE
        return {stem: int(number) for stem, number in _read(path).items()} if path.exists() else {}

    @property
    def disk(self) -> tuple[int, int] | None:
        """Free and all bytes of the disk that it is on; None: that can't be told."""
        try:
            usage = shutil.disk_usage(self.folder)
        except OSError:
            return None
        return usage.free, usage.total

    def find(self, name: str) -> Path | None:
        """The folder of a run; None when there is none of that name."""
        folder = self.folder / name
        return folder if _RUN_NAME.fullmatch(name) and (folder / RUN_FILE).is_file() else None

    def unfinished(self) -> tuple[Path, LaunchRecord] | None:
        """The run that was launched last and has not ended.

        Raises:
            CheckpointError: Its launch.json can't be read.
        """
        found = [(folder, read_launch(folder)) for folder in self._run_folders(LAUNCH_FILE)]
        is_open = [(folder, record) for folder, record in found if record.outcome is None]
        return max(is_open, key=lambda each: each[1].launched_at, default=None)

    def last_model(self, task: str) -> Path | None:
        """The model of the newest run of a task that closed a round; None when there is none."""
        for summary in self.summaries():
            if summary.task == task and summary.has_model and summary.closed_rounds > 0:
                return model_file(self.folder / summary.id)
        return None

    def summaries(self) -> list[RunSummary]:
        """What there is to say of each run, the newest first."""
        found = [summary for folder in self._run_folders(RUN_FILE) if (summary := self._summary(folder))]
        return sorted(found, key=lambda each: (each.started_at, each.id), reverse=True)

    def _run_folders(self, file: str) -> Iterator[Path]:
        return (path.parent for path in sorted(self.folder.glob(f"*/{file}")))

    def _summary(self, folder: Path) -> RunSummary | None:
        """Read anew only when one of its files has changed."""
        model = model_file(folder)
        files = (RUN_FILE, LAUNCH_FILE, "history.csv", "workers.png", model.name, best_beside(model).name)
        stamp = tuple(_stamp(folder / name) for name in files)
        known = self._known.get(folder)
        if known is None or known[0] != stamp:
            try:
                self._known[folder] = (stamp, _summarize(folder))
            except Exception as exc:  # noqa: BLE001 - a run that is being made, or whatever a person put there
                logger.debug("%s is not listed: %s", folder, exc)
                return None
        return self._known[folder][1]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _summarize(folder: Path) -> RunSummary:
    identity = current_settings(_read(folder / RUN_FILE))
    history = read_rows(folder / "history.csv")
    launch = read_launch(folder) if (folder / LAUNCH_FILE).is_file() else None
    last = history[-1] if history else {}
    return RunSummary(
        id=folder.name,
        task=str(identity["task"]),
        strategy=str(identity["strategy"]),
        rounds=int(identity["rounds"]),
        closed_rounds=int(last.get("round") or 0),
        started_at=launch.launched_at if launch else str(identity["started_at"]),
        ended_at=launch.ended_at if launch else None,
        outcome=launch.outcome if launch else None,
        reason=launch.reason if launch else None,
        has_model=model_file(folder).is_file(),
        model_file=model_file(folder).name,
        has_curves=(folder / "curves.png").is_file(),
        measures={name: float(last[f"{TEST}{name}"]) for name in RESULTS if f"{TEST}{name}" in last},
        settings=SummedSettings(**{name: identity.get(name) for name in SummedSettings.__slots__}),
        best_round=round_of(best_beside(model_file(folder))),
        has_workers_picture=(folder / "workers.png").is_file(),
    )


def read_rows(path: Path) -> list[Cells]:
    """The rows of history.csv or workers.csv, numbers as numbers; none when there is no such file."""
    if not path.is_file() or path.stat().st_size > _MOST_HISTORY_BYTES:
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {name: _value(name, text) for name, text in row.items() if text} for row in csv.DictReader(stream)
        ]


def _value(name: str, text: str) -> int | float | str:
    if name in _TEXT_COLUMNS:
        return text
    number = float(text)
    return int(number) if number.is_integer() and "." not in text else number


def read_launch(folder: Path) -> LaunchRecord:
    """Read launch.json.

    Raises:
        CheckpointError: It can't be read.
    """
    path = folder / LAUNCH_FILE
    try:
        record: LaunchRecord = from_plain(LaunchRecord, _read(path), LAUNCH_FILE)
    except ProtocolError as exc:
        raise CheckpointError(f"{path} is not ours: {exc} Move that folder away.") from exc
    return record


def write_launch(folder: Path, record: LaunchRecord) -> None:
    """Write launch.json, and make the run's folder for it.

    Raises:
        CheckpointError: It can't be written.
    """
    make_folder(folder)
    write_atomically(folder / LAUNCH_FILE, [json_text(to_plain(record), indent=2).encode() + b"\n"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path.read_bytes())
    except (OSError, ProtocolError) as exc:
        raise CheckpointError(f"Can't read {path}: {exc}.") from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not ours.")
    return content


def time_text(now: datetime | None = None) -> str:
    """A moment as it is written into files."""
    return (now or datetime.now(UTC)).isoformat(timespec="milliseconds")
