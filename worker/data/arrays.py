"""Labelled arrays: an .npz, or what MODULE:FUNCTION returns, checked before it is used."""

import importlib
import inspect
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.errors import DataError
from worker.data.classes import (
    CLASSES_ARRAY,
    NO_CLASSES,
    Declared,
    agree,
    declare_array,
    declare_labels,
    whole_labels,
)
from worker.data.listing import LabelledArrays, Labels, Listing, Tables, count_per_class, first_line
from worker.tables.naming import ALONE, are_several, array_of
from worker.tables.stream import Stream, maker_of
from worker.tables.table import Table, table_of
from worker.tensorflow import load_keras

Array = npt.NDArray[Any]

_CURRENT = ""  # in sys.path: where this process works at that moment
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_PART = re.compile(r"(x|y|sample_weight)_(train|test)(\.(?P<name>.+))?")
_RETURNS = "Expected (x_train, y_train), (x_test, y_test), and after them, if you like, the classes"


def read_npz(path: Path, given: Declared | None) -> Listing | Tables:
    """Open x_train, y_train and, if they are there, x_test, y_test, sample_weight_train and classes.

    Several inputs or targets have their names behind a dot: x_train.age, y_train.price.

    Raises:
        DataError: It is no such file, or its arrays don't fit together.
    """
    try:
        arrays, names = _load_arrays(path)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as exc:
        raise DataError(
            f"Can't read {str(path)!r} as arrays: {first_line(exc)} "
            "Expected an .npz of plain numbers (no pickled objects); save it with "
            "numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)."
        ) from exc
    has_test = _has("x_test", arrays) or _has("y_test", arrays)
    missing = [name for name in _ARRAYS[: 4 if has_test else 2] if not _has(name, arrays)]
    if missing:
        raise DataError(
            f"{str(path)!r} lacks {' and '.join(missing)}. Expected x_train, y_train and, for a test "
            f"part, x_test, y_test. It holds {names}."
        )
    if _are_labelled(arrays, given):
        return _from_arrays(arrays, str(path), given)
    subsets = [
        _table_in(arrays, subset, str(path)) for subset in (("train", "test") if has_test else ("train",))
    ]
    return Tables(train=subsets[0], test=subsets[1] if has_test else None)


def _has(name: str, arrays: Mapping[str, Array]) -> bool:
    return any(each == name or each.startswith(f"{name}.") for each in arrays)


def _table_in(arrays: Mapping[str, Array], subset: str, where: str) -> Table:
    x, y, weights = (_parts_in(arrays, f"{kind}_{subset}", where) for kind in ("x", "y", "sample_weight"))
    return table_of(x, y, weights or None, f"the {subset} part of {where!r}")


def _parts_in(arrays: Mapping[str, Array], name: str, where: str) -> dict[str, Array]:
    named = {
        each.removeprefix(f"{name}."): array for each, array in arrays.items() if each.startswith(f"{name}.")
    }
    if name in arrays and named:
        raise DataError(
            f"{where!r} holds both {name} and {name}.{next(iter(named))}. Expected one form or the other."
        )
    return named or ({ALONE: arrays[name]} if name in arrays else {})


def _are_labelled(arrays: Mapping[str, Array], given: Declared | None) -> bool:
    """Whether these are examples of classes: one array x, and one whole number y an example.

    What was declared to be classes is; so is what nobody could learn as numbers, and it is refused there.
    """
    if given == NO_CLASSES or any("." in name for name in arrays):
        return False
    x, y = arrays["x_train"], arrays["y_train"]
    if given is not None or CLASSES_ARRAY in arrays or y.dtype.kind not in "biuf" or y.ndim == 0:
        return True
    is_column = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    is_whole = y.dtype.kind != "f" or not np.isfinite(y).all() or bool((y == np.rint(y)).all())
    return is_column and is_whole and x.dtype.kind not in "US" and not _holds_texts(x)


def _holds_texts(x: Array) -> bool:
    return x.dtype == object and x.size > 0 and isinstance(x.flat[0], str | bytes)


def call_function(spec: str, given: Declared | None, worker: str = "") -> Listing | Tables:
    """Call MODULE:FUNCTION, importable from the current folder.

    Args:
        spec: The function.
        given: The classes as `--classes` names them.
        worker: The worker's name, for a function that takes it.

    Raises:
        DataError: There is no such function, it fails, or it returns something else.
    """
    with _current_directory_importable():
        result = _call(spec, worker)
        train = maker_of(result, spec)
        if train is not None:
            return Tables(train=Stream(train, spec), test=None)
        return read_values(result, spec, given)


def read_values(result: Any, spec: str, given: Declared | None) -> Listing | Tables:
    """Take (x_train, y_train), (x_test, y_test), and after them, if it is there, the classes.

    Args:
        result: As a function returned it, or a caller gives it.
        spec: What it is called in what is said of it.
        given: The classes as `--classes` names them.

    Raises:
        DataError: It is something else.
    """
    try:
        train, test, *classes = result
        (declared,) = classes or (None,)
        listing = None if _is_any_stream(train, test, spec) else _labelled(train, test, declared, spec, given)
        return listing or Tables(
            train=_subset_of(train, f"the train part of {spec!r}"),
            test=None if test is None else _subset_of(test, f"the test part of {spec!r}"),
        )
    except (TypeError, ValueError) as exc:
        raise DataError(f"{spec!r} returned {type(result).__name__}. {_RETURNS}.") from exc


def _is_any_stream(train: Any, test: Any, spec: str) -> bool:
    return any(maker_of(each, spec) is not None for each in (train, test))


def _labelled(train: Any, test: Any, classes: Any, spec: str, given: Declared | None) -> Listing | None:
    """The examples of classes that a function returned; None where they are something else."""
    values: dict[str, Any] = {} if classes is None else {CLASSES_ARRAY: classes}
    for subset, pair in (("train", train), ("test", test)):
        if pair is not None or subset == "train":
            values[f"x_{subset}"], values[f"y_{subset}"], *weights = pair
            values |= {f"sample_weight_{subset}": each for each in weights}
    count = _count_of(values["y_train"])
    if given == NO_CLASSES or any(are_several(value, count) for value in values.values()):
        return None
    try:
        arrays = {name: array_of(value) for name, value in values.items()}
    except (TypeError, ValueError, RuntimeError) as exc:
        raise DataError(f"{spec!r} returned what can't become arrays: {first_line(exc)} {_RETURNS}.") from exc
    return _from_arrays(arrays, spec, given) if _are_labelled(arrays, given) else None


def _count_of(y: Any) -> int:
    return len(y) if hasattr(y, "__len__") else 0


def _subset_of(given: Any, where: str) -> Table | Stream:
    begin = maker_of(given, where)
    if begin is not None:
        return Stream(begin, where)
    x, y, *weights = given
    (weight,) = weights or (None,)
    return table_of(x, y, weight, where)


def _call(spec: str, worker: str) -> Any:
    module_name, function_name = spec.split(":")
    if module_name.split(".")[0] in ("keras", "tensorflow"):
        load_keras()  # so that it comes without its chatter
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ModuleNotFoundError, AttributeError) as exc:
        if not _is_missing(exc, module_name, function_name):
            raise _failure(spec, exc) from exc
        raise DataError(
            f"Can't find the data function {spec!r}: {exc}{_origin(exc)}. Expected MODULE:FUNCTION importable from "
            "the current folder. Check both names, or the path if a path was meant."
        ) from exc
    except (Exception, SystemExit) as exc:
        raise _failure(spec, exc) from exc
    try:
        return function(worker) if _takes_name(function) else function()
    except (Exception, SystemExit) as exc:
        raise _failure(spec, exc) from exc


def _takes_name(function: Any) -> bool:
    """Whether a function needs one argument: it is given the worker's name."""
    try:
        needed = [
            each for each in inspect.signature(function).parameters.values()
            if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
    except (TypeError, ValueError):
        return False  # of a function in C nothing is known
    return len(needed) == 1


def _is_missing(exc: ModuleNotFoundError | AttributeError, module: str, function: str) -> bool:
    """Whether it is the module or function itself that isn't there, not something that the module needs."""
    if isinstance(exc, ModuleNotFoundError):
        return exc.name is not None and (module == exc.name or module.startswith(f"{exc.name}."))
    return exc.name == function and getattr(exc.obj, "__name__", None) == module


def _origin(exc: Exception) -> str:
    """Where a module without the function was found: an installed one, perhaps, of the same name."""
    file = getattr(exc.obj, "__file__", None) if isinstance(exc, AttributeError) else None
    return f" ({file})" if file else ""


def _failure(spec: str, exc: BaseException) -> DataError:
    return DataError(
        f"The data function {spec!r} failed: {type(exc).__name__}: {first_line(exc)} "
        "Run it in Python by itself to see where."
    )


def _load_arrays(path: Path) -> tuple[dict[str, Array], list[str]]:
    """The arrays that count, and the names of all there are."""
    with path.open("rb") as file:  # numpy leaves a file that it opened itself open when it is damaged
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array alone")
        wanted = [name for name in archive.files if name == CLASSES_ARRAY or _PART.fullmatch(name)]
        return {name: archive[name] for name in wanted}, list(archive.files)


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """Look in the current folder, too, and last: a person's random.py or keras.py there stands in for nobody else's."""
    if _CURRENT in sys.path:
        yield
        return
    sys.path.append(_CURRENT)
    try:
        yield
    finally:
        with suppress(ValueError):  # a function may have changed the path
            sys.path.remove(_CURRENT)


def _from_arrays(arrays: Mapping[str, Array], name: str, given: Declared | None) -> Listing:
    subsets = [subset for subset in ("train", "test") if f"x_{subset}" in arrays]
    labels = {subset: whole_labels(arrays[f"y_{subset}"], f"y_{subset} of {name!r}") for subset in subsets}
    for subset in subsets:
        _check_examples(arrays[f"x_{subset}"], labels[subset], subset, name)
    _check_shapes(arrays, name)
    declared = agree(given, _declared_in(arrays, name), name)
    classes = declared or _found_labels(list(labels.values()), name)
    known = np.array(range(len(classes.names)) if classes.labels is None else classes.labels, np.int64)
    found = {
        subset: LabelledArrays(
            x=arrays[f"x_{subset}"],
            labels=_index_of(labels[subset], known, classes, f"y_{subset} of {name!r}"),
            values=arrays[f"y_{subset}"],
            weights=_weights_in(arrays, subset, name),
        )
        for subset in subsets
    }
    listing = Listing(classes=classes.names, train=found["train"], test=found.get("test"), declared=declared)
    if declared is None:
        _check_trained(listing, name)
    return listing


def _weights_in(arrays: Mapping[str, Array], subset: str, name: str) -> Array | None:
    weights = arrays.get(f"sample_weight_{subset}")
    if weights is None:
        return None
    is_right = weights.dtype.kind in "iuf" and weights.shape == (len(arrays[f"y_{subset}"]),)
    if not is_right or not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError(
            f"sample_weight_{subset} of {name!r} needs one number of at least 0 for each example."
        )
    return weights.astype(np.float32)


def _declared_in(arrays: Mapping[str, Array], name: str) -> Declared | None:
    if CLASSES_ARRAY not in arrays:
        return None
    return declare_array(arrays[CLASSES_ARRAY], f"{CLASSES_ARRAY!r} of {name!r}")


def _check_examples(x: Array, labels: Labels, subset: str, name: str) -> None:
    if x.dtype.kind not in "biuf":
        raise DataError(
            f"x_{subset} of {name!r} needs real numbers, one shape for all examples. Received {x.dtype}."
        )
    if x.ndim < 2 or len(x) != len(labels) or not len(x):
        raise DataError(
            f"x_{subset} and y_{subset} of {name!r} need as many examples, one or more. "
            f"Received shapes {x.shape} and {labels.shape}."
        )
    if x.dtype.kind == "f":
        _check_finite(x, subset, name)


def _check_finite(x: Array, subset: str, name: str) -> None:
    ends = np.array([x.min(initial=0), x.max(initial=0)], np.float64)  # NaN comes through min and max
    if not np.isfinite(ends).all():
        raise DataError(f"x_{subset} of {name!r} holds NaN or infinity. Remove or replace these examples.")
    if np.abs(ends).max() > np.finfo(np.float32).max:
        raise DataError(
            f"x_{subset} of {name!r} goes from {ends[0]:g} to {ends[1]:g}, beyond what float32 holds. Scale it."
        )


def _check_shapes(arrays: Mapping[str, Array], name: str) -> None:
    if "x_test" not in arrays:
        return
    train, test = (arrays[f"x_{subset}"].shape[1:] for subset in ("train", "test"))
    if train != test and (*train, 1) != test and train != (*test, 1):
        raise DataError(
            f"x_train and x_test of {name!r} need examples of one shape. Received {train} and {test}."
        )


def _found_labels(labels: list[Labels], name: str) -> Declared:
    known = np.unique(np.concatenate(labels)).tolist()
    if len(known) < 2:
        raise DataError(
            f"{name!r} needs two classes or more; every label is {known[0]}. Check the labels of y_train, "
            "or name the classes with --classes; --classes none if y is a number to be learned."
        )
    return declare_labels(known, name)


def _index_of(labels: Labels, known: Labels, classes: Declared, where: str) -> Labels:
    index = np.searchsorted(known, labels).clip(max=len(known) - 1).astype(np.int64)
    strange = labels[known[index] != labels]
    if len(strange):
        expected = (
            f"0 to {len(known) - 1}, which the names {list(classes.names)} are for"
            if classes.is_named
            else f"{known.tolist()}"
        )
        raise DataError(
            f"{where} has labels that are not in its declared classes: expected {expected}. "
            f"Received {strange[0]}."
        )
    return index


def _check_trained(listing: Listing, name: str) -> None:
    """A label that only the test subset has can't be learned."""
    if listing.train is None:
        return
    counts = count_per_class(listing.train.labels, len(listing.classes))
    empty = [label for label, count in zip(listing.classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{name!r} has no training example of the label {empty[0]}, but y_test has. Remove it there, or "
            "name the classes with --classes; --classes none if y is a number to be learned."
        )
