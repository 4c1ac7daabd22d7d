"""The two pictures of `coordinator statistics`: the histograms of all sites together, and who holds what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.learning.statistics import Feature, Site, Statistics

_COLOUR = "#4c72b0"
_MEAN = "#c44e52"
_NOT_TOLD = "#bbbbbb"
_PER_LINE = 4
_MOST_FEATURES = 24
_MOST_SITES = 40
_MOST_CLASSES = 20


def draw_statistics(found: Statistics, beside: Path) -> None:
    """Write both beside a file: NAME.png and NAME-sites.png.

    Args:
        found: What to draw.
        beside: The file NAME.json.
    """
    _draw_features(found, beside.with_suffix(".png"))
    _draw_sites(found.sites, beside.with_name(f"{beside.stem}-sites.png"))


def _draw_features(found: Statistics, path: Path) -> None:
    shown = found.features[:_MOST_FEATURES]
    columns = min(len(shown), _PER_LINE)
    lines = -(-len(shown) // columns)
    figure = _figure(max(3.4 * columns, 6), 2.7 * lines + 0.6)
    for number, feature in enumerate(shown, start=1):
        _draw_feature(figure.add_subplot(lines, columns, number), feature)
    more = f"; the first {len(shown)} of {len(found.features)}" if len(shown) < len(found.features) else ""
    figure.suptitle(f"{found.num_examples:,} examples of {len(found.sites)} sites{more}", fontsize=12)
    _save(figure, path)


def _draw_feature(axes: Any, feature: Feature) -> None:
    edges = np.linspace(feature.edges_low, feature.edges_high, len(feature.counts) + 1)
    axes.stairs(feature.counts, edges, fill=True, color=_COLOUR)
    axes.axvline(feature.mean, color=_MEAN, linewidth=1.5)
    axes.axvspan(feature.mean - feature.std, feature.mean + feature.std, color=_MEAN, alpha=0.12, linewidth=0)
    untold = f", {feature.untold:,} untold" if feature.untold else ""
    axes.set_title(f"{feature.name}: {feature.mean:.4g} ± {feature.std:.3g}{untold}", fontsize=10)
    axes.set_xlim(feature.edges_low, feature.edges_high)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sites(sites: Sequence[Site], path: Path) -> None:
    shown = sorted(sites, key=lambda site: (-site.num_examples, site.worker))[:_MOST_SITES]
    classes = list(dict.fromkeys(name for site in shown for name in site.examples_per_class))[:_MOST_CLASSES]
    figure = _figure(8, 0.32 * len(shown) + 1.6)
    axes = figure.add_subplot()
    ends = np.zeros(len(shown))
    for number, (name, sizes) in enumerate(_parts(shown, classes)):
        colour = _colour(number, len(classes)) if number < len(classes) else _NOT_TOLD
        if any(sizes):
            axes.barh([site.worker for site in shown], sizes, left=ends, color=colour, label=name, height=0.7)
        ends += sizes
    axes.invert_yaxis()
    axes.set_xlabel("Examples to train on")
    more = f" (the largest {len(shown)} of {len(sites)} sites)" if len(shown) < len(sites) else ""
    axes.set_title(f"Who holds what{more}", fontsize=12)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def _parts(sites: Sequence[Site], classes: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Of each class how many examples each site has, and last how many are of a class that isn't told or shown."""
    parts = [(name, [site.examples_per_class.get(name, 0) for site in sites]) for name in classes]
    told = [sum(sizes) for sizes in zip(*(its for _, its in parts), strict=True)] or [0] * len(sites)
    rest = [max(0, site.num_examples - its) for site, its in zip(sites, told, strict=True)]
    return [*parts, ("other classes, or not told" if classes else "examples", rest)]


def _colour(number: int, of: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["tab10" if of <= 10 else "tab20"](number)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    """Write the picture aside and put it in place."""
    aside = path.with_name(f".{path.name}.aside")
    figure.savefig(aside, format="png")
    aside.replace(path)
