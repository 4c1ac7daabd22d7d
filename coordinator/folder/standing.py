"""How a run stands, worked out from its history alone: the best round so far, and whether more rounds are wanted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.folder.history import Row, columns_of_measures, values_of
from coordinator.learning.measure_names import BEST_BY
from coordinator.learning.stopping import Best, Target, best_of, given_up_on, target_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What decides over the end of a run and over its best model.

    Attributes:
        target: What was asked for; None where the run plays all its rounds.
        patience: See `stopping.given_up_on`.
        since: See `stopping.given_up_on`.
    """

    target: Target | None = None
    patience: int = 1
    since: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a run stands.

    Attributes:
        measure: By which the best round was found.
        best: None as long as no round has been measured.
        enough: Why no further round is wanted, if that is so.
        unknown: The measures that there are, if none of them is the one asked for.
    """

    measure: str | None = None
    best: Best | None = None
    enough: str | None = None
    unknown: tuple[str, ...] = ()


def standing_of(history: Iterable[Row], watch: Watch) -> Standing:
    """How a run stands after these rounds."""
    rows = [row.flat for row in history]
    if len(rows) < 2:
        return Standing()
    target = found_target(rows, watch.target)
    values = values_of(rows, target.measure) if target else []
    known = tuple(columns_of_measures(rows)) if watch.target else ()
    return Standing(
        measure=target.measure if target else None,
        best=best_of(values, target) if target else None,
        enough=_why_enough(values, watch) if target == watch.target else None,
        unknown=known if watch.target and watch.target.measure not in known else (),
    )


def found_target(rows: Iterable[Mapping[str, Any]], asked: Target | None) -> Target | None:
    """By which measure rounds are compared: the one asked for, else the loss of the global model.

    Args:
        rows: Flat ones.
        asked: With --stop-when.

    Returns:
        None where no round tells any of them.
    """
    rows = list(rows)
    others = [target_in(name) for name in BEST_BY]
    every = others if asked is None else [asked, *others]
    named = set[str]().union(*rows)
    return next((each for each in every if each.measure in named and values_of(rows, each.measure)), None)


def _why_enough(values: list[tuple[int, float]], watch: Watch) -> str | None:
    if watch.target is None:
        return None
    best = given_up_on(values, watch.target, watch.patience, watch.since)
    if best is None:
        return None
    times = "round" if watch.patience == 1 else f"{watch.patience} rounds"
    return (
        f"{watch.target.measure} has not become better for {times}: the best is {best.value:.4f}, "
        f"of round {best.round}"
    )
