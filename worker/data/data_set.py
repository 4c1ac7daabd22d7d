"""One participant's private data: opened once, decoded once per shape, handed out as arrays."""

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from broker.errors import DataError
from broker.wire.tensors import InputFacts
from worker.data.classes import Declared
from worker.data.finding import find_listing
from worker.data.images import KINDS, Shape, check_image_shape, facts_of, read_image
from worker.data.listing import (
    ImageFiles,
    LabelledArrays,
    Labels,
    Listing,
    Subset,
    count_per_class,
    patient_of,
)
from worker.data.partition import deal_examples, partition

__all__ = ["DEFAULT_SHAPE", "Dataset", "Examples", "open_data", "patient_of"]

DEFAULT_SHAPE: Shape = (224, 224, 1)  #: what images are decoded for before a model has said what it takes
_HELD_OUT = 0.1  # of the training part, when there is no test part
_NAMES_SHOWN = 3
_STRANGE_RATIO = 50  # of the two parts' largest values: 255, if one was scaled to 0..1 and the other was not
_TIFF_SUFFIXES = (".tif", ".tiff")
_IMAGE_INPUTS = InputFacts(shape=None, dtype="uint8", low=0.0, high=255.0)

log = logging.getLogger(__name__)

Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Examples as a model takes them.

    Attributes:
        x: (n, *shape) uint8 or float32; may be read-only.
        y: (n,) int64 class indices.
    """

    x: Pixels
    y: Labels

    def __len__(self) -> int:
        return len(self.y)


class Source(Protocol):
    """Where the examples of one part come from."""

    @property
    def labels(self) -> Labels:
        """(n,) class indices."""
        ...

    @property
    def groups(self) -> Sequence[str] | None:
        """Whose examples they are, n names, if that is known."""
        ...

    def read(self, shape: Shape, index: Labels | None = None) -> Pixels:
        """The examples at `index` (all: None) as (n, *shape)."""
        ...


class Dataset:
    """A participant's data set.

    Attributes:
        classes: Class names, in the order of a model's outputs.
        is_held_out: Whether the test part was taken out of the training part, for want of one.
        num_train_examples: Images that can't be decoded are not counted.
        num_test_examples: The same.
        inputs: What the examples are like, of both parts together; logical sites share the whole set's.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        train: Source,
        test: Source,
        *,
        inputs: InputFacts,
        is_held_out: bool,
    ) -> None:
        self.classes = classes
        self.inputs = inputs
        self.is_held_out = is_held_out
        self._train = train
        self._test = test

    @property
    def num_train_examples(self) -> int:
        """How many there are to train on."""
        return len(self._train.labels)

    @property
    def num_test_examples(self) -> int:
        """How many there are to test on."""
        return len(self._test.labels)

    @property
    def examples_per_class(self) -> dict[str, int]:
        """Training examples of each class, by name."""
        counts = count_per_class(self._train.labels, len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}

    def train(self, shape: Shape) -> Examples:
        """The training part for a model that takes `shape`.

        Raises:
            DataError: The data can't have that shape.
        """
        return Examples(x=self._train.read(shape), y=self._train.labels)

    def test(self, shape: Shape) -> Examples:
        """The test part, likewise."""
        return Examples(x=self._test.read(shape), y=self._test.labels)

    def sample(self, shape: Shape, examples_per_class: int | None, rng: np.random.Generator) -> Examples:
        """Random training examples, equally many of each class; None: the whole training part.

        Raises:
            DataError: A class has fewer, or the data can't have that shape.
        """
        if examples_per_class is None:
            return self.train(shape)
        for name, count in self.examples_per_class.items():
            if count < examples_per_class:
                raise DataError(
                    f"The run trains on {examples_per_class} examples per class; {name!r} has {count} here. "
                    f"Bring more, or start the run with --examples-per-class {count} or less."
                )
        return _sample(self._train, shape, examples_per_class, rng)

    def sample_test(self, shape: Shape, examples_per_class: int | None, rng: np.random.Generator) -> Examples:
        """Half as many test examples per class, or as many as there are; None: the whole test part."""
        if examples_per_class is None:
            return self.test(shape)
        return _sample(self._test, shape, max(1, examples_per_class // 2), rng)

    def divide(self, into: int, scheme: str, seed: int) -> "list[Dataset]":
        """Cut into logical sites that share the decoded images; the test part is dealt evenly.

        Raises:
            DataError: A site would be left without examples.
            UsageError: The scheme is impossible.
        """
        train = partition(self._train.labels, self._train.groups, into, scheme, seed)
        test = deal_examples(self._test.labels, into, seed)
        return [
            Dataset(
                self.classes,
                _Excerpt(self._train, mine),
                _Excerpt(self._test, its),
                inputs=self.inputs,
                is_held_out=self.is_held_out,
            )
            for mine, its in zip(train, test, strict=True)
        ]


def open_data(
    spec: str,
    *,
    for_training: bool = True,
    shape: Shape = DEFAULT_SHAPE,
    seed: int = 0,
    classes: Declared | None = None,
) -> Dataset:
    """Open a folder of images, an .npz, or what MODULE:FUNCTION returns.

    Images are decoded here, so that those which can't be are known (one WARNING) and the counts are right.

    Args:
        spec: As `--data` takes it.
        for_training: Without a test part, hold out a tenth of the training part, whole patients. Otherwise
            the training part is left alone: the test part, or all of a set without one, is the test part.
        shape: What images are decoded for now; another shape is decoded when a model wants it.
        seed: Chooses what is held out.
        classes: The classes as `--classes` names them, of which the data may lack some.

    Raises:
        DataError: There is no data, or it can't be used.
    """
    listing = find_listing(spec, classes)
    train, test, is_held_out = _choose_parts(listing, spec, for_training=for_training, seed=seed)
    if isinstance(train, ImageFiles) and isinstance(test, ImageFiles):
        sources, inputs = _open_images(train, test, listing.classes, shape), _IMAGE_INPUTS
    else:
        sources, inputs = _open_arrays(train, test)
    return Dataset(listing.classes, *sources, inputs=inputs, is_held_out=is_held_out)


def _choose_parts(
    listing: Listing, spec: str, *, for_training: bool, seed: int
) -> tuple[Subset, Subset, bool]:
    """What is trained on, what is tested on, and whether the latter had to be held out of the former."""
    train, test = listing.train, listing.test
    if for_training and train is not None:
        return (train, test, False) if test is not None else (*_hold_out(train, listing.classes, seed), True)
    whole = train if test is None else test
    if for_training or whole is None:
        raise DataError(f"{spec!r} has a test part only. Put the images to train on under train/.")
    return whole.take(np.empty(0, np.int64)), whole, False


def _hold_out(part: Subset, classes: tuple[str, ...], seed: int) -> tuple[Subset, Subset]:
    held = _choose_held_out(part.labels, part.patients, classes, np.random.default_rng(seed))
    rest = np.setdiff1d(np.arange(len(part.labels)), held)
    return part.take(rest), part.take(held)


def _choose_held_out(
    labels: Labels, patients: Sequence[str] | None, classes: tuple[str, ...], rng: np.random.Generator
) -> Labels:
    """A tenth of each class, at least one; patients whole, in all classes at once, as far as that can be."""
    names = np.asarray(patients) if patients else np.arange(len(labels))
    _, owners = np.unique(names, return_inverse=True)
    counts = np.zeros((int(owners.max()) + 1, len(classes)), np.int64)
    np.add.at(counts, (owners, labels), 1)
    is_chosen = np.zeros(len(counts), bool)
    divided = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        if counts[:, label].sum() < 2:
            raise DataError(
                f"The class {classes[label]!r} has 1 example, and one must be held out. "
                "Bring at least two examples of each class, or a test part."
            )
        _choose_owners(counts, is_chosen, label, rng)
        if not counts[is_chosen, label].any():  # one patient has all of a class, and must be divided
            members = rng.permutation(np.flatnonzero(labels == label))
            divided.append(members[: max(1, int(len(members) * _HELD_OUT))])
    return np.union1d(np.flatnonzero(is_chosen[owners]), np.concatenate(divided))


def _choose_owners(counts: Labels, is_chosen: Mask, label: np.int64, rng: np.random.Generator) -> None:
    """Mark random owners until a tenth of the class is held out; none that would use any class up."""
    total, held = counts.sum(axis=0), counts[is_chosen].sum(axis=0)
    for owner in rng.permutation(np.flatnonzero(counts[:, label])):
        if held[label] >= max(1, total[label] * _HELD_OUT):
            return
        more = held + counts[owner]
        if not is_chosen[owner] and ((more < total) | (counts[owner] == 0)).all():
            is_chosen[owner], held = True, more


# Sources


class _Arrays:
    """Examples that came as arrays."""

    groups = None

    def __init__(self, part: LabelledArrays) -> None:
        self.labels = part.labels
        self._x = _compact(part.x)

    def ends(self) -> tuple[float, float]:
        """The least and the largest value."""
        return float(self._x.min()), float(self._x.max())

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
        self.labels = files.labels
        self.groups: Sequence[str] | None = files.patients
        self._files = files
        self._shape = shape
        self._decoded = decoded
        self._lock = threading.Lock()  # a swarm's workers ask from several threads

    def read(self, shape: Shape, index: Labels | None = None) -> Pixels:
        with self._lock:
            if shape != self._shape and index is not None:
                return _decode_all(self._files.take(index).paths, shape)
            if shape != self._shape:
                self._decoded = _decode_all(self._files.paths, shape)
                self._decoded.flags.writeable = False
                self._shape = shape
            return self._decoded if index is None else self._decoded[index]


class _Excerpt:
    """Some examples of another source."""

    def __init__(self, source: Source, index: Labels) -> None:
        self.labels = source.labels[index]
        self.groups = None if source.groups is None else [source.groups[i] for i in index]
        self._source = source
        self._index = index

    def read(self, shape: Shape, index: Labels | None = None) -> Pixels:
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


def _sample(source: Source, shape: Shape, per_class: int, rng: np.random.Generator) -> Examples:
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(source.labels):
        members = np.flatnonzero(source.labels == label)
        chosen.append(rng.permutation(members)[:per_class])
    index = rng.permutation(np.concatenate(chosen))
    return Examples(x=source.read(shape, index), y=source.labels[index])


def _open_arrays(train: Subset, test: Subset) -> tuple[tuple[Source, Source], InputFacts]:
    given = [part for part in (train, test) if isinstance(part, LabelledArrays)]
    first, second = (_Arrays(part) for part in given)
    ends = [source.ends() for source in (first, second) if len(source.labels)]
    _tell_ranges(ends)
    x = given[0].x if len(given[0].x) else given[1].x
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return (first, second), InputFacts(shape=x.shape[1:], dtype=x.dtype.name, low=low, high=high)


def _tell_ranges(ends: Sequence[tuple[float, float]]) -> None:
    """Warn when one part was scaled, as it seems, and the other was not."""
    sizes = [max(abs(low), abs(high)) for low, high in ends]
    if len(ends) == 2 and max(sizes) > _STRANGE_RATIO * min(sizes) > 0:
        log.warning(
            "x_train lies between %g and %g, x_test between %g and %g. If one was scaled and the other was "
            "not, what is measured says nothing: scale both alike",
            *(end for part in ends for end in part),
        )


def _open_images(
    train: ImageFiles, test: ImageFiles, classes: tuple[str, ...], shape: Shape
) -> tuple[Source, Source]:
    """Decode both parts in one go, so that there is one progress bar and one warning."""
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
    return sources


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
