"""What a person's function or file gives, as named arrays: arrays, dicts and lists of them, pandas and tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.errors import DataError

Array = npt.NDArray[Any]
Named = dict[str, Array]

ALONE = "0"  #: what one array without a name is called; several are called by their positions
_TEXTS = "US"
_NUMBERS = "biuf"
_INT32 = np.iinfo(np.int32)


def named(value: Any, where: str) -> Named:
    """Arrays by name.

    Args:
        value: An array, a dict or a list of arrays, a pandas Series, or a DataFrame: one array if it holds numbers
            alone, else one a column.
        where: What it is, as an error calls it.

    Raises:
        DataError: It can't become arrays of numbers or texts.
    """
    if _is_frame(value):
        value = array_of(value) if _is_numeric(value) else {name: value[name] for name in value.columns}
    if isinstance(value, Mapping):
        return {str(name): plain(each, f"{where}[{name!r}]") for name, each in value.items()}
    if isinstance(value, list | tuple) and value and all(_is_array(each) for each in value):
        return {str(place): plain(each, f"{where}[{place}]") for place, each in enumerate(value)}
    return {ALONE: plain(value, where)}


def are_several(value: Any, count: int) -> bool:
    """Whether a value is more than one array: a dict, a table with texts, a list of arrays that aren't its examples.

    Args:
        value: As `named` takes it.
        count: How many examples there are.
    """
    if _is_frame(value):
        return not _is_numeric(value)
    is_list = isinstance(value, list | tuple) and bool(value) and all(_is_array(each) for each in value)
    return isinstance(value, Mapping) or (is_list and len(value) != count)


def _is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def _is_numeric(frame: Any) -> bool:
    return all(_kind_of(frame[name]) in _NUMBERS for name in frame.columns)


def _kind_of(column: Any) -> str:
    """What a column holds, by numpy's letter; where numpy sees objects alone, pandas may say that they are numbers."""
    kind = np.asarray(column).dtype.kind
    return kind if kind != "O" else str(getattr(getattr(column, "dtype", None), "kind", kind))


def array_of(value: Any) -> Array:
    """What numpy makes of a value; numbers of pandas stay numbers, and a missing one becomes NaN, which is refused."""
    array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    if array.dtype.kind != "O":
        return array
    if _is_frame(value) and len(value.columns) and _is_numeric(value):
        return np.column_stack([array_of(value[name]) for name in value.columns])
    if hasattr(value, "to_numpy") and _kind_of(value) in _NUMBERS:
        return np.asarray(value.to_numpy(np.float64, na_value=np.nan))
    return array


def _is_array(value: Any) -> bool:
    return getattr(value, "ndim", None) is not None or getattr(value, "shape", None) is not None


def plain(value: Any, where: str) -> Array:
    """One array: float32, whole numbers as they are, or texts as UTF-8 bytes.

    Raises:
        DataError: It holds something else, or what isn't finite.
    """
    try:
        array = array_of(value)
    except (TypeError, ValueError, RuntimeError) as exc:
        raise DataError(f"{where} can't become an array: {' '.join(str(exc).split())[:200]}") from exc
    if array.dtype.kind in _TEXTS or array.dtype.kind == "O":
        return _texts(array, where)
    if array.dtype.kind not in _NUMBERS:
        raise DataError(f"{where} needs numbers or texts. Received {array.dtype}.")
    return _numbers(array, where)


def _texts(array: Array, where: str) -> Array:
    encoded = np.empty(array.shape, object)
    for place, text in enumerate(array.flat):
        if not isinstance(text, str | bytes):
            raise DataError(
                f"{where} needs numbers or texts, one shape for all examples. Received {type(text).__name__} at "
                f"place {place}."
            )
        encoded.flat[place] = text.encode() if isinstance(text, str) else text
    return encoded


def _numbers(array: Array, where: str) -> Array:
    if array.dtype.kind == "f":
        _check_finite(array, where)
        return array.astype(np.float32, copy=False)
    if array.dtype.itemsize > 4 and array.size and _INT32.min <= array.min() and array.max() <= _INT32.max:
        return array.astype(np.int32)
    return array


def _check_finite(array: Array, where: str) -> None:
    ends = np.array([array.min(initial=0), array.max(initial=0)], np.float64)  # NaN comes through min and max
    if not np.isfinite(ends).all():
        raise DataError(f"{where} holds NaN or infinity. Remove or replace these examples.")
    if np.abs(ends).max() > np.finfo(np.float32).max:
        raise DataError(f"{where} goes from {ends[0]:g} to {ends[1]:g}, beyond what float32 holds. Scale it.")


def dtype_of(array: Array) -> str:
    """By numpy's name; "string" for texts."""
    return "string" if array.dtype == object else array.dtype.name
