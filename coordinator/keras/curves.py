"""Draws a run's pictures: how every measure went, round by round; in all, at each worker, and run beside run.

curves.png and workers.png are drawn by the child, the picture of several runs by `coordinator compare`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.folder.history import names_of_measures
from coordinator.learning.measure_names import CENTRAL, TEST, title_of
from coordinator.learning.stopping import is_lower_better

_TRAINING = "#4c72b0"
_VALIDATION = "#dd8452"
_CENTRAL = "#55a868"
_GREY = "#8c8c8c"
#: Of workers and runs: those of the three above, and others that can be told apart.
_COLOURS = (
    _TRAINING, _VALIDATION, _CENTRAL, "#c44e52", "#8172b3", "#937860", "#da8bc3", "#1f9bb4", "#ccb974", "#2f2f2f"
)  # fmt: skip
_PER_LINE = 3
_MOST_NAMED = len(_COLOURS)  #: workers that get a colour and a name each; of more the spread is shown
_MOST_LINES = 100
_MOST_WORST = 3
_SHARE = 0.8  #: of the workers, within the band

Row = Mapping[str, Any]
Points = Sequence[tuple[float, float]]
Panel = tuple[str, Callable[[Any], None]]  #: a title, and what is drawn below it


def draw_curves(history: Sequence[Row], path: Path) -> None:
    """Write the picture of one run aside and put it in place.

    Args:
        history: One flat row a round; any may lack a measure.
        path: Of the PNG file.
    """
    _draw([(title_of(name), _curves_of(history, name)) for name in names_of_measures(history)], path)


def draw_workers(rows: Sequence[Row], path: Path) -> None:
    """Write the picture of each worker's own curves aside and put it in place.

    Up to ten workers have a colour and a name each. Of more there are thin lines, their median, the band that holds
    eight of ten, and the names of the three that are served worst.

    Args:
        rows: One flat row a round and worker; with none, as where there are too many workers, nothing is drawn.
        path: Of the PNG file.
    """
    by_worker: dict[str, list[Row]] = {}
    for row in rows:
        by_worker.setdefault(str(row["worker"]), []).append(row)
    columns = [
        column
        for name in names_of_measures(rows)
        for column in (f"{TEST}{name}", name)
        if any(column in row for row in rows)
    ]
    if columns:
        _draw([(_title_at_workers(column), _workers_of(by_worker, column)) for column in columns], path)


def draw_runs(runs: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Write the picture of several runs aside and put it in place: a panel a measure, a line a run.

    Args:
        runs: The flat rows of each run, by its name.
        path: Of the PNG file.
    """
    every = [row for rows in runs.values() for row in rows]
    panels = []
    for name in names_of_measures(every):
        column = next(each for each in _columns_of(name) if any(each in row for row in every))
        panels.append((_title_of_column(column), _runs_of(runs, column)))
    _draw(panels, path)


def _draw(panels: Sequence[Panel], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = max(1, -(-len(panels) // _PER_LINE))
    columns = min(max(len(panels), 1), _PER_LINE)
    figure = Figure(figsize=(4.6 * columns, 3.8 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, draw) in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(lines, columns, number), title, draw)
    aside = path.with_name(f".{path.name}.aside")
    figure.savefig(aside, format="png")
    aside.replace(path)


def _draw_panel(axes: Any, title: str, draw: Callable[[Any], None]) -> None:
    draw(axes)
    axes.set_title(title, fontsize=12)
    axes.set_xlabel("Round")
    axes.set_ylabel(title.partition(",")[0])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _curves_of(history: Sequence[Row], name: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for column, colour, marker, label in (
            (name, _TRAINING, "o", "training, at the workers"),
            (f"{TEST}{name}", _VALIDATION, "s", "global model, at the workers"),
            (f"{CENTRAL}{name}", _CENTRAL, "^", "global model, central test set"),
        ):
            _plot(axes, points_of(history, column), colour=colour, marker=marker, label=label)

    return draw


def _runs_of(runs: Mapping[str, Sequence[Row]], column: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for number, (name, rows) in enumerate(runs.items()):
            _plot(axes, points_of(rows, column), colour=_colour(number), marker="o", label=name)

    return draw


def _plot(axes: Any, points: Points, *, colour: str, marker: str, label: str) -> None:
    if points:
        rounds, values = zip(*points, strict=True)
        axes.plot(rounds, values, color=colour, marker=marker, markersize=4, linewidth=1.8, label=label)


def _workers_of(by_worker: Mapping[str, Sequence[Row]], column: str) -> Callable[[Any], None]:
    lines = {worker: points_of(rows, column) for worker, rows in by_worker.items()}
    lines = {worker: points for worker, points in lines.items() if points}

    def draw(axes: Any) -> None:
        if len(lines) > _MOST_NAMED:
            _draw_spread(axes, lines, column)
            return
        for number, (worker, points) in enumerate(lines.items()):
            _plot(axes, points, colour=_colour(number), marker="o", label=worker)

    return draw


def _draw_spread(axes: Any, lines: Mapping[str, Points], column: str) -> None:
    from matplotlib.collections import LineCollection

    some = list(lines.values())[:: -(-len(lines) // _MOST_LINES)]
    axes.add_collection(LineCollection(some, colors=_GREY, linewidths=0.5, alpha=0.3, zorder=1))
    by_round: dict[float, list[float]] = {}
    for points in lines.values():
        for number, value in points:
            by_round.setdefault(number, []).append(value)
    rounds, margin = sorted(by_round), (1 - _SHARE) / 2
    shares = (margin, 0.5, 1 - margin)
    low, middle, high = np.transpose([np.quantile(by_round[number], shares) for number in rounds])
    band = f"{_SHARE:.0%} of {len(lines)} workers"
    axes.fill_between(rounds, low, high, color=_VALIDATION, alpha=0.35, linewidth=0, label=band)
    axes.plot(rounds, middle, color=_VALIDATION, linewidth=2, label="the middle one")
    axes.plot([], [], " ", label=f"worst at last: {', '.join(_worst_of(lines, column))}")


def _worst_of(lines: Mapping[str, Points], column: str) -> list[str]:
    """The workers whose last value is the worst, those first."""
    sign = -1 if is_lower_better(column) else 1
    return sorted(lines, key=lambda worker: sign * lines[worker][-1][1])[:_MOST_WORST]


def _title_at_workers(column: str) -> str:
    return f"{_title_of_column(column)}, at each worker"


def _title_of_column(column: str) -> str:
    for prefix, word in ((TEST, "global model"), (CENTRAL, "central")):
        if column.startswith(prefix):
            return f"{title_of(column.removeprefix(prefix))}, {word}"
    return f"{title_of(column)}, training"


def _columns_of(name: str) -> Iterable[str]:
    """Where a measure may be found, the most telling first."""
    return f"{TEST}{name}", f"{CENTRAL}{name}", name


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def points_of(history: Sequence[Row], column: str) -> list[tuple[float, float]]:
    """(round, value) of the rows that have both."""
    pairs = ((_number(row.get("round")), _number(row.get(column))) for row in history)
    return [(number, value) for number, value in pairs if number is not None and value is not None]


def _number(value: object) -> float | None:
    """A number, also one that was read from a CSV file; None for an empty or infinite one."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
