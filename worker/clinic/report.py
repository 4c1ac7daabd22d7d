"""What the clinic says about one X-ray: class, how sure, where the model looked, what speaks against it."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from broker.model.head import Floats
from worker.clinic.current_model import ModelSource, Served
from worker.data.images import ImageFacts, Pixels, Shape, facts_of, read_image

_UNCERTAIN_MARGIN = 0.4  # between the two most probable classes; for two classes, 0.7 against 0.3

# Drawn from 640 of Kermany's X-rays at this size: none has any colour, the flattest varies by 20 gray levels,
# the roughest has 0.28, the whitest 1.3 % of white; noise has a roughness of 1.
_GUARD_SHAPE: Shape = (64, 64, 3)
_COLOURED = 40  # difference between a pixel's strongest and weakest channel
_MAX_COLOURED = 0.15
_MIN_CONTRAST = 6.0
_MAX_ROUGHNESS = 0.5
_WHITE = 250
_MAX_WHITE = 0.5

# Dark violet to yellow, as matplotlib's inferno: rising in brightness, readable without colour vision.
_HEAT = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
_COLOURS = ((66, 10, 104), (106, 23, 110), (188, 55, 84), (237, 105, 37), (251, 155, 6), (252, 255, 164))
_FAINT = (0.1, 0.6)  # between these the image shows through
_MIN_HEAT_SIZE = 192  # a map is drawn at least as large, so that a browser needn't smooth it


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which pictures a reading brings along: they cost time and bytes.

    Attributes:
        heatmap: Where the model looked.
        seen: The image as the model got it.
    """

    heatmap: bool = False
    seen: bool = False


def read_xray(data: bytes, name: str, source: ModelSource, wanted: Wanted) -> dict[str, Any]:
    """Classify one uploaded image.

    Args:
        data: The file's bytes.
        name: As the reading calls it.
        source: The model.
        wanted: The pictures to bring along.

    Returns:
        What `POST /predict` gives for it, ready for JSON.

    Raises:
        DataError: It can't be read as an image.
        ModelError: The model's output isn't finite.
    """
    served = source.current()
    pixels = read_image(data, served.classifier.shape)
    doubt = doubt_about(read_image(data, _GUARD_SHAPE))
    look = source.look(served, pixels)
    classes = served.classifier.classes
    reading = _reading(look.probabilities, classes, doubt)
    heatmap = draw_heat(look.heat, served.classifier.shape) if wanted.heatmap else None
    pictures = {
        **({"heatmap": heatmap, "heatmap_class": classes[look.heat_class]} if wanted.heatmap else {}),
        **({"seen": _data_url(Image.fromarray(pixels.squeeze()))} if wanted.seen else {}),
    }
    return {"name": name, **reading, **pictures, "image": _facts(data, served), "model": _model_of(served)}


def doubt_about(rgb: Pixels) -> str | None:
    """Why a picture is hardly an X-ray, by rules of thumb; None if nothing speaks against it.

    Args:
        rgb: (64, 64, 3).
    """
    values = rgb.astype(np.float32)
    gray = values.mean(axis=2)
    contrast = float(gray.std())
    if float((np.ptp(values, axis=2) > _COLOURED).mean()) > _MAX_COLOURED:
        return "it is coloured"
    if contrast < _MIN_CONTRAST:
        return "it is almost uniform"
    if _roughness(gray) > _MAX_ROUGHNESS * contrast:
        return "it is mostly noise or fine pattern"
    if float((gray >= _WHITE).mean()) > _MAX_WHITE:
        return "it is mostly white, as a page or a drawing"
    return None


def draw_heat(heat: Floats | None, shape: Shape) -> str | None:
    """The heat map as a data URL: a PNG to lay over the image, transparent where the model didn't look."""
    if heat is None:
        return None
    height, width = (max(size, _MIN_HEAT_SIZE) for size in shape[:2])
    smooth = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(smooth), 0, 1)
    channels = [np.interp(level, _HEAT, [colour[i] for colour in _COLOURS]) for i in range(3)]
    alpha = np.interp(level, _FAINT, (0, 255))
    return _data_url(Image.fromarray(np.stack([*channels, alpha], axis=2).astype(np.uint8)))


def _reading(row: Floats, classes: tuple[str, ...], doubt: str | None) -> dict[str, Any]:
    best = int(row.argmax())
    second, first = np.sort(row)[-2:]
    is_uncertain = bool(first - second < _UNCERTAIN_MARGIN)
    return {
        "class": classes[best],
        "probability": float(row[best]),
        "probabilities": {name: float(value) for name, value in zip(classes, row, strict=True)},
        "uncertain": is_uncertain,
        "warning": _warning(doubt, is_uncertain=is_uncertain),
    }


def _warning(doubt: str | None, *, is_uncertain: bool) -> str | None:
    sentences = []
    if doubt:
        sentences.append(f"This does not look like an X-ray: {doubt}. The model answers all the same.")
    if is_uncertain:
        sentences.append("The model is uncertain: the classes are close together.")
    return " ".join(sentences) or None


def _roughness(gray: npt.NDArray[np.float32]) -> float:
    """Mean difference of neighbouring pixels."""
    steps = [np.abs(np.diff(gray, axis=axis)).mean() for axis in (0, 1)]
    return float(np.mean(steps))


def _facts(data: bytes, served: Served) -> dict[str, Any]:
    """How the file was and what became of it; it has been decoded before, so it is known to be whole."""
    facts = facts_of(data)
    model_height, model_width, channels = served.classifier.shape
    is_stretched = facts.width * model_height != facts.height * model_width
    return {
        "width": facts.width,
        "height": facts.height,
        "colour": _colour_of(facts),
        "preprocessing": _story(facts, served.classifier.shape),
        "stretched": is_stretched,
        "channels": channels,
    }


def _story(facts: ImageFacts, shape: Shape) -> str:
    to_height, to_width, channels = shape
    became = "grayscale" if channels == 1 else "three colour channels"
    if (facts.width, facts.height) == (to_width, to_height):
        size = "kept at that size"
    elif facts.width * to_height == facts.height * to_width:
        size = f"resized to {to_width} × {to_height}"
    else:
        size = f"stretched to {to_width} × {to_height} (its proportions change)"
    page = f"The first of {facts.pages} pages: " if facts.pages > 1 else ""
    was = f"{page}{facts.width} × {facts.height} pixels, {_colour_of(facts)}"
    return f"{was}; {size}, {became}. The rest is inside the model."


def _colour_of(facts: ImageFacts) -> str:
    depth = f"{facts.bits}-bit " if facts.bits > 8 else ""
    return f"{depth}{'colour' if facts.is_colour else 'grayscale'}"


def _model_of(served: Served) -> dict[str, Any]:
    card = served.classifier.card
    return {
        "version": served.version,
        "run_id": card.run_id if card else None,
        "round": card.round_number if card else None,
    }


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
