"""`coordinator compare`: several runs beside each other, as a table and as what is drawn of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.errors import DataError, ProtocolError
from broker.wire.plain_json import read_json
from coordinator.folder.history import columns_of_measures, values_of
from coordinator.folder.run_index import Cells, read_rows
from coordinator.folder.run_json import RUN_FILE, current_settings
from coordinator.folder.standing import found_target
from coordinator.learning.stopping import Target, best_of, target_in
from coordinator.terminal.status_text import columns

_HISTORY = "history.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What one run came to.

    Attributes:
        run: As the folder was given.
        rounds: Closed ones.
        measure: By which the runs are compared, as history.csv names it.
        best: Its best value; None where no round tells the measure.
        best_round: Whose that is.
        last: The value of the last round that tells it.
        seconds: All rounds together.
        examples: What all rounds were trained on.
        update_bytes: What all updates weighed on the wire.
    """

    run: str
    task: str | None
    strategy: str | None
    rounds: int
    measure: str
    best: float | None
    best_round: int | None
    last: float | None
    seconds: float
    examples: int
    update_bytes: int


def read_runs(folders: Sequence[Path]) -> dict[str, list[Cells]]:
    """The rows of each run's history.csv, by its folder.

    Raises:
        DataError: There is none in a folder.
    """
    runs = {str(folder): read_rows(folder / _HISTORY) for folder in folders}
    for folder, rows in runs.items():
        if not rows:
            raise DataError(f"{folder} has no {_HISTORY} with a round. Expected the folder of a run.")
    return runs


def compare(runs: Mapping[str, Sequence[Cells]], measure: str | None) -> list[Compared]:
    """What each run came to.

    Args:
        runs: From `read_runs`.
        measure: By what to compare them, as --stop-when takes it; None takes that of the first run that has one,
            else the loss of the global model.

    Raises:
        UsageError: It is no name of a measure.
        DataError: No round of any run tells it.
    """
    every = [row for rows in runs.values() for row in rows]
    asked = target_in(measure) if measure else None
    target = found_target(every, asked or _watched_in(runs))
    if target is None or (asked is not None and target != asked):
        known = ", ".join(columns_of_measures(every)) or "none"
        raise DataError(f"No round tells {asked.measure if asked else 'a loss'}. There are: {known}.")
    return [_compared(run, rows, target) for run, rows in runs.items()]


def _watched_in(runs: Iterable[str]) -> Target | None:
    """What one of these runs was to become better in."""
    texts = (_settings_in(Path(run)).get("stop_when") for run in runs)
    return next((target_in(text) for text in texts if isinstance(text, str)), None)


def _compared(run: str, rows: Sequence[Cells], target: Target) -> Compared:
    values, settings = values_of(rows, target.measure), _settings_in(Path(run))
    best = best_of(values, target)
    return Compared(
        run=run,
        task=settings.get("task"),
        strategy=settings.get("strategy"),
        rounds=int(rows[-1].get("round") or 0),
        measure=target.measure,
        best=best.value if best else None,
        best_round=best.round if best else None,
        last=values[-1][1] if values else None,
        seconds=round(_sum(rows, "seconds"), 3),
        examples=int(_sum(rows, "num_examples")),
        update_bytes=int(_sum(rows, "update_bytes")),
    )


def _settings_in(folder: Path) -> dict[str, Any]:
    """What run.json says; nothing where there is none, for history.csv alone can be compared, too."""
    try:
        content = read_json((folder / RUN_FILE).read_bytes())
    except (OSError, ProtocolError):
        return {}
    return current_settings(content) if isinstance(content, dict) else {}


def _sum(rows: Sequence[Cells], name: str) -> float:
    return sum(value for row in rows if isinstance(value := row.get(name, 0), int | float))


def compared_text(every: Sequence[Compared]) -> str:
    """A table, a line a run."""
    head = (
        "run",
        "task",
        "strategy",
        "rounds",
        f"best {every[0].measure}",
        "round",
        "last",
        "seconds",
        "examples",
    )
    return columns([head, *(_cells(each) for each in every)])


def _cells(each: Compared) -> tuple[str, ...]:
    figures = (_figure(each.best), str(each.best_round or "–"), _figure(each.last))
    cost = (f"{each.seconds:.1f}", f"{each.examples:,}")
    return each.run, each.task or "–", each.strategy or "–", str(each.rounds), *figures, *cost


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
