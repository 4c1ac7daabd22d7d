"""How the mean update becomes the next global model: small pure objects in a table of names.

Every strategy here works value by value, so it runs over chunks and keeps only its own state vectors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import numpy as np

from broker.errors import UsageError
from broker.tensors import Vector
from coordinator.aggregation import Doubles, FixedPointSum


class Strategy(Protocol):
    """A rule for one step of the global model.

    Attributes:
        state_names: The vectors that it carries from round to round, zero at first.
    """

    state_names: ClassVar[tuple[str, ...]]

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """The next weights from the present ones and the mean update; `state` is changed in place."""


@dataclass(frozen=True, slots=True)
class FedAvg:
    """w + mean (McMahan et al. 2017, algorithm 1)."""

    state_names: ClassVar[tuple[str, ...]] = ()

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """Add the mean update."""
        del state
        return weights + mean


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """v ← β v + mean; w + η v (Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution").

    Attributes:
        momentum: β.
        learning_rate: η, of the coordinator.
    """

    momentum: float = 0.9
    learning_rate: float = 1.0
    state_names: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """Add the mean update to the velocity, and the velocity to the weights."""
        (velocity,) = state
        velocity[:] = self.momentum * velocity.astype(np.float64) + mean
        return weights + self.learning_rate * velocity


@dataclass(frozen=True, slots=True)
class FedAdam:
    """m ← β1 m + (1−β1) Δ; v ← β2 v + (1−β2) Δ²; w + η m / (√v + τ) (Reddi et al. 2021, algorithm 2).

    Attributes:
        learning_rate: η, of the coordinator.
        beta_1: β1.
        beta_2: β2.
        tau: τ, the degree of adaptivity.
    """

    learning_rate: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    state_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """One adaptive step along the mean update."""
        first, second = state
        first[:] = self.beta_1 * first.astype(np.float64) + (1 - self.beta_1) * mean
        second[:] = self.beta_2 * second.astype(np.float64) + (1 - self.beta_2) * mean**2
        return weights + self.learning_rate * first / (np.sqrt(second) + self.tau)


STRATEGIES: dict[str, type[FedAvg] | type[FedAvgM] | type[FedAdam]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
}


def make_strategy(name: str, options: Mapping[str, str]) -> Strategy:
    """Build a strategy from its name and its KEY=VALUE options.

    Raises:
        UsageError: No strategy of that name, no such option, or no finite number.
    """
    if name not in STRATEGIES:
        raise UsageError(f"There is no strategy {name!r}. Choose one of {', '.join(STRATEGIES)}.")
    known = {field.name for field in fields(STRATEGIES[name])}
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"{name} has no option {key!r}; it has {', '.join(sorted(known)) or 'none'}.")
        if not _is_number(value):
            raise UsageError(f"Expected a number for {name}'s option {key}, got {value!r}.")
    return STRATEGIES[name](**{key: float(value) for key, value in options.items()})


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def next_weights(
    strategy: Strategy,
    weights: Vector,
    total: FixedPointSum,
    state: tuple[Vector, ...],
    out: Vector | None = None,
) -> Vector:
    """The next global weights, float32 of shape (P,), in `out` if given; `state` is changed in place."""
    result = np.empty_like(weights) if out is None else out
    for place, mean in total.mean_chunks():
        chunk_state = tuple(vector[place] for vector in state)
        result[place] = strategy.step(weights[place].astype(np.float64), mean, chunk_state)
    return result
