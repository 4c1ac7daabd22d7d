"""What is on disk is whole and ours, or it is named and not loaded."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xxhash

from broker.audit import AuditLog
from broker.errors import CheckpointError, ModelError
from broker.wire import codec
from broker.wire.tensors import InputFacts, Layout, TensorSpec
from coordinator import files
from coordinator.folder.checkpoint import (
    CHECKPOINT_FILE,
    ROUND_FILE,
    Checkpoint,
    PackedRounds,
    read_checkpoint,
    read_open_round,
    write_checkpoint,
    write_open_round,
)
from coordinator.folder.history import Row
from coordinator.folder.run_folder import RunFolder
from coordinator.learning.rounds import Answer, Round, Verdict
from coordinator.learning.spares import Spares
from coordinator.learning.squeezing import Rest
from coordinator.learning.strategies import Aggregate, make_strategy
from tests.unit.test_rounds import RECORD, update

STATE = Checkpoint(
    run_id="run", task="mnist", classes=("a", "b"), round_number=2, next_attempt=1, model_json="{}",
    input_shape=(2, 2, 1), num_classes=2,
    layout=(
        TensorSpec(dtype="float32", shape=(3,), kind="trainable"), TensorSpec(dtype="int64", shape=(), kind="integer"),
    ),
    vector=np.array([1, 2, 3], np.float32), integers=(np.array(7),),
    strategy_state=(np.array([4, 5, 6], np.float32),),
    history=[Row(round=0), Row(round=1, metrics={"loss": 0.5}, accepted=("a",))],
    inputs=InputFacts(shape=(2, 2), dtype="uint8", low=0.0, high=255.0),
)  # fmt: skip


def aggregate_of(layout: Layout, folder: Path) -> Aggregate:
    return make_strategy("fedavg", {}).collect(layout, RECORD.scale_exponent, folder / "updates", Spares())


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """Weights, integers, the strategy's state and the history, to the bit."""
    write_checkpoint(tmp_path, STATE)
    back = read_checkpoint(tmp_path)
    assert back.vector.tobytes() == STATE.vector.tobytes()
    assert back.strategy_state[0].tobytes() == STATE.strategy_state[0].tobytes()
    assert back.integers[0] == 7
    empty = np.empty(0, np.float32)
    assert back.rest is None
    plain = {"vector": empty, "integers": (), "strategy_state": ()}
    assert replace(back, **plain).__repr__() == replace(STATE, **plain).__repr__()


def test_what_the_workers_were_not_told_yet_comes_back_with_the_checkpoint(tmp_path: Path) -> None:
    """It stands behind the strategy's state, of which there may be none; without it a file is as it ever was. A rest in
    float32, as files of before have it, is read and kept, too."""
    write_checkpoint(tmp_path, STATE)
    assert b"rest" not in (tmp_path / CHECKPOINT_FILE).read_bytes()
    fine = Rest(values=np.array([7, 8, 9], np.float32))
    coarse = Rest(values=np.array([7, 8, -9], np.int8), scales=(0.5,))
    for rest, states in product((fine, coarse), ((), STATE.strategy_state)):
        write_checkpoint(tmp_path, replace(STATE, rest=rest, strategy_state=states))
        back = read_checkpoint(tmp_path)
        assert back.rest is not None
        assert (back.rest.values.tolist(), back.rest.scales) == (rest.values.tolist(), rest.scales)
        assert (back.vector.tobytes(), len(back.strategy_state)) == (STATE.vector.tobytes(), len(states))
    write_checkpoint(tmp_path, replace(STATE, rest=replace(coarse, scales=(0.5, 0.5))))
    with pytest.raises(CheckpointError, match="2 scales of 1 tensors"):
        read_checkpoint(tmp_path)


def test_room_that_was_made_for_a_checkpoint_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there from before, also from a process that was killed, larger or smaller: the file is what was
    committed, nothing is left beside it, and room that nobody needs is given back."""
    aside, file = tmp_path / f".{CHECKPOINT_FILE}.new", tmp_path / CHECKPOINT_FILE
    folder = RunFolder(tmp_path)
    folder.commit(STATE)
    expected = file.read_bytes()
    folder.make_room()
    assert not aside.exists(), "a small file needs none"
    monkeypatch.setattr(files, "_LARGE_BYTES", 1)
    for size in (1, 100_000):
        aside.write_bytes(bytes(size))
        folder.commit(STATE)
        assert file.read_bytes() == expected
    folder.make_room()
    folder.commit(STATE)
    assert file.read_bytes() == expected
    folder.make_room()
    folder.give_up_room()
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_is_nearly_full_is_not_filled_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open round is written down meanwhile, and others write, too."""
    folder = RunFolder(tmp_path)
    folder.commit(STATE)
    monkeypatch.setattr(files, "_LARGE_BYTES", 1)
    size = (tmp_path / CHECKPOINT_FILE).stat().st_size
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: SimpleNamespace(free=7 * size))
    folder.make_room()
    assert folder._room is None
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _path: SimpleNamespace(free=9 * size))
    (tmp_path / f".{CHECKPOINT_FILE}.new").symlink_to("/dev/full")
    folder.make_room()
    assert folder._room is not None
    folder._room._thread.join()
    assert list(tmp_path.iterdir()) == [tmp_path / CHECKPOINT_FILE]


def test_each_answer_is_encoded_once_and_the_header_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty checkpoints of a round of ten thousand encode ten thousand answers, not a quarter of a million. Another
    attempt, which lacks some, begins anew."""
    answers = {str(number): Answer(upload_id=f"u{number}", verdict=Verdict.ACCEPTED) for number in range(30)}
    packed, encoded = PackedRounds(), list[object]()
    pack_value = codec.pack_value

    def counted(value: object) -> bytes:
        encoded.append(value)
        return pack_value(value)

    monkeypatch.setattr(codec, "pack_value", counted)
    for number in range(1, 31):
        header = packed.header(RECORD, dict(list(answers.items())[:number]))
    assert len([value for value in encoded if isinstance(value, dict)]) == 30 + 1
    assert header == PackedRounds().header(RECORD, answers)
    fewer = {worker: answers[worker] for worker in ("3", "20")}
    assert packed.header(RECORD, fewer) == PackedRounds().header(RECORD, fewer)


def test_an_open_round_comes_back_with_its_answers_and_its_sum(tmp_path: Path) -> None:
    """What a restarted coordinator goes on with is exactly what was fsynced."""
    the_round = Round(RECORD, 0.0)
    the_round.settle(update("b"), Verdict.ACCEPTED, None, 0.0)
    layout = (*STATE.layout, TensorSpec(dtype="float32", shape=(1,), kind="statistic"))
    aggregate = aggregate_of(layout, tmp_path)
    aggregate.add("b", np.array([1, 2, 3, 4], np.float32), 10)
    write_open_round(tmp_path, RECORD, the_round.answers, aggregate.save())
    back = read_open_round(tmp_path)
    assert back is not None
    assert (back.record, back.answers) == (RECORD, the_round.answers)
    restored = aggregate_of(layout, tmp_path)
    restored.restore(back.arrays, {"b": 10})
    for each in (aggregate, restored):
        each.add("c", np.array([4, 5, 6, 7], np.float32), 5)
    next_ones = [
        each.next_weights(np.ones(4, np.float32), (), np.empty(4, np.float32))
        for each in (aggregate, restored)
    ]
    assert next_ones[0].tolist() == next_ones[1].tolist() == [3, 4, 5, 5]


def test_no_open_round_is_none(tmp_path: Path) -> None:
    """A folder without one is a folder between rounds."""
    assert read_open_round(tmp_path) is None


@pytest.mark.parametrize("keep", [0, 10, 30, -1, -40])
def test_a_torn_checkpoint_is_named_and_not_loaded(tmp_path: Path, keep: int) -> None:
    """Cut anywhere, it is refused by its digest or its beginning."""
    write_checkpoint(tmp_path, STATE)
    file = tmp_path / CHECKPOINT_FILE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=CHECKPOINT_FILE):
        read_checkpoint(tmp_path)


def test_a_single_flipped_bit_is_found(tmp_path: Path) -> None:
    """A disk that lies is not believed."""
    write_checkpoint(tmp_path, STATE)
    file = tmp_path / CHECKPOINT_FILE
    content = bytearray(file.read_bytes())
    for place in range(0, len(content), 37):
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path)
        content[place] ^= 1


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    """An open round is no checkpoint, and a text is neither."""
    (tmp_path / CHECKPOINT_FILE).write_text("hello")
    (tmp_path / ROUND_FILE).write_text("hello")
    for read in (read_checkpoint, read_open_round):
        with pytest.raises(CheckpointError, match="can't be used"):
            read(tmp_path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space left: a clear error, and what was saved before is intact."""
    write_checkpoint(tmp_path, STATE)

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coordinator.files.os.fsync", no_space)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(tmp_path, replace(STATE, round_number=3))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path).round_number == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT_FILE]


def test_a_model_that_is_found_wanting_leaves_the_former_one(tmp_path: Path) -> None:
    """The check sees the file that would be committed; what it raises leaves nothing of it behind."""
    write_checkpoint(tmp_path, STATE)

    def refuse(aside: Path) -> None:
        assert read_checkpoint(aside).round_number == 3
        raise ModelError("it answers NaN")

    with pytest.raises(ModelError):
        write_checkpoint(tmp_path, replace(STATE, round_number=3), refuse)
    assert read_checkpoint(tmp_path).round_number == 2
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_what_a_round_rests_on_stands_in_the_audit_log_before_it_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And on the disk: after a power cut there is no model of which nobody knows whose updates it is made of."""
    log, synced = tmp_path / "audit.jsonl", list[str]()
    folder = RunFolder(tmp_path, AuditLog(log))
    monkeypatch.setattr("broker.audit.os.fsync", lambda _descriptor: synced.append(log.read_text()))
    folder.audit.hold("update-accepted")
    folder.commit(STATE, lambda _aside: synced.append("about to be committed"))
    assert "update-accepted" in synced[0]
    assert "about to be committed" in synced[1:]
    folder.audit.hold("round-opened")
    folder.keep_open(RECORD, {}, [])
    assert "round-opened" in log.read_text()


def test_a_file_of_another_version_is_refused_with_its_version(tmp_path: Path) -> None:
    """Its weights stood in another order: read as they are they would make another model."""
    write_checkpoint(tmp_path, STATE)
    file = tmp_path / CHECKPOINT_FILE
    file.write_bytes(file.read_bytes().replace(b"warren checkpoint 3", b"warren checkpoint 2", 1))
    with pytest.raises(
        CheckpointError,
        match=r"'warren checkpoint 2'.*Warren 0\.1\.0 wrote it.*the version that wrote it \(Warren 0",
    ):
        read_checkpoint(tmp_path)


def test_a_file_of_a_later_format_is_refused_with_the_warren_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wrote it stands in its header; where that can't be read, it is refused all the same."""
    monkeypatch.setattr("coordinator.folder.checkpoint.release", lambda: "7.1")
    write_checkpoint(tmp_path, STATE)
    write_open_round(tmp_path, RECORD, {}, [])
    monkeypatch.undo()
    for name, read in ((CHECKPOINT_FILE, read_checkpoint), (ROUND_FILE, read_open_round)):
        file = tmp_path / name
        for number in (b"4", b"12"):
            later = file.read_bytes().replace(b" 3\n", b" " + number + b"\n", 1)
            (tmp_path / "later").mkdir(exist_ok=True)
            (tmp_path / "later" / name).write_bytes(later)
            with pytest.raises(CheckpointError, match=r"Warren 7\.1 wrote it"):
                read(tmp_path / "later")
            (tmp_path / "later" / name).write_bytes(later[:60])
            with pytest.raises(CheckpointError, match="the version that wrote it, or choose"):
                read(tmp_path / "later")


def rewritten(folder: Path, **changes: object) -> None:
    """A checkpoint with another header, its digest right."""
    write_checkpoint(folder, STATE)
    file = folder / CHECKPOINT_FILE
    content, start = file.read_bytes(), len(b"warren checkpoint 3\n") + 8
    length = int.from_bytes(content[start - 8 : start], "little")
    header = {**codec.unpack(content[start : start + length]), **changes}
    packed = codec.pack({name: value for name, value in header.items() if value is not ...})
    body = content[: start - 8] + len(packed).to_bytes(8, "little") + packed + content[start + length : -16]
    file.write_bytes(body + xxhash.xxh3_128_digest(body))


def test_a_checkpoint_without_a_newer_field_is_read(tmp_path: Path) -> None:
    """One that was written before a field came has that field's default."""
    rewritten(tmp_path, written_by=..., inputs=...)
    back = read_checkpoint(tmp_path)
    assert back.inputs is None
    assert back.vector.tobytes() == STATE.vector.tobytes()


def test_a_checkpoint_with_a_field_too_many_is_refused_with_the_warren_that_wrote_it(tmp_path: Path) -> None:
    """What it says can't be kept, so it would be lost at the next round."""
    rewritten(tmp_path, median=True, written_by="0.9")
    with pytest.raises(CheckpointError, match=r"knows no 'median'.*Warren 0\.9 wrote it"):
        read_checkpoint(tmp_path)
