"""What goes on, as a table that a person wants to read at a terminal."""

from collections.abc import Iterator, Sequence

from coordinator.folder.history import Row
from coordinator.learning.measure_names import best_known_first
from coordinator.status import (
    EndedRun,
    PrivateStatus,
    ProgressStatus,
    RunStatus,
    ServingStatus,
    Status,
    WorkerStatus,
)

_BAR_WIDTH = 12


def status_text(status: Status, now: float) -> str:
    """The whole of it.

    Args:
        status: As the coordinator tells it.
        now: Seconds since 1970.
    """
    last, num_dead = (status.last_run, status.num_dead) if isinstance(status, ServingStatus) else (None, 0)
    parts = [_run_text(status.run) if status.run else _idle_text(last)]
    if status.workers:
        parts.append(columns([_HEAD, *(_worker_cells(worker, now) for worker in status.workers)]))
    else:
        parts.append("No worker has joined yet.")
    if any(worker.release not in ("", status.release) for worker in status.workers):
        parts.append(f"The coordinator runs Warren {status.release or 'of an earlier version'}.")
    if num_dead:
        parts.append(f"{num_dead} messages were rejected: see the queue 'dead'.")
    return "\n\n".join(parts)


def _idle_text(last: EndedRun | None) -> str:
    if last is None:
        return "No run is under way."
    reason = f": {last.reason}" if last.reason else ""
    return f"No run is under way. The last one, {last.id}, is {last.outcome}{reason}."


def _run_text(run: RunStatus) -> str:
    title = f"{run.id}  {run.task}, {_phase_text(run)}{', stopping after it' if run.is_stopping else ''}"
    lines = [title]
    if run.last_round is not None:
        lines.append(_round_text(run.last_round))
    if run.private is not None:
        lines.append(_private_text(run.private))
    if run.best is not None:
        lines.append(f"best so far: round {run.best.round}, {run.best.measure} {run.best.value:.4f}")
    return "\n".join(lines)


def _private_text(private: PrivateStatus) -> str:
    what = f"{', '.join(private.patterns)} ({private.num_weights} weights)"
    return f"private: {what}, its own at each of {private.num_sites} sites"


def _phase_text(run: RunStatus) -> str:
    opened = run.open_round
    if run.phase == "building":
        return "building the model"
    if opened is None:
        return f"waiting for workers: {run.workers_present} of {run.workers_wanted}"
    answered = f"{opened.accepted} of {opened.invited} answered"
    if run.phase == "measuring":
        return f"measuring the model of round {run.closed_rounds}: {answered}"
    attempt = f", attempt {opened.attempt}" if opened.attempt > 1 else ""
    return f"round {run.round} of {run.rounds}{attempt}: {answered} (quorum {opened.quorum})"


def _round_text(row: Row) -> str:
    return f"round {row.round} closed in {row.seconds:.1f} s: {', '.join(_measures_in(row))}"


def _measures_in(row: Row) -> Iterator[str]:
    for words, figures in (("", row.metrics), ("test ", row.test), ("central ", row.central)):
        for name in best_known_first(figures):
            yield f"{words}{name.replace('_', ' ')} {figures[name]:.4f}"


_HEAD = ("worker", "state", "progress", "examples", "seen", "version", "")


def _worker_cells(worker: WorkerStatus, now: float) -> tuple[str, ...]:
    examples = worker.num_test_examples if worker.evaluate_only else worker.num_examples
    return (
        worker.name,
        worker.state,
        _bar(worker.progress),
        f"{examples}{' (test)' if worker.evaluate_only else ''}",
        _ago(worker.last_seen, now),
        worker.release,
        (worker.detail or "")[:80],
    )


def _bar(progress: ProgressStatus | None) -> str:
    if progress is None:
        return ""
    full = round(progress.share * _BAR_WIDTH)
    return f"{'█' * full}{'░' * (_BAR_WIDTH - full)} {progress.share:4.0%}"


def _ago(seen: float | None, now: float) -> str:
    if seen is None:
        return "never"
    seconds = max(0, int(now - seen))
    if seconds < 60:
        return f"{seconds} s ago"
    return f"{seconds // 60} min ago" if seconds < 3600 else f"{seconds // 3600} h ago"


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells below each other, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
