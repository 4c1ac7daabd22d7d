"""Models that never end: whoever trains what it is sent must come back from it, and end when it is told to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.hosting import private
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.seam import dead_queue, outgoing, upload_queue, worker_queue
from broker.wire.messages import Declined, Joined, Message, RoundClosed, RoundStart, UpdateAnnounced, decode
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Layout, TensorSpec, vector_size
from broker.wire.transfer import Digest
from tests.brokers import at_load
from tests.faults.stage import Actor, Stage

SETTINGS = TrainingSettings(
    epochs=1, batch_size=8, learning_rate=0.01, class_weight="none", examples_per_class=None, seed=0,
    deterministic=False,
)  # fmt: skip
#: As if the limits had been forgotten: what remains is time.
NO_LIMITS: dict[str, float] = {
    "broker.model.limits:MAX_ORTHOGONAL": 2**20,
    "worker.learning.wire_model:MAX_ORTHOGONAL_WORK": 2**60,
}
IMPATIENT: dict[str, float] = {
    "worker.rounds.participant:BUILD_SECONDS": 2.0,
    "worker.rounds.participant:STEP_SECONDS": 4.0,
}


def layer(class_name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "module": "keras.layers", "registered_name": None, "config": config}


def model_of(*layers: dict[str, Any]) -> str:
    """A Sequential of these layers as Keras's JSON, compile settings inside."""
    first = layer("InputLayer", batch_shape=[None, 8, 8, 1], dtype="float32", name="input")
    flatten, dense = (
        layer("Flatten", name="flatten"),
        layer("Dense", name="out", units=2, activation="softmax"),
    )
    return json.dumps(
        {
            "class_name": "Sequential",
            "module": "keras",
            "registered_name": None,
            "config": {
                "name": "m",
                "trainable": True,
                "dtype": "float32",
                "layers": [first, flatten, *layers, dense],
            },
            "compile_config": {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy", "metrics": []},
        }
    )


def weights(*shapes: tuple[int, ...]) -> Layout:
    return tuple(TensorSpec(dtype="float32", shape=shape, kind="trainable") for shape in shapes)


GOOD = model_of(), weights((64, 2), (2,))
#: A minute of drawing weights, which the coordinator's would replace at once.
ENDLESS_BUILD = (
    model_of(
        layer("Dense", name="a", units=6000),
        layer("Dense", name="b", units=6000, kernel_initializer="orthogonal"),
    ),
    GOOD[1],
)
#: A million steps of a loop inside TensorFlow for each batch, within all limits of sizes.
ENDLESS_STEP = (
    model_of(
        layer("Dense", name="one", units=1),
        layer("RepeatVector", name="again", n=2**20),
        layer("SimpleRNN", name="loop", units=1),
    ),
    weights((64, 1), (1,), (1, 1), (1, 1), (1,), (1, 2), (2,)),
)


def start_of(model: tuple[str, Layout], round_number: int, **settings: Any) -> RoundStart:
    """A round start with weights of zero inside."""
    text, layout = model
    vector = np.zeros(vector_size(layout), "<f4").tobytes()
    digest = Digest()
    digest.add(0, vector)
    return RoundStart(
        run_id="r", round_number=round_number, attempt=1, mode="train", task="mnist", classes=("0", "1"), model=text,
        settings=replace(SETTINGS, **settings), layout=layout, inputs=None, integers=(), scale_exponent=30,
        part_bytes=65536, parts=0, weights=vector, digest=digest.hex(), last_round=9, deadline_seconds=60.0,
    )  # fmt: skip


class Enemy:
    """A coordinator that sends what it likes."""

    def __init__(self, link: RabbitLink) -> None:
        self._link = link
        queue = replace(worker_queue("coordinator"), name="coordinator", keys=("coordinator",))
        link.declare([queue, dead_queue(), worker_queue("w1"), upload_queue("w1")])
        link.consume(["coordinator"], prefetch=0)

    def send(self, message: Message) -> None:
        self._link.publish([outgoing(message, "worker.w1")])

    def hear(self, *kinds: type, seconds: float = 60) -> Any:
        """The next message of these kinds."""
        found: list[Any] = []

        def look() -> bool:
            delivery: Any = self._link.receive(0.1)
            if delivery is not None and hasattr(delivery, "body"):
                self._link.ack([delivery])
                message = decode(delivery.body)
                found.extend([message] if isinstance(message, kinds) else [])
            return bool(found)

        assert private.wait_until(look, seconds), f"no {kinds} within {seconds} s"
        return found[0]


@pytest.fixture
def data(tmp_path: Path) -> str:
    """400 small images of noise."""
    x = np.random.default_rng(0).integers(0, 255, (400, 8, 8, 1), dtype=np.uint8)
    y = np.arange(400) % 2
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    return str(tmp_path / "data.npz")


@pytest.fixture
def stage(vhost: str, tmp_path: Path) -> Iterator[Stage]:
    """Where the attacked play, as real processes; ended with the test."""
    made = Stage(vhost, tmp_path)
    yield made
    made.close()


@pytest.fixture
def enemy(stage: Stage) -> Iterator[Enemy]:
    return Enemy(stage.link())


def joined(stage: Stage, enemy: Enemy, data: str, patches: dict[str, float]) -> Actor:
    worker = stage.worker("w1", data=data, once=False, patches=patches)
    enemy.hear(Joined)
    return worker


@pytest.mark.parametrize(
    ("endless", "patches", "reason"),
    [
        (
            ENDLESS_BUILD,
            NO_LIMITS | IMPATIENT,
            "Building the model took more than 2 s here, and was given up.",
        ),
        (ENDLESS_STEP, IMPATIENT, "One batch of examples took more than 4 s here, and was given up."),
    ],
    ids=["build", "first step"],
)
def test_a_model_that_takes_for_ever_is_declined_and_the_worker_goes_on(
    stage: Stage, enemy: Enemy, data: str, endless: tuple[str, Layout], patches: dict[str, float], reason: str
) -> None:
    """The enemy holds the coordinator's account. It sends a model of allowed parts that is built, or does its first
    step, for ever, to tie up every worker. Each worker gives it up in time, says so, declines it at once when it comes
    again, and trains an honest model as if nothing had been."""
    worker = joined(stage, enemy, data, patches)
    for number in (1, 2):
        enemy.send(start_of(endless, number))
        declined = enemy.hear(Declined)
        assert (declined.round_number, declined.reason) == (number, reason), worker.said[-3000:]
    enemy.send(start_of(GOOD, 3))
    assert enemy.hear(UpdateAnnounced, Declined).TYPE == UpdateAnnounced.TYPE, worker.said[-3000:]


@contextmanager
def command(log: Path, *words: str, amqp_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of our commands as a person starts it, in the folder of its log; ended with the block."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(words[0])), *words[1:]],
            env=os.environ | {"AMQP_URL": amqp_url},
            cwd=log.parent,
            stdout=stream,
            stderr=stream,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def test_sigterm_ends_a_worker_inside_of_an_endless_step(
    stage: Stage, enemy: Enemy, data: str, tmp_path: Path
) -> None:
    """The enemy holds the coordinator's account, and has a worker inside of a TensorFlow operation that does not come
    back to Python, so that it can't be ended in peace. SIGTERM ends it within seconds, with Left and exit code 0."""
    log = tmp_path / "worker.log"
    with command(log, "worker", "run", "--name", "w1", "--data", data, amqp_url=stage.amqp_url) as worker:
        enemy.hear(Joined)
        enemy.send(start_of(ENDLESS_STEP, 1))
        stage.wait(lambda: "Training started" in log.read_text(), 180, "the training")
        begun = cpu_seconds(worker.pid)
        stage.wait(lambda: cpu_seconds(worker.pid) > begun + 5, 180, "the endless step")
        told = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0, log.read_text()
        assert time.monotonic() - told < at_load(8)
    assert "Left." in log.read_text()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_round_that_closes_ends_its_training_at_the_next_step(
    stage: Stage, enemy: Enemy, data: str
) -> None:
    """The enemy holds the coordinator's account, and asks for a million epochs. When the round closes the training
    ends, at the next batch, and the next round is answered."""
    worker = joined(stage, enemy, data, {})
    enemy.send(start_of(GOOD, 1, epochs=1_000_000))
    worker.says("Training started")
    enemy.send(RoundClosed(run_id="r", round_number=1))
    worker.says("Stopped training round 1.")
    enemy.send(start_of(GOOD, 2))
    assert enemy.hear(UpdateAnnounced, Declined).round_number == 2


MODEL_FOR_EVER = """
def model():
    print("at it", flush=True)
    return sum(range(10**15))  # in C, and no other thread of the process comes to its turn
"""


def test_a_coordinator_ends_within_seconds_though_its_model_is_built_for_ever(
    vhost: str, tmp_path: Path
) -> None:
    """The enemy wrote the task that a person runs: its function never comes back, and lets no other thread of its
    process run. SIGTERM ends the coordinator within seconds, with 128 + 15, and the process of the model with it."""
    (tmp_path / "for_ever.py").write_text(MODEL_FOR_EVER)
    log = tmp_path / "coordinator.log"
    with command(log, "coordinator", "run", "for_ever:model", "--out", "run", amqp_url=vhost) as process:
        assert private.wait_until(lambda: "at it" in log.read_text(), 60), log.read_text()
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM, log.read_text()
        assert time.monotonic() - begun < at_load(6)
