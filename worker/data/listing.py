"""What a data set is before anything is decoded: files or arrays with their labels, in subsets."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.data.classes import Declared
from worker.tables.stream import Stream
from worker.tables.table import Table

Labels = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_PATIENT = re.compile(r"(person\d+|(?:NORMAL\d*-)?IM-\d+)(?=[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """What lies there and is not taken.

    Attributes:
        count: How many files.
        what: In words, e.g. "files that are no images".
        types: How many of them have which suffix, as far as that is why; the most first.
        reasons: Of the first few, with their names: for this site's own eyes.
    """

    count: int
    what: str
    types: dict[str, int] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFiles:
    """One subset (train or test) of a folder of images.

    Attributes:
        paths: The files, sorted by class and name.
        inner: Each one's path below its class folder.
        labels: (n,) the class index of each.
        patients: Whose picture each is, as far as that is known; any text that tells them apart.
    """

    paths: tuple[Path, ...]
    inner: tuple[Path, ...]
    labels: Labels
    patients: tuple[str, ...] = ()

    def grouped(self, patients: tuple[str, ...]) -> "ImageFiles":
        """The same files with their patients."""
        return replace(self, patients=patients)

    def take(self, index: Labels) -> "ImageFiles":
        """The files at these positions."""
        return ImageFiles(
            paths=tuple(self.paths[i] for i in index),
            inner=tuple(self.inner[i] for i in index),
            labels=self.labels[index],
            patients=tuple(self.patients[i] for i in index),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledArrays:
    """One subset (train or test) of a data set in arrays.

    Attributes:
        x: (n, ...) examples as they were given.
        labels: (n,) the class index of each.
        values: (n,) the labels as they were given.
        weights: (n,) what each example counts in the loss; None: all the same.
    """

    x: Array
    labels: Labels
    values: Array
    weights: Array | None = None

    @property
    def patients(self) -> None:
        """Arrays don't tell whose examples they hold."""
        return

    def take(self, index: Labels) -> "LabelledArrays":
        """The examples at these positions."""
        weights = None if self.weights is None else self.weights[index]
        return LabelledArrays(
            x=self.x[index], labels=self.labels[index], values=self.values[index], weights=weights
        )


#: One half of a data set: what is trained on, or what is tested on.
Subset = ImageFiles | LabelledArrays


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listing:
    """A data set as it lies there.

    Attributes:
        classes: Class names; labels are indices into it.
        train: The training subset; None if there is only test/.
        test: The test subset, if there is one.
        has_subfolders: Whether folders of images lie under train/ and test/.
        declared: The classes as somebody said them, if so: sites may lack some, and keep names and order.
        skipped: What was left out.
    """

    classes: tuple[str, ...]
    train: Subset | None
    test: Subset | None
    has_subfolders: bool = False
    declared: Declared | None = None
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """A data set of any other form than labelled examples, as it lies there.

    Attributes:
        train: The training subset.
        test: The test subset, if there is one.
    """

    train: Table | Stream
    test: Table | Stream | None


def patient_of(filename: str) -> str:
    """The patient in an X-ray's name: personN, IM-NNNN or NORMAL2-IM-NNNN; else the name itself."""
    match = _PATIENT.match(filename)
    return match.group(1) if match else filename


def first_line(exc: BaseException) -> str:
    """What another library says, short enough for one line of ours."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0].rstrip(".") + "."


def count_per_class(labels: Labels, num_classes: int) -> Labels:
    """(num_classes,) examples of each class."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64)
