"""FedProx: FedAvg of workers whose training is held near the round's global weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.learning.strategies.averages import FedAvg
from coordinator.learning.strategies.base import require


@dataclass(frozen=True, slots=True)
class FedProx(FedAvg):
    """w + mean, of workers that train on F(w) + μ/2 · ‖w − wₜ‖² (Li et al. 2020, equation 2 and algorithm 2).

    Attributes:
        mu: μ, how strongly local training is held near the round's global weights wₜ; 0 is FedAvg.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        require("fedprox", "mu", self.mu, "from 0 to below 2^127", 0 <= self.mu < 2**127)

    @property
    def worker_settings(self) -> Mapping[str, float]:
        """The proximal term is the workers' to add."""
        return {"prox_mu": self.mu}
