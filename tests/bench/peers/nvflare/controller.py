"""FLARE's side of the server: its own FedAvg, the benchmark's first weights, and a note of when each round ended."""

import time
from pathlib import Path

from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg

from tests.bench.peers.job import Job
from tests.bench.workload import Array


class NotedFedAvg(FedAvg):
    """Stock FedAvg; FLARE calls the two methods to load and to save a model."""

    def __init__(self, weights: int, clients: int, rounds: int, folder: str) -> None:
        super().__init__(num_clients=clients, num_rounds=rounds, start_round=1, persistor_id="")
        # FLARE writes the arguments down for the server's process under their own names.
        self.weights, self.clients, self.rounds, self.folder = weights, clients, rounds, folder
        self._ends: list[float] = []
        self._first: list[Array] = []

    @property
    def _job(self) -> Job:
        return Job(weights=self.weights, clients=self.clients, rounds=self.rounds, folder=Path(self.folder))

    def load_model(self) -> FLModel:
        """The first weights."""
        self._first = self._job.first_weights()
        return FLModel(params={str(number): array for number, array in enumerate(self._first)})

    def save_model(self, model: FLModel) -> None:
        """Called at the end of each round."""
        self._ends.append(time.time())
        if len(self._ends) == self.rounds:
            last = [model.params[str(number)] for number in range(len(self._first))]
            self._job.write_outcome(self._ends, self._first, last)
