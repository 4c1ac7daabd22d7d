"""Where the examples of a data set's subsets come from: arrays, or images that are decoded for one shape at a time."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from broker.errors import DataError
from broker.wire.tensors import InputFacts
from worker.data.images import KINDS, Shape, check_image_shape, facts_of, read_image, size_of
from worker.data.listing import ImageFiles, LabelledArrays, Labels, Skipped, Subset

_NAMES_SHOWN = 3
_STRANGE_RATIO = (
    50  # of the two subsets' largest values: 255, if one was scaled to 0..1 and the other was not
)
_TIFF_SUFFIXES = (".tif", ".tiff")
_IMAGE_INPUTS = InputFacts(shape=None, dtype="uint8", low=0.0, high=255.0)

log = logging.getLogger(__name__)

Pixels = npt.NDArray[Any]
Size = tuple[int, int]  #: width and height of a picture as it is stored


class Source(Protocol):
    """Where the examples of one subset come from."""

    @property
    def labels(self) -> Labels:
        """(n,) class indices."""
        ...

    @property
    def values(self) -> npt.NDArray[Any]:
        """(n,) the labels as they were given."""
        ...

    @property
    def weights(self) -> npt.NDArray[np.float32] | None:
        """(n,) what each example counts in the loss; None: all the same."""
        ...

    @property
    def groups(self) -> Sequence[str] | None:
        """Whose examples they are, n names, if that is known."""
        ...

    def sizes(self) -> list[Size]:
        """How large the pictures are as they are stored; empty of what are none."""
        ...

    def read(self, shape: Shape, index: Labels | None = None) -> Pixels:
        """Their values.

        Args:
            shape: Of one example.
            index: (n,) which ones; None: all.

        Returns:
            (n, *shape) uint8 or float32; may be read-only.

        Raises:
            DataError: They can't have that shape, or can't be read any more.
        """
        ...


class _Arrays:
    """Examples that came as arrays."""

    groups = None

    def __init__(self, subset: LabelledArrays) -> None:
        self.labels = subset.labels
        self.values = subset.values
        self.weights = subset.weights
        self._x = _compact(subset.x)

    def ends(self) -> tuple[float, float]:
        """The least and the largest value."""
        return float(self._x.min()), float(self._x.max())

    def sizes(self) -> list[Size]:
        """None: what examples in arrays show isn't known."""
        return []

    def read(self, shape: Shape, index: Labels | None = None) -> Pixels:
        x = self._x if index is None else self._x[index]
        given = x.shape[1:]
        if given == shape or given == (*shape, 1) or (*given, 1) == shape:
            return x.reshape(-1, *shape) if len(x) else np.empty((0, *shape), x.dtype)
        raise DataError(
            f"The data's examples have the shape {given}; the model takes {shape}. "
            "Use data of that shape, or a model for this data."
        )


class _Images:
    """Images in files, decoded for one shape at a time and kept as uint8."""

    def __init__(self, files: ImageFiles, shape: Shape, decoded: Pixels) -> None:
        self.labels = self.values = files.labels
        self.weights: npt.NDArray[np.float32] | None = None
        self.groups: Sequence[str] | None = files.patients
        self._files = files
        self._shape = shape
        self._decoded = decoded
        self._lock = threading.Lock()  # a swarm's workers ask from several threads

    def sizes(self) -> list[Size]:
        """From the files' headers."""
        found = map(size_of, self._files.paths)
        return [(size.width, size.height) for size in found]

    def read(self, shape: Shape, index: Labels | None = None) -> Pixels:
        with self._lock:
            if shape != self._shape and index is not None:
                return _decode_all(self._files.take(index).paths, shape)
            if shape != self._shape:
                self._decoded = _decode_all(self._files.paths, shape)
                self._decoded.flags.writeable = False
                self._shape = shape
            return self._decoded if index is None else self._decoded[index]


class Excerpt:
    """Some examples of another source."""

    def __init__(self, source: Source, index: Labels) -> None:
        self.labels = source.labels[index]
        self.values = source.values[index]
        self.weights = None if source.weights is None else source.weights[index]
        self.groups = None if source.groups is None else [source.groups[i] for i in index]
        self._source = source
        self._index = index

    def sizes(self) -> list[Size]:
        """Those of the other source, which all who share it have in common."""
        return self._source.sizes()

    def read(self, shape: Shape, index: Labels | None = None) -> Pixels:
        """As the other source gives them."""
        if index is not None:
            return self._source.read(shape, self._index[index])
        return self._source.read(shape)[self._index]  # decodes for all who share the source


def _compact(x: npt.NDArray[Any]) -> Pixels:
    """uint8 where nothing is lost by it, else float32."""
    if x.dtype in (np.uint8, np.float32):
        return x
    is_whole = x.dtype == bool or np.issubdtype(x.dtype, np.integer)
    if is_whole and (not x.size or (x.min() >= 0 and x.max() <= 255)):
        return x.astype(np.uint8)
    return x.astype(np.float32)


def open_sources(
    train: Subset, test: Subset, classes: tuple[str, ...], shape: Shape
) -> tuple[tuple[Source, Source], InputFacts, tuple[Skipped, ...]]:
    """Open the two subsets of a data set, and say what the examples of both are like, and what was skipped.

    Args:
        train: What is trained on.
        test: What is tested on, of the same kind.
        classes: Class names; the subsets' labels are indices into it.
        shape: What images are decoded for now.

    Raises:
        DataError: No image of a class can be decoded.
    """
    if isinstance(train, ImageFiles) and isinstance(test, ImageFiles):
        sources, skipped = _open_images(train, test, classes, shape)
        return sources, _IMAGE_INPUTS, skipped
    return *_open_arrays(train, test), ()


def _open_arrays(train: Subset, test: Subset) -> tuple[tuple[Source, Source], InputFacts]:
    given = [subset for subset in (train, test) if isinstance(subset, LabelledArrays)]
    first, second = (_Arrays(subset) for subset in given)
    ends = [source.ends() for source in (first, second) if len(source.labels)]
    _tell_ranges(ends)
    x = given[0].x if len(given[0].x) else given[1].x
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return (first, second), InputFacts(shape=x.shape[1:], dtype=x.dtype.name, low=low, high=high)


def _tell_ranges(ends: Sequence[tuple[float, float]]) -> None:
    """Warn when one subset was scaled, as it seems, and the other was not."""
    sizes = [max(abs(low), abs(high)) for low, high in ends]
    if len(ends) == 2 and max(sizes) > _STRANGE_RATIO * min(sizes) > 0:
        log.warning(
            "x_train lies between %g and %g, x_test between %g and %g. If one was scaled and the other was "
            "not, what is measured says nothing: scale both alike",
            *(end for its in ends for end in its),
        )


def _open_images(
    train: ImageFiles, test: ImageFiles, classes: tuple[str, ...], shape: Shape
) -> tuple[tuple[Source, Source], tuple[Skipped, ...]]:
    """Decode both subsets in one go, so that there is one progress bar and one warning."""
    pixels, reasons = _decode((*train.paths, *test.paths), shape)
    if reasons:
        _warn(reasons, len(pixels))
    kept = np.array([i for i in range(len(pixels)) if i not in reasons], np.int64)
    _tell_pages([path for i, path in enumerate((*train.paths, *test.paths)) if i not in reasons])
    pixels = pixels[kept] if reasons else pixels
    pixels.flags.writeable = False
    cut = int(np.searchsorted(kept, len(train.paths)))
    sources = (
        _Images(train.take(kept[:cut]), shape, pixels[:cut]),
        _Images(test.take(kept[cut:] - len(train.paths)), shape, pixels[cut:]),
    )
    for before, after in zip((train, test), sources, strict=True):
        _check_left(before.labels, after.labels, classes)
    return sources, _unreadable((*train.paths, *test.paths), reasons)


def _unreadable(paths: Sequence[Path], reasons: dict[int, DataError]) -> tuple[Skipped, ...]:
    if not reasons:
        return ()
    types = Counter(paths[i].suffix.lower() or "without suffix" for i in reasons)
    first = tuple(str(reason) for reason in list(reasons.values())[:_NAMES_SHOWN])
    what = "images that can't be read"
    return (Skipped(count=len(reasons), what=what, types=dict(types.most_common()), reasons=first),)


def _check_left(before: Labels, after: Labels, classes: tuple[str, ...]) -> None:
    for label in np.setdiff1d(before, after):
        raise DataError(
            f"None of the images of class {classes[label]!r} can be decoded. "
            f"Expected {KINDS} files. Replace them."
        )


def _warn(reasons: dict[int, DataError], total: int) -> None:
    first = "; ".join(str(reason) for reason in list(reasons.values())[:_NAMES_SHOWN])
    more = f"; and {len(reasons) - _NAMES_SHOWN} more" if len(reasons) > _NAMES_SHOWN else ""
    log.warning("Skipped %d of %d images. %s%s", len(reasons), total, first, more)


def _tell_pages(paths: Sequence[Path]) -> None:
    """Say once how many files hold more than the picture that is read."""
    tiffs = [path for path in paths if path.suffix.lower() in _TIFF_SUFFIXES]
    several = [path for path in tiffs if facts_of(path).pages > 1]
    if several:
        log.warning(
            "%d of %d TIFF files have more than one page; the first page of each is read. The first is %s",
            len(several),
            len(tiffs),
            several[0],
        )


def _decode_all(paths: Sequence[Path], shape: Shape) -> Pixels:
    """Decode images that could be decoded before; DataError if one can't any more."""
    pixels, reasons = _decode(paths, shape)
    if reasons:
        _warn(reasons, len(paths))
        # This one may travel to the coordinator, as the reason of a worker that declines: no file names.
        raise DataError(
            f"{len(reasons)} of {len(paths)} images, which could be read before, can't be read any more; "
            "the worker's log names them. Put them back, or start the worker anew."
        )
    return pixels


def _decode(paths: Sequence[Path], shape: Shape) -> tuple[Pixels, dict[int, DataError]]:
    """Decode files into (n, *shape) uint8, and say by position why some can't be."""
    check_image_shape(shape)
    pixels = np.zeros((len(paths), *shape), np.uint8)
    reasons: dict[int, DataError] = {}

    def decode_one(position: int) -> None:
        try:
            pixels[position] = read_image(paths[position], shape)
        except DataError as exc:
            reasons[position] = exc

    from tqdm import tqdm  # 50 ms that only a command with a bar shall pay

    with (
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,  # Pillow decodes without the GIL
        tqdm(desc="Decoding", total=len(paths), unit=" images", leave=False, disable=None) as bar,
    ):
        for _ in pool.map(decode_one, range(len(paths))):
            bar.update()
    return pixels, dict(sorted(reasons.items()))
