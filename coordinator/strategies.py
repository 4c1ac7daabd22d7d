"""How the mean update becomes the next global model: small pure objects in a table of names.

A strategy moves trainable weights alone; statistics take the workers' weighted mean, frozen weights stay. Every
strategy here works value by value, so it runs over chunks and keeps only its own state vectors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import numpy as np

from broker.errors import ModelDiverged, UsageError
from broker.tensors import FLOAT32, Vector
from coordinator.aggregation import UpdateSum
from coordinator.exact_sum import Doubles


class Strategy(Protocol):
    """A rule for one step of the global model.

    Attributes:
        first_state: The value that each of the vectors that it carries from round to round is filled with at first.
        worker_settings: What it needs of the workers' training, by the names that `worker.terms` knows.
    """

    @property
    def worker_settings(self) -> Mapping[str, float]:
        """The coefficient of each term."""

    @property
    def first_state(self) -> tuple[float, ...]:
        """One value for each vector."""

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """The next trainable weights from the present ones and the mean update; `state` is changed in place."""


@dataclass(frozen=True, slots=True)
class FedAvg:
    """w + mean (McMahan et al. 2017, algorithm 1)."""

    first_state: ClassVar[tuple[float, ...]] = ()
    worker_settings: ClassVar[Mapping[str, float]] = {}

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
    first_state: ClassVar[tuple[float, ...]] = (0.0,)
    worker_settings: ClassVar[Mapping[str, float]] = {}

    def __post_init__(self) -> None:
        _require("fedavgm", "momentum", self.momentum, "from 0 to below 1", 0 <= self.momentum < 1)
        _require("fedavgm", "learning_rate", self.learning_rate, "above 0", self.learning_rate > 0)

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """Add the mean update to the velocity, and the velocity to the weights."""
        (velocity,) = state
        velocity[:] = self.momentum * velocity.astype(np.float64) + mean
        return weights + self.learning_rate * velocity


@dataclass(frozen=True, slots=True)
class FedAdam:
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
    worker_settings: ClassVar[Mapping[str, float]] = {}

    def __post_init__(self) -> None:
        _require("fedadam", "learning_rate", self.learning_rate, "above 0", self.learning_rate > 0)
        _require("fedadam", "beta_1", self.beta_1, "from 0 to below 1", 0 <= self.beta_1 < 1)
        _require("fedadam", "beta_2", self.beta_2, "from 0 to below 1", 0 <= self.beta_2 < 1)
        _require("fedadam", "tau", self.tau, "above 0", self.tau > 0)

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


@dataclass(frozen=True, slots=True)
class FedProx:
    """w + mean, of workers that train on F(w) + μ/2 · ‖w − wₜ‖² (Li et al. 2020, equation 2 and algorithm 2).

    Attributes:
        mu: μ, how strongly local training is held near the round's global weights wₜ; 0 is FedAvg.
    """

    mu: float = 0.01
    first_state: ClassVar[tuple[float, ...]] = ()

    def __post_init__(self) -> None:
        _require("fedprox", "mu", self.mu, "from 0 to below 2^127", 0 <= self.mu < 2**127)

    @property
    def worker_settings(self) -> Mapping[str, float]:
        """The proximal term is the workers' to add."""
        return {"prox_mu": self.mu}

    def step(self, weights: Doubles, mean: Doubles, state: tuple[Vector, ...]) -> Doubles:
        """Add the mean update."""
        del state
        return weights + mean


STRATEGIES: dict[str, type[FedAvg] | type[FedAvgM] | type[FedAdam] | type[FedProx]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
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


def _require(strategy: str, option: str, value: float, expected: str, holds: bool) -> None:
    if not holds:
        raise UsageError(f"Expected {strategy}'s option {option} {expected}, got {value:g}.")


def first_states(strategy: Strategy, num_trainable: int) -> tuple[Vector, ...]:
    """The strategy's state before the first round, float32 of shape (T,) each."""
    return tuple(np.full(num_trainable, value, FLOAT32) for value in strategy.first_state)


def next_weights(
    strategy: Strategy,
    weights: Vector,
    total: UpdateSum,
    state: tuple[Vector, ...],
    out: Vector | None = None,
) -> Vector:
    """The next global weights, float32 of shape (P,), in `out` if given; `state` is changed in place.

    Raises:
        ModelDiverged: The step gives NaN, infinity, or what float32 can't hold.
    """
    result = np.empty_like(weights) if out is None else out
    is_finite = True
    with np.errstate(over="ignore", invalid="ignore"):
        for place, mean in total.mean_chunks():
            chunk_state = tuple(vector[place] for vector in state)
            result[place] = strategy.step(weights[place].astype(np.float64), mean, chunk_state)
            is_finite &= bool(np.isfinite(result[place]).all())
        statistics = total.mean_statistics()
        begin, end = total.values.size, total.values.size + statistics.size
        result[begin:end] = statistics
    if not is_finite or not np.isfinite(result[begin:end]).all():
        raise ModelDiverged(
            f"the step of {type(strategy).__name__} gives NaN or infinity; lower its learning rate"
        )
    result[end:] = weights[end:]
    return result
