"""A model of several inputs and of numbers, by the command line over a real broker."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPTS = Path(sys.executable).parent

MODEL = """
import keras
from keras import layers

def price():
    age, ward = keras.Input((3,), name="age"), keras.Input((1,), name="ward", dtype="string")
    known = layers.StringLookup(output_mode="one_hot")
    known.adapt(["a", "b", "c"])
    joined = layers.Concatenate()([age, known(ward)])
    model = keras.Model({"age": age, "ward": ward}, layers.Dense(1, name="price")(joined))
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    return model
"""


def write_site(path: Path, seed: int, num_ages: int = 3) -> Path:
    rng = np.random.default_rng(seed)
    age, ward = rng.normal(size=(80, num_ages)), rng.choice(np.array(["a", "b"]), 80)
    price = age.sum(axis=1) + (ward == "a") + rng.normal(0, 0.1, 80)
    np.savez(path, allow_pickle=False, **{"x_train.age": age, "x_train.ward": ward, "y_train.price": price})
    return path


def start(vhost: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [str(SCRIPTS / words[0]), *words[1:]]
    env = os.environ | {"AMQP_URL": vhost}
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_regression_of_several_inputs_is_trained_and_who_does_not_fit_is_refused(
    vhost: str, tmp_path: Path
) -> None:
    """From named arrays of an .npz to a model that knows its words and is asked by name; no figure of classes stands in
    the history. A site with another shape ends with exit code 5, and is told what the model needs."""
    (tmp_path / "my_model.py").write_text(MODEL)
    site, odd = write_site(tmp_path / "site.npz", 1), write_site(tmp_path / "odd.npz", 2, num_ages=4)
    run = ["coordinator", "run", "my_model:price", "--out", "run", "--workers", "1", "--rounds", "2"]
    coordinator = start(vhost, tmp_path, *run, "--deadline-seconds", "120")
    worker = start(vhost, tmp_path, "worker", "run", "--name", "w1", "--data", str(site), "--once")
    other = start(vhost, tmp_path, "worker", "run", "--name", "odd", "--data", str(odd), "--once")
    try:
        said, refused, worked = (each.communicate(timeout=180)[0] for each in (coordinator, other, worker))
    finally:
        for each in (coordinator, worker, other):
            each.kill()
    assert coordinator.returncode == worker.returncode == 0, said + worked
    assert "WARNING Refused odd: its input 'age' (float32, 4 an example) does not fit" in said
    assert other.returncode == 5
    assert "the model needs 'age' (float32, 3 an example)" in refused
    header, *rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert "accuracy" not in header
    losses = [float(row.split(",")[header.split(",").index("val_loss")]) for row in rows]
    assert losses[2] < losses[0]
    (tmp_path / "rows.csv").write_text("ward,age.0,age.1,age.2\na,1,1,1\nb,-1,-1,-1\n")
    predict = start(vhost, tmp_path, "worker", "predict", "run/model.keras", "rows.csv", "--json")
    first, second = json.loads(predict.communicate(timeout=120)[0])
    assert first["price"] > second["price"]
