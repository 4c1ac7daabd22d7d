"""An update: what is none, and when its memory is received into again: once nothing reads it any more."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from broker.audit import AuditLog
from broker.errors import ModelError
from broker.wire.messages import RoundStart, UpdateAnnounced, decode
from broker.wire.settings import Precision
from broker.wire.tensors import FLOAT32, TensorSpec
from tests.unit.test_messages import EXAMPLES
from worker.rounds.hand_over import HandOver, RoundJob, UploadJob
from worker.rounds.round_starts import Incoming
from worker.rounds.uploading import KeptUpdate, Measured

START = next(message for message in EXAMPLES if isinstance(message, RoundStart))
MEASURED = Measured(
    num_examples=3,
    metrics={},
    states={},
    global_metrics={},
    global_states={},
    counts=None,
    num_test_examples=0,
    seconds=1.0,
)


def job(round_number: int) -> RoundJob:
    start = replace(START, round_number=round_number)
    return RoundJob(worker="w", start=start, weights=np.zeros(2, FLOAT32), key=start.held)


def kept(
    the_job: RoundJob, precision: Precision, values: list[float], *, keeps_rest: bool = False
) -> KeptUpdate:
    vector = np.array(values, FLOAT32)
    return KeptUpdate(
        "w",
        the_job.key,
        MEASURED,
        vector,
        layout=START.layout,
        part_bytes=65536,
        precision=precision,
        seed=1,
        keeps_rest=keeps_rest,
    )


def answered(hand_over: HandOver) -> KeptUpdate:
    """A worker that has trained round 1 and is about to upload."""
    first = job(1)
    hand_over.begin(first)
    update = kept(first, "float32", [1, 1])
    assert hand_over.keep(first, update)
    assert hand_over.begin_upload(update)
    return update


def test_an_announced_update_gives_its_memory_to_the_weights_after_the_next() -> None:
    """Once its round is over, once, and only to a model of its size: fresh pages are dear."""
    hand_over = HandOver()
    update = answered(hand_over)
    update.note_announced()
    assert hand_over.take_spare() is None, "the round is open: the update may be asked for again"
    hand_over.begin(job(2))
    spare = hand_over.take_spare()
    assert spare is update.vector
    start = replace(START, parts=1, weights=None)
    assert Incoming(start, spare).vector is spare
    larger = replace(start, layout=(TensorSpec(dtype="float32", shape=(3,), kind="trainable"),))
    assert Incoming(larger, spare).vector.shape == (3,), "a model of another size gets its own"
    assert hand_over.take_spare() is None, "it is given away once"


def test_nothing_is_held_once_the_run_is_over() -> None:
    """A worker that waits for the next run holds no model's memory."""
    hand_over = HandOver()
    answered(hand_over).note_announced()
    hand_over.close("w", START.run_id, None)
    assert hand_over.take_spare() is None


@pytest.mark.parametrize("again", [False, True])
def test_an_update_that_is_being_uploaded_keeps_its_memory(again: bool) -> None:
    """Weights received into it would change what is on its way."""
    hand_over = HandOver()
    update = answered(hand_over)
    if again:
        update.note_announced()
        assert hand_over.begin_upload(update)
    hand_over.begin(job(2))
    assert hand_over.take_spare() is None
    assert not hand_over.begin_upload(update), "its round is over"


@pytest.mark.parametrize("is_sent", [True, False])
def test_what_int8_cuts_off_is_the_same_whether_the_update_was_sent_or_not(is_sent: bool) -> None:
    """Values are written down when their turn comes; a round may close before. It is nobody's spare memory."""
    hand_over, first, values = HandOver(), job(1), [1.0, 0.3]
    update = kept(first, "int8", values, keeps_rest=True)
    hand_over.begin(first)
    assert hand_over.keep(first, update)
    assert hand_over.begin_upload(update)
    num_kept = update.num_kept_bytes
    told = decode(update.announcement().encoded())
    assert isinstance(told, UpdateAnnounced)
    if is_sent:
        hand_over.note_announced([update])
    else:
        update = kept(first, "int8", values, keeps_rest=True)
    rest = update.take_rest()
    assert rest is not None
    sent = np.frombuffer(told.update or b"", np.int8) * np.float32(told.scales[0])
    assert (rest + sent).tolist() == pytest.approx(values)
    assert update.take_rest() is None, "it is added once"
    assert update.num_kept_bytes == num_kept == 2
    hand_over.begin(job(2))
    assert hand_over.take_spare() is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_int8_can_not_tell_of_a_training_that_has_diverged(value: float) -> None:
    """The worker declines; as float32 the values travel, and the coordinator rejects them."""
    with pytest.raises(ModelError, match="diverged"):
        kept(job(1), "int8", [1, value])
    kept(job(1), "float32", [1, value])


def swarm_answered(hand_over: HandOver, *workers: str, round_number: int = 1) -> list[RoundJob]:
    """These have trained, and the broker has their updates of 8 bytes each."""
    jobs = []
    for worker in workers:
        its = replace(job(round_number), worker=worker)
        hand_over.begin(its)
        update = kept(its, "float32", [1, 1])
        update.worker = worker
        assert hand_over.keep(its, update)
        assert hand_over.begin_upload(update)
        hand_over.note_announced([update])
        jobs.append(its)
    while not hand_over.jobs.empty():
        hand_over.jobs.get_nowait()
    return jobs


def test_what_a_swarm_lets_go_of_is_trained_again_when_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand updates of 4 MB need not be in memory: the broker has them. The oldest goes; that it was announced is
    still said; lost, or at another attempt, it is made anew."""
    monkeypatch.setattr("worker.rounds.hand_over._MOST_KEPT_BYTES", 16)
    hand_over = HandOver()
    first, second, _ = swarm_answered(hand_over, "w", "v", "u")
    assert list(hand_over.updates) == ["v", "u"]
    assert hand_over.announced("w") is not None
    assert not hand_over.close("w", START.run_id, 99)
    assert hand_over.upload_again("w")
    assert hand_over.jobs.get_nowait() is first
    assert hand_over.announced("w") is None, "it is being trained"
    assert hand_over.upload_again("v")
    assert isinstance(hand_over.jobs.get_nowait(), UploadJob)
    assert not hand_over.close("v", START.run_id, None), "it was not busy"
    assert second.stop.is_set()


def test_a_single_update_is_kept_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker of a huge model does not train twice for a lost part."""
    monkeypatch.setattr("worker.rounds.hand_over._MOST_KEPT_BYTES", 4)
    hand_over = HandOver()
    swarm_answered(hand_over, "w")
    assert list(hand_over.updates) == ["w"]


def test_a_later_round_ends_those_before_it_for_the_whole_swarm() -> None:
    """Of a hundred workers ten are invited to each round: the others do not keep their updates for ever."""
    hand_over = HandOver()
    swarm_answered(hand_over, "w", "v")
    hand_over.close_older(START.run_id, 2)
    assert hand_over.updates == {}
    assert hand_over.held("w") is None
    assert hand_over.take_spare() is not None


def test_of_a_swarm_the_audit_log_has_a_line_for_all(tmp_path: Path) -> None:
    """Thousands in one process: the model that came is one, and what left together is told together."""
    hand_over = HandOver(AuditLog(tmp_path / "audit.jsonl"), "swarm")
    jobs = [replace(job(1), worker=worker) for worker in ("swarm.1", "swarm.2", "swarm.3")]
    updates = []
    for each in jobs:
        hand_over.begin(each)
        updates.append(kept(each, "float32", [1, 1]))
        updates[-1].worker = each.worker
        assert hand_over.keep(each, updates[-1])
        assert hand_over.begin_upload(updates[-1])
        updates[-1].announcement().encoded()
    hand_over.note_announced(updates)
    hand_over.begin(replace(job(2), worker="swarm.2"))
    received, sent, again = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert [each["event"] for each in (received, sent, again)] == [
        "round-received",
        "update-sent",
        "round-received",
    ]
    assert {each["worker"] for each in (received, sent, again)} == {"swarm"}
    assert (sent["number"], sent["bytes"], sent["round"]) == (3, 24, 1)
