"""One row a round: what it cost, who took part, who was late or rejected and why, and how good the model became."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.files import write_atomically
from coordinator.rounds import Round, Verdict, weighted_mean

Row = dict[str, Any]

COLUMNS = (
    "round", "attempt", "seconds", "slowest_worker_seconds", "num_examples", "update_bytes",
    "loss", "accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_auc",
    "accepted", "late", "rejected",
)  # fmt: skip
WORKER_COLUMNS = ("round", "worker", "num_examples", "seconds", "loss", "accuracy")
_MOST_WORKER_ROWS = 250  #: a row for each worker is kept in the checkpoint, too


def row_of(closed: Round, update_bytes: int, seconds: float) -> Row:
    """What is kept of a round: what it cost, who took part, and how well the training went."""
    trained = {worker: closed.answers[worker] for worker in closed.accepted if closed.trains(worker)}
    metrics = weighted_mean([(answer.num_examples, answer.metrics) for answer in trained.values()])
    return {
        "round": closed.record.round_number,
        "attempt": closed.record.attempt,
        "seconds": round(seconds, 3),
        "slowest_worker_seconds": round(max((answer.seconds for answer in trained.values()), default=0.0), 3),
        "num_examples": sum(answer.num_examples for answer in trained.values()),
        "update_bytes": update_bytes,
        **{name: value for name, value in metrics.items() if not name.startswith("val_")},
        "accepted": closed.accepted,
        "late": closed.unanswered,
        "rejected": closed.rejected,
        "workers": {
            worker: {"num_examples": answer.num_examples, "seconds": answer.seconds, **answer.metrics}
            for worker, answer in closed.answers.items()
            if answer.verdict is Verdict.ACCEPTED and len(trained) <= _MOST_WORKER_ROWS
        },
    }


def with_measures(rows: list[Row], closed: Round) -> list[Row]:
    """The rows, the last one with what the workers measured of the model that this round began with."""
    measures = [
        (answer.num_test_examples, answer.global_metrics)
        for answer in closed.answers.values()
        if answer.verdict is Verdict.ACCEPTED and answer.global_metrics
    ]
    values = {f"val_{name}": value for name, value in weighted_mean(measures).items()}
    return [*rows[:-1], {**rows[-1], **values}]


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
