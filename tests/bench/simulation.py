"""A hundred simulated clients over a real broker, by the command line a person types: a tenth of them in each round.

python -m tests.bench.simulation --amqp-url URL --clients 100 --fraction 0.1 --rounds 10 --processes 2

Prints one JSON object. A round lasts as in `tests.bench.training`: with the durable broker, checkpoint and history.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from tests.bench.moments import tell
from tests.bench.training import BIN, END_SECONDS, coordinate
from tests.bench.workload import SIMULATED_BATCH, accuracy_of, load_mnist
from worker.tensorflow import load_keras


def write_data(folder: Path, clients: int) -> Path:
    """MNIST with one test image for each client: the peers' clients measure nothing."""
    arrays = load_mnist()
    path = folder / "mnist.npz"
    np.savez(path, **{name: each[:clients] if "test" in name else each for name, each in arrays.items()})
    return path


def measure(
    amqp_url: str, folder: Path, *, clients: int, fraction: float, rounds: int, processes: int
) -> dict[str, Any]:
    """Play one run and tell its figures."""
    data, out = write_data(folder, clients), folder / "run"
    words = ["swarm", "--once", "--connect-seconds", "60", "--amqp-url", amqp_url, "--data", str(data)]
    words += ["--count", str(clients), "--processes", str(processes)]
    started = time.monotonic()
    swarm = subprocess.Popen([BIN / "worker", *words], stderr=subprocess.DEVNULL)
    try:
        asked = {"fraction": fraction, "batch-size": SIMULATED_BATCH}
        moments, peak = coordinate(amqp_url, out, clients, rounds, **asked)
        swarm.wait(END_SECONDS)
    finally:
        swarm.terminate()
        swarm.wait(END_SECONDS)
    weights = load_keras().models.load_model(out / "model.keras").get_weights()
    figures = tell([started, *moments])
    return figures | {"accuracy": accuracy_of(weights), "coordinator_peak_mb": peak, "processes": processes}


@click.command()
@click.option("--amqp-url", required=True)
@click.option("--clients", type=int, default=100, show_default=True)
@click.option("--fraction", type=float, default=0.1, show_default=True)
@click.option("--rounds", type=int, default=10, show_default=True)
@click.option("--processes", type=int, default=2, show_default=True)
def main(amqp_url: str, **asked: Any) -> None:
    """Measure rounds of simulated clients."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(amqp_url, Path(folder), **asked)))


if __name__ == "__main__":
    sys.exit(main())
