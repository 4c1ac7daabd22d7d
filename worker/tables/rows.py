"""Inputs alone, of an .npz or a .csv, for a model that is asked for its answers."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from broker.errors import DataError
from broker.wire.settings import TEXT, InputSpec
from worker.tables.fitted import Flat, fitted_inputs
from worker.tables.naming import ALONE, Named, named

SUFFIXES = (".npz", ".csv")
_INPUT = re.compile(r"x(?:_test|_train)?(?:\.(?P<name>.+))?")


def read_rows(path: Path, specs: Sequence[InputSpec]) -> Flat:
    """Read the rows of a file, in the order of a model's inputs.

    Args:
        path: An .npz with x or x.NAME (or x_test, x_train likewise), or a .csv with a line of names: a column each, or
            for an input of several numbers all columns in their order, or those called NAME.0, NAME.1 and so on.
        specs: The model's inputs.

    Raises:
        DataError: It can't be read, or doesn't fit the model.
    """
    try:
        inputs = _of_npz(path) if path.suffix == ".npz" else _of_csv(path, specs)
    except (OSError, ValueError, EOFError, KeyError, csv.Error) as exc:
        raise DataError(f"Can't read {str(path)!r} as rows: {exc}. Expected an .npz or a .csv.") from exc
    flat = fitted_inputs(inputs, specs)
    if len({len(array) for array in flat}) != 1 or not len(flat[0]):
        raise DataError(f"{str(path)!r} needs as many rows of each input, one or more.")
    return flat


def _of_npz(path: Path) -> Named:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for kind in ("x", "x_test", "x_train"):
            matches = {name: _INPUT.fullmatch(name) for name in archive.files if name.split(".")[0] == kind}
            parts = {(match["name"] or ALONE): archive[name] for name, match in matches.items() if match}
            if parts:
                return named(parts, f"x of {str(path)!r}")
        raise DataError(f"{str(path)!r} holds {archive.files}. Expected x, or x.NAME for each input.")


def _of_csv(path: Path, specs: Sequence[InputSpec]) -> Named:
    with path.open(newline="", encoding="utf-8-sig") as file:
        names, *lines = list(csv.reader(file)) or [[]]
    wrong = next((number for number, line in enumerate(lines, start=2) if len(line) != len(names)), None)
    if wrong is not None or not lines:
        raise DataError(
            f"{str(path)!r} needs {len(names)} values in each line. Line {wrong or 2} has others."
        )
    columns = {name: [line[place] for line in lines] for place, name in enumerate(names)}
    inputs = {spec.name: _column_of(spec, columns, is_only=len(specs) == 1) for spec in specs}
    return named({name: each for name, each in inputs.items() if each is not None}, f"{str(path)!r}")


def _column_of(spec: InputSpec, columns: dict[str, list[str]], *, is_only: bool) -> object:
    """One input's values; None where the file has none."""
    if spec.name in columns:
        return _values(spec, columns[spec.name])
    places = {place: name for name in columns if (place := _place_in(name, spec.name)) is not None}
    parts = [places[place] for place in sorted(places)]
    if not parts and is_only:
        parts = list(columns)
    values = [_values(spec, columns[name]) for name in parts]
    if not values:
        return None
    return values[0] if len(values) == 1 else np.stack(values, axis=1)


def _place_in(name: str, of: str) -> int | None:
    last = name.removeprefix(f"{of}.")
    return int(last) if last != name and last.isdecimal() else None


def _values(spec: InputSpec, column: list[str]) -> np.ndarray:
    return np.array(column) if spec.dtype == TEXT else np.array(column, np.float64)
