"""What a trained model says about single images: this is what the doctor gets."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broker.errors import DataError
from broker.model.likeness import PIXELS
from worker.data.images import Pixels, check_image_shape, facts_of, read_image
from worker.learning.inference import Inference
from worker.learning.saved_model import LoadedModel, check_scale

_BATCH = 32  # images that are in memory at a time

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        path: The image.
        class_name: The most probable class.
        probability: Of that class.
        probabilities: Of every class, by name.
    """

    path: str
    class_name: str
    probability: float
    probabilities: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """As `worker predict --json` shows it."""
        return {
            "path": self.path,
            "class": self.class_name,
            "probability": self.probability,
            "probabilities": self.probabilities,
        }


def predict(
    loaded: LoadedModel, images: Sequence[Path], on_unreadable: Callable[[DataError], None]
) -> Iterator[Prediction]:
    """Classify image files, in order; a prediction doesn't depend on the other images.

    Args:
        loaded: The model with its shape and classes.
        images: Files of any size and colour mode.
        on_unreadable: Told of each file that can't be read; the others are still classified.

    Raises:
        DataError: The model takes no images.
        ModelError: Its output doesn't fit its classes.
    """
    if loaded.needs is not None:
        raise DataError("The model is no classifier of images. Give it rows: an .npz with x, or a .csv.")
    check_image_shape(loaded.shape)
    check_scale(loaded.card, PIXELS, loaded.shape)
    model = Inference(loaded.model)
    for start in range(0, len(images), _BATCH):
        readable = list(_read(images[start : start + _BATCH], loaded, on_unreadable))
        if readable:
            yield from _classify(model, loaded.classes, readable)


def _read(
    images: Sequence[Path], loaded: LoadedModel, on_unreadable: Callable[[DataError], None]
) -> Iterator[tuple[str, Pixels]]:
    for path in images:
        try:
            pixels, pages = read_image(path, loaded.shape), facts_of(path).pages
        except DataError as exc:
            on_unreadable(exc)
            continue
        if pages > 1:
            _log.warning("%s has %d pages; the first is read", path, pages)
        yield str(path), pixels


def _classify(
    model: Inference, classes: tuple[str, ...], readable: list[tuple[str, Pixels]]
) -> Iterator[Prediction]:
    rows = model.probabilities(np.stack([pixels for _, pixels in readable]))
    for (path, _), row in zip(readable, rows, strict=True):
        best = int(row.argmax())
        named = {name: float(value) for name, value in zip(classes, row, strict=True)}
        yield Prediction(
            path=path, class_name=classes[best], probability=float(row[best]), probabilities=named
        )
