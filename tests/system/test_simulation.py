"""`coordinator.simulate` with Keras, beside the command lines that do the same over a broker."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coordinator
from broker.errors import WarrenError
from tests.system.table import TABLE
from tests.system.test_command_line import BIN, SECONDS
from tests.unit.test_simulation import ARRAYS, Mean, examples
from worker.tensorflow import load_keras

ROOT = Path(__file__).parents[2]
MODELS = """
import keras
from keras import layers

def build():
    model = keras.Sequential([
        layers.Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 5, strides=3, activation="relu"),
        layers.Flatten(), layers.Dropout(0.2), layers.Dense(10, activation="softmax"),
    ])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
SCRIPT = """
import hashlib, json, sys, threading
import numpy as np
import coordinator
import keras
from broker.errors import DataError
from models_of_simulation import build

amqp_url, settings = sys.argv[1], json.loads(sys.argv[2])
with np.load("digits.npz") as data:
    arrays = (data["x_train"], data["y_train"]), (data["x_test"], data["y_test"])

def digest(weights):
    return hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in weights)).hexdigest()

keras.utils.set_random_seed(settings["seed"])
model = build()
first = digest(model.get_weights())
runs = {
    "text": coordinator.simulate("models_of_simulation:build", "digits.npz", **settings),
    "model": coordinator.simulate(model, arrays, **settings),
    "broker": coordinator.simulate(build, arrays, amqp_url=amqp_url, **settings),
}
found = {name: digest(run.weights) for name, run in runs.items()}
found["result.model"] = digest(runs["text"].model.get_weights())
assert digest(model.get_weights()) == first, "the model that was given was changed"
assert runs["text"].model.compiled
stop = threading.Event()
try:
    coordinator.simulate(build, (np.zeros((400, 9)), np.arange(400) % 10), stop=stop, **settings)
    raise SystemExit("workers whose data don't fit were waited for")
except DataError as exc:
    assert "refused" in str(exc), exc
    assert not stop.is_set(), "a caller's own event was set"
print(json.dumps({"digests": found, "accuracy": runs["text"].history[-1]["val_accuracy"]}))
"""


def test_what_the_readme_shows_can_be_typed(tmp_path: Path) -> None:
    """The snippet under "From Python" runs as it stands, and its model can be opened."""
    section = (ROOT / "coordinator" / "README.md").read_text(encoding="utf-8").partition("## From Python")[2]
    snippet = section.partition("```python\n")[2].partition("```")[0]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", snippet]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "val_accuracy" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    assert load_keras().models.load_model(tmp_path / "model.keras").compiled


def test_several_processes_give_the_same_bits() -> None:
    """They share the work, and nothing else changes; with trainers of one's own no TensorFlow is needed for it."""
    options: dict[str, Any] = {
        "workers": 10,
        "fraction": 0.5,
        "rounds": 3,
        "trainer": Mean,
        "progress": False,
    }
    one, two = (
        coordinator.simulate(ARRAYS, examples(), processes=processes, **options) for processes in (1, 2)
    )
    assert one.arrays["coef"].tobytes() == two.arrays["coef"].tobytes()


def test_parts_of_ones_own_are_allowed_where_their_module_is_trusted() -> None:
    """As `--trust-module` does it, for the coordinator's side, the workers' and the result's model; else they are
    refused by name."""
    case = TABLE["trusted_parts"]()
    options: dict[str, Any] = {
        "workers": 2,
        "fraction": 1.0,
        "rounds": 1,
        "partition": "iid",
        "progress": False,
    }
    with pytest.raises(WarrenError, match="Gate"):
        coordinator.simulate(case.model, (case.x, case.y), **options)
    result = coordinator.simulate(case.model, (case.x, case.y), trusted_modules=case.trusted, **options)
    assert result.history[-1]["num_examples"] == 18
    assert [type(each).__name__ for each in result.model.layers] == ["Gate", "Dense"]


def write_digits(path: Path) -> None:
    """Ten kinds of pictures, 28 × 28: a bright square, each kind at a place of its own."""
    rng = np.random.default_rng(0)
    labels = np.arange(480) % 10
    images = rng.integers(0, 100, (480, 28, 28, 1))
    for image, label in zip(images, labels, strict=True):
        row, column = 14 * (label // 5), 5 * (label % 5)
        image[row : row + 12, column : column + 5] += 150
    x = images.astype(np.uint8)
    np.savez(path, x_train=x[:400], y_train=labels[:400], x_test=x[400:], y_test=labels[400:])


def test_a_simulation_gives_the_bits_of_the_command_lines(tmp_path: Path, vhost: str) -> None:
    """The same seed, settings and partition: over a broker or not, by a TASK, a function, or a model."""
    (tmp_path / "models_of_simulation.py").write_text(MODELS, encoding="utf-8")
    write_digits(tmp_path / "digits.npz")
    environment = os.environ | {"AMQP_URL": vhost, "PYTHONPATH": str(ROOT)}
    workers = subprocess.Popen(
        [
            BIN / "worker", "swarm", "--count", "8", "--data", "digits.npz", "--partition", "dirichlet:0.3",
            "--seed", "3", "--once", "--deterministic", "--connect-seconds", "60",
        ],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = subprocess.run(
        [
            BIN / "coordinator", "run", "models_of_simulation:build", "--out", "run", "--workers", "8",
            "--fraction", "0.5", "--rounds", "3", "--epochs", "2", "--batch-size", "10", "--seed", "3",
            "--strategy", "fedavgm", "--deterministic",
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    story = workers.communicate(timeout=SECONDS)[1]
    assert (run.returncode, workers.returncode) == (0, 0), run.stderr + story
    settings = {
        "workers": 8, "fraction": 0.5, "rounds": 3, "epochs": 2, "batch_size": 10, "seed": 3,
        "partition": "dirichlet:0.3", "strategy": "fedavgm", "deterministic": True, "progress": False,
    }  # fmt: skip
    words = [sys.executable, "-c", SCRIPT, vhost, json.dumps(settings)]
    simulated = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert simulated.returncode == 0, simulated.stderr
    told = json.loads(simulated.stdout.splitlines()[-1])
    weights = load_keras().models.load_model(tmp_path / "run" / "model.keras").get_weights()
    digest = hashlib.sha256(b"".join(each.tobytes() for each in weights)).hexdigest()
    assert told["digests"] == dict.fromkeys(told["digests"], digest)
    assert told["accuracy"] > 0.5
