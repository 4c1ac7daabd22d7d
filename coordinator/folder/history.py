"""One row a round: what it cost, who took part, who was late or rejected and why, and how good the model became."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from broker.wire import codec
from broker.wire.fields import from_plain, to_plain
from coordinator.files import write_atomically
from coordinator.learning.measure_names import CENTRAL, COLUMNS, TEST, bare_name, best_known_first
from coordinator.learning.measures import Figures, WorkOut, pooled
from coordinator.learning.rounds import Answer, Round, Verdict

FlatRow = dict[str, Any]

_COST = ("round", "attempt", "seconds", "slowest_worker_seconds", "num_examples", "update_bytes")
_PEOPLE = ("num_test_examples", "num_central_examples", "accepted", "late", "rejected")
_STOPPED = "stopped"
_CLOSED_AT = "closed_at"
_WORKER = ("round", "worker", "num_examples", "num_test_examples", "seconds")
_FIXED = frozenset((*_COST, *_PEOPLE, _STOPPED, _CLOSED_AT, *_WORKER))  # columns that are no measure
_MOST_WORKER_ROWS = 250  #: a row for each worker is kept in the checkpoint, too
_MOST_BYTES = 192 * 2**20  #: of all rows in a checkpoint, which can be read again up to 256 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """One worker in one round.

    Attributes:
        num_examples: What it trained on; 0 when it did not.
        seconds: How long it took for that.
        metrics: Of its training.
        test: Of the global model that the round gave, on the worker's own test examples.
        num_test_examples: What `test` rests on.
    """

    num_examples: int = 0
    seconds: float = 0.0
    metrics: Figures = field(default_factory=dict)
    test: Figures = field(default_factory=dict)
    num_test_examples: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One round; round 0 is the initial model.

    Attributes:
        epochs: Local epochs.
        num_examples: What its updates were trained on, in all.
        update_bytes: What they weighed on the wire.
        metrics: Of the training, over all examples.
        test: Of the global model that the round gave, over the test examples of all workers that train.
        num_test_examples: What `test` rests on; with a fraction these are the workers of the next round.
        central: The same of workers that only evaluate.
        num_central_examples: What `central` rests on.
        workers: By name; empty when they are too many.
        stopped: Why the run ended with this round before its last one, if it did.
        closed_at: When it was committed, UTC; empty in what earlier versions wrote.
    """

    round: int
    attempt: int = 0
    seconds: float = 0.0
    slowest_worker_seconds: float = 0.0
    epochs: int = 0
    num_examples: int = 0
    update_bytes: int = 0
    metrics: Figures = field(default_factory=dict)
    test: Figures = field(default_factory=dict)
    num_test_examples: int = 0
    central: Figures = field(default_factory=dict)
    num_central_examples: int = 0
    accepted: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    rejected: dict[str, str] = field(default_factory=dict)
    workers: dict[str, WorkerRow] = field(default_factory=dict)
    stopped: str = ""
    closed_at: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        """Of numbers, texts, lists and maps alone."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @cached_property
    def packed(self) -> bytes:
        """As a checkpoint keeps it; a row is written again with every later round."""
        return codec.pack_value(self.plain)

    @cached_property
    def flat(self) -> FlatRow:
        """Every measure under a name of its own; what isn't known is left out. Every later round looks at it."""
        measures = _named(self.metrics, "") | _named(self.test, TEST) | _named(self.central, CENTRAL)
        cost = {name: getattr(self, name) for name in _COST if self.round or name == "round"}
        people = {name: getattr(self, name) for name in _PEOPLE[2:] if self.round}
        tested = {name: getattr(self, name) for name in _PEOPLE[:2] if getattr(self, name)}
        ended = {name: getattr(self, name) for name in (_STOPPED, _CLOSED_AT) if getattr(self, name)}
        return {**cost, **measures, **tested, **people, **ended}

    @property
    def is_measured(self) -> bool:
        """Whether anybody has measured the model of this round."""
        return bool(self.test or self.central)


def row_of(closed: Round, *, epochs: int, update_bytes: int, seconds: float, work_out: WorkOut) -> Row:
    """What is kept of a round: what it cost, who took part, and how well the training went."""
    trained = {worker: closed.answers[worker] for worker in closed.accepted if closed.trains(worker)}
    return Row(
        round=closed.record.round_number,
        attempt=closed.record.attempt,
        seconds=round(seconds, 3),
        slowest_worker_seconds=round(max((answer.seconds for answer in trained.values()), default=0.0), 3),
        epochs=epochs,
        num_examples=sum(answer.num_examples for answer in trained.values()),
        update_bytes=update_bytes,
        metrics=pooled((answer.training for answer in trained.values()), work_out),
        accepted=tuple(closed.accepted),
        late=tuple(closed.unanswered),
        rejected=closed.rejected,
        workers={
            worker: WorkerRow(
                num_examples=answer.num_examples, seconds=round(answer.seconds, 3), metrics=answer.metrics
            )
            for worker, answer in trained.items()
            if len(trained) <= _MOST_WORKER_ROWS
        },
    )


def with_measures(rows: list[Row], closed: Round, work_out: WorkOut) -> list[Row]:
    """The rows, the last one with what the workers measured of the model that this round began with."""
    told = {worker: answer for worker, answer in closed.answers.items() if answer.verdict is Verdict.ACCEPTED}
    central = {worker: told[worker] for worker in told if worker in closed.record.evaluators}
    test = {worker: told[worker] for worker in told if worker not in central}
    last = rows[-1]
    measured = replace(
        last,
        test=pooled((answer.test for answer in test.values()), work_out) or last.test,
        num_test_examples=_total(test) or last.num_test_examples,
        central=pooled((answer.test for answer in central.values()), work_out) or last.central,
        num_central_examples=_total(central) or last.num_central_examples,
        workers=_with_tests(last.workers, told) if len(told) <= _MOST_WORKER_ROWS else last.workers,
    )
    return [*rows[:-1], measured]


def within_bounds(rows: list[Row]) -> list[Row]:
    """The rows as a checkpoint can hold them: of the oldest rounds goes who took part, and how each worker did."""
    over = sum(len(row.packed) for row in rows) - _MOST_BYTES
    if over <= 0:
        return rows
    kept: list[Row] = []
    for row in rows[:-1]:
        slim = replace(row, workers={}, accepted=(), late=(), rejected={}) if over > 0 else row
        over -= len(row.packed) - len(slim.packed)
        kept.append(slim)
    return [*kept, rows[-1]]


def _total(answers: Mapping[str, Answer]) -> int:
    return sum(answer.num_test_examples for answer in answers.values())


def _with_tests(workers: dict[str, WorkerRow], told: Mapping[str, Answer]) -> dict[str, WorkerRow]:
    measured = {
        worker: replace(
            workers.get(worker, WorkerRow()),
            test=answer.test.figures,
            num_test_examples=answer.num_test_examples,
        )
        for worker, answer in told.items()
        if answer.num_test_examples
    }
    return workers | measured


def _named(figures: Figures, prefix: str) -> FlatRow:
    """A measure that is called like another column is told apart from it."""
    names = {name: f"{prefix}{name}" for name in figures}
    return {
        f"metric_{names[name]}" if names[name] in _FIXED else names[name]: figures[name] for name in figures
    }


def row_in(flat_row: FlatRow) -> Row:
    """The row whose `flat` this is, as far as that can be told: of its workers there is nothing.

    Raises:
        ProtocolError: It isn't one.
    """
    measures = {name: value for name, value in flat_row.items() if name not in _FIXED and value is not None}
    fields = {
        name: flat_row[name] for name in (*_COST, *_PEOPLE, _STOPPED, _CLOSED_AT) if name in flat_row
    } | {
        field: {name.removeprefix(prefix): measures[name] for name in measures if _prefix_of(name) == prefix}
        for field, prefix in (("metrics", ""), ("test", TEST), ("central", CENTRAL))
    }
    row: Row = from_plain(Row, fields, "row")
    return row


def _prefix_of(name: str) -> str:
    return next((prefix for prefix in (TEST, CENTRAL) if name.startswith(prefix)), "")


def flat_workers(rows: Iterable[Row]) -> list[FlatRow]:
    """One row a round and worker: what it trained on and how well that went, and how well the model serves it."""
    return [
        {"round": row.round, "worker": worker, **_flat_worker(of_worker)}
        for row in rows
        for worker, of_worker in row.workers.items()
    ]


def _flat_worker(row: WorkerRow) -> FlatRow:
    cost = {"num_examples": row.num_examples, "seconds": row.seconds} if row.num_examples else {}
    tested = {"num_test_examples": row.num_test_examples} if row.num_test_examples else {}
    return {**cost, **tested, **_named(row.metrics, ""), **_named(row.test, TEST)}


def csv_text(
    rows: Sequence[FlatRow], before: Iterable[str], measures: Iterable[str], after: Iterable[str]
) -> str:
    """The rows as CSV; a value that isn't known is empty, lists are joined by blanks.

    Args:
        rows: Flat ones.
        before: The first columns.
        measures: The next ones; whatever else the rows have follows them.
        after: The last columns.
    """
    found = dict.fromkeys(name for row in rows for name in row)
    fixed = {*before, *after}
    middle = dict.fromkeys([*measures, *sorted((name for name in found if name not in fixed), key=_rank)])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*before, *middle, *after], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _rank(name: str) -> int:
    """Training, then test, then central figures, each as they came."""
    return name.startswith(TEST) + 2 * name.startswith(CENTRAL)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, dict):
        return "; ".join(f"{worker}: {reason}" for worker, reason in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def history_text(rows: Iterable[Row], measures: Iterable[str] = COLUMNS) -> str:
    """history.csv; these measures have a column, known or not, why a run was stopped only where one was.

    When each round was closed is the last column of all.
    """
    every = [row.flat for row in rows]
    stopped = (_STOPPED,) if any(_STOPPED in row for row in every) else ()
    return csv_text(every, _COST, measures, (*_PEOPLE, *stopped, _CLOSED_AT))


def workers_text(rows: Iterable[Row], measures: Iterable[str] = COLUMNS) -> str:
    """workers.csv, likewise."""
    return csv_text(flat_workers(rows), _WORKER, measures, ())


def write_history(folder: Path, rows: Sequence[Row], measures: Sequence[str] = COLUMNS) -> None:
    """Write history.csv and workers.csv."""
    texts = ("history.csv", history_text(rows, measures)), ("workers.csv", workers_text(rows, measures))
    for name, text in texts:
        write_atomically(folder / name, [text.encode()])


def names_of_measures(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Every measure in flat rows once, the best known first, without what it was measured on."""
    found = (name for row in rows for name in row if name not in _FIXED)
    return best_known_first(bare_name(name) for name in found)


def columns_of_measures(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Every measure in flat rows once, under the name that its column has."""
    return sorted(dict.fromkeys(name for row in rows for name in row if name not in _FIXED), key=_rank)


def values_of(rows: Iterable[Mapping[str, object]], column: str) -> list[tuple[int, float]]:
    """(round, value) of the rows that have a number there, without round 0: that model was trained by no round."""
    pairs = ((row.get("round"), row.get(column)) for row in rows)
    return [
        (int(number), float(value))
        for number, value in pairs
        if isinstance(number, int) and number and isinstance(value, int | float) and math.isfinite(value)
    ]
