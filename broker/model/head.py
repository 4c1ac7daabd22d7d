"""How a model's answers are read as probabilities: decided once from the model, never from the values.

The activation that the output went through last decides. Where it leaves that open, the compiled loss does, for
training has made the output what the loss takes it for:

    last activation            loss                             k outputs             one output
    softmax, sparsemax         any                              as they are           (always 1: refused)
    sigmoid and its kind       any                              by their sum          as it is
    log_softmax, log_sigmoid   any                              softmax               by the loss
    another, none, unknown     cross-entropy, from_logits       softmax; by sum (1)   sigmoid
                               cross-entropy on probabilities   by their sum          from 0 to 1
                               hinge, or no loss                softmax               sigmoid
                               squared and absolute errors      nearest (2)           from 0 to 1
                               another                          by their sum          from 0 to 1

(1) Softmax for a categorical cross-entropy. A binary one made each output a class against the rest: the sigmoids
of the outputs, divided by their sum. (2) Such a loss draws the outputs to a row of 0 and one 1: the nearest
distribution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from broker.errors import ModelError
from broker.model.ending import EACH_ALONE, ONE_OF_ALL, ending_of
from broker.model.loss import is_builtin, loss_name, takes_logits

Floats = NDArray[np.float64]
Purpose = Literal["classes", "numbers", "open"]
Reading = Literal["probabilities", "shares", "logits", "binary logits", "nearest", "probability", "logit"]

_LOGARITHMS = frozenset({"log_softmax", "log_sigmoid"})
CATEGORICAL = frozenset(
    {
        "categoricalcrossentropy", "sparsecategoricalcrossentropy", "categoricalfocalcrossentropy",
        "categoricalgeneralizedcrossentropy",
    }
)  # fmt: skip
BINARY = frozenset({"binarycrossentropy", "binaryfocalcrossentropy"})
MARGINS = frozenset({"hinge", "squaredhinge", "categoricalhinge"})
_ERRORS = frozenset({"meansquarederror", "meanabsoluteerror", "huber", "logcosh"})
_OF_NUMBERS = _ERRORS | {
    "cosinesimilarity", "mape", "meanabsolutepercentageerror", "meansquaredlogarithmicerror", "msle", "poisson",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How one model's outputs are read.

    Attributes:
        reading: For several outputs "probabilities" as they are, "shares" of their sum, "logits", "binary logits"
            (each class against the rest) or "nearest"; for one, class 1's "probability" or "logit".
        num_outputs: How many numbers the model gives for one example.
    """

    reading: Reading
    num_outputs: int

    @property
    def num_classes(self) -> int:
        """How many classes are told apart: one output stands for two."""
        return max(self.num_outputs, 2)

    def probabilities(self, outputs: NDArray[Any]) -> Floats:
        """Read outputs; a row depends on its own example alone.

        Args:
            outputs: (n, num_outputs).

        Returns:
            (n, num_classes). Rows sum to 1, and the largest is where the largest output is.

        Raises:
            ModelError: The outputs have another shape, or aren't finite.
        """
        given = np.asarray(outputs, np.float64)
        if given.ndim != 2 or given.shape[1] != self.num_outputs:
            raise ModelError(f"Expected an output of shape (n, {self.num_outputs}). Received {given.shape}.")
        if not np.isfinite(given).all():
            raise ModelError(
                "The model answers with NaN or infinity. Its training went wrong; use an earlier one."
            )
        rows = _READ[self.reading](given)
        return np.hstack([1 - rows, rows]) if self.num_outputs == 1 else _with_winner(rows, given)


def head_of(model: Any) -> Head:
    """Decide how a Keras classifier's outputs are read.

    Raises:
        ModelError: It gives no row of numbers for an example.
    """
    outputs = num_outputs(model)
    loss = model.loss if getattr(model, "compiled", False) else None
    reading = reading_of(ending_of(model).activation, loss, outputs)
    return Head(reading=reading, num_outputs=outputs)


def purpose_of(model: Any) -> Purpose:
    """What a model of one row of outputs is for, as far as it says so without data: "open" where it may be both.

    A softmax, a cross-entropy and a hinge tell classes apart, a squared error of what no activation has bounded is one
    of numbers. Several sigmoids may be classes or labels of which an example has many; a loss of one's own may be
    anything, and so may an output without one.
    """
    outputs, activation = num_outputs(model), ending_of(model).activation
    loss = model.loss if getattr(model, "compiled", False) else None
    name, is_bounded = loss_name(loss), activation in EACH_ALONE | {"log_sigmoid"}
    if outputs > 1 and activation in ONE_OF_ALL | {"log_softmax"}:
        return "classes"
    if name in CATEGORICAL | MARGINS or (outputs == 1 and (name in BINARY or (is_bounded and not name))):
        return "classes"
    is_number = name in _OF_NUMBERS and is_builtin(loss)
    return "numbers" if is_number and not is_bounded and activation not in ONE_OF_ALL else "open"


def num_outputs(model: Any) -> int:
    """How many numbers the model gives for one example: one per class, or one alone for two classes.

    Raises:
        ModelError: It has several outputs, or another shape of output.
    """
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or not isinstance(shape[1], int):
        raise ModelError(
            f"A classifier gives one row of numbers an example, shape (n, classes). Received {shape}."
        )
    return shape[1]


def reading_of(activation: str, loss: object, num_outputs: int) -> Reading:
    """The table above.

    Args:
        activation: The last one, by Keras's name, "linear" or "unknown".
        loss: As compiled; None without one.
        num_outputs: The width of the output.
    """
    if num_outputs == 1:
        return _reading_of_one(activation, loss)
    if activation in ONE_OF_ALL:
        return "probabilities"
    if activation in EACH_ALONE:
        return "shares"
    if activation in _LOGARITHMS:
        return "logits"  # the softmax of logarithms gives back what they are of
    return _reading_by_loss(loss)


def _reading_of_one(activation: str, loss: object) -> Reading:
    if activation in ONE_OF_ALL | EACH_ALONE:
        return "probability"
    is_open = loss_name(loss) in MARGINS | {""}
    return "logit" if is_open or takes_logits(loss) else "probability"


def _reading_by_loss(loss: object) -> Reading:
    name = loss_name(loss)
    if takes_logits(loss):
        return "binary logits" if name in BINARY else "logits"
    if name in MARGINS | {""}:
        return "logits"
    return "nearest" if name in _ERRORS else "shares"


def _with_winner(rows: Floats, given: Floats) -> Floats:
    """Rows where rounding made the winner equal to another get it back, by the smallest step there is."""
    winners = given.argmax(axis=1)
    (tied,) = np.nonzero(rows.argmax(axis=1) != winners)
    if len(tied):
        rows = rows.copy()
        rows[tied, winners[tied]] = np.nextafter(rows[tied].max(axis=1), 1)
    return rows


def _as_given(given: Floats) -> Floats:
    return given


def _bounded(given: Floats) -> Floats:
    return given.clip(0, 1)


def _sigmoid(given: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -given)))


def _softmax(given: Floats) -> Floats:
    powers = np.exp(given - given.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sigmoids_by_sum(given: Floats) -> Floats:
    return _softmax(-np.logaddexp(0, -given))  # of their logarithms: no sum of them is ever 0


def _by_sum(given: Floats) -> Floats:
    """Divided by their sum, negative ones counting nothing; a row of nothing is undecided."""
    positive = given.clip(0)
    positive[positive.max(axis=1) == 0] = 1
    shares = positive / positive.max(axis=1, keepdims=True)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _nearest(given: Floats) -> Floats:
    """The distribution at the smallest Euclidean distance (Duchi et al. 2008, "Efficient Projections", fig. 1)."""
    falling = -np.sort(-(given - given.max(axis=1, keepdims=True)), axis=1)
    means = (falling.cumsum(axis=1) - 1) / np.arange(1, given.shape[1] + 1)
    last = (falling > means).sum(axis=1) - 1
    level = means[np.arange(len(given)), last][:, np.newaxis]
    return np.asarray((given - given.max(axis=1, keepdims=True) - level).clip(0))


_READ: dict[Reading, Callable[[Floats], Floats]] = {
    "probabilities": _as_given,
    "shares": _by_sum,
    "logits": _softmax,
    "binary logits": _sigmoids_by_sum,
    "nearest": _nearest,
    "probability": _bounded,
    "logit": _sigmoid,
}
