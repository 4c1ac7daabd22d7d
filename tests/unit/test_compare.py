"""Several runs beside each other: the figures of each, told in one table, drawn in one picture."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator.cli import main
from coordinator.folder.history import Row, WorkerRow, flat_workers, write_history
from coordinator.folder.run_json import RUN_FILE
from coordinator.keras.curves import draw_workers

PNG = b"\x89PNG"


def run(folder: Path, name: str, losses: list[float], **settings: object) -> str:
    (folder / name).mkdir()
    rows = [
        Row(round=number, seconds=2.5, num_examples=300, test={"loss": loss, "auc": 1 - loss})
        for number, loss in enumerate(losses, start=1)
    ]
    write_history(folder / name, [Row(round=0, test={"loss": 0.0}), *rows])
    (folder / name / RUN_FILE).write_text(json.dumps({"task": "mnist", "strategy": "fedavg", **settings}))
    return str(folder / name)


def said(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["compare", *words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_a_line_a_run_says_when_it_was_best_and_what_it_cost(tmp_path: Path) -> None:
    """The initial model is no round's; seconds and examples are those of all rounds."""
    a, b = run(tmp_path, "a", [0.5, 0.3, 0.4]), run(tmp_path, "b", [0.6])
    head, first, second = said(a, b, "--out", str(tmp_path / "both.png")).splitlines()
    assert head.split() == [
        "run",
        "task",
        "strategy",
        "rounds",
        "best",
        "val_loss",
        "round",
        "last",
        "seconds",
        "examples",
    ]
    assert first.split() == [a, "mnist", "fedavg", "3", "0.3000", "2", "0.4000", "7.5", "900"]
    assert second.split() == [b, "mnist", "fedavg", "1", "0.6000", "1", "0.6000", "2.5", "300"]
    assert (tmp_path / "both.png").read_bytes().startswith(PNG)


def test_runs_are_compared_by_what_they_were_to_become_better_in(tmp_path: Path) -> None:
    """Unless another measure is asked for; a name that no round tells any more is passed over."""
    out = ("--json", "--out", str(tmp_path / "a.png"))
    a = run(tmp_path, "a", [0.5, 0.3], stop_when="val_auc")
    b = run(tmp_path, "b", [0.5, 0.3], stop_when="val_foreign")
    assert json.loads(said(a, *out))[0]["best"] == 0.7
    assert json.loads(said(a, "--measure", "max:val_loss", *out))[0]["best_round"] == 1
    assert json.loads(said(b, *out))[0]["measure"] == "val_loss"


def test_what_can_not_be_compared_is_named(tmp_path: Path) -> None:
    """A folder without a run, and a measure that nobody tells, with those that there are."""
    a = run(tmp_path, "a", [0.5])
    assert "There are: val_loss, val_auc." in said(a, "--measure", "val_aux", code=5)
    (tmp_path / "empty").mkdir()
    assert "Expected the folder of a run" in said(a, str(tmp_path / "empty"), code=5)


@pytest.mark.parametrize("number", [2, 12])
def test_each_workers_curves_are_drawn(tmp_path: Path, number: int) -> None:
    """Few by name, many as a spread; with no rows of single workers, as of a very large round, there is no picture."""
    workers = {
        f"w{each}": WorkerRow(test={"loss": 0.1 * each}, num_test_examples=5) for each in range(number)
    }
    rows = [Row(round=0), Row(round=1, workers=workers), Row(round=2, workers=workers)]
    draw_workers(flat_workers(rows), tmp_path / "workers.png")
    assert (tmp_path / "workers.png").read_bytes().startswith(PNG)
    draw_workers([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
