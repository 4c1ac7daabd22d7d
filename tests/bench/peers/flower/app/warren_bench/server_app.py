"""Flower's side of the server: its own FedAvg, and a note of when each round ended."""

import time

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from tests.bench.peers.processes import wait_for
from warren_bench import job_of

app = ServerApp()
_CONNECT_SECONDS = 300


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play all rounds."""
    job, ends = job_of(context), []
    first = job.first_weights()

    def note_end(round_number: int, _arrays: ArrayRecord) -> None:
        if round_number:  # it is called before the first one, too
            ends.append(time.time())

    wait_for("A node", lambda: len(list(grid.get_node_ids())) == job.clients, seconds=_CONNECT_SECONDS)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=job.clients, min_available_nodes=job.clients)
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord(first), num_rounds=job.rounds, evaluate_fn=note_end
    )
    job.write_outcome(ends, first, result.arrays.to_numpy_ndarrays())
