"""The few faults for which training must be the real one: the command line, Keras, TensorFlow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import dead_queue, outgoing, upload_queue, worker_queue
from broker.wire.messages import Declined, Joined, Ping, RoundStart, decode
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import TensorSpec
from broker.wire.transfer import Digest
from tests.brokers import at_load, wait_until

SETTINGS = TrainingSettings(
    epochs=1000, batch_size=8, learning_rate=0.01, class_weight="none", examples_per_class=None, seed=0,
    deterministic=False,
)  # fmt: skip


def layer(class_name: str, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "module": module, "registered_name": None, "config": config}


def model_of(*layers: dict[str, Any]) -> str:
    """A Sequential of these layers as Keras's JSON, compile settings inside."""
    first = layer("InputLayer", batch_shape=[None, 8, 8, 1], dtype="float32", name="input")
    return json.dumps(
        {
            "class_name": "Sequential",
            "module": "keras",
            "registered_name": None,
            "config": {"name": "model", "trainable": True, "dtype": "float32", "layers": [first, *layers]},
            "compile_config": {
                "optimizer": "sgd", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"],
                "loss_weights": None, "weighted_metrics": None, "run_eagerly": False, "steps_per_execution": 1,
                "jit_compile": False,
            },
        }
    )  # fmt: skip


FLATTEN = layer("Flatten", name="flatten")
DENSE = layer("Dense", name="dense", units=2, activation="softmax")
GOOD = model_of(FLATTEN, DENSE)
HOSTILE = {
    "Lambda": model_of(
        FLATTEN, layer("Lambda", function={"class_name": "__lambda__", "config": {"code": "4wEA"}}), DENSE
    ),
    "unknown layer": model_of(FLATTEN, layer("Backdoor", module="os"), DENSE),
    "a function of Python's": model_of(FLATTEN, layer("system", module="os", command="true"), DENSE),
    "absurd size": model_of(FLATTEN, layer("Dense", name="huge", units=2**31), DENSE),
    "no JSON": "{" * 10_000,
    "a path in place of a model": json.dumps("/etc/passwd"),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """400 small images of noise."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (400, 8, 8, 1), dtype=np.uint8)
    y = np.arange(400) % 2
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    return tmp_path / "data.npz"


@pytest.fixture
def coordinator(vhost: str) -> Iterator[RabbitLink]:
    """A hostile, or merely hasty, coordinator: the bare link."""
    link = RabbitLink(LinkSettings(access=Access(amqp_url=vhost), name="test"))
    link.open()
    link.declare(
        [replace(worker_queue("coordinator"), name="coordinator", keys=("coordinator",)), dead_queue()]
    )
    link.declare([worker_queue("w1"), upload_queue("w1")])
    link.consume(["coordinator"], prefetch=0)
    yield link
    link.close()


@pytest.fixture
def worker(vhost: str, data: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`worker run` as a person starts it."""
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("worker")), "run", "--name", "w1", "--data", str(data)],
            env=os.environ | {"AMQP_URL": vhost},
            stdout=log,
            stderr=log,
        )
    yield process
    process.kill()
    process.wait(10)


def heard(link: RabbitLink, kind: type, seconds: float) -> Any:
    """The next message of a kind."""
    found: list[Any] = []

    def look() -> bool:
        delivery: Any = link.receive(0.1)
        if delivery is not None and hasattr(delivery, "body"):
            link.ack([delivery])
            message = decode(delivery.body)
            if isinstance(message, kind) and not isinstance(message, Ping):
                found.append(message)
        return bool(found)

    wait_until(look, seconds, what=kind.__name__)
    return found[0]


def start_of(model: str, round_number: int, weights: int = 130) -> RoundStart:
    vector = np.zeros(weights, "<f4").tobytes()
    digest = Digest()
    digest.add(0, vector)
    layout = (
        TensorSpec(dtype="float32", shape=(64, 2), kind="trainable"),
        TensorSpec(dtype="float32", shape=(2,), kind="trainable"),
    )
    return RoundStart(
        run_id="r", round_number=round_number, attempt=1, mode="train", task="mnist", classes=("0", "1"), model=model,
        settings=SETTINGS, layout=layout, inputs=None, integers=(), scale_exponent=30, part_bytes=65536, parts=0,
        weights=vector, digest=digest.hex(), last_round=9, deadline_seconds=60.0,
    )  # fmt: skip


def test_hostile_models_are_declined_and_sigterm_ends_real_training(
    coordinator: RabbitLink, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """A coordinator sends a Lambda, layers that are none, a model of terabytes, a path: each is declined by name, and
    nothing of it is run. The worker then trains an honest model, and SIGTERM in mid-training ends it within 2 s with
    exit code 0."""
    heard(coordinator, Joined, 180)
    for number, (name, model) in enumerate(HOSTILE.items(), start=1):
        coordinator.publish([outgoing(start_of(model, number), "worker.w1")])
        declined = heard(coordinator, Declined, 180)
        assert declined.round_number == number, name
        assert declined.reason, name
        assert worker.poll() is None, name
    coordinator.publish([outgoing(start_of(GOOD, len(HOSTILE) + 1), "worker.w1")])
    log = tmp_path / "worker.log"
    wait_until(lambda: "Epoch 3 of 1000" in log.read_text(), 180, what="real training")
    begun = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, log.read_text()
    assert time.monotonic() - begun < at_load(2)
    assert "Left." in log.read_text()
