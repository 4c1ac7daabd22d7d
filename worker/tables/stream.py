"""Batches that come one by one and are never in memory together: a tf.data.Dataset, a PyDataset, a generator."""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from broker.errors import DataError
from broker.wire.settings import Held
from worker.tables.naming import Named
from worker.tables.table import Table, table_of

logger = logging.getLogger(__name__)

_TELL_SECONDS = 30.0
_EXPECTED = "Expected batches (x, y) or (x, y, sample_weight), as model.fit takes them."


class Stream:
    """One subset that is read from its beginning in every epoch, in its own order.

    It is read once before it is used: how many examples it has must be told, for they weigh its updates.

    Args:
        make: Begins anew: gives the batches.
        where: Whose they are, as an error calls it.

    Attributes:
        holds: What there is; None for axes whose size differs between batches.
    """

    def __init__(self, make: Callable[[], Iterable[Any]], where: str) -> None:
        self._make = make
        self._where = where
        self._num_given = 0
        self._num_examples, self.holds = self._count()
        self._is_uniform = all(None not in each.shape for each in self.holds)

    def __len__(self) -> int:
        return self._num_examples

    def num_batches(self, batch_size: int) -> int:
        """How many there are in an epoch; those of differing shapes stay as they come."""
        return -(-self._num_examples // batch_size) if self._is_uniform else self._num_given

    def batches(self, batch_size: int) -> Iterator[Table]:
        """One epoch.

        Raises:
            DataError: A batch is none, or reading fails.
        """
        return _cut_anew(self._given(), batch_size) if self._is_uniform else self._given()

    def _given(self) -> Iterator[Table]:
        try:
            for batch in self._make():
                yield self._table(batch)
        except DataError:
            raise
        except Exception as exc:  # a person's own code may raise anything
            words = " ".join(str(exc).split())[:300]
            raise DataError(f"Reading {self._where} failed: {type(exc).__name__}: {words}") from exc

    def _table(self, batch: Any) -> Table:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise DataError(f"{self._where} gave {type(batch).__name__}. {_EXPECTED}")
        x, y, *weights = batch
        return table_of(x, y, weights[0] if weights else None, self._where)

    def _count(self) -> tuple[int, tuple[Held, ...]]:
        begun = told = time.monotonic()
        number = 0
        holds: tuple[Held, ...] = ()
        for batch in self._given():
            number += len(batch)
            self._num_given += 1
            holds = _joined(holds, batch.holds, self._where) if holds else batch.holds
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                logger.info("Counting the examples of %s: %d so far.", self._where, number)
        if not number:
            raise DataError(f"{self._where} gives no batch. {_EXPECTED}")
        logger.info(
            "Counted %d examples in %d batches of %s in %.1f s; they are streamed, in their own order.",
            number,
            self._num_given,
            self._where,
            time.monotonic() - begun,
        )
        return number, holds


def _joined(one: tuple[Held, ...], other: tuple[Held, ...], where: str) -> tuple[Held, ...]:
    """What holds of two batches; an axis in which they differ may have any size."""
    keys = [[(each.role, each.name, each.dtype, len(each.shape)) for each in holds] for holds in (one, other)]
    if keys[0] != keys[1]:
        raise DataError(
            f"The batches of {where} differ: {keys[0]} and {keys[1]}. Expected arrays of the same kind."
        )
    if one == other:
        return one
    return tuple(
        Held(
            name=left.name,
            role=left.role,
            dtype=left.dtype,
            shape=tuple(
                size if size == its else None for size, its in zip(left.shape, right.shape, strict=True)
            ),
        )
        for left, right in zip(one, other, strict=True)
    )


def _cut_anew(batches: Iterable[Table], batch_size: int) -> Iterator[Table]:
    """The same examples in batches of another size; the last one may be smaller."""
    rest: Table | None = None
    for batch in batches:
        rest = batch if rest is None else _concatenated(rest, batch)
        while len(rest) > batch_size:
            yield rest.take(np.arange(batch_size))
            rest = rest.take(np.arange(batch_size, len(rest)))
    if rest is not None:
        yield rest


def _concatenated(one: Table, other: Table) -> Table:
    def joined(left: Named, right: Named) -> Named:
        return {name: np.concatenate([left[name], right[name]]) for name in left}

    return Table(
        inputs=joined(one.inputs, other.inputs),
        targets=joined(one.targets, other.targets),
        weights=joined(one.weights, other.weights),
    )


def maker_of(value: Any, where: str) -> Callable[[], Iterable[Any]] | None:
    """What begins a stream anew, if a value is one: None otherwise.

    Args:
        value: What a data function returned for one subset.
        where: Whose it is, as an error calls it.

    Raises:
        DataError: It is a stream without end, or one that can be read only once.
    """
    if hasattr(value, "as_numpy_iterator"):
        if int(value.cardinality()) == -1:
            raise DataError(
                f"{where} is a dataset without end. Leave out repeat(): each epoch begins it anew."
            )
        iterator: Callable[[], Iterable[Any]] = value.as_numpy_iterator
        return iterator
    if hasattr(value, "on_epoch_end") and hasattr(value, "__getitem__"):
        return lambda: (value[place] for place in range(_length_of(value)))
    if inspect.isgenerator(value):
        raise DataError(
            f"{where} is a generator, which can be read only once. Return the function that makes it: each epoch "
            "calls it anew."
        )
    return value if callable(value) else None


def _length_of(dataset: Any) -> int:
    return int(dataset.num_batches if getattr(dataset, "num_batches", None) is not None else len(dataset))
