"""The models that came to a site, as files: whole, by run and round, and no more of them than asked for."""

import os
from pathlib import Path

import pytest

from broker.errors import DataError
from worker.site.global_models import GlobalModels


def write(path: Path) -> None:
    path.write_bytes(b"model")


def fail(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_kept_by_run_and_round(tmp_path: Path) -> None:
    """Whatever a run is called: its name is the coordinator's, and no path."""
    GlobalModels(tmp_path / "new", 20).keep("20260105-mnist", 3, ".keras", write)
    GlobalModels(tmp_path / "new", 20).keep("../../etc/x", 0, ".npz", write)
    assert kept(tmp_path / "new") == ["-etc-x-round-0.npz", "20260105-mnist-round-3.keras"]


def test_only_the_newest_are_kept_and_other_files_stay(tmp_path: Path) -> None:
    """The disk has an end; but a person's own model there is nobody's to remove."""
    (tmp_path / "mine.keras").write_bytes(b"")
    models = GlobalModels(tmp_path, 2)
    for number in range(12):
        models.keep("run", number, ".keras", write)
        os.utime(tmp_path / f"run-round-{number}.keras", (number, number))
    models.keep("run", 12, ".keras", write)
    assert kept(tmp_path) == ["mine.keras", "run-round-11.keras", "run-round-12.keras"]


def test_one_that_can_not_be_written_leaves_nothing_and_is_said_without_the_folders_name(
    tmp_path: Path,
) -> None:
    """The round is declined with the reason; the coordinator learns no path of this machine."""
    with pytest.raises(DataError, match="No space left on device") as raised:
        GlobalModels(tmp_path, 2).keep("run", 1, ".keras", fail)
    assert str(tmp_path) not in str(raised.value)
    assert kept(tmp_path) == []
