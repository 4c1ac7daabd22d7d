"""Whether sites hold the same kind of examples: one whose values are of another scale spoils the model in silence.

A site with images from 0 to 1 beside one from 0 to 255 took a model from 0.90 to 0.54.
"""

from collections.abc import Mapping, Sequence

from broker.wire.tensors import InputFacts

_OTHER_SCALE = 8.0  #: so many times larger is no chance of the draw, where an example is an image
_ODD_SCALE = 4.0  #: so many times larger is worth a word
_NEGATIVE = 0.05  #: of the magnitude: data that reach further below zero are signed

Shape = tuple[int, ...]


def common_inputs(facts: Mapping[str, InputFacts]) -> InputFacts | None:
    """What most sites' examples are like: the range of all that agree with the one that most agree with.

    Args:
        facts: By worker.
    """
    sites = [facts[worker] for worker in sorted(facts)]
    if not sites:
        return None
    model = max(sites, key=lambda site: sum(_agree(site, other) for other in sites))
    alike = [site for site in sites if _agree(model, site)]
    return InputFacts(
        shape=model.shape,
        dtype=model.dtype,
        low=min(site.low for site in alike),
        high=max(site.high for site in alike),
    )


def _agree(one: InputFacts, other: InputFacts) -> bool:
    return one.shape == other.shape and scale_difference(one, other) is None


def shape_difference(site: InputFacts, shape: Shape) -> str | None:
    """Why a site's examples don't fit a model that takes `shape`, or None; images in files take any."""
    if site.shape is None or site.shape == shape or (*site.shape, 1) == shape or site.shape == (*shape, 1):
        return None
    return f"its examples have the shape {site.shape}; this run's model takes {shape}"


#: Images in files, as they are handed to a model.
PIXELS = InputFacts(shape=None, dtype="uint8", low=0.0, high=255.0)


def is_other_scale(site: InputFacts, run: InputFacts, shape: Sequence[int | None]) -> bool:
    """Whether a site's images can't be of this run: features in columns may well differ between sites."""
    is_image = len(shape) >= 2
    return is_image and _ratio(site, run) >= _OTHER_SCALE


def scale_difference(
    site: InputFacts, run: InputFacts, ours: str = "its values", theirs: str = "those of most sites"
) -> str | None:
    """How a site's values differ from those of most sites, or of what a model was trained on; None if they don't.

    Args:
        site: What is looked at.
        run: What it is held against.
        ours: What the former are called in words.
        theirs: What the latter are.
    """
    if _ratio(site, run) < _ODD_SCALE and _is_signed(site) == _is_signed(run):
        return None
    return f"{ours} lie {_span(site)}; {theirs} {_span(run)}"


def _span(facts: InputFacts) -> str:
    return f"from {facts.low:g} to {facts.high:g} ({facts.dtype})"


def _ratio(one: InputFacts, other: InputFacts) -> float:
    if one.dtype == other.dtype == "uint8":
        return 1.0  # dark images are no other scale
    small, large = sorted((one.magnitude, other.magnitude))
    return large / small if small else 1.0


def _is_signed(facts: InputFacts) -> bool:
    return facts.low < -_NEGATIVE * facts.magnitude
