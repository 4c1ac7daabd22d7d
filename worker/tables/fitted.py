"""A table or a stream in the order, the shapes and the number types that a model takes."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from broker.errors import DataError
from broker.model.fit import is_same_shape, misfit, misfit_of, places_of
from broker.wire.settings import InputSpec, Needs, TargetSpec
from worker.tables.naming import ALONE, Array, Named
from worker.tables.stream import Stream
from worker.tables.table import Places, Table

Flat = list[Array]  #: inputs, then targets, then weights if there are any, each in the model's order


class Rows(Protocol):
    """Examples as one model takes them.

    Attributes:
        num_weights: How many arrays of weights there are: none, one for all targets, or one a target.
        is_ordered: They come in an order of their own, which is not changed.
    """

    num_weights: int
    is_ordered: bool

    def __len__(self) -> int:
        """How many examples."""
        ...

    def num_batches(self, batch_size: int) -> int:
        """In one epoch."""
        ...

    def batches(self, batch_size: int, order: Places | None = None) -> Iterator[Flat]:
        """One epoch's batches.

        Args:
            batch_size: Examples in each; the last one may be smaller.
            order: The examples' positions, in the order to go through them; None: as they are.
        """
        ...


def fitted(data: Table | Stream, needs: Needs) -> Rows:
    """Examples as a model takes them.

    Raises:
        DataError: They don't fit; it is said what is expected and what there is.
    """
    reason = misfit(needs, data.holds)
    if reason is not None:
        raise DataError(f"The data does not fit the model: {reason}.")
    return _Table(data, needs) if isinstance(data, Table) else _Stream(data, needs)


def fitted_inputs(inputs: Named, specs: Sequence[InputSpec]) -> Flat:
    """Inputs alone, as a model takes them.

    Raises:
        DataError: They don't fit.
    """
    table = Table(inputs=inputs, targets={})
    reason = misfit_of(specs, table.holds, "input")
    if reason is not None:
        raise DataError(f"The rows do not fit the model: {reason}.")
    return [_shaped(array, len(spec.shape)) for spec, array in _paired(specs, table, "input")]


class _Table:
    """In memory."""

    is_ordered = False

    def __init__(self, table: Table, needs: Needs) -> None:
        self._arrays = _flat(table, needs)
        self._count = len(table)
        self.num_weights = len(_weights_of(table, needs))

    def __len__(self) -> int:
        return self._count

    def num_batches(self, batch_size: int) -> int:
        return -(-self._count // batch_size)

    def batches(self, batch_size: int, order: Places | None = None) -> Iterator[Flat]:
        for start in range(0, self._count, batch_size):
            if order is None:
                yield [array[start : start + batch_size] for array in self._arrays]
            else:
                rows = order[start : start + batch_size]
                yield [array[rows] for array in self._arrays]


class _Stream:
    """Fitted batch by batch."""

    is_ordered = True

    def __init__(self, stream: Stream, needs: Needs) -> None:
        self._stream = stream
        self._needs = needs
        self.num_weights = len(_weights_of(next(stream.batches(1)), needs))

    def __len__(self) -> int:
        return len(self._stream)

    def num_batches(self, batch_size: int) -> int:
        return self._stream.num_batches(batch_size)

    def batches(self, batch_size: int, order: Places | None = None) -> Iterator[Flat]:
        del order
        for batch in self._stream.batches(batch_size):
            yield _flat(batch, self._needs)


def _flat(table: Table, needs: Needs) -> Flat:
    return [
        *(_shaped(array, len(spec.shape)) for spec, array in _paired(needs.inputs, table, "input")),
        *(_as_target(spec, array) for spec, array in _paired(needs.targets, table, "target")),
        *_weights_of(table, needs),
    ]


def _paired(specs: Sequence[Any], table: Table, role: str) -> list[tuple[Any, Array]]:
    arrays = table.inputs if role == "input" else table.targets
    held = [each for each in table.holds if each.role == role]
    places = places_of(specs, held)
    assert places is not None  # noqa: S101 - `fitted` has found that they fit
    every = list(arrays.values())
    return [(spec, every[place]) for spec, place in zip(specs, places, strict=True)]


def _shaped(array: Array, num_axes: int) -> Array:
    """With one axis of 1 more or less at its end, where that is what differs."""
    if array.ndim - 1 < num_axes:
        return array[..., np.newaxis]
    return array[..., 0] if array.ndim - 1 > num_axes else array


def _as_target(spec: TargetSpec, array: Array) -> Array:
    if spec.kind == "anything":
        return array
    if spec.kind == "classes":
        return _class_numbers(_shaped(array, len(spec.shape)), spec)
    if spec.kind == "rows" and not is_same_shape(spec.shape, tuple(array.shape[1:])):
        numbers = _class_numbers(_shaped(array, len(spec.shape) - 1), spec)
        return np.eye(spec.num_classes, dtype=np.float32)[numbers]
    return _shaped(array, len(spec.shape)).astype(np.float32, copy=False)


def _class_numbers(array: Array, spec: TargetSpec) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = array.astype(np.int64)
    wrong = (numbers != array) | (numbers < 0) | (numbers >= spec.num_classes)
    if spec.ignored is not None:
        wrong &= numbers != spec.ignored
    if wrong.any():
        raise DataError(
            f"The target {spec.name!r} needs class numbers from 0 to {spec.num_classes - 1}. Received "
            f"{array[wrong][0]:g} among them."
        )
    return numbers


def _weights_of(table: Table, needs: Needs) -> list[Array]:
    if not table.weights:
        return []
    if list(table.weights) == [ALONE]:
        return [table.weights[ALONE].astype(np.float32)]
    names = [target.name for target in needs.targets]
    missing = [name for name in names if name not in table.weights]
    if missing:
        raise DataError(
            f"The sample weights are for {list(table.weights)}. Expected one array, or one for each of {names}."
        )
    return [table.weights[name].astype(np.float32) for name in names]
