"""Named arrays in memory: the examples of one subset, checked to belong together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.errors import DataError
from broker.wire.settings import Held, Role
from worker.tables.naming import ALONE, Named, dtype_of, named

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """One subset (train or test), or one batch of a stream.

    Attributes:
        inputs: (n, ...) each, by name.
        targets: The same of what is learned.
        weights: (n, ...) what each example counts in the loss, for all targets or by a target's name; may be empty.
    """

    inputs: Named
    targets: Named
    weights: Named = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, index: Places) -> "Table":
        """The examples at these positions."""
        parts = (self.inputs, self.targets, self.weights)
        inputs, targets, weights = ({name: each[index] for name, each in part.items()} for part in parts)
        return Table(inputs=inputs, targets=targets, weights=weights)

    @property
    def holds(self) -> tuple[Held, ...]:
        """What there is, as it is told."""
        return (*_held("input", self.inputs), *_held("target", self.targets))


def _held(role: Role, arrays: Named) -> Iterator[Held]:
    for name, array in arrays.items():
        yield Held(name=name, role=role, shape=tuple(array.shape[1:]), dtype=dtype_of(array))


def table_of(x: Any, y: Any, weights: Any, where: str) -> Table:
    """Make a table of what a function, a file or a stream gives.

    Args:
        x: The inputs, in any form that `named` takes.
        y: The targets, likewise.
        weights: What each example counts, likewise, or None.
        where: Whose they are, as an error calls it.

    Raises:
        DataError: They are no arrays, or not of as many examples each.
    """
    table = Table(
        inputs=named(x, f"x of {where}"),
        targets=named(y, f"y of {where}"),
        weights={} if weights is None else named(weights, f"the sample weights of {where}"),
    )
    _check(table, where)
    return table


def _check(table: Table, where: str) -> None:
    lengths: dict[str, int] = {}
    for part, arrays in (("x", table.inputs), ("y", table.targets), ("sample_weight", table.weights)):
        lengths |= {_called(part, name): len(array) if array.ndim else -1 for name, array in arrays.items()}
    if not (table.inputs and table.targets) or len(set(lengths.values())) != 1 or min(lengths.values()) < 1:
        raise DataError(
            f"{where} needs x and y of as many examples, one or more. Received {_listed(lengths)} examples."
        )
    for name, array in table.weights.items():
        if array.dtype.kind not in "iuf" or (array < 0).any():
            raise DataError(f"{_called('sample_weight', name)} of {where} needs numbers of at least 0.")


def _called(part: str, name: str) -> str:
    return part if name == ALONE else f"{part}.{name}"


def _listed(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {max(length, 0)}" for name, length in lengths.items())
