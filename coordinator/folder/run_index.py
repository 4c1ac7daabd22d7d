"""The folder --runs: one folder a run, which of them is unfinished, and which holds a task's last model."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker.errors import CheckpointError
from coordinator.files import make_folder, write_atomically
from coordinator.folder.run_json import RUN_FILE, current_settings

LAUNCH_FILE = "launch.json"
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TEXT_COLUMNS = frozenset({"accepted", "late", "rejected", "worker"})
_MOST_HISTORY_BYTES = 32 * 1024 * 1024

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """launch.json: what a run was launched with, and how it ended.

    Attributes:
        options: As RunOptions takes them, by option name; texts.
        outcome: "done", "stopped" or "failed"; None while it is unfinished.
        reason: Why it failed.
    """

    task: str
    options: dict[str, str]
    launched_at: str
    outcome: str | None = None
    reason: str | None = None
    ended_at: str | None = None


class RunIndex:
    """The runs in one folder.

    Raises:
        CheckpointError: The folder can't be created.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder = folder
        self._known: dict[Path, tuple[object, Fields]] = {}

    def place_for(self, task: str, now: datetime) -> Path:
        """The folder of a new run: TASK-DATE-N."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(task).stem if task.endswith(".keras") else task)
        stem = f"{stem.strip('-.')[:64] or 'run'}-{now:%Y%m%d}"
        number = 1
        while (self.folder / f"{stem}-{number}").exists():
            number += 1
        return self.folder / f"{stem}-{number}"

    def find(self, name: str) -> Path | None:
        """The folder of a run; None when there is none of that name."""
        place = self.folder / name
        return place if _RUN_NAME.fullmatch(name) and (place / RUN_FILE).is_file() else None

    def unfinished(self) -> tuple[Path, LaunchRecord] | None:
        """The run that was launched last and has not ended.

        Raises:
            CheckpointError: Its launch.json can't be read.
        """
        found = [(place, read_launch(place)) for place in self._places(LAUNCH_FILE)]
        is_open = [(place, record) for place, record in found if record.outcome is None]
        return max(is_open, key=lambda each: each[1].launched_at, default=None)

    def last_model(self, task: str) -> Path | None:
        """The model of the newest run of a task that closed a round; None when there is none."""
        for summary in self.summaries():
            if summary["task"] == task and summary["has_model"] and summary["closed_rounds"] > 0:
                return self.folder / str(summary["id"]) / "model.keras"
        return None

    def summaries(self) -> list[Fields]:
        """What there is to say of each run, the newest first."""
        found = [summary for place in self._places(RUN_FILE) if (summary := self._summary(place))]
        return sorted(found, key=lambda each: (each["started_at"], each["id"]), reverse=True)

    def _places(self, file: str) -> Iterator[Path]:
        return (path.parent for path in sorted(self.folder.glob(f"*/{file}")))

    def _summary(self, place: Path) -> Fields | None:
        """Read anew only when one of its files has changed."""
        stamp = tuple(_stamp(place / name) for name in (RUN_FILE, LAUNCH_FILE, "history.csv", "model.keras"))
        known = self._known.get(place)
        if known is None or known[0] != stamp:
            try:
                self._known[place] = (stamp, _summarize(place))
            except (CheckpointError, KeyError, TypeError, ValueError):
                return None  # a run that is being made, or no run of ours
        return self._known[place][1]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _summarize(place: Path) -> Fields:
    identity = current_settings(_read_json(place / RUN_FILE))
    history = read_rows(place / "history.csv")
    launch = read_launch(place) if (place / LAUNCH_FILE).is_file() else None
    last = history[-1] if history else {}
    return {
        "id": place.name,
        "task": str(identity["task"]),
        "strategy": str(identity["strategy"]),
        "rounds": int(identity["rounds"]),
        "closed_rounds": int(last.get("round") or 0),
        "started_at": launch.launched_at if launch else str(identity["started_at"]),
        "ended_at": launch.ended_at if launch else None,
        "outcome": launch.outcome if launch else None,
        "reason": launch.reason if launch else None,
        "has_model": (place / "model.keras").is_file(),
        "has_curves": (place / "curves.png").is_file(),
        "measures": {
            name: last[f"val_{name}"] for name in ("accuracy", "auc", "loss") if f"val_{name}" in last
        },
        "settings": {
            name: identity.get(name) for name in ("epochs", "batch_size", "learning_rate", "quorum")
        },
    }


def read_rows(path: Path) -> list[Fields]:
    """The rows of history.csv or workers.csv, numbers as numbers; none when there is no such file."""
    if not path.is_file() or path.stat().st_size > _MOST_HISTORY_BYTES:
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {name: _value(name, text) for name, text in row.items() if text} for row in csv.DictReader(stream)
        ]


def _value(name: str, text: str) -> object:
    if name in _TEXT_COLUMNS:
        return text
    number = float(text)
    return int(number) if number.is_integer() and "." not in text else number


def read_launch(place: Path) -> LaunchRecord:
    """Read launch.json.

    Raises:
        CheckpointError: It can't be read.
    """
    try:
        return LaunchRecord(**_read_json(place / LAUNCH_FILE))
    except TypeError as exc:
        raise CheckpointError(f"{place / LAUNCH_FILE} is not ours: {exc}. Move that folder away.") from exc


def write_launch(place: Path, record: LaunchRecord) -> None:
    """Write launch.json, and make the run's folder for it.

    Raises:
        CheckpointError: It can't be written.
    """
    make_folder(place)
    fields: Mapping[str, object] = {name: getattr(record, name) for name in LaunchRecord.__slots__}
    write_atomically(place / LAUNCH_FILE, [json.dumps(fields, indent=2).encode() + b"\n"])


def _read_json(path: Path) -> Fields:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"Can't read {path}: {exc}.") from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not ours.")
    return content


def time_text(now: datetime | None = None) -> str:
    """A moment as it is written into files."""
    return (now or datetime.now(UTC)).isoformat(timespec="milliseconds")
