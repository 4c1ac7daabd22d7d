"""What goes on, as a table that a person wants to read at a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coordinator.folder.history import CENTRAL, TEST, names_of_measures

Fields = Mapping[str, Any]

_BAR_WIDTH = 12


def status_text(state: Fields, now: float) -> str:
    """The whole of it.

    Args:
        state: As the coordinator tells it; see `coordinator.play.status.describe`.
        now: Seconds since 1970.
    """
    parts = [_run_text(state["run"]) if state.get("run") else _idle_text(state)]
    workers = state.get("workers", [])
    if workers:
        parts.append(_columns([_HEAD, *(_worker_cells(worker, now) for worker in workers)]))
    else:
        parts.append("No worker has joined yet.")
    if state.get("num_dead"):
        parts.append(f"{state['num_dead']} messages were rejected: see the queue 'dead'.")
    return "\n\n".join(parts)


def _idle_text(state: Fields) -> str:
    last = state.get("last_run")
    if not last:
        return "No run is under way."
    reason = f": {last['reason']}" if last["reason"] else ""
    return f"No run is under way. The last one, {last['id']}, is {last['outcome']}{reason}."


def _run_text(run: Fields) -> str:
    title = (
        f"{run['id']}  {run['task']}, {_phase_text(run)}{', stopping after it' if run['is_stopping'] else ''}"
    )
    last = run["last_round"]
    return title if last is None else f"{title}\n{_round_text(last)}"


def _phase_text(run: Fields) -> str:
    opened = run["open_round"]
    if run["phase"] == "building":
        return "building the model"
    if opened is None:
        return f"waiting for workers: {run['workers_present']} of {run['workers_wanted']}"
    answered = f"{opened['accepted']} of {opened['invited']} answered"
    if run["phase"] == "measuring":
        return f"measuring the model of round {run['closed_rounds']}: {answered}"
    attempt = f", attempt {opened['attempt']}" if opened["attempt"] > 1 else ""
    return f"round {run['round']} of {run['rounds']}{attempt}: {answered} (quorum {opened['quorum']})"


def _round_text(row: Fields) -> str:
    measures = [f"{words}{name.replace('_', ' ')} {row[key]:.4f}" for words, name, key in _measures_in(row)]
    seconds = f" in {row['seconds']:.1f} s" if "seconds" in row else ""
    return f"round {row['round']} closed{seconds}: {', '.join(measures)}"


def _measures_in(row: Fields) -> Iterator[tuple[str, str, str]]:
    names = names_of_measures([row])
    for words, prefix in (("", ""), ("test ", TEST), ("central ", CENTRAL)):
        yield from ((words, name, f"{prefix}{name}") for name in names if f"{prefix}{name}" in row)


_HEAD = ("worker", "state", "progress", "examples", "seen", "")


def _worker_cells(worker: Fields, now: float) -> tuple[str, ...]:
    examples = worker["num_test_examples"] if worker["evaluate_only"] else worker["num_examples"]
    return (
        worker["name"],
        worker["state"],
        _bar(worker["progress"]),
        f"{examples}{' (test)' if worker['evaluate_only'] else ''}",
        _ago(worker["last_seen"], now),
        (worker["detail"] or "")[:80],
    )


def _bar(progress: Fields | None) -> str:
    if progress is None:
        return ""
    full = round(progress["share"] * _BAR_WIDTH)
    return f"{'█' * full}{'░' * (_BAR_WIDTH - full)} {progress['share']:4.0%}"


def _ago(seen: float | None, now: float) -> str:
    if seen is None:
        return "never"
    seconds = max(0, int(now - seen))
    if seconds < 60:
        return f"{seconds} s ago"
    return f"{seconds // 60} min ago" if seconds < 3600 else f"{seconds // 3600} h ago"


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
