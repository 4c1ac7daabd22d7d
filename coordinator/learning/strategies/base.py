"""What a strategy is: it says what a round collects, and what becomes of the global weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from broker.errors import ModelDiverged, UsageError
from broker.wire.tensors import Layout, Values, Vector
from coordinator.learning.spares import Spares


class Aggregate(Protocol):
    """What a round collects of its accepted updates, one judged update after the other, in any order.

    It survives the process: `save` gives what the open round's file keeps, `restore` goes on with it.
    """

    @property
    def num_examples(self) -> int:
        """Σ n of what was added."""

    def add(self, worker: str, update: Values, num_examples: int) -> None:
        """Add one judged update.

        Args:
            worker: Whose it is; it is added once.
            update: float32 of shape (U,), or float64 if it came so exactly; not kept, for its memory is used again.
            num_examples: Its weight.
        """

    def save(self) -> list[NDArray[Any]]:
        """Its arrays for the open round's file; whatever else it has on disk is there for good after this."""

    def restore(self, arrays: NDArray[np.uint8], accepted: Mapping[str, int]) -> None:
        """Go on with what was saved.

        Args:
            arrays: The bytes of what `save` gave.
            accepted: The workers that were added, each with its examples.

        Raises:
            CheckpointError: It is not whole.
        """

    def next_weights(self, weights: Vector, state: tuple[Vector, ...], out: Vector) -> Vector:
        """The next global weights, float32 of shape (P,), in `out`; `state` is changed in place.

        Raises:
            ModelDiverged: They are not finite.
        """

    def end(self, spares: Spares) -> None:
        """The round is over, committed or given up: let go of files, and give memory back."""


class Strategy(Protocol):
    """A rule for one step of the global model.

    Attributes:
        first_state: The value that each of the vectors, (T,), that it carries from round to round is filled with first.
        worker_settings: What it needs of the workers' training, by the names that `worker.learning.terms` knows.
    """

    @property
    def worker_settings(self) -> Mapping[str, float]:
        """The coefficient of each term."""

    @property
    def first_state(self) -> tuple[float, ...]:
        """One value for each vector."""

    def collect(self, layout: Layout, exponent: int, folder: Path, spares: Spares) -> Aggregate:
        """An empty aggregate for one round.

        Args:
            layout: Of the model.
            exponent: The round's fixed-point scale is 2^exponent.
            folder: Of its own, if it needs one.
            spares: Memory to use again.
        """


class Plain:
    """A strategy that asks nothing of the workers and carries nothing from round to round, unless it says so."""

    @property
    def worker_settings(self) -> Mapping[str, float]:
        """The workers train as ever."""
        return {}

    @property
    def first_state(self) -> tuple[float, ...]:
        """No vectors."""
        return ()


def require(strategy: str, option: str, value: float, expected: str, holds: bool) -> None:
    """Raise a UsageError unless an option's value is as expected."""
    if not holds:
        raise UsageError(f"Expected {strategy}'s option {option} {expected}, got {value:g}.")


def check_finite(weights: Vector, name: str) -> None:
    """Refuse weights that are NaN, infinity, or more than float32 can hold.

    Raises:
        ModelDiverged: They are.
    """
    step = 1 << 16
    if not all(np.isfinite(weights[begin : begin + step]).all() for begin in range(0, weights.size, step)):
        raise ModelDiverged(f"the step of {name} gives NaN or infinity; lower its learning rate")
