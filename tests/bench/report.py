"""How measurements are shown: a table in Markdown, and bars on a logarithmic axis."""

import os
import platform
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from broker.hosting.management import Management
from tests.bench.peers.install import PINS
from tests.brokers import started_broker

_LOWER_BOUNDS = ("floor", "ideal", "line")
_COLOURS = {"Warren": "#c2410c", "floor": "#9ca3af", "ideal": "#9ca3af", "line": "#9ca3af"}
_OTHERS = "#4c72b0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One system at one case.

    Attributes:
        seconds: A round, the median from the second on.
        first_seconds: The first round, from the start of the processes.
        server_megabytes: The most that was resident: of Warren's coordinator, of all of a peer's server processes.
        broker_megabytes: The most that Warren's broker had resident.
        training_seconds: What of a round the slowest worker itself took, the median.
        accuracy: On the 10,000 test images.
        result_over_expected: 1 when the sum is right.
    """

    case: str
    system: str
    seconds: float
    first_seconds: float | None = None
    server_megabytes: float | None = None
    broker_megabytes: float | None = None
    training_seconds: float | None = None
    accuracy: float | None = None
    result_over_expected: float | None = None


def describe_machine(*, with_peers: bool) -> str:
    """Where and with what it was measured, in one line."""
    with tempfile.TemporaryDirectory() as home, started_broker(Path(home)) as broker:
        rabbitmq = Management(broker.management_url).overview()["rabbitmq_version"]
    parts = [
        f"{datetime.now(UTC):%Y-%m-%d}",
        f"{os.cpu_count()} cores",
        _cpu_model(),
        f"Python {platform.python_version()}",
        f"RabbitMQ {rabbitmq}",
        f"pika {version('pika')}",
        f"TensorFlow {version('tensorflow')}",
        *(pins[0].replace("==", " ").replace("[simulation]", "") for pins in PINS.values() if with_peers),
    ]
    return ", ".join(parts)


def _cpu_model() -> str:
    """As the processor calls itself."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def as_table(header: str, rows: list[Row]) -> str:
    """The Markdown: a line a system, with its ratio to the case's lower bound and to Warren."""
    lines = [
        f"{header}\n",
        "| case | system | s a round | ÷ floor, ideal or line | ÷ Warren | first, s | slowest worker, s "
        "| server, MB | broker, MB | result |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for _, group in groupby(rows, key=lambda row: row.case):
        case = list(group)
        bound = next((row.seconds for row in case if row.system in _LOWER_BOUNDS), None)
        ours = next((row.seconds for row in case if row.system == "Warren"), None)
        lines += [_line(row, bound, ours) for row in case]
    return "\n".join(lines)


def _line(row: Row, bound: float | None, ours: float | None) -> str:
    cells = [
        row.case,
        row.system,
        f"{row.seconds:.3f}",
        _told(row.seconds / bound if bound else None, ".2f"),
        _told(row.seconds / ours if ours else None, ".2f"),
        _told(row.first_seconds, ".1f"),
        _told(row.training_seconds, ".2f"),
        _told(row.server_megabytes, ".0f"),
        _told(row.broker_megabytes, ".0f"),
        f"accuracy {row.accuracy:.4f}"
        if row.accuracy is not None
        else _told(row.result_over_expected, ".7f", " × exact"),
    ]
    return f"| {' | '.join(cells)} |"


def _told(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def write(folder: Path, header: str, rows: list[Row]) -> None:
    """Write table.md and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(as_table(header, rows) + "\n", encoding="utf-8")
    draw(folder / "bench.png", header, rows)


def draw(path: Path, header: str, rows: list[Row]) -> None:
    """One bar a system, grouped by case; all on one logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = [list(group) for _, group in groupby(rows, key=lambda row: row.case)]
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(rows) + 0.42 * len(cases)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [len(case) for case in cases]
    panels = figure.subplots(len(cases), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, case in zip(panels, cases, strict=True):
        _draw_case(axes, case)
    everything = [row.seconds for row in rows]
    panels[0].set_xlim(min(everything) / 2, max(everything) * 3)  # room for the last bar's number
    panels[-1].set_xlabel("seconds a round (logarithmic; shorter is better)")
    figure.suptitle(header, fontsize=7, color="#4b5563")
    figure.savefig(path)


def _draw_case(axes: Any, case: list[Row]) -> None:
    systems = [row.system for row in case]
    colours = [_COLOURS.get(system, _OTHERS) for system in systems]
    bars = axes.barh(systems, [row.seconds for row in case], color=colours, height=0.7)
    axes.bar_label(bars, [f"{row.seconds:.3g} s" for row in case], padding=4, fontsize=9)
    axes.set_xscale("log")
    axes.set_ylim(len(case) - 0.5, -0.5)  # the first one on top
    axes.set_title(case[0].case, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
