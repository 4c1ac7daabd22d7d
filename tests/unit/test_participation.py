"""A training that ends in no update is told to the coordinator, and the worker goes on."""

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from broker import logs, names
from broker.link import Delivery, coordinator_queue, upload_queue, worker_queue
from broker.memory import MemoryBroker, MemoryLink
from broker.messages import Declined, RoundStart, decode
from broker.tensors import FLOAT32
from tests.unit.test_messages import EXAMPLES
from worker.console import Console
from worker.jobs import RoundJob
from worker.participation import Participation
from worker.trainer import Participant, Trained
from worker.uploading import Measured

START = next(message for message in EXAMPLES if isinstance(message, RoundStart))


class Diverging:
    """In the place of Keras: its update is not finite."""

    def warm_up(self) -> None:
        """Nothing to import."""

    def answer(self, *_: object) -> Trained:
        measured = Measured(num_examples=3, metrics={}, global_metrics={}, num_test_examples=0, seconds=1.0)
        return Trained(vector=np.array([1, np.nan], FLOAT32), measured=measured)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_diverged_training_is_declined_where_int8_can_not_tell_it(deterministic: bool) -> None:
    broker = MemoryBroker()
    coordinator, link = MemoryLink(broker, "coordinator"), MemoryLink(broker, "w")
    coordinator.declare([coordinator_queue()])
    coordinator.consume([names.COORDINATOR], prefetch=0)
    link.declare([worker_queue("w"), upload_queue("w")])
    data: Any = SimpleNamespace(inputs=None)
    participation = Participation(
        link,
        [Participant(name="w", data=data)],
        Diverging(),
        stop=threading.Event(),
        log=logs.configure(),
        console=Console(),
    )
    settings = replace(START.settings, precision="int8", deterministic=deterministic)
    start = replace(START, settings=settings)
    job = RoundJob(worker="w", start=start, weights=np.zeros(2, FLOAT32), held=start.held)
    participation._desk.begin(job)
    participation._answer(job)
    told = coordinator.receive(1.0)
    assert isinstance(told, Delivery)
    message = decode(told.body)
    assert isinstance(message, Declined)
    assert "diverged" in message.reason
