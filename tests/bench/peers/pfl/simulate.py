"""Measures pfl's simulation of the clients that `tests.bench.simulation` has: the same CNN, partition and settings.

build/peers/pfl/bin/python -m tests.bench.peers.pfl.simulate --clients 100 --fraction 0.1 --rounds 10 --processes 2

pfl has no network. With several processes each of them trains its share of a round's clients, as pfl documents it:
PFL_WORKER_RANK and PFL_WORKER_ADDRESSES in the environment.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

from tests.bench import moments
from tests.bench.peers.processes import free_ports
from tests.bench.workload import SIMULATED_BATCH, load_mnist, partition

_RANK, _ADDRESSES = "PFL_WORKER_RANK", "PFL_WORKER_ADDRESSES"
_FIRST_LEARNING_RATE = 1e-3


def cnn() -> Any:
    """The CNN of the other systems in Keras 2, the one that pfl 0.6 can take weights out of."""
    import tensorflow as tf

    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.InputLayer((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=tf.keras.optimizers.Adam(_FIRST_LEARNING_RATE), loss="sparse_categorical_crossentropy"
    )
    return model


def simulate(clients: int, fraction: float, rounds: int) -> dict[str, Any]:
    """Play the rounds; returns when each ended, and the accuracy on the test images."""
    import numpy as np
    import tensorflow as tf
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.tensorflow import TFModel

    class Clock(TrainingProcessCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
            self.ends.append(time.time())
            return False, Metrics()

    mnist, clock = load_mnist(), Clock()
    count = len(mnist["y_train"])
    rows = [partition(number, clients, count) for number in range(clients)]
    users = [Dataset((mnist["x_train"][each], mnist["y_train"][each])) for each in rows]
    keras_model = cnn()
    model = TFModel(keras_model, metrics={}, central_optimizer=tf.keras.optimizers.SGD(1.0))
    data = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(range(clients))))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=round(clients * fraction),
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=_FIRST_LEARNING_RATE,
            local_batch_size=SIMULATED_BATCH,
        ),
        callbacks=[clock],
    )
    answers = keras_model.predict(mnist["x_test"], batch_size=512, verbose=0).argmax(axis=1)
    return {"ends": clock.ends, "accuracy": round(float(np.mean(answers == mnist["y_test"])), 4)}


def main() -> None:
    """Start the other processes, be the first, and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    others = []
    if asked.processes > 1 and _RANK not in os.environ:
        os.environ[_ADDRESSES] = ",".join(f"localhost:{port}" for port in free_ports(asked.processes))
        words = [sys.executable, "-m", "tests.bench.peers.pfl.simulate", *sys.argv[1:]]
        others = [
            subprocess.Popen(words, env=os.environ | {_RANK: str(rank)}, stdout=subprocess.DEVNULL)
            for rank in range(1, asked.processes)
        ]
        os.environ[_RANK] = "0"
    started = time.time()
    told = simulate(asked.clients, asked.fraction, asked.rounds)
    for other in others:
        other.wait(60)
    print(
        json.dumps(
            {"system": "pfl", "version": version("pfl")}
            | moments.tell([started, *told.pop("ends")])
            | told
            | {"processes": asked.processes}
        )
    )


if __name__ == "__main__":
    main()
