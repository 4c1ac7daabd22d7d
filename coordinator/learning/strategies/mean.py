"""Strategies that need the mean alone: updates are summed exactly as they come, and none is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import CheckpointError
from broker.wire.tensors import Layout, Values, Vector, sections_of
from coordinator.learning.aggregation import UpdateSum
from coordinator.learning.exact_sum import Doubles, Integers
from coordinator.learning.spares import Spares
from coordinator.learning.strategies.base import Aggregate, Plain, check_finite


class OfTheMean(Plain):
    """What such strategies share; they say `step`, and `first_state` if they carry vectors."""

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """The next trainable weights from the present ones and the mean update; `state` is changed in place.

        Value by value, for it is given one chunk after the other.
        """
        raise NotImplementedError

    def collect(self, layout: Layout, exponent: int, _place: Path, spares: Spares) -> Aggregate:
        """The exact sum."""
        values = spares.take(sections_of(layout).num_trainable, np.int64)
        return MeanAggregate(self, UpdateSum(layout, exponent, values))


class MeanAggregate:
    """The exact sum of a round's updates, and the step that its mean makes."""

    def __init__(self, strategy: OfTheMean, total: UpdateSum) -> None:
        self._strategy = strategy
        self.total = total

    @property
    def num_examples(self) -> int:
        """Σ n of what was added."""
        return self.total.num_examples

    def add(self, _worker: str, update: Values, num_examples: int) -> None:
        """Add one judged update, float32 or float64 of shape (U,), with its weight."""
        self.total.add(update, num_examples)

    def add_sum(self, integers: Integers, num_examples: int) -> None:
        """Add the judged sum of a relay's workers, with its weight."""
        self.total.add_sum(integers, num_examples)

    def save(self) -> list[NDArray[Any]]:
        """The integers of the sum; nothing before anything was added."""
        return [*self.total.integers] if self.num_examples else []

    def restore(self, arrays: NDArray[np.uint8], accepted: Mapping[str, int]) -> None:
        """Go on with a sum.

        Raises:
            CheckpointError: It has another size.
        """
        num_examples = sum(accepted.values())
        if num_examples and (arrays.size % 8 or not self.total.restore(arrays.view(np.int64), num_examples)):
            raise CheckpointError("The open round's sum has another size than its model's.")

    def next_weights(self, weights: Vector, state: tuple[Vector, ...], out: Vector) -> Vector:
        """Trainable weights get the strategy's step, statistics the exact mean; frozen ones stay.

        Raises:
            ModelDiverged: The step gives NaN, infinity, or what float32 can't hold.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            for span, mean in self.total.mean_chunks():
                chunk_state = tuple(vector[span] for vector in state)
                out[span] = self._strategy.step(weights[span].astype(np.float64), mean, chunk_state)
            statistics = self.total.mean_statistics()
            begin, end = self.total.values.size, self.total.values.size + statistics.size
            out[begin:end] = statistics
        check_finite(out[:end], type(self._strategy).__name__)
        out[end:] = weights[end:]
        return out

    def end(self, spares: Spares) -> None:
        """Give the sum's memory to the next round."""
        spares.give(self.total.values)
