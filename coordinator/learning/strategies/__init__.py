"""How a round's updates become the next global model: small pure objects in a table of names.

A strategy moves trainable weights; statistics are no weights, and take the workers' mean or median; frozen ones stay.

Contents:
    base          what a strategy and its aggregate are
    mean          what those share that need the mean alone: the exact sum
    averages      fedavg, fedavgm, fedadam
    fedprox       fedprox
    side_by_side  what those share that need every update: the spool
    median        median
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from broker.errors import UsageError
from broker.wire.tensors import FLOAT32, Vector
from coordinator.learning.strategies.averages import FedAdam, FedAvg, FedAvgM
from coordinator.learning.strategies.base import Aggregate, Strategy
from coordinator.learning.strategies.fedprox import FedProx
from coordinator.learning.strategies.mean import MeanAggregate, OfTheMean
from coordinator.learning.strategies.median import Median
from coordinator.learning.strategies.side_by_side import SideBySide

__all__ = [
    "STRATEGIES", "Aggregate", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "MeanAggregate", "Median", "OfTheMean",
    "SideBySide", "Strategy", "first_states", "make_strategy",
]  # fmt: skip

STRATEGIES: dict[str, type[Any]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "median": Median,
}


def make_strategy(name: str, options: Mapping[str, str]) -> Strategy:
    """Build a strategy from its name and its KEY=VALUE options.

    Raises:
        UsageError: No strategy of that name, no such option, no finite number, or one out of range.
    """
    if name not in STRATEGIES:
        raise UsageError(f"There is no strategy {name!r}. Choose one of {', '.join(STRATEGIES)}.")
    known = {field.name for field in fields(STRATEGIES[name])}
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"{name} has no option {key!r}; it has {', '.join(sorted(known)) or 'none'}.")
        if not _is_number(value):
            raise UsageError(f"Expected a number for {name}'s option {key}, got {value!r}.")
    made: Strategy = STRATEGIES[name](**{key: float(value) for key, value in options.items()})
    return made


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def first_states(strategy: Strategy, num_trainable: int) -> tuple[Vector, ...]:
    """The strategy's state before the first round, float32 of shape (T,) each."""
    return tuple(np.full(num_trainable, value, FLOAT32) for value in strategy.first_state)
