"""How good a model is on examples that it hasn't seen, in numbers that stay honest for uneven classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.errors import DataError, ModelError
from worker.classes import normalise
from worker.data import Examples
from worker.layout import Labels

BATCH_SIZE = 32
_TINY = 1e-7  # as Keras clips probabilities before the logarithm

Floats = npt.NDArray[np.float64]


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
    """

    accuracy: float
    balanced_accuracy: float
    auc: float | None
    loss: float
    confusion: tuple[tuple[int, ...], ...]
    num_examples: int


def evaluate(model: Any, examples: Examples, classes: tuple[str, ...]) -> Evaluation:
    """Measure a compiled Keras classifier (softmax of n, or sigmoid of 1).

    Raises:
        DataError: There is no example.
        ModelError: The model's output doesn't fit the classes.
    """
    if not len(examples):
        raise DataError("There is no example to evaluate on. Bring a test part.")
    outputs = _outputs(model, examples.x)
    probabilities = to_probabilities(outputs, len(classes))
    return score(probabilities, examples.y, loss_of(model, outputs, probabilities, examples.y))


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


def score(probabilities: Floats, y: Labels, loss: float) -> Evaluation:
    """Work out the measures from probabilities, (n, classes), and true classes, (n,)."""
    confusion = confusion_of(y, probabilities.argmax(axis=1), probabilities.shape[1])
    return Evaluation(
        accuracy=float(np.trace(confusion) / len(y)),
        balanced_accuracy=_balanced_accuracy(confusion),
        auc=auc_of(y == 1, probabilities[:, 1]) if probabilities.shape[1] == 2 else None,
        loss=loss,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        num_examples=len(y),
    )


def class_probabilities(model: Any, x: npt.NDArray[Any], num_classes: int) -> Floats:
    """The model's answer for each example, (n, classes), rows sum to 1."""
    return to_probabilities(_outputs(model, x), num_classes)


def to_probabilities(outputs: npt.NDArray[Any], num_classes: int) -> Floats:
    """Read a model's outputs as probabilities; a model that ends without softmax or sigmoid gets it here.

    Args:
        outputs: (n, classes), or (n, 1) for two classes: the probability of class 1.
        num_classes: How many there are.

    Raises:
        ModelError: The outputs have another shape, or aren't finite.
    """
    given = np.asarray(outputs, np.float64)
    if given.ndim != 2 or given.shape[1] not in ({1, 2} if num_classes == 2 else {num_classes}):
        raise ModelError(
            f"The model's output has the shape {given.shape}; the data has {num_classes} classes."
        )
    if not np.isfinite(given).all():
        raise ModelError(
            "The model answers with NaN or infinity. Its training went wrong; use an earlier one."
        )
    is_bounded = bool(((given >= 0) & (given <= 1)).all())
    if given.shape[1] == 1:
        positive = given if is_bounded else 1 / (1 + np.exp(-given.clip(-500, 500)))
        return np.hstack([1 - positive, positive])
    if is_bounded and np.allclose(given.sum(axis=1), 1, atol=1e-3):
        return given
    powers = np.exp(given - given.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def encode_labels(model: Any, y: Labels, num_outputs: int) -> npt.NDArray[Any]:
    """Labels as the model's compiled loss wants them.

    Args:
        model: A compiled Keras model.
        y: (n,) class indices.
        num_outputs: The width of the model's output.

    Returns:
        (n,) int64 for a sparse loss, (n, 1) float32 for one output, else one-hot (n, num_outputs) float32.
    """
    if "sparse" in _loss_name(model.loss):
        return y
    if num_outputs == 1:
        return y.astype(np.float32)[:, np.newaxis]
    return np.eye(num_outputs, dtype=np.float32)[y]


def loss_of(model: Any, outputs: npt.NDArray[Any], probabilities: Floats, y: Labels) -> float:
    """The compiled loss of outputs already computed; cross-entropy for a model that has none."""
    if not getattr(model, "compiled", False) or model.loss is None:
        return float(-np.log(probabilities[np.arange(len(y)), y].clip(_TINY)).mean())
    targets = encode_labels(model, y, outputs.shape[1])
    return float(model.compute_loss(y=targets, y_pred=outputs, training=False))


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
    """(classes, classes) counts, [true][predicted]."""
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
    lines = [f"{name:<18} {value}" for name, value in measures.items()]
    width = max(len(text) for text in (*classes, "true \\ predicted", str(evaluation.num_examples)))
    rows = [("true \\ predicted", *classes)]
    rows += [(name, *map(str, row)) for name, row in zip(classes, evaluation.confusion, strict=True)]
    table = [
        "  ".join([row[0].ljust(width), *(cell.rjust(max(map(len, classes))) for cell in row[1:])])
        for row in rows
    ]
    return "\n".join([*lines, "", *table])


def _outputs(model: Any, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(model.predict(x, batch_size=BATCH_SIZE, verbose=0))


def _balanced_accuracy(confusion: Labels) -> float:
    totals = confusion.sum(axis=1)
    present = totals > 0
    return float((np.diagonal(confusion)[present] / totals[present]).mean())


def _loss_name(loss: object) -> str:
    if isinstance(loss, str):
        return loss.lower()
    named = getattr(loss, "__name__", None) or type(loss).__name__
    return str(named).lower()
