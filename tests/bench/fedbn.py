"""What private batch normalization is good for: chest X-rays at three sites, one of which takes much darker images.

    python -m tests.bench.fedbn chest_xray --amqp-url amqp://guest:guest@localhost:5672/%2F

DATA is a folder with train/ and test/ and a folder of images a class. The same training is run twice over the broker,
with and without `--private "batch_normalization*"` (FedBN, Li et al. 2021); the table has each site's AUC on its own
test images, of the global model or, where parts are private, of the site's own.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SITES = 3
SIDE = 64
DARK = 0.2  #: of the light at the last site
PER_CLASS = {"train": 150, "test": 35}  #: images of each class and site
CLASSES = ("NORMAL", "PNEUMONIA")


def model() -> Any:
    """Three convolutions, each with batch normalization."""
    import keras

    layers = keras.layers
    parts = [layers.Input((SIDE, SIDE, 1)), layers.Rescaling(1 / 255)]
    for filters in (16, 32, 64):
        parts += [layers.Conv2D(filters, 3, use_bias=False), layers.BatchNormalization(momentum=0.9)]
        parts += [layers.ReLU(), layers.MaxPooling2D(2)]
    parts += [layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")]
    built = keras.Sequential(parts)
    built.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return built


def write_sites(data: Path, folder: Path) -> None:
    """One .npz a site: images cut among them in turn, those of the last one darkened."""
    for number in range(SITES):
        arrays: dict[str, Any] = {}
        for part, most in PER_CLASS.items():
            light = DARK if number == SITES - 1 else 1.0
            x, y = zip(*_images(data / part, number, most, light), strict=True)
            arrays |= {f"x_{part}": np.stack(x)[..., None], f"y_{part}": np.array(y)}
        np.savez(folder / f"site-{number + 1}.npz", classes=np.array(CLASSES), **arrays)


def _images(folder: Path, number: int, most: int, light: float) -> Iterator[tuple[Any, int]]:
    for label, name in enumerate(CLASSES):
        for path in sorted((folder / name).iterdir())[number::SITES][:most]:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L").resize((SIDE, SIDE)), np.float32)
            yield np.round(pixels * light).astype(np.uint8), label


def run(folder: Path, out: str, amqp_url: str, rounds: int, *more: str) -> list[float]:
    """Each site's AUC after the last round."""
    at = ("--amqp-url", amqp_url)
    workers = [
        _start("worker", "run", "--name", f"site-{number}", "--data", str(folder / f"site-{number}.npz"), "--once",
               "--state", str(folder / "state"), *at)
        for number in range(1, SITES + 1)
    ]  # fmt: skip
    coordinator = _start("coordinator", "run", "tests.bench.fedbn:model", "--workers", str(SITES),
                         "--rounds", str(rounds), "--out", str(folder / out), *more, *at)  # fmt: skip
    if coordinator.wait() or any(each.wait() for each in workers):
        raise SystemExit("A process failed; its log stands above.")
    with (folder / out / "workers.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["round"] == str(rounds)]
    return [float(row["val_auc"]) for row in sorted(rows, key=lambda row: row["worker"])]


def _start(command: str, *words: str) -> "subprocess.Popen[bytes]":
    code = f"from {command}.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)


def main() -> None:
    """Run both, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--amqp-url", default="amqp://guest:guest@localhost:5672/%2F")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="warren-fedbn-") as name:
        folder = Path(name)
        write_sites(asked.data, folder)
        shared = run(folder, "shared", asked.amqp_url, asked.rounds)
        private = run(folder, "private", asked.amqp_url, asked.rounds, "--private", "batch_normalization*")
    print(
        "| AUC after",
        asked.rounds,
        "rounds |",
        " | ".join(f"site {each}" for each in range(1, SITES)),
        "| dark site |",
    )
    print("| --- " * (SITES + 1) + "|")
    for label, values in (("one model for all", shared), ("batch normalization private", private)):
        print(f"| {label} |", " | ".join(f"{value:.3f}" for value in values), "|")


if __name__ == "__main__":
    main()
