"""What both peers' apps are asked to do and have to tell, so that they are asked and judged alike."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.workload import (
    Answer,
    Array,
    accuracy_of,
    cnn,
    echo_client,
    expected_scale,
    keras_client,
    synthetic_arrays,
    write_sites,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement.

    Attributes:
        weights: How many synthetic ones travel; 0 trains the CNN instead.
        clients: How many take part, each a process of its own.
        folder: Of the sites' files and the outcome.
        megabits: A second, of each client's own line; 0: loopback.
        milliseconds: There and back on that line.
    """

    weights: int
    clients: int
    rounds: int
    folder: Path
    megabits: float = 0.0
    milliseconds: float = 0.0

    @property
    def outcome(self) -> Path:
        """Where the server app writes what came out; it appears whole."""
        return self.folder / "outcome.json"

    def prepare(self) -> None:
        """Write what the clients train on."""
        if not self.weights:
            write_sites(self.folder, self.clients)

    def first_weights(self) -> list[Array]:
        """Where the server starts from."""
        return synthetic_arrays(self.weights) if self.weights else cnn().get_weights()

    def client(self, number: int) -> Answer:
        """What client `number`, from 0, does in a round."""
        return echo_client(str(number)) if self.weights else keras_client(self.folder / f"site-{number}.npz")

    def write_outcome(self, ends: list[float], first: Sequence[Array], last: Sequence[Array]) -> None:
        """Write down when the rounds ended, and how right the last model is."""
        if self.weights:
            names = [str(number) for number in range(self.clients)]
            ratio = float(last[0].flat[0]) / float(first[0].flat[0]) / expected_scale(names, self.rounds)
            quality = {"result_over_expected": ratio}
        else:
            quality = {"accuracy": accuracy_of(last)}
        aside = self.outcome.with_suffix(".new")
        aside.write_text(json.dumps({"ends": ends, **quality}))
        aside.replace(self.outcome)
