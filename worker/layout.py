"""What lies at a data path: folders of images or labelled arrays, checked before anything is decoded."""

import importlib
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.errors import DataError
from worker.images import SUFFIXES
from worker.tensorflow import load_keras

Labels = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

CLASSES_FILE = (
    "classes.txt"  #: names the classes of a site that lacks some, one a line; made by `worker split`
)
CLASSES_ARRAY = "classes"  #: the same inside an .npz

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_PATIENT = re.compile(r"(person\d+|(?:NORMAL\d*-)?IM-\d+)(?=[-_.]|$)", re.IGNORECASE)
_LAYOUT_HELP = "Expected a folder with one sub-folder of images per class (optionally under train/ and test/)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFiles:
    """One part (train or test) of a folder of images.

    Attributes:
        paths: The files, sorted by class and name.
        labels: (n,) the class index of each.
    """

    paths: tuple[Path, ...]
    labels: Labels

    @property
    def patients(self) -> tuple[str, ...]:
        """Whose picture each is, as far as the names tell; 1.png of two classes is not one person."""
        names = ((path, patient_of(path.name)) for path in self.paths)
        return tuple(str(path) if patient == path.name else patient for path, patient in names)

    def take(self, index: Labels) -> "ImageFiles":
        """The files at these positions."""
        return ImageFiles(paths=tuple(self.paths[i] for i in index), labels=self.labels[index])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledArrays:
    """One part (train or test) of a data set in arrays.

    Attributes:
        x: (n, ...) examples as they were given.
        labels: (n,) the class index of each.
        values: (n,) the labels as they were given.
    """

    x: Array
    labels: Labels
    values: Array

    @property
    def patients(self) -> None:
        """Arrays don't tell whose examples they hold."""
        return

    def take(self, index: Labels) -> "LabelledArrays":
        """The examples at these positions."""
        return LabelledArrays(x=self.x[index], labels=self.labels[index], values=self.values[index])


Part = ImageFiles | LabelledArrays


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """A data set as it lies there.

    Attributes:
        classes: Class names; labels are indices into it.
        train: The training part; None if there is only test/.
        test: The test part, if there is one.
        has_parts: Whether folders of images lie under train/ and test/.
    """

    classes: tuple[str, ...]
    train: Part | None
    test: Part | None
    has_parts: bool = False


def patient_of(filename: str) -> str:
    """The patient in an X-ray's name: personN, IM-NNNN or NORMAL2-IM-NNNN; else the name itself."""
    match = _PATIENT.match(filename)
    return match.group(1) if match else filename


def find_layout(spec: str) -> Layout:
    """Look at a folder of images, an .npz, or what MODULE:FUNCTION returns.

    Raises:
        DataError: There is nothing, it is something else, a class is empty or alone, or arrays don't fit
            together.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return _find_folders(path)
    if path.is_file():
        return _read_npz(path)
    if _FUNCTION.fullmatch(spec):
        return _call(spec)
    raise DataError(
        f"There is no data at {spec!r}. {_LAYOUT_HELP}, an .npz file, or MODULE:FUNCTION. Check the path."
    )


def first_line(exc: Exception) -> str:
    """What another library says, short enough for one line of ours."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0].rstrip(".") + "."


def count_per_class(labels: Labels, num_classes: int) -> Labels:
    """(num_classes,) examples of each class."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


# Folders of images


def _find_folders(root: Path) -> Layout:
    train_root, test_root = root / "train", root / "test"
    has_parts = train_root.is_dir() or test_root.is_dir()
    parts = [part for part in (train_root, test_root) if part.is_dir()] if has_parts else [root]
    declared = _declared_classes(root)
    classes = declared or tuple(folder.name for folder in _folders(parts[0]))
    for part in parts:
        _check_folders(part, classes, may_lack=bool(declared))
    found = {part.name if has_parts else "train": _list_images(part, classes) for part in parts}
    _check_not_empty(found.values(), parts, classes, may_lack=bool(declared))
    return Layout(classes=classes, train=found.get("train"), test=found.get("test"), has_parts=has_parts)


def _declared_classes(root: Path) -> tuple[str, ...]:
    path = root / CLASSES_FILE
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1]) if path.is_file() else ()


def _folders(root: Path) -> list[Path]:
    return sorted(
        entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))
    )


def _check_folders(root: Path, classes: tuple[str, ...], *, may_lack: bool) -> None:
    names = [folder.name for folder in _folders(root)]
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "no sub-folder"
        raise DataError(
            f"{str(root)!r} needs two classes or more; it has {found}. {_LAYOUT_HELP}. "
            "Check that the path is the folder right above the class folders (or above train/ and test/)."
        )
    if set(names) - set(classes) or (not may_lack and set(classes) - set(names)):
        raise DataError(
            f"The class folders of {str(root)!r} differ from the data set's: expected {list(classes)}, "
            f"found {names}. Give train/ and test/ the same class folders."
        )


def _list_images(root: Path, classes: tuple[str, ...]) -> ImageFiles:
    per_class = [_images_in(root / name) for name in classes]
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in per_class])
    return ImageFiles(
        paths=tuple(path for paths in per_class for path in paths), labels=labels.astype(np.int64)
    )


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _check_not_empty(
    found: Iterable[ImageFiles], parts: list[Path], classes: tuple[str, ...], *, may_lack: bool
) -> None:
    for part, root in zip(found, parts, strict=True):
        counts = count_per_class(part.labels, len(classes))
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        if (empty and not may_lack) or not len(part.labels):
            raise DataError(
                f"The class folder {str(root / empty[0])!r} holds no image ({', '.join(sorted(SUFFIXES))}). "
                "Put images of that class there, or remove the folder everywhere."
            )


# Arrays


def _read_npz(path: Path) -> Layout:
    try:
        arrays, names = _load_arrays(path)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as exc:
        raise DataError(
            f"Can't read {str(path)!r} as arrays: {first_line(exc)} "
            "Expected an .npz of plain numbers (no pickled objects); save it with "
            "numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)."
        ) from exc
    has_test = "x_test" in arrays or "y_test" in arrays
    missing = [name for name in _ARRAYS[: 4 if has_test else 2] if name not in arrays]
    if missing:
        raise DataError(
            f"{str(path)!r} lacks {' and '.join(missing)}. Expected x_train, y_train and, for a test "
            f"part, x_test, y_test. It holds {names}."
        )
    return _from_arrays(arrays, str(path))


def _load_arrays(path: Path) -> tuple[dict[str, Array], list[str]]:
    """The arrays that count, and the names of all there are."""
    with path.open("rb") as file:  # numpy leaves a file that it opened itself open when it is damaged
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array alone")
        wanted = [name for name in (*_ARRAYS, CLASSES_ARRAY) if name in archive.files]
        return {name: archive[name] for name in wanted}, list(archive.files)


def _call(spec: str) -> Layout:
    module_name, function_name = spec.split(":")
    if module_name.split(".")[0] in ("keras", "tensorflow"):
        load_keras()  # so that it comes without its chatter
    with _current_directory_importable():
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as exc:
            raise DataError(
                f"Can't find the data function {spec!r}: {exc}. Expected MODULE:FUNCTION importable from the "
                "current folder. Check both names, or the path if a path was meant."
            ) from exc
        result = function()
    try:
        (x_train, y_train), (x_test, y_test) = result
    except (TypeError, ValueError) as exc:
        raise DataError(
            f"{spec!r} returned {type(result).__name__}. Expected (x_train, y_train), (x_test, y_test)."
        ) from exc
    given = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return _from_arrays({name: np.asarray(value) for name, value in given.items()}, spec)


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_arrays(arrays: Mapping[str, Array], name: str) -> Layout:
    parts = [part for part in ("train", "test") if f"x_{part}" in arrays]
    values = {part: _check_labels(arrays[f"y_{part}"], f"y_{part}", name) for part in parts}
    for part in parts:
        _check_examples(arrays[f"x_{part}"], values[part], part, name)
    known = _known_labels(arrays.get(CLASSES_ARRAY), values.values(), name)
    found = {
        part: LabelledArrays(
            x=arrays[f"x_{part}"],
            labels=_index_of(values[part], known, f"y_{part}", name),
            values=arrays[f"y_{part}"],
        )
        for part in parts
    }
    layout = Layout(
        classes=tuple(str(label) for label in known), train=found["train"], test=found.get("test")
    )
    if CLASSES_ARRAY not in arrays:
        _check_trained(layout, name)
    return layout


def _check_labels(labels: Array, array: str, name: str) -> Array:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # Keras's CIFAR sets are like this
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{array} of {name!r} needs one whole number an example, shape (n,). Received {labels.dtype} of "
            f"shape {labels.shape}. Of one-hot labels take .argmax(axis=1); of names, numpy.unique's indices."
        )
    return labels


def _check_examples(x: Array, labels: Array, part: str, name: str) -> None:
    if x.dtype == object or not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
        raise DataError(
            f"x_{part} of {name!r} needs numbers, one shape for all examples. Received {x.dtype}."
        )
    if x.ndim < 2 or len(x) != len(labels) or not len(x):
        raise DataError(
            f"x_{part} and y_{part} of {name!r} need as many examples, one or more. "
            f"Received shapes {x.shape} and {labels.shape}."
        )
    if np.issubdtype(x.dtype, np.inexact) and not np.isfinite(x).all():
        raise DataError(f"x_{part} of {name!r} holds NaN or infinity. Remove or replace these examples.")


def _known_labels(declared: Array | None, values: Iterable[Array], name: str) -> Array:
    known = np.unique(
        np.concatenate(list(values) if declared is None else [_check_labels(declared, "classes", name)])
    )
    if len(known) < 2:
        raise DataError(
            f"{name!r} needs two classes or more; every label is {known[0]}. Check the labels of y_train."
        )
    return known


def _index_of(values: Array, known: Array, array: str, name: str) -> Labels:
    index = np.searchsorted(known, values).clip(max=len(known) - 1).astype(np.int64)
    if (known[index] != values).any():
        raise DataError(
            f"{array} of {name!r} has labels that are not in its array 'classes': {known.tolist()}."
        )
    return index


def _check_trained(layout: Layout, name: str) -> None:
    """A label that only the test part has can't be learned."""
    if layout.train is None:
        return
    counts = count_per_class(layout.train.labels, len(layout.classes))
    empty = [label for label, count in zip(layout.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{name!r} has no training example of the label {empty[0]}, but y_test has. Remove it there."
        )
