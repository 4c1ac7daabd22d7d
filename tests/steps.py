"""One step of a strategy of the mean, without a run around it."""

import numpy as np

from broker.wire.tensors import Vector
from coordinator.learning.aggregation import UpdateSum
from coordinator.learning.strategies.mean import MeanAggregate, OfTheMean


def next_weights(strategy: OfTheMean, weights: Vector, total: UpdateSum, state: tuple[Vector, ...]) -> Vector:
    """The next global weights; `state` is changed in place."""
    return MeanAggregate(strategy, total).next_weights(weights, state, np.empty_like(weights))
