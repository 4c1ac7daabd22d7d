"""Which round was the best, and whether a run has become no better for too long; pure.

Everything follows from the history, never from what a process remembers: a restarted coordinator decides the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from broker.errors import UsageError
from coordinator.learning.measure_names import LOSS, bare_name

Values = Sequence[tuple[int, float]]  #: (round, value), by round; a round that tells nothing is left out

#: A measure with one of these words in its name is better when it is lower.
_LOWER_WORDS = frozenset(
    {
        "cosh",
        "crossentropy",
        "deviation",
        "divergence",
        "error",
        "false",
        "hinge",
        "kld",
        "logcosh",
        LOSS,
        "mae",
        "mape",
        "mse",
        "msle",
        "perplexity",
        "poisson",
        "rmse",
    }
)
_PREFIXES = {"min:": True, "max:": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to become better.

    Attributes:
        measure: As history.csv names it, e.g. val_auc.
    """

    measure: str
    is_lower_better: bool

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is better than another; an equal one is not."""
        return value < than if self.is_lower_better else value > than


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The round whose value no other has surpassed; of equal ones the first."""

    round: int
    value: float


def target_in(text: str) -> Target:
    """What a person means by --stop-when: NAME, min:NAME or max:NAME.

    Raises:
        UsageError: There is no name.
    """
    prefix = next((each for each in _PREFIXES if text.startswith(each)), "")
    measure = text.removeprefix(prefix)
    if not measure or measure.split() != [measure]:
        raise UsageError(
            f"Expected a measure for --stop-when, as val_auc, min:NAME or max:NAME, got {text[:60]!r}."
        )
    return Target(measure=measure, is_lower_better=_PREFIXES[prefix] if prefix else is_lower_better(measure))


def is_lower_better(measure: str) -> bool:
    """Whether a measure is a loss or an error, by its name; anything else is better when it is higher."""
    return not _LOWER_WORDS.isdisjoint(bare_name(measure).lower().split("_"))


def best_of(values: Values, target: Target) -> Best | None:
    """The best round; None where no round tells the measure."""
    best: Best | None = None
    for number, value in values:
        if best is None or target.is_better(value, best.value):
            best = Best(round=number, value=value)
    return best


def given_up_on(values: Values, target: Target, patience: int, since: int = 0) -> Best | None:
    """The best round when patience ran out for the first time; None as long as it has not.

    Args:
        values: Of all rounds so far.
        target: What is to become better.
        patience: How many rounds that tell the measure may be no better than the best.
        since: The round after which counting begins anew: a person asked for more rounds then.
    """
    best: Best | None = None
    num_worse = 0
    for number, value in values:
        if best is None or target.is_better(value, best.value):
            best, num_worse = Best(round=number, value=value), 0
        elif number > since:
            num_worse += 1
        if num_worse >= patience:
            return best
    return None
