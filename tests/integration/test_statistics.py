"""`coordinator statistics` as a process on a real RabbitMQ, and a run whose model normalises by what it found."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.system.test_command_line import command, start

PARTS = ((60, 0), (90, 1))


def normalised_model() -> Any:
    """A compiled Keras model of three features; called in the coordinator's child."""
    import keras

    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Normalization(), keras.layers.Dense(2, "softmax")]
    )
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def normalisation_in(model: Path) -> tuple[Any, Any]:
    """Mean and variance in a saved model."""
    with (
        zipfile.ZipFile(model) as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights,
    ):
        layer = weights["layers/normalization/vars"]
        return layer["0"][()], layer["1"][()]


def test_sites_are_asked_and_a_model_is_trained_by_their_statistics(vhost: str, tmp_path: Path) -> None:
    """The table, the file and both pictures; the run's model holds the mean and the variance of all examples, which no
    site has seen. Another question is refused by each site, and they are named."""
    parts, workers = [], []
    for number, seed in PARTS:
        x = np.random.default_rng(seed).normal((50, 1, -3), (9, 0.1, 1), (number, 3)).astype(np.float32)
        data, y = tmp_path / f"{seed}.npz", np.arange(number) % 2
        np.savez(data, x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
        words = ("--name", f"site-{seed}", "--data", str(data), "--share", "statistics")
        workers.append(start(tmp_path / f"{seed}.log", "worker", "run", *words, amqp_url=vhost))
        parts.append(x)
    try:
        asked = ("coordinator", "statistics", "--out", str(tmp_path / "s.json"), "--workers", "2")
        told = command(*asked, amqp_url=vhost)
        assert told.returncode == 0, told.stderr
        assert "150 examples of 2 sites" in told.stdout
        refused = command(*asked, "--bins", "7", amqp_url=vhost)
        assert refused.returncode == 4, refused.stderr
        assert "site-0, site-1: This site has told statistics by other edges" in refused.stderr
        noted = [json.loads(line)["event"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert [noted.count(f"statistics-{each}") for each in ("started", "told", "written", "refused")] == [
            2, 6, 1, 2,
        ]  # fmt: skip
        found = json.loads((tmp_path / "s.json").read_text())
        together = np.concatenate(parts).astype(np.float64)
        np.testing.assert_allclose(
            [each["mean"] for each in found["features"]], together.mean(axis=0), rtol=1e-12
        )
        np.testing.assert_allclose(
            [each["std"] for each in found["features"]], together.std(axis=0), rtol=1e-12
        )
        assert [site["num_examples"] for site in found["sites"]] == [60, 90]
        for picture in ("s.png", "s-sites.png"):
            assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        run = command(
            "coordinator", "run", "tests.integration.test_statistics:normalised_model", "--workers", "2", "--rounds",
            "1", "--normalize", str(tmp_path / "s.json"), "--out", str(tmp_path / "run"), amqp_url=vhost,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        mean, variance = normalisation_in(tmp_path / "run" / "model.keras")
        np.testing.assert_allclose(mean, together.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(variance, together.var(axis=0), rtol=1e-6)
    finally:
        for worker in workers:
            worker.terminate()
        codes = [worker.wait(30) for worker in workers]
    assert codes == [0, 0]
