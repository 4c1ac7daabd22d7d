"""How a worker trains, as the coordinator tells it with every round start."""

import math
from dataclasses import dataclass, field
from typing import Literal

from broker.wire.fields import require

_MAX_TERMS = 16

ClassWeight = Literal["none", "balanced"]
Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a worker trains: decided by the coordinator, the same for all.

    Attributes:
        epochs: Passes over the worker's own training examples in one round.
        batch_size: Examples per gradient step.
        learning_rate: Of the local optimizer; None keeps the compiled model's own.
        class_weight: "balanced" makes every class weigh the same, n / (k · n_c).
        examples_per_class: Train on so many random examples of each class; None means all.
        seed: The run's seed.
        deterministic: Same seed, same data, same bits.
        precision: How the update's values travel.
        epochs_before: Local epochs in the rounds before this one: a learning rate's schedule goes on from there.
        terms: What the strategy needs of the local gradient, by the name of the setting: `worker.learning.terms` knows
            them.
    """

    epochs: int
    batch_size: int
    learning_rate: float | None = None
    class_weight: ClassWeight = "none"
    examples_per_class: int | None = None
    seed: int
    deterministic: bool = False
    precision: Precision = "float32"
    epochs_before: int = 0
    terms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.epochs_before >= 0, "epochs_before of at least 0", self)
        require(self.epochs >= 1 and self.batch_size >= 1, "epochs and batch_size of at least 1", self)
        require(
            self.learning_rate is None or 0 < self.learning_rate < math.inf, "a learning rate above 0", self
        )
        require(len(self.terms) <= _MAX_TERMS, f"at most {_MAX_TERMS} terms", len(self.terms))
        require(all(abs(value) < 2**127 for value in self.terms.values()), "terms that float32 holds", self)
