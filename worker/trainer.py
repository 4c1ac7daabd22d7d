"""A trainer of one's own: what a class must offer to take part with any framework, or with none.

`worker run --trainer MODULE:CLASS` makes one object of it, as CLASS(data=..., worker=...): what `--data` says, None
without it, and the worker's name. The object has `num_examples`, `fit` and `evaluate`; see `OwnTrainer`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

Weights = dict[str, NDArray[Any]]  #: by the names of the task's arrays: float32, and integers as they are


class ReportProgress(Protocol):
    """Tells the coordinator and the terminal how far a training is."""

    def __call__(
        self, epoch: int, metrics: Mapping[str, float] | None = None, *, batch: int = 1, batches: int = 1
    ) -> None:
        """Say it, as often as you like.

        Args:
            epoch: From 1.
            metrics: So far in this epoch.
            batch: Batches of this epoch that are done.
            batches: Of how many.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """How a round is to be trained; what means nothing to a framework may be passed over.

    Attributes:
        epochs: Passes over the worker's own examples.
        batch_size: Examples of one step.
        learning_rate: None leaves it to the trainer.
        seed: Of this worker in this round: a restarted worker is to compute what the first one would have.
        round_number: From 1.
        terms: What the strategy adds to the gradient; only those that the trainer's `terms` name, e.g. "prox_mu".
        stop: Once set, return soon, with anything: it counts for nothing.
        report: Tell how far it is. A training that says nothing for ten minutes is given up.
    """

    epochs: int
    batch_size: int
    learning_rate: float | None
    seed: int
    round_number: int
    terms: dict[str, float]
    stop: threading.Event
    report: ReportProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a training gave.

    Attributes:
        weights: Every array that was given, by the same names and of the same shapes.
        num_examples: Trained on: the weight of this result in the mean.
        metrics: Of the training; averaged over the workers by their examples.
    """

    weights: Mapping[str, Any]
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What a measurement gave: how many test examples it rests on, and means over these."""

    num_examples: int
    metrics: Mapping[str, float]


class OwnTrainer(Protocol):
    """What an object that trains must have; it may also have `terms`, a tuple with names of terms that it knows.

    Attributes:
        num_examples: How many examples it has to train on.
    """

    num_examples: int

    def fit(self, weights: Weights, settings: FitSettings) -> Fitted:
        """Train, starting from these weights, which are this call's own and may be changed."""

    def evaluate(self, weights: Weights) -> Evaluated | None:
        """Measure weights on test examples; None where there are none."""
