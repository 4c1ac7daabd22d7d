"""What local training and evaluation tell: how far they are, and what they gave."""

from collections.abc import Callable
from dataclasses import dataclass

from broker.wire.scores import AnswerCounts
from broker.wire.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        epoch: From 1.
        batch: Batches of this epoch that are done.
        metrics: So far in this epoch, by their own names; with val_ ones once the epoch is done.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """What one call of `LocalModel.evaluate` found.

    Attributes:
        metrics: The loss, and every compiled metric by its own name.
        states: Of the compiled metrics that are no means over examples, the sums that they keep.
        counts: Of right and wrong predictions; None where the model is no classifier.
        scores: Of a classifier accuracy, balanced_accuracy (mean recall of the classes present), and with two classes
            auc.
    """

    metrics: dict[str, float]
    states: dict[str, Array]
    counts: AnswerCounts | None
    scores: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """All there is to say; a compiled metric keeps its name, even where ours has the same."""
        return self.metrics | {name: self.scores[name] for name in self.scores if name not in self.metrics}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What one call of `LocalModel.train` gave.

    Attributes:
        weights: In Keras's order.
        num_examples: Examples trained on: the weight of this result in a mean.
        metrics: The loss and every compiled metric of the last epoch, by their own names.
        states: Of those that are no means over examples, the sums that they keep.
        validation: What the trained weights reach on the validation examples.
        finished: False when it was told to stop before the last batch.
    """

    weights: list[Array]
    num_examples: int
    metrics: dict[str, float]
    states: dict[str, Array]
    validation: dict[str, float]
    seconds: float
    finished: bool


Report = Callable[[TrainingProgress], None]
