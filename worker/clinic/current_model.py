"""The clinic always uses the newest good model, while training goes on writing new ones."""

import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from broker.errors import ModelError, WarrenError
from broker.model.card import ModelCard
from broker.model.likeness import PIXELS
from worker.clinic.gradcam import GradCam, Look
from worker.data.classes import Declared
from worker.data.images import Pixels, Shape, check_image_shape
from worker.learning.inference import Inference
from worker.learning.saved_model import as_it_says, check_scale, load_model

CHECK_SECONDS = 1.0  #: a changed file is noticed no later than this before a request

_AUC_NAMES = (
    "central_auc",
    "test_auc",
    "val_auc",
    "auc",
)  # as the card's metrics may call it, the best first

_log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classifier:
    """A model that explains itself.

    Attributes:
        card: What it says about itself; None for a model from elsewhere.
        shape: (height, width, channels) of what it takes.
        classes: Class names in the order of its outputs.
        look: Classifies an image of that shape; one call at a time.
    """

    card: ModelCard | None
    shape: Shape
    classes: tuple[str, ...]
    look: Callable[[Pixels], Look]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """The model in use.

    Attributes:
        classifier: The model.
        version: Counts the models since the start, from 1.
        warning: Why a newer file isn't used; None if this is the newest.
    """

    classifier: Classifier
    version: int
    warning: str | None = None


def open_classifier(path: Path, declared: Declared | None = None) -> Classifier:
    """Load a model, trace it, and try it on an empty picture: a wrong one fails here, not on a patient.

    Args:
        path: Of the model.
        declared: The classes of one from elsewhere, as a person says them.

    Raises:
        ModelError: It is missing, damaged, not allowed, or gives NaN.
        DataError: It takes no images, or was trained on values of another scale.
    """
    loaded = as_it_says(load_model(path), declared, path)
    if loaded.needs is not None:
        raise ModelError(
            f"The model {str(path)!r} is no classifier of images, and the clinic shows nothing else. Try "
            "`worker predict`."
        )
    check_image_shape(loaded.shape)
    check_scale(loaded.card, PIXELS, loaded.shape)
    look = GradCam(Inference(loaded.model)).look
    look(np.full(loaded.shape, 128, np.uint8))
    return Classifier(card=loaded.card, shape=loaded.shape, classes=loaded.classes, look=look)


class ModelSource:
    """A model file, opened again when it changes; safe to use from many threads."""

    def __init__(
        self,
        path: Path,
        open_model: Callable[[Path], Classifier] = open_classifier,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the model.

        Args:
            path: The file, replaced as a whole (renamed into place) by whoever writes it.
            open_model: How it is opened.
            clock: Seconds.

        Raises:
            WarrenError: It can't be opened.
        """
        self.path = path
        self._open = open_model
        self._clock = clock
        self._keras = threading.Lock()  # one call into Keras at a time, whichever thread it comes from
        self._checking = threading.Lock()
        self._checked_at = clock()
        # Taken before the file is read: one that is replaced meanwhile is seen at the next look.
        self._stamp = _stamp_of(path)
        self._served = Served(classifier=open_model(path), version=1)

    def current(self) -> Served:
        """The model to use, after a look at the file if the last one was a second ago."""
        if self._checking.acquire(blocking=False):  # else another request looks: no one waits for it
            try:
                self._check()
            finally:
                self._checking.release()
        return self._served

    def look(self, served: Served, pixels: Pixels) -> Look:
        """Let the model look at one image.

        Raises:
            ModelError: Its output isn't finite.
        """
        with self._keras:
            return served.classifier.look(pixels)

    def _check(self) -> None:
        now = self._clock()
        if now - self._checked_at < CHECK_SECONDS:
            return
        self._checked_at = now
        stamp = _stamp_of(self.path)
        if stamp != self._stamp:
            self._stamp = stamp
            self._served = self._replacement()

    def _replacement(self) -> Served:
        former = self._served
        try:
            with self._keras:
                classifier = self._open(self.path)
        except WarrenError as exc:
            _log.warning("Kept the former model: %s", exc)
            return Served(
                classifier=former.classifier,
                version=former.version,
                warning=f"The new model file can't be used; the former model still answers. {exc}",
            )
        _log.info("The model has changed: %s", _name_of(classifier))
        # A Keras model is a knot of references. Collected at each change, 40 of them cost 15 MB instead of 60.
        gc.collect()
        return Served(classifier=classifier, version=former.version + 1)


def describe(served: Served, path: Path) -> dict[str, object]:
    """The model for a person and for `GET /model`: plain values, None where it doesn't tell."""
    classifier = served.classifier
    card = classifier.card
    height, width, channels = classifier.shape
    return {
        "file": path.name,
        "version": served.version,
        "name": _name_of(classifier),
        "task": card.task if card else None,
        "run_id": card.run_id if card else None,
        "round": card.round_number if card else None,
        "saved_at": _readable_time(card.saved_at) if card else None,
        "num_examples": card.num_examples if card else None,
        "auc": _auc_of(card) if card else None,
        "classes": list(classifier.classes),
        "shape": [height, width, channels],
        "input": f"{width} × {height} pixels, {'grayscale' if channels == 1 else 'colour'}",
        "warning": served.warning,
    }


def _name_of(classifier: Classifier) -> str:
    card = classifier.card
    return f"{card.task}, round {card.round_number}" if card else "a model without a card"


def _auc_of(card: ModelCard) -> float | None:
    return next((card.metrics[name] for name in _AUC_NAMES if name in card.metrics), None)


def _readable_time(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if moment.tzinfo else f"{moment:%Y-%m-%d %H:%M}"


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
