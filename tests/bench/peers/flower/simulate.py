"""Measures Flower's simulation, whose actors are Ray's: the clients, partition and settings of the other systems.

build/peers/flower/bin/python -m tests.bench.peers.flower.simulate --clients 100 --fraction 0.1 --rounds 10

Each actor is a process with one core; its model, Keras's `fit` and its data are made ready once.
"""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from tests.bench import moments
from tests.bench.peers.flower import simulated_client
from tests.bench.workload import accuracy_of, cnn

server_app = ServerApp()
_told: dict[str, Any] = {}


@server_app.main()
def main(grid: Grid, _context: Context) -> None:
    """Play all rounds, and note when each ended."""
    asked, ends = _asked_for(), []

    def note_end(round_number: int, _arrays: ArrayRecord) -> None:
        if round_number:  # it is called before the first one, too
            ends.append(time.time())

    strategy = FedAvg(fraction_train=asked.fraction, fraction_evaluate=0.0, min_available_nodes=asked.clients)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(cnn().get_weights()),
        num_rounds=asked.rounds,
        evaluate_fn=note_end,
    )
    _told.update(ends=ends, accuracy=accuracy_of(result.arrays.to_numpy_ndarrays()))


def _asked_for() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=10)
    return parser.parse_args()


def measure() -> None:
    """Run the simulation and print one JSON object."""
    asked = _asked_for()
    started = time.time()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Actors are other processes: they find this repository as this one does.
        os.environ |= {
            "PYTHONPATH": str(Path.cwd()),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "FLWR_HOME": folder,
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        run_simulation(
            server_app=server_app,
            client_app=simulated_client.app,
            num_supernodes=asked.clients,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
    told = {"system": "Flower (Ray)", "version": version("flwr")}
    print(
        json.dumps(told | moments.tell([started, *_told.pop("ends")]) | _told | {"processes": os.cpu_count()})
    )


if __name__ == "__main__":
    measure()
