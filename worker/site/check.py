"""What opening this site's data has found, as a table for a person and as facts for a program."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from broker.errors import DataError
from broker.wire.settings import Held
from broker.wire.tensors import InputFacts
from worker.data.data_set import DEFAULT_SHAPE, Dataset
from worker.data.listing import Skipped
from worker.tables.table_set import Ends, TableSet

_MOST_CLASSES = 20  #: that have a line each
_TYPES_SHOWN = 8
_LABEL = 14  #: columns

Kind = Literal["images", "arrays", "trainer"]


class Site(Protocol):
    """As much of a site's data as every kind of them has: a data set, tables, a trainer of one's own."""

    @property
    def num_train_examples(self) -> int:
        """How many it trains on."""
        ...

    @property
    def num_test_examples(self) -> int:
        """How many it tests on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFacts:
    """How many examples a class has."""

    name: str
    train: int
    test: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFacts:
    """What the examples are like: the one input of a classifier, or each array of any other data.

    Attributes:
        name: "examples" of a classifier, else as the site calls it, with what it is for.
        shape: Of one example; None of images in files, which take the model's shape.
        low: The smallest value; None where that is not known: of texts, of a stream, or where nobody looked.
        high: The largest.
        sizes: Of images in files, the smallest and the largest as (width, height); None where nobody looked.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str
    low: float | None = None
    high: float | None = None
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What a site has.

    Attributes:
        is_held_out: Whether the test examples were taken out of the training examples, for want of a test part.
    """

    called: str
    kind: Kind
    num_train_examples: int
    num_test_examples: int
    is_held_out: bool = False
    classes: tuple[ClassFacts, ...] = ()
    arrays: tuple[ArrayFacts, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def facts_of(site: Site, called: str, *, looks_into_all: bool = False) -> DataFacts:
    """What is known of data that are open.

    Args:
        site: The data.
        called: As `--data` or `--trainer` names them.
        looks_into_all: Find how large the pictures are and which values there are, too, which takes a moment.

    Raises:
        DataError: The examples of classes hold what can't be trained on.
    """
    if isinstance(site, Dataset):
        return _facts_of_classes(site, called, looks_into_all=looks_into_all)
    if isinstance(site, TableSet):
        return _facts_of_tables(site, called, site.ends() if looks_into_all else {})
    return DataFacts(
        called=called, kind="trainer",
        num_train_examples=site.num_train_examples, num_test_examples=site.num_test_examples,
    )  # fmt: skip


def _facts_of_classes(data: Dataset, called: str, *, looks_into_all: bool) -> DataFacts:
    tests = data.test_examples_per_class
    examples = _examples_of(data, data.inputs, looks_into_all=looks_into_all)
    return DataFacts(
        called=called,
        kind="images" if data.inputs.shape is None else "arrays",
        num_train_examples=data.num_train_examples,
        num_test_examples=data.num_test_examples,
        is_held_out=data.is_held_out,
        classes=tuple(
            ClassFacts(name=name, train=count, test=tests[name])
            for name, count in data.examples_per_class.items()
        ),
        arrays=(examples,),
        skipped=data.skipped,
    )


def _examples_of(data: Dataset, inputs: InputFacts, *, looks_into_all: bool) -> ArrayFacts:
    low, high, sizes = inputs.low, inputs.high, None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("The examples hold NaN or infinity. Remove or replace these.")
    if inputs.shape is None and looks_into_all:
        every = sorted(data.sizes(), key=math.prod)
        subsets = [each.x for each in (data.train(DEFAULT_SHAPE), data.test(DEFAULT_SHAPE)) if len(each)]
        low, high = float(min(x.min() for x in subsets)), float(max(x.max() for x in subsets))
        sizes = every[0], every[-1]
    return ArrayFacts(
        name="examples", shape=inputs.shape, dtype=inputs.dtype, low=low, high=high, sizes=sizes
    )


def _facts_of_tables(data: TableSet, called: str, ends: dict[str, Ends]) -> DataFacts:
    return DataFacts(
        called=called,
        kind="arrays",
        num_train_examples=data.num_train_examples,
        num_test_examples=data.num_test_examples,
        is_held_out=data.is_held_out,
        arrays=tuple(_array_of(held, ends.get(f"{held.role} {held.name}")) for held in data.holds),
    )


def _array_of(held: Held, ends: Ends | None) -> ArrayFacts:
    low, high = ends or (None, None)
    return ArrayFacts(name=f"{held.role} {held.name}", shape=held.shape, dtype=held.dtype, low=low, high=high)


# In words


def lines_of(facts: DataFacts) -> Iterator[str]:
    """The table."""
    held_out = " (held out of the training examples, for there is no test part)" if facts.is_held_out else ""
    counts = f"{facts.num_train_examples:,} training and {facts.num_test_examples:,} test examples"
    yield line("data", f"{facts.called}: {counts}{held_out}")
    yield from _class_lines(facts.classes)
    for array in facts.arrays:
        yield line(f"  {array.name}", _array_text(array))
    for skipped in facts.skipped:
        yield line("  left out", _skipped_text(skipped))


def line(label: str, text: str) -> str:
    """One line of a table."""
    return f"{label:<{_LABEL}} {text}"


def _class_lines(classes: tuple[ClassFacts, ...]) -> Iterator[str]:
    shown = classes[:_MOST_CLASSES]
    width = max((len(each.name) for each in shown), default=0)
    for each in shown:
        yield line("  class", f"{each.name:<{width}}  {each.train:>7,} training  {each.test:>7,} test")
    if classes[_MOST_CLASSES:]:
        yield line("  class", f"and {len(classes) - _MOST_CLASSES} more")


def _array_text(array: ArrayFacts) -> str:
    values = "" if array.low is None else f", values from {array.low:g} to {array.high:g}"
    if array.shape is None:
        return f"images{_sizes_text(array.sizes)}{values} ({array.dtype})"
    shape = " x ".join("any" if size is None else str(size) for size in array.shape)
    return f"{array.dtype}{f' of shape {shape}' if shape else ', one an example'}{values}"


def _sizes_text(sizes: tuple[tuple[int, int], tuple[int, int]] | None) -> str:
    if sizes is None:
        return " in files"
    (width, height), (larger, higher) = sizes
    return f" of {width} x {height}" + ("" if sizes[0] == sizes[1] else f" to {larger} x {higher}")


def _skipped_text(skipped: Skipped) -> str:
    shown = [f"{count} {suffix}" for suffix, count in list(skipped.types.items())[:_TYPES_SHOWN]]
    more = [f"{len(skipped.types) - _TYPES_SHOWN} more types"] if len(skipped.types) > _TYPES_SHOWN else []
    types = f" ({', '.join(shown + more)})" if shown else ""
    reasons = f". {' '.join(skipped.reasons)}" if skipped.reasons else ""
    return f"{skipped.what}: {skipped.count:,}{types}{reasons}"
