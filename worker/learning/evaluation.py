"""How good a model is on examples that it hasn't seen, in numbers that stay honest for uneven classes."""

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from broker.errors import DataError, ModelError
from broker.model.head import Floats, Head
from worker.data.classes import normalise
from worker.data.data_set import Examples
from worker.data.listing import Labels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Measured on one set of examples.

    Attributes:
        accuracy: Share of right answers.
        balanced_accuracy: Mean over the classes of each one's share of right answers.
        auc: Area under the ROC curve for class 1; None unless there are two classes, both with examples.
        loss: The model's own compiled loss, mean over the examples.
        confusion: Counts, [true class][predicted class].
        num_examples: How many were measured.
        metrics: The model's own compiled metrics, each under its own name.
    """

    accuracy: float
    balanced_accuracy: float
    auc: float | None
    loss: float
    confusion: tuple[tuple[int, ...], ...]
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def own_metrics(self) -> dict[str, float]:
        """The compiled metrics that say more than is said anyway."""
        return {name: value for name, value in self.metrics.items() if name not in ("accuracy", "loss")}

    def to_dict(self) -> dict[str, Any]:
        """As `--json` shows it; "metrics" is there where the model was compiled with others than its accuracy."""
        plain = asdict(self)
        del plain["metrics"]
        return plain | ({"metrics": self.own_metrics} if self.own_metrics else {})


class Classifier(Protocol):
    """A model that can be measured, as `worker.learning.inference.Inference`."""

    @property
    def head(self) -> Head:
        """How its outputs are read."""
        ...

    def measure(self, x: npt.NDArray[Any], y: Labels) -> tuple[Floats, float, dict[str, float]]:
        """The probabilities of examples, (n, classes), and the model's own loss and compiled metrics."""
        ...


def evaluate(model: Classifier, examples: Examples, classes: tuple[str, ...]) -> Evaluation:
    """Measure a classifier.

    Args:
        model: The classifier.
        examples: x of shape (n, *shape), y of shape (n,) with class numbers.
        classes: Their names, in the order of the model's outputs.

    Raises:
        DataError: There is no example.
        ModelError: The model tells another number of classes apart, or gives NaN.
    """
    if not len(examples):
        raise DataError("There is no example to evaluate on. Bring a test part.")
    if model.head.num_classes != len(classes):
        raise ModelError(
            f"The model tells {model.head.num_classes} classes apart; the data has {len(classes)}."
        )
    probabilities, loss, metrics = model.measure(examples.x, examples.y)
    return score(probabilities, examples.y, loss, metrics)


def check_classes(trained: tuple[str, ...] | None, found: tuple[str, ...]) -> None:
    """Refuse data whose classes aren't the model's; None: the model doesn't name any.

    Raises:
        DataError: They differ, be it in their order.
    """
    if trained is not None and tuple(map(normalise, trained)) != found:
        raise DataError(
            f"The data's classes differ from the model's: expected {list(trained)}, found {list(found)}. "
            "Name the class folders as the model's classes, or give them with --classes."
        )


def score(
    probabilities: Floats, y: Labels, loss: float, metrics: dict[str, float] | None = None
) -> Evaluation:
    """Work out the measures.

    Args:
        probabilities: (n, classes), rows sum to 1.
        y: (n,) true classes.
        loss: The model's own, mean over the examples.
        metrics: Its compiled ones.
    """
    confusion = confusion_of(y, probabilities.argmax(axis=1), probabilities.shape[1])
    return Evaluation(
        accuracy=float(np.trace(confusion) / len(y)),
        balanced_accuracy=_balanced_accuracy(confusion),
        auc=auc_of(y == 1, probabilities[:, 1]) if probabilities.shape[1] == 2 else None,
        loss=loss,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        num_examples=len(y),
        metrics=metrics or {},
    )


def auc_of(is_positive: npt.NDArray[np.bool_], scores: Floats) -> float | None:
    """The chance that a random positive scores above a random negative, ties counting half.

    The exact rank form (Mann-Whitney U, Hanley and McNeil 1982); no curve is approximated.

    Args:
        is_positive: (n,) truth.
        scores: (n,) the higher, the more positive.

    Returns:
        The area, or None where either kind is missing.
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        return None
    _, level, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[level]  # from 1; equal scores share their mean rank
    above = ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def confusion_of(y: Labels, predicted: Labels, num_classes: int) -> Labels:
    """(num_classes, num_classes) counts, [true][predicted], from true classes `y` and `predicted` ones, (n,) each."""
    return np.bincount(y * num_classes + predicted, minlength=num_classes**2).reshape(
        num_classes, num_classes
    )


def format_evaluation(evaluation: Evaluation, classes: tuple[str, ...]) -> str:
    """The measures and the confusion matrix, for a person."""
    measures = {
        "examples": str(evaluation.num_examples),
        "accuracy": f"{evaluation.accuracy:.4f}",
        "balanced accuracy": f"{evaluation.balanced_accuracy:.4f}",
        "AUC": "-" if evaluation.auc is None else f"{evaluation.auc:.4f}",
        "loss": f"{evaluation.loss:.4f}",
    }
    measures |= {name.replace("_", " "): f"{value:.4f}" for name, value in evaluation.own_metrics.items()}
    longest = max(18, *map(len, measures))
    lines = [f"{name:<{longest}} {value}" for name, value in measures.items()]
    width = max(len(text) for text in (*classes, "true \\ predicted", str(evaluation.num_examples)))
    rows = [("true \\ predicted", *classes)]
    rows += [(name, *map(str, row)) for name, row in zip(classes, evaluation.confusion, strict=True)]
    table = [
        "  ".join([row[0].ljust(width), *(cell.rjust(max(map(len, classes))) for cell in row[1:])])
        for row in rows
    ]
    return "\n".join([*lines, "", *table])


def _balanced_accuracy(confusion: Labels) -> float:
    totals = confusion.sum(axis=1)
    present = totals > 0
    return float((np.diagonal(confusion)[present] / totals[present]).mean())
