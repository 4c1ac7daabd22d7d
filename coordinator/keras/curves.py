"""Draws a run's curves.png: how loss, accuracy, AUC and every compiled metric went, round by round."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator.folder.history import names_of_measures
from coordinator.learning.measure_names import CENTRAL, TEST, title_of

_TRAINING = "#4c72b0"
_VALIDATION = "#dd8452"
_CENTRAL = "#55a868"
_PER_LINE = 3

Row = Mapping[str, Any]


def draw_curves(history: Sequence[Row], path: Path) -> None:
    """Write the picture aside and put it in place.

    Args:
        history: One flat row a round; any may lack a measure.
        path: Of the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = names_of_measures(history)
    lines = max(1, -(-len(names) // _PER_LINE))
    columns = min(max(len(names), 1), _PER_LINE)
    figure = Figure(figsize=(4.6 * columns, 3.8 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names, start=1):
        _draw_panel(figure.add_subplot(lines, columns, number), history, title_of(name), name)
    aside = path.with_name(f".{path.name}.aside")
    figure.savefig(aside, format="png")
    aside.replace(path)


def _draw_panel(axes: Any, history: Sequence[Row], title: str, column: str) -> None:
    for name, colour, marker, label in (
        (column, _TRAINING, "o", "training, at the workers"),
        (f"{TEST}{column}", _VALIDATION, "s", "global model, at the workers"),
        (f"{CENTRAL}{column}", _CENTRAL, "^", "global model, central test set"),
    ):
        points = _points(history, name)
        if points:
            rounds, values = zip(*points, strict=True)
            axes.plot(rounds, values, color=colour, marker=marker, markersize=4, linewidth=1.8, label=label)
    axes.set_title(title, fontsize=12)
    axes.set_xlabel("Round")
    axes.set_ylabel(title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _points(history: Sequence[Row], column: str) -> list[tuple[float, float]]:
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
