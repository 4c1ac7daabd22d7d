"""FedAvg, and steps of the server along the mean update: momentum and Adam."""

from dataclasses import dataclass

import numpy as np

from broker.wire.tensors import Vector
from coordinator.learning.exact_sum import Doubles
from coordinator.learning.strategies.base import require
from coordinator.learning.strategies.mean import OfTheMean


@dataclass(frozen=True, slots=True)
class FedAvg(OfTheMean):
    """w + mean (McMahan et al. 2017, algorithm 1)."""

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """Add the mean update."""
        del state
        return weights + mean


@dataclass(frozen=True, slots=True)
class FedAvgM(OfTheMean):
    """v ← β v + mean; w + η v (Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution").

    Attributes:
        momentum: β.
        learning_rate: η, of the coordinator.
    """

    momentum: float = 0.9
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        require("fedavgm", "momentum", self.momentum, "from 0 to below 1", 0 <= self.momentum < 1)
        require("fedavgm", "learning_rate", self.learning_rate, "above 0", self.learning_rate > 0)

    @property
    def first_state(self) -> tuple[float, ...]:
        """The velocity is 0 at first."""
        return (0.0,)

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """Add the mean update to the velocity, and the velocity to the weights."""
        (velocity,) = state
        velocity[:] = self.momentum * velocity.astype(np.float64) + mean
        return weights + self.learning_rate * velocity


@dataclass(frozen=True, slots=True)
class FedAdam(OfTheMean):
    """m ← β1 m + (1−β1) Δ; v ← β2 v + (1−β2) Δ²; w + η m / (√v + τ) (Reddi et al. 2021, algorithm 2).

    As there, neither m nor v is corrected for its beginning, and v begins with τ².

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

    def __post_init__(self) -> None:
        require("fedadam", "learning_rate", self.learning_rate, "above 0", self.learning_rate > 0)
        require("fedadam", "beta_1", self.beta_1, "from 0 to below 1", 0 <= self.beta_1 < 1)
        require("fedadam", "beta_2", self.beta_2, "from 0 to below 1", 0 <= self.beta_2 < 1)
        require("fedadam", "tau", self.tau, "above 0", self.tau > 0)

    @property
    def first_state(self) -> tuple[float, ...]:
        """m is 0 at first; v is τ², the smallest that the paper allows (algorithm 2: v ≥ τ²)."""
        return 0.0, self.tau**2

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """One adaptive step along the mean update."""
        first, second = state
        first[:] = self.beta_1 * first.astype(np.float64) + (1 - self.beta_1) * mean
        second[:] = self.beta_2 * second.astype(np.float64) + (1 - self.beta_2) * mean**2
        return weights + self.learning_rate * first / (np.sqrt(second) + self.tau)
