"""Models and running clinics for the tests: small enough to make on the spot, real enough to be believed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from broker.model.card import ModelCard, write_card
from deploy.synthetic import make_xray
from tests.brokers import wait_until
from worker.data.images import Pixels
from worker.tensorflow import load_keras

CLASSES = ("NORMAL", "PNEUMONIA")
SIZE = 64
SHAPE = (SIZE, SIZE, 1)


def card(**changes: object) -> ModelCard:
    values: dict[str, object] = {
        "task": "chest-xray",
        "classes": CLASSES,
        "run_id": "demo-7",
        "round_number": 3,
        "saved_at": "2026-01-02T03:04:05+00:00",
        "num_examples": 1200,
        "shape": SHAPE,
        "metrics": {"val_auc": 0.9512},
    }
    return ModelCard(**{**values, **changes})  # type: ignore[arg-type]


def xray(*, ill: bool, seed: int, size: int = SIZE) -> Pixels:
    return make_xray(size, has_pneumonia=ill, rng=np.random.default_rng(seed))


def save_xray(path: Path, *, ill: bool, seed: int, size: int = 300) -> Path:
    Image.fromarray(xray(ill=ill, seed=seed, size=size)).save(path)
    return path


def save_trained_model(path: Path, **card_changes: object) -> Path:
    """A few seconds of training on made-up X-rays: it tells most of them apart."""
    keras = load_keras()
    keras.utils.set_random_seed(3)
    layers = keras.layers
    blocks = [
        layer
        for filters in (8, 16, 32)
        for layer in (
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.GroupNormalization(groups=8),
            layers.Activation("relu"),
            layers.MaxPooling2D(2),
        )
    ]
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Rescaling(1 / 255),
            layers.AveragePooling2D(2),
            *blocks,
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = np.stack([xray(ill=bool(i % 2), seed=i) for i in range(300)])[..., np.newaxis]
    model.fit(x, np.arange(300) % 2, epochs=4, batch_size=10, verbose=0)
    model.save(path)
    write_card(path, card(**card_changes))
    return path


@contextmanager
def running_clinic(model: Path) -> Iterator[str]:
    """`worker clinic` as a process of its own; gives its address, and proves that SIGTERM ends it well."""
    command = [sys.executable, "-c", "from worker.cli import main; main(prog_name='worker')", "clinic"]
    output = model.with_name("clinic.out")
    with output.open("w+") as stdout:
        process = subprocess.Popen([*command, "--model", model, "--port", "0"], stdout=stdout)
        try:
            wait_until(
                lambda: "http" in output.read_text() or process.poll() is not None, 60, what="the page"
            )
            found = re.search(r"http://\S+", output.read_text())
            assert found, "the clinic ended at once"
            yield found.group()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
    assert process.returncode == 0


def replace_file(path: Path, content: bytes) -> None:
    """Put a new file in place as the coordinator does: whole, at once."""
    aside = path.with_name("aside")
    aside.write_bytes(content)
    os.replace(aside, path)  # noqa: PTH105 - what the coordinator calls
