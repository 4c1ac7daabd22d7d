"""Class names: the same at every site, whatever its file system, and declared where a site lacks some."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.errors import DataError, UsageError

CLASSES_FILE = "classes.txt"  #: names the classes in a folder of images, one a line
CLASSES_ARRAY = "classes"  #: the same inside an .npz

_MAX_LABEL = 2**63 - 1
_WHOLE = re.compile(r"-?\d{1,19}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The classes as somebody said them, of which a site may lack some.

    Attributes:
        names: In the order of a model's outputs.
        labels: The label of each in arrays; None for names alone, which are those of the labels 0, 1, 2 and so on.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None

    @property
    def is_named(self) -> bool:
        """Whether the names are other than the labels written out."""
        return self.labels is None


#: As `--classes none` says it: what is learned is numbers, though whole ones could be class numbers.
NO_CLASSES = Declared(names=())


def normalise(name: str) -> str:
    """One spelling of what looks the same: macOS writes é as two characters (NFD), others as one (NFC)."""
    return unicodedata.normalize("NFC", name)


def parse_classes(text: str | None) -> Declared | None:
    """Read `--classes a,b,c`; whole numbers are labels themselves, and "none" says that there are no classes.

    Raises:
        UsageError: Fewer than two, one twice, or an empty one.
    """
    if text is None:
        return None
    if text.strip() == "none":
        return NO_CLASSES
    try:
        names = check_names((name.strip() for name in text.split(",")), "--classes")
        if all(_WHOLE.fullmatch(name) for name in names):
            return declare_labels([int(name) for name in names], "--classes")
    except DataError as exc:
        raise UsageError(str(exc)) from exc
    return Declared(names=names)


def read_classes_file(folder: Path) -> Declared | None:
    """The names in a folder's classes.txt, in its order; None without one. Blank lines say nothing.

    Raises:
        DataError: It isn't text in UTF-8, or its names aren't two or more, all different.
    """
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"Can't read {str(path)!r}: {exc}. Expected text in UTF-8, a class a line.") from exc
    return Declared(names=check_names((line.strip() for line in lines if line.strip()), repr(str(path))))


def declare_array(classes: object, where: str) -> Declared:
    """The classes of a data set in arrays: labels, or the names of the labels 0, 1, 2 and so on.

    Raises:
        DataError: They are neither.
    """
    array = np.asarray(classes)
    if array.ndim == 1 and array.dtype.kind in "US":
        return Declared(names=check_names((_decode(item) for item in array.tolist()), where))
    return declare_labels(whole_labels(array, where).tolist(), where)


def declare_labels(labels: Sequence[int], where: str) -> Declared:
    """Whole numbers as classes, which are in their order."""
    ordered = tuple(sorted(labels))
    return Declared(names=check_names(map(str, ordered), where), labels=ordered)


def agree(given: Declared | None, found: Declared | None, where: str) -> Declared | None:
    """What is declared, when it may be twice: on the command line and with the data.

    Args:
        given: By `--classes`.
        found: With the data.
        where: In the data, as an error calls it.

    Raises:
        DataError: They differ.
    """
    if given is None or found is None:
        return given or found
    if given.names == found.names:
        return given if given.is_named else found
    if found.labels == tuple(range(len(given.names))) and given.is_named:
        return given  # these are the names of those labels
    raise DataError(
        f"The declared classes differ: --classes has {list(given.names)}, {where} has {list(found.names)}. "
        "Give the same in the same order, or leave one out."
    )


def check_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The names in one spelling.

    Raises:
        DataError: Fewer than two, one twice, an empty one, or one that can't be shown in a line.
    """
    known = tuple(normalise(name) for name in names)
    for name, count in Counter(known).items():
        if count > 1:
            raise DataError(f"{where} names the class {name!r} {count} times. Expected each once.")
        if not name or not name.isprintable():
            raise DataError(f"{where} has a class named {name!r}. Expected a name of printable characters.")
    if len(known) < 2:
        raise DataError(f"{where} needs two classes or more. Received {list(known)}.")
    return known


def whole_labels(labels: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
    """Labels of any number type, (n,) or a column, as int64: exactly, or not at all.

    Fractions that are whole numbers (1.0) are taken: other programs write labels so.

    Raises:
        DataError: They aren't whole numbers, one an example, or too large.
    """
    given = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels  # as Keras's CIFAR sets are
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        raise DataError(
            f"{where} needs one whole number an example, shape (n,). Received {labels.dtype} of "
            f"shape {labels.shape}. Of one-hot labels take .argmax(axis=1); of names, numpy.unique's indices, "
            f"and the names as {CLASSES_ARRAY!r}."
        )
    wrong = _not_whole(given)
    if len(wrong):
        raise DataError(
            f"{where} needs one whole number an example, from -2^63 to 2^63 - 1. Received {wrong[0]} among "
            f"them ({given.dtype}). Warren learns classes; of scores, make classes first."
        )
    return given.astype(np.int64)


def _not_whole(given: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if given.dtype.kind == "f":
        given = given.astype(np.float64)
        # 2.0^63 is the first float64 too large; comparing with 2^63 - 1 would round up to it.
        is_whole = np.isfinite(given) & (np.abs(given) < 2.0**63)
        is_whole[is_whole] &= given[is_whole] == np.rint(given[is_whole])
        return np.asarray(given[~is_whole])
    return given[given > _MAX_LABEL] if given.dtype == np.uint64 else given[:0]


def _decode(item: str | bytes) -> str:
    return item if isinstance(item, str) else item.decode("utf-8", "replace")
