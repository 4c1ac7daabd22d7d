"""`coordinator prune`: which runs may go, and that those stay which somebody needs."""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator.cli import main
from coordinator.files import lock_folder
from coordinator.folder.pruning import delete_old, find_old
from coordinator.folder.run_index import RunIndex, read_launch, write_launch
from tests.unit.test_launching import record, save_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Five runs of one task, the last one the newest."""
    for day in range(1, 6):
        save_run(tmp_path / f"mnist-2026110{day}-1", "mnist", 5, f"2026-11-0{day}T12:00:00")
    return tmp_path


def names(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.glob("*-1"))


def pruned(runs: Path, *words: str, typed: str = "") -> tuple[int, str]:
    answer = CliRunner().invoke(main, ["prune", "--runs", str(runs), *words], input=typed)
    return answer.exit_code, answer.output


def test_the_newest_stay_and_the_audit_log_tells_which_are_gone(runs: Path) -> None:
    """What goes is listed, oldest first, with its size; nothing of it is left."""
    code, said = pruned(runs, "--keep", "2", "--yes")
    assert code == 0
    assert names(runs) == ["mnist-20261104-1", "mnist-20261105-1"]
    assert said.index("mnist-20261101-1") < said.index("mnist-20261103-1")
    assert "3 runs deleted, 0.0 MB freed" in said
    lines = [json.loads(line) for line in (runs / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["folder"]) for line in lines] == [
        ("pruned", f"mnist-2026110{day}-1") for day in (1, 2, 3)
    ]
    assert not (runs / ".pruned").exists()
    assert pruned(runs, "--keep", "2") == (0, f"Nothing to delete in {runs}.\n")


@pytest.mark.parametrize(("typed", "code"), [("n\n", 2), ("", 2), ("y\n", 0)])
def test_it_asks_first(runs: Path, typed: str, code: int) -> None:
    """Where nobody can be asked, nobody said yes."""
    assert pruned(runs, "--keep", "4", typed=typed)[0] == code
    assert ("mnist-20261101-1" in names(runs)) == (code != 0)


def test_what_somebody_needs_stays(runs: Path) -> None:
    """A run that is unfinished, and the last model of each task: a launch goes on from it. Nor is a link followed."""
    save_run(runs / "x-ray-20261001-1", "x-ray", 5, "2026-10-01T12:00:00")
    save_run(runs / "x-ray-20260901-1", "x-ray", 5, "2026-09-01T12:00:00")
    model = str(runs / "mnist-20261101-1" / "model.keras")
    open_run = record(launched_at="2026-11-02T12:00:00", outcome=None, options={"initial-model": model})  # type: ignore[arg-type]
    write_launch(runs / "mnist-20261102-1", open_run)
    by_hand = runs / "mnist-20261103-1"  # of `coordinator run`, with rounds left
    (by_hand / "launch.json").unlink()
    (by_hand / "history.csv").write_text("round\n2\n")
    found = [each.folder.name for each in find_old(RunIndex(runs), 1)]
    assert found == ["x-ray-20260901-1", "mnist-20261104-1"]
    (by_hand / "history.csv").write_text("round,stopped\n2,val_loss is good enough\n")
    assert by_hand in [each.folder for each in find_old(RunIndex(runs), 1)]


def test_a_run_that_a_coordinator_works_on_by_now_is_left(runs: Path) -> None:
    """It was at its end when it was listed, and is gone on with now: its folder is locked."""
    index = RunIndex(runs)
    old = find_old(index, 3)
    with lock_folder(old[0].folder, wait=False, stop=threading.Event()):
        assert [each.folder.name for each in delete_old(index, old)] == ["mnist-20261102-1"]
    assert read_launch(old[0].folder).outcome == "done"


def test_no_later_run_is_called_like_one_that_is_gone(tmp_path: Path) -> None:
    """Numbers are noted beside the runs."""
    index, now = RunIndex(tmp_path), datetime(2026, 11, 25, tzinfo=UTC)
    for hour in range(3):
        folder = index.folder_for("mnist", now)
        index.claim(folder)
        save_run(folder, "mnist", 5, f"2026-11-25T0{hour}:00:00")
    assert pruned(tmp_path, "--keep", "1", "--yes")[0] == 0
    assert index.folder_for("mnist", now).name == "mnist-20261125-4"
