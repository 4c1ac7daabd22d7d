"""Old runs in the folder --runs: which may go, what that frees, and how they go."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from broker.audit import AUDIT_FILE, AuditLog, user
from broker.errors import CheckpointError, NameInUse
from coordinator.files import lock_folder
from coordinator.folder.run_index import LAUNCH_FILE, RunIndex, RunSummary, read_launch, read_rows

_GOING = ".pruned"  #: what is being deleted is no run any more, also if that is interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class OldRun:
    """A run that may go.

    Attributes:
        num_bytes: What deleting it frees.
    """

    folder: Path
    started_at: str
    num_bytes: int


def find_old(runs: RunIndex, keep: int) -> list[OldRun]:
    """The runs that are not among the newest, oldest first.

    One that is open, or has not come to its end, is none of them; nor is one whose model its task, or an open run, goes
    on from.

    Args:
        runs: All of them.
        keep: How many of the newest stay.
    """
    summaries = runs.summaries()
    needed = {path.resolve() for path in _gone_on_from(runs, summaries)}
    old = [each for each in summaries[keep:] if not _is_unfinished(runs.folder / each.id, each)]
    return [
        OldRun(folder=folder, started_at=each.started_at, num_bytes=_size_of(folder))
        for each in reversed(old)
        if (folder := runs.folder / each.id).resolve() not in needed and not folder.is_symlink()
    ]


def delete_old(runs: RunIndex, old: list[OldRun]) -> list[OldRun]:
    """Delete runs; those that a coordinator works on by now are left. The audit log tells which are gone.

    Returns:
        Those that are gone.

    Raises:
        CheckpointError: One can't be deleted.
    """
    log, going = AuditLog(runs.folder / AUDIT_FILE), runs.folder / _GOING
    gone: list[OldRun] = []
    try:
        shutil.rmtree(going, ignore_errors=True)
        going.mkdir()
        for each in old:
            if _moved(each.folder, going):
                gone.append(each)
                log.note("pruned", folder=each.folder.name, bytes=each.num_bytes, user=user())
        shutil.rmtree(going)
    except OSError as exc:
        raise CheckpointError(f"Can't delete in {runs.folder}: {exc.strerror or exc}.") from exc
    return gone


def _moved(folder: Path, going: Path) -> bool:
    try:
        with lock_folder(folder, wait=False, stop=threading.Event()):
            folder.rename(going / folder.name)
    except NameInUse:
        return False
    return True


def _gone_on_from(runs: RunIndex, summaries: list[RunSummary]) -> Iterator[Path]:
    """The runs whose models others begin with, or will."""
    for task in {each.task for each in summaries}:
        model = runs.last_model(task)
        if model is not None:
            yield model.parent
    unfinished = runs.unfinished()
    if unfinished is not None:
        yield Path(unfinished[1].options.get("initial-model", "")).parent


def _is_unfinished(folder: Path, summary: RunSummary) -> bool:
    """Whether the same command, or the next `coordinator serve`, would go on with it."""
    if (folder / LAUNCH_FILE).is_file():
        return read_launch(folder).outcome is None
    last = read_rows(folder / "history.csv")[-1:]
    return summary.closed_rounds < summary.rounds and not any(row.get("stopped") for row in last)


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
