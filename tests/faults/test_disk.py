"""The run's folder can't be written, or holds what is not ours."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.errors import CheckpointError
from coordinator import files
from coordinator.files import write_atomically
from coordinator.folder.checkpoint import CHECKPOINT_FILE, ROUND_FILE, read_checkpoint
from tests.faults.conftest import MakeStage
from tests.faults.stage import Stage

MEGABYTE = 1024 * 1024


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """Each step of a write fails: an error that says why and what to do, the old file whole, nothing left beside it."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    def chunks() -> Iterator[bytes]:
        yield b"new"
        if step == "write":
            fail()

    path = tmp_path / CHECKPOINT_FILE
    write_atomically(path, [b"old"])
    if step == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    elif step != "write":
        monkeypatch.setattr(Path, step, fail)
    with pytest.raises(CheckpointError, match=os.strerror(number)):
        write_atomically(path, chunks())
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == [CHECKPOINT_FILE]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 10 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system can't be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_room_goes_on_with_it(
    vhost: str, make_stage: MakeStage, tiny_disk: Path
) -> None:
    """The disk fills up between two checkpoints: exit code 5 and the reason, the last good checkpoint whole. With room
    again the same command line goes on to the same bits."""
    stage = make_stage(vhost, size=MEGABYTE // 4)  # a checkpoint of 1 MB
    stage.out = tiny_disk / "run"
    stage.workers(train_seconds=1.5, once=False)  # the run fails: those of one run leave
    first = stage.coordinator()
    stage.wait_for_round(1)
    stage.wait(lambda: stage.has_begun("w1", 2), 20, "round 2")
    filled = tiny_disk / "filled"
    with filled.open("wb") as stream:
        try:
            while stream.write(bytes(64 * 1024)):
                stream.flush()
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
            stream.raw.close() if hasattr(stream, "raw") else None
    assert first.ended() == 5, stage.story
    first.says("No space left on device")
    assert read_checkpoint(stage.out).round_number == 1
    filled.unlink()
    second = stage.coordinator()
    assert second.ended() == 0, stage.story
    stage.assert_same_bits()


def test_a_folder_that_cannot_be_made_is_told_at_once(stage: Stage) -> None:
    """--out is below a file: exit code 5 before anything is asked of the broker or a worker."""
    (stage.folder / "file").write_text("x")
    coordinator = stage.coordinator(out=stage.folder / "file" / "run")
    assert coordinator.ended() == 5
    coordinator.says("Can't create the folder")


def damaged(content: bytes, how: str) -> bytes:
    if how == "torn":
        return content[: len(content) // 2]
    if how == "a flipped bit":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"empty": b"", "foreign": b"PK\x03\x04" + bytes(5000)}[how]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((CHECKPOINT_FILE, how) for how in ("torn", "a flipped bit", "empty", "foreign")),
        (ROUND_FILE, "torn"),
    ],
)
def test_a_damaged_file_is_named_and_never_loaded(stage: Stage, name: str, how: str) -> None:
    """The checkpoint, or the open round, is torn or not ours: exit code 5, the file's name and what to do; nothing is
    overwritten, and nobody trains on it."""
    workers = stage.workers(train_seconds=0.3)
    first = stage.coordinator()
    stage.wait_for_round(1)
    stage.wait(lambda: stage.has_begun("w1", 2), 20, "round 2")
    first.kill()
    path = stage.out / name
    path.write_bytes(damaged(path.read_bytes(), how))
    before = path.read_bytes()
    second = stage.coordinator()
    assert second.ended() == 5
    second.says(f"{path} can't be used")
    assert path.read_bytes() == before
    assert all(worker.is_running for worker in workers)
