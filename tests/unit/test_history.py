"""history.csv and workers.csv: every figure under its own name, the workers' and the central ones apart."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from broker.wire.fields import from_plain
from broker.wire.plain_json import json_text, read_json
from coordinator.folder import history
from coordinator.folder.history import (
    Row,
    WorkerRow,
    columns_of_measures,
    history_text,
    names_of_measures,
    row_in,
    row_of,
    with_measures,
    within_bounds,
    workers_text,
)
from coordinator.folder.run_index import read_rows
from coordinator.learning.rounds import Answer, Round, Verdict
from coordinator.play.open_round.taking import shortened
from tests.unit.test_rounds import RECORD


def nothing(_sums: object) -> dict[str, float]:
    raise AssertionError("there is nothing to work out")


def answer(num_examples: int, loss: float, num_test: int, test_loss: float) -> Answer:
    return Answer(
        upload_id="u", verdict=Verdict.ACCEPTED, num_examples=num_examples, metrics={"loss": loss, "top_5": loss},
        global_metrics={"loss": test_loss}, num_test_examples=num_test, seconds=2.0,
    )  # fmt: skip


def closed() -> Round:
    """Two that train, on 10 and 30 examples, and one that only evaluates."""
    record = replace(RECORD, selected=("a", "b"), evaluators=("central",))
    return Round(
        record, 0.0,
        {"a": answer(10, 1.0, 5, 0.5), "b": answer(30, 2.0, 15, 0.9), "central": answer(0, 0.0, 100, 7.0)},
    )  # fmt: skip


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_worker_that_only_evaluates_has_columns_of_its_own() -> None:
    """(5 · 0.5 + 15 · 0.9) / 20 = 0.8 on 20 images; the central 7.0 rests on 100 and is no part of it."""
    (row,) = with_measures([Row(round=2)], closed(), nothing)
    assert (row.test, row.num_test_examples) == ({"loss": 0.8}, 20)
    assert (row.central, row.num_central_examples) == ({"loss": 7.0}, 100)
    (told,) = rows_of(history_text([row]))
    assert (told["val_loss"], told["central_loss"]) == ("0.8", "7")
    assert (told["num_test_examples"], told["num_central_examples"]) == ("20", "100")


def test_training_counts_only_those_that_trained() -> None:
    """(10 · 1 + 30 · 2) / 40 = 1.75."""
    row = row_of(closed(), epochs=3, update_bytes=9, seconds=1.0, work_out=nothing)
    assert row.metrics == {"loss": 1.75, "top_5": 1.75}
    assert (row.num_examples, row.epochs, sorted(row.workers)) == (40, 3, ["a", "b"])


def test_each_worker_has_the_figures_of_its_own_images() -> None:
    """Who is served badly? workers.csv says how good the round's model is at each site, and on how many images."""
    first = row_of(closed(), epochs=1, update_bytes=9, seconds=1.0, work_out=nothing)
    told = rows_of(workers_text(with_measures([first], closed(), nothing)))
    assert [(each["worker"], each["loss"], each["val_loss"], each["num_test_examples"]) for each in told] == [
        ("a", "1", "0.5", "5"),
        ("b", "2", "0.9", "15"),
        ("central", "", "7", "100"),
    ]


def test_a_metric_never_takes_the_place_of_a_column() -> None:
    """A metric may be called like anything."""
    row = Row(round=1, seconds=3.0, metrics={"seconds": 0.1, "round": 0.2, "loss": 0.3}, test={"my": 1.0})
    found = row.flat
    assert (found["seconds"], found["round"]) == (3.0, 1)
    assert (found["metric_seconds"], found["metric_round"], found["val_my"]) == (0.1, 0.2, 1.0)
    assert names_of_measures([found])[0] == "loss"


def test_the_usual_columns_are_always_there() -> None:
    """Whoever reads the file by name finds them, also before the first figure."""
    header = history_text([Row(round=0)]).splitlines()[0].split(",")
    assert header[:6] == [
        "round", "attempt", "seconds", "slowest_worker_seconds", "num_examples", "update_bytes",
    ]  # fmt: skip
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_auc"} <= set(header)


def test_a_row_comes_back_from_a_checkpoint_as_it_was() -> None:
    """With what each worker did."""
    row = with_measures(
        [row_of(closed(), epochs=1, update_bytes=9, seconds=1.0, work_out=nothing)], closed(), nothing
    )[0]
    assert from_plain(Row, row.plain, "row") == row


def test_when_each_round_was_closed_is_the_last_column(tmp_path: Path) -> None:
    """In UTC; a row that an earlier version wrote has none, and is read. The page reads it, and so does status."""
    at = "2026-11-26T14:33:10.476+00:00"
    rows = [Row(round=0), Row(round=1, closed_at=at)]
    path = tmp_path / "history.csv"
    path.write_text(history_text(rows))
    assert path.read_text().splitlines()[0].endswith(",rejected,closed_at")
    assert [row.get("closed_at") for row in read_rows(path)] == [None, at]
    assert row_in(read_json(json_text(rows[1].flat))).closed_at == at
    older = {name: value for name, value in rows[1].plain.items() if name != "closed_at"}
    assert from_plain(Row, older, "row") == Row(round=1), "of a checkpoint without it"
    assert "closed_at" not in columns_of_measures([rows[1].flat])


def test_of_the_oldest_rounds_the_workers_go_before_a_checkpoint_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """250 workers would fill it in 2,700 rounds, and the run could never go on. How good each model was stays."""
    workers = {f"site-{number}": WorkerRow(metrics={"loss": 0.5}) for number in range(10)}
    rows = [
        Row(round=number, test={"loss": 0.25}, workers=workers, accepted=tuple(workers))
        for number in range(5)
    ]
    size = sum(len(row.packed) for row in rows)
    assert within_bounds(rows) is rows
    monkeypatch.setattr(history, "_MOST_BYTES", size - 1)
    kept = within_bounds(rows)
    assert [len(row.workers) for row in kept] == [0, 10, 10, 10, 10]
    assert [row.test for row in kept] == [{"loss": 0.25}] * 5
    monkeypatch.setattr(history, "_MOST_BYTES", 1)
    assert [len(row.accepted) for row in within_bounds(rows)] == [0, 0, 0, 0, 10]


def test_the_reasons_of_a_whole_swarm_fit_a_checkpoint() -> None:
    """Of a hundred thousand that decline with 2,000 letters each a round would be 200 MB. Of few each is kept whole."""
    reason = "x" * 2500
    assert len(shortened(reason, 3)) == len(shortened(reason, 2000)) == 2000
    assert len(shortened(reason, 10_000)) == 419
    assert len(shortened(reason, 100_000)) == 100
