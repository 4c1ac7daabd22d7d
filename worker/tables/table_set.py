"""A participant's data set of any form; beside `worker.data.data_set.Dataset`, which is of labelled examples."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from broker.errors import DataError, UsageError
from broker.wire.settings import TEXT, Held, Needs
from broker.wire.statistics import is_row
from broker.wire.tensors import InputFacts
from worker.tables.fitted import Rows, fitted
from worker.tables.naming import ALONE, Array, Named, dtype_of
from worker.tables.stream import Stream
from worker.tables.table import Table

Ends = tuple[float, float]  #: the least and the largest number of an array

_HELD_OUT = 0.1  # of the training subset, when there is no test subset


class TableSet:
    """A participant's data set.

    Args:
        train: What is trained on; None for one that is only measured on.
        test: What is tested on; None measures nothing.
        is_held_out: Whether the test subset was taken out of the training subset, for want of one.
        inputs: What the examples are like, if that is known of more than these.

    Attributes:
        classes: None: whatever is learned here has no class names.
        inputs: What the examples of both subsets are like; None of several inputs, of texts, and of what is streamed.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self,
        train: Table | Stream | None,
        test: Table | Stream | None,
        *,
        is_held_out: bool = False,
        inputs: InputFacts | None = None,
    ) -> None:
        self._train = train
        self._test = test
        self.is_held_out = is_held_out
        self.inputs = inputs or _facts_of([each for each in (train, test) if each is not None])

    @property
    def num_train_examples(self) -> int:
        """How many there are to train on."""
        return 0 if self._train is None else len(self._train)

    @property
    def num_test_examples(self) -> int:
        """How many there are to test on."""
        return 0 if self._test is None else len(self._test)

    @property
    def examples_per_class(self) -> dict[str, int]:
        """There are no classes."""
        return {}

    @property
    def holds(self) -> tuple[Held, ...]:
        """What there is, as it is told."""
        data = self._train or self._test
        return () if data is None else data.holds

    def ends(self) -> dict[str, Ends]:
        """Of each array of numbers, by "input NAME" and "target NAME", but of no stream: every value is looked at."""
        tables = [each for each in (self._train, self._test) if isinstance(each, Table)]
        found: dict[str, Ends] = {}
        for held in self.holds:
            arrays = [(each.inputs if held.role == "input" else each.targets)[held.name] for each in tables]
            if arrays and all(each.dtype.kind in "biuf" and each.size for each in arrays):
                low, high = min(each.min() for each in arrays), max(each.max() for each in arrays)
                found[f"{held.role} {held.name}"] = float(low), float(high)
        return found

    def pairs(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """(x_train, y_train), (x_test, y_test), each an array, or several by name; without a test subset of no example.

        Raises:
            DataError: It is streamed, or has weights, which these have no place for.
        """
        train, test = self._train, self._test
        if not isinstance(train, Table) or isinstance(test, Stream) or train.weights:
            raise DataError(
                "A trainer of one's own is given x and y in memory, and no stream and no sample weights."
            )
        test = train.take(np.arange(0)) if test is None else test
        return (plainly(train.inputs), plainly(train.targets)), (plainly(test.inputs), plainly(test.targets))

    def columns(self) -> npt.NDArray[np.float32]:
        """The training subset as `broker.wire.statistics.columns_of` names it, float32 of shape (n, columns).

        Raises:
            DataError: It is streamed, or holds what is no row of numbers.
        """
        if not isinstance(self._train, Table):
            raise DataError("This site's data is streamed; statistics are told of tables in memory alone.")
        for each in self.holds:
            if not is_row(each) and each.dtype != TEXT:
                raise DataError(
                    f"This site's {each.role} {each.name!r} has the shape {each.shape} an example, and it names no "
                    "classes; statistics are told of rows of numbers then."
                )
        held = [self._train.inputs, self._train.targets]
        arrays = [array for part in held for array in part.values() if dtype_of(array) != TEXT]
        return np.concatenate(
            [array.reshape(len(self._train), -1) for array in arrays], axis=1, dtype=np.float32
        )

    def train_rows(self, needs: Needs) -> Rows:
        """The training subset as a model takes it.

        Raises:
            DataError: It doesn't fit, or there is none.
        """
        if self._train is None:
            raise DataError("There is nothing to train on. Expected a set with a training part.")
        return fitted(self._train, needs)

    def test_rows(self, needs: Needs) -> Rows | None:
        """The test subset, likewise; None if there is none."""
        return None if self._test is None else fitted(self._test, needs)

    def sample(self, *_asked: object) -> NoReturn:
        """Refuse what a model of classes would be trained on.

        Raises:
            DataError: Always.
        """
        raise DataError(
            "The run's model tells classes apart, and the data here names none. Expected one array x, and whole "
            "numbers y, one an example."
        )

    train = test = sample_test = sample

    def divide(self, into: int, scheme: str, seed: int) -> "list[TableSet]":
        """Cut into logical sites, at random; the test subset likewise.

        Raises:
            UsageError: Another scheme than iid: without classes sites can't be uneven in them.
            DataError: A site would be left without examples, or the data is streamed.
        """
        if scheme != "iid":
            raise UsageError(f"The partition {scheme} needs classes, and the data names none. Try iid.")
        train = _dealt(self._train, into, seed)
        if any(each is None for each in train):
            raise DataError(f"There are too few examples for {into} sites. Try fewer.")
        tests = _dealt(self._test, into, seed)
        return [
            TableSet(mine, its, is_held_out=self.is_held_out, inputs=self.inputs)
            for mine, its in zip(train, tests, strict=True)
        ]


def plainly(arrays: Named) -> Array | Named:
    """One array that has no name by itself, several by theirs."""
    return arrays[ALONE] if list(arrays) == [ALONE] else arrays


def _facts_of(subsets: Sequence[Table | Stream]) -> InputFacts | None:
    """What the examples of tables are like that have one input of numbers."""
    arrays: list[Array] = []
    for each in subsets:
        if not isinstance(each, Table) or len(each.inputs) != 1:
            return None
        arrays += each.inputs.values()
    if not arrays or any(dtype_of(array) == TEXT or not array.size for array in arrays):
        return None
    return InputFacts(
        shape=tuple(arrays[0].shape[1:]),
        dtype=dtype_of(arrays[0]),
        low=float(min(array.min() for array in arrays)),
        high=float(max(array.max() for array in arrays)),
    )


def _dealt(data: Table | Stream | None, into: int, seed: int) -> list[Table | None]:
    if data is None:
        return [None] * into
    if isinstance(data, Stream):
        raise DataError("Data that is streamed can't be cut into sites. Give each worker its own.")
    order = np.random.default_rng(seed).permutation(len(data))
    return [data.take(np.sort(order[place::into])) if place < len(order) else None for place in range(into)]


def table_set_of(
    train: Table | Stream | None, test: Table | Stream | None, *, for_training: bool, seed: int
) -> TableSet:
    """A data set; without a test subset a tenth of a table is held out, for measuring alone all of it is the test.

    Args:
        train: As it was found.
        test: As it was found.
        for_training: As `worker.data.data_set.open_data` takes it.
        seed: Chooses what is held out.

    Raises:
        DataError: There is too little.
    """
    if not for_training:
        return TableSet(None, train if test is None else test)
    if test is not None or not isinstance(train, Table):
        return TableSet(train, test)
    if len(train) < 2:
        raise DataError("There is 1 example, and one must be held out. Bring two or more, or a test part.")
    order = np.random.default_rng(seed).permutation(len(train))
    cut = max(1, int(len(order) * _HELD_OUT))
    held_out, rest = np.sort(order[:cut]), np.sort(order[cut:])
    return TableSet(train.take(rest), train.take(held_out), is_held_out=True)
