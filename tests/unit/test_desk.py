"""The memory of an update is received into again, but only when nothing reads it any more; what is no update at all."""

from dataclasses import replace

import numpy as np
import pytest

from broker.messages import RoundStart
from broker.tensors import FLOAT32, TensorSpec
from tests.unit.test_messages import EXAMPLES
from worker.jobs import Desk, RoundJob
from worker.receiving import Incoming
from worker.uploading import KeptUpdate, Measured

START = next(message for message in EXAMPLES if isinstance(message, RoundStart))
MEASURED = Measured(num_examples=3, metrics={}, global_metrics={}, num_test_examples=0, seconds=1.0)


def job(round_number: int) -> RoundJob:
    start = replace(START, round_number=round_number)
    return RoundJob(worker="w", start=start, weights=np.zeros(2, FLOAT32), held=start.held)


def answered(desk: Desk) -> KeptUpdate:
    """A worker that has trained round 1 and is about to upload."""
    first = job(1)
    desk.begin(first)
    update = KeptUpdate(
        "w", first.held, MEASURED, np.ones(2, FLOAT32), part_bytes=65536, precision="float32", seed=1
    )
    assert desk.keep(first, update)
    assert desk.begin_upload(update)
    return update


def test_an_announced_update_gives_its_memory_to_the_weights_after_the_next() -> None:
    desk = Desk()
    update = answered(desk)
    update.note_announced()
    assert desk.take_spare() is None, "the round is open: the update may be asked for again"
    desk.begin(job(2))
    spare = desk.take_spare()
    assert spare is update.vector
    start = replace(START, parts=1, weights=None)
    assert Incoming(start, spare).vector is spare
    larger = replace(start, layout=(TensorSpec(dtype="float32", shape=(3,)),))
    assert Incoming(larger, spare).vector.shape == (3,), "a model of another size gets its own"
    assert desk.take_spare() is None, "it is given away once"


@pytest.mark.parametrize("again", [False, True])
def test_an_update_that_is_being_uploaded_keeps_its_memory(again: bool) -> None:
    desk = Desk()
    update = answered(desk)
    if again:
        update.note_announced()
        assert desk.begin_upload(update)
    desk.begin(job(2))
    assert desk.take_spare() is None
    assert not desk.begin_upload(update), "its round is over"
