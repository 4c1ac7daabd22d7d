"""What `coordinator statistics` prints: each feature with its figures, and who holds what."""

from collections.abc import Sequence

from coordinator.learning.statistics import Feature, Site, Statistics

_MOST_FEATURES = 40
_MOST_SITES = 100
_MOST_CLASSES = 12
_BLOCKS = " ▁▂▃▄▅▆▇█"


def statistics_text(found: Statistics) -> str:
    """The whole of it."""
    features = [_feature_cells(each) for each in found.features[:_MOST_FEATURES]]
    head = ["", "mean", "std", "from", "to", "histogram", "untold"]
    parts = [
        f"{found.num_examples:,} examples of {len(found.sites)} sites, each of shape {found.shape}. Every count rests "
        f"on {found.floor} examples of a site or more; 'untold' are the values in bins with fewer.",
        _columns([head, *features]),
        _columns(_site_rows(found.sites)),
    ]
    if len(found.features) > _MOST_FEATURES:
        parts.insert(2, f"and {len(found.features) - _MOST_FEATURES} more features: see the file.")
    if len(found.sites) > _MOST_SITES:
        parts.append(f"and {len(found.sites) - _MOST_SITES} more sites: see the file.")
    parts += [f"{worker} has no part in this: {reason}" for worker, reason in sorted(found.left_out.items())]
    return "\n\n".join(parts)


def _feature_cells(feature: Feature) -> list[str]:
    figures = (feature.mean, feature.std, feature.low, feature.high)
    return [feature.name, *(f"{each:.6g}" for each in figures), _bars(feature.counts), f"{feature.untold:,}"]


def _bars(counts: Sequence[int]) -> str:
    """A histogram on one line; what has any value has a bar."""
    most = max(counts) or 1
    return "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // most)] for count in counts)


def _site_rows(sites: Sequence[Site]) -> list[list[str]]:
    classes = list(dict.fromkeys(name for site in sites for name in site.examples_per_class))[:_MOST_CLASSES]
    return [
        ["site", "examples", *classes],
        *(
            [
                site.worker,
                f"{site.num_examples:,}",
                *(
                    f"{site.examples_per_class[name]:,}" if name in site.examples_per_class else ""
                    for name in classes
                ),
            ]
            for site in sites[:_MOST_SITES]
        ),
    ]


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
