"""One row a round: what it cost, who took part, who was late or rejected and why, and how good the model became."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.files import write_atomically

Row = dict[str, Any]

COLUMNS = (
    "round", "attempt", "seconds", "slowest_worker_seconds", "num_examples", "update_bytes",
    "loss", "accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_auc",
    "accepted", "late", "rejected",
)  # fmt: skip
WORKER_COLUMNS = ("round", "worker", "num_examples", "seconds", "loss", "accuracy")


def csv_text(rows: list[Row], columns: Sequence[str] = COLUMNS) -> str:
    """The rows as CSV; a value that isn't known is empty, lists are joined by blanks."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "; ".join(f"{worker}: {reason}" for worker, reason in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else value


def write_history(path: Path, rows: list[Row]) -> None:
    """Write history.csv."""
    write_atomically(path, [csv_text(rows).encode()])


def worker_rows(rows: list[Row]) -> list[Row]:
    """One row a round and accepted worker: what it trained on, for how long, and how well it went there."""
    return [
        {"round": row["round"], "worker": worker, **measures}
        for row in rows
        for worker, measures in row.get("workers", {}).items()
    ]


def write_workers(path: Path, rows: list[Row]) -> None:
    """Write workers.csv."""
    write_atomically(path, [csv_text(worker_rows(rows), WORKER_COLUMNS).encode()])
