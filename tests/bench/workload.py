"""The work that every system is given: a small CNN on MNIST, and weights that come back multiplied.

Runs in this project's environment and in the peers', so it needs nothing but numpy, and Keras where there is training.

    coordinator run tests.bench.workload:cnn --workers 3 --batch-size 64 --out runs/cnn
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Answer = Callable[[list[Array], int], list[Array]]  #: (global weights, round from 1) -> a client's weights

BATCH = 64
SIMULATED_BATCH = 10  # of each of a hundred simulated clients (McMahan et al. 2017, B = 10)
NUM_ARRAYS = 10  # of synthetic weights: as a model has layers, which the peers send one by one
_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "data"


# Real training


def cnn() -> Any:
    """The peers' own small CNN, compiled."""
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.Adam(1e-3)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def find_mnist() -> Path | None:
    """mnist.npz in $WARREN_DATA or in ../shared/data beside the repository; None if it is in neither."""
    given = os.environ.get("WARREN_DATA")
    for folder in ([Path(given)] if given else []) + [_BESIDE_THE_REPOSITORY]:
        if (folder / "mnist.npz").is_file():
            return folder / "mnist.npz"
    return None


def load_mnist() -> dict[str, Array]:
    """x_train, y_train, x_test, y_test; x (n, 28, 28, 1) float32 from 0 to 1, y (n,) int64; else noise alike."""
    path = find_mnist()
    if path is None:
        arrays = _noise()
    else:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    return {
        name: array.astype(np.int64) if name.startswith("y") else array[..., None].astype(np.float32) / 255
        for name, array in arrays.items()
    }


def _noise() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for part, count in (("train", 60_000), ("test", 10_000)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 10, count)
    return arrays


def partition(number: int, count: int, num_examples: int) -> Array:
    """The rows of part `number` (from 0) of `count`: disjoint, drawn at random, the same in every process."""
    return np.random.default_rng(0).permutation(num_examples)[number::count]


def write_sites(folder: Path, count: int) -> list[Path]:
    """Cut the training images into `count` files, one for each client.

    A site has one test image, for a Warren worker measures whatever test images it has, before and after
    training, and neither the peers' clients nor the ideal ones do.
    """
    mnist = load_mnist()
    paths = [folder / f"site-{number}.npz" for number in range(count)]
    for number, path in enumerate(paths):
        rows = partition(number, count, len(mnist["y_train"]))
        np.savez(
            path,
            x_train=mnist["x_train"][rows],
            y_train=mnist["y_train"][rows],
            x_test=mnist["x_test"][:1],
            y_test=mnist["y_test"][:1],
        )
    return paths


def keras_client(site: Path) -> Answer:
    """A client that trains one epoch in plain Keras; data and model are made ready once."""
    model = cnn()
    with np.load(site, allow_pickle=False) as archive:
        x, y = archive["x_train"], archive["y_train"]

    def answer(weights: list[Array], _round_number: int) -> list[Array]:
        model.set_weights(weights)
        model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
        trained: list[Array] = model.get_weights()
        return trained

    return answer


def accuracy_of(weights: Sequence[Array]) -> float:
    """What the CNN with these weights reaches on the 10,000 test images."""
    model, mnist = cnn(), load_mnist()
    model.set_weights(weights)
    _, accuracy = model.evaluate(mnist["x_test"], mnist["y_test"], batch_size=512, verbose=0)
    return round(float(accuracy), 4)


# Transport alone


def synthetic(size: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """(size,) random weights."""
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def synthetic_arrays(size: int) -> list[Array]:
    """The same as a model of several layers."""
    return np.array_split(synthetic(size), NUM_ARRAYS)


def multiple_of(client: str, round_number: int) -> np.float32:
    """What a client's difference is of the global weights: another multiple for each client and round."""
    number = int.from_bytes(hashlib.sha256(client.encode()).digest()[:2], "little") % 1000
    return np.float32(1e-6 * (number + 1) * (round_number + 1))


def echo_client(client: str) -> Answer:
    """A client that answers at once."""

    def answer(weights: list[Array], round_number: int) -> list[Array]:
        scale = 1 + multiple_of(client, round_number)
        return [array * scale for array in weights]

    return answer


def expected_scale(clients: Sequence[str], rounds: int) -> float:
    """What the first weights are multiplied with after so many rounds, all clients weighing the same."""
    means = (
        np.mean([float(multiple_of(name, number)) for name in clients]) for number in range(1, rounds + 1)
    )
    return float(np.prod([1 + mean for mean in means]))
