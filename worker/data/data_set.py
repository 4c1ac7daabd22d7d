"""One participant's private data: opened once, decoded once per shape, handed out as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.errors import DataError
from broker.wire.settings import Held, Needs
from broker.wire.tensors import InputFacts
from worker.data.arrays import read_values
from worker.data.classes import Declared
from worker.data.finding import find_listing
from worker.data.images import Shape
from worker.data.listing import Labels, Listing, Skipped, Subset, Tables, count_per_class, patient_of
from worker.data.partition import deal_examples, partition
from worker.data.sources import Excerpt, Pixels, Size, Source, open_sources
from worker.tables.fitted import Rows, fitted
from worker.tables.table import Table, table_of
from worker.tables.table_set import TableSet, table_set_of

__all__ = ["DEFAULT_SHAPE", "Dataset", "Examples", "open_data", "open_values", "patient_of"]

DEFAULT_SHAPE: Shape = (224, 224, 1)  #: what images are decoded for before a model has said what it takes
_GIVEN = "the data"  # what arrays are called that have no name
_HELD_OUT = 0.1  # of the training subset, when there is no test subset

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Examples as a model takes them.

    Attributes:
        x: (n, *shape) uint8 or float32; may be read-only.
        y: (n,) int64 class indices.
        weights: (n,) float32 what each counts in the loss; None: all the same.
    """

    x: Pixels
    y: Labels
    weights: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.y)


class Dataset:
    """A participant's data set.

    Args:
        train: What is trained on.
        test: What is tested on.

    Attributes:
        classes: Class names, in the order of a model's outputs.
        is_held_out: Whether the test subset was taken out of the training subset, for want of one.
        num_train_examples: Images that can't be decoded are not counted.
        num_test_examples: The same.
        inputs: What the examples are like, of both subsets together; logical sites share the whole set's.
        skipped: What lies there and was not taken.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        train: Source,
        test: Source,
        *,
        inputs: InputFacts,
        is_held_out: bool,
        skipped: tuple[Skipped, ...] = (),
    ) -> None:
        self.classes = classes
        self.skipped = skipped
        self.inputs = inputs
        self.is_held_out = is_held_out
        self._train = train
        self._test = test

    @property
    def holds(self) -> tuple[Held, ...]:
        """Nothing beyond what classes and inputs tell."""
        return ()

    @property
    def num_train_examples(self) -> int:
        """How many there are to train on."""
        return len(self._train.labels)

    @property
    def num_test_examples(self) -> int:
        """How many there are to test on."""
        return len(self._test.labels)

    @property
    def examples_per_class(self) -> dict[str, int]:
        """Training examples of each class, by name."""
        return _counted(self._train, self.classes)

    @property
    def test_examples_per_class(self) -> dict[str, int]:
        """Test examples of each class, by name."""
        return _counted(self._test, self.classes)

    def sizes(self) -> list[Size]:
        """How large the pictures are as they are stored: each file is looked into. Empty of arrays."""
        return [*self._train.sizes(), *self._test.sizes()]

    def train(self, shape: Shape) -> Examples:
        """The training subset for a model that takes `shape`.

        Raises:
            DataError: The data can't have that shape.
        """
        return Examples(x=self._train.read(shape), y=self._train.labels, weights=self._train.weights)

    def test(self, shape: Shape) -> Examples:
        """The test subset, likewise."""
        return Examples(x=self._test.read(shape), y=self._test.labels)

    def train_rows(self, needs: Needs) -> Rows:
        """The training subset for a model that is trained on whatever it needs: y as it was given.

        Raises:
            DataError: It doesn't fit, or its images are files.
        """
        return fitted(self._table(self._train), needs)

    def test_rows(self, needs: Needs) -> Rows | None:
        """The test subset, likewise; None if there is none."""
        return fitted(self._table(self._test), needs) if len(self._test.labels) else None

    def _table(self, source: Source) -> Table:
        if self.inputs.shape is None:
            raise DataError(
                "Images in folders have classes, and the run's model tells none apart. Give arrays, as an .npz."
            )
        return table_of(source.read(self.inputs.shape), source.values, source.weights, "the data")

    def sample(self, shape: Shape, examples_per_class: int | None, rng: np.random.Generator) -> Examples:
        """Random training examples, equally many of each class; None: the whole training subset.

        Args:
            shape: Of one example, as the model takes it.
            examples_per_class: How many of each class.
            rng: Chooses them.

        Raises:
            DataError: A class has fewer, or the data can't have that shape.
        """
        if examples_per_class is None:
            return self.train(shape)
        for name, count in self.examples_per_class.items():
            if count < examples_per_class:
                # Travels as the reason of a worker that declines: how many there are is for --share counts to tell.
                raise DataError(
                    f"The run trains on {examples_per_class} examples per class; {name!r} has fewer here. "
                    "Bring more, or start the run with a smaller --examples-per-class."
                )
        return _sample(self._train, shape, examples_per_class, rng)

    def sample_test(self, shape: Shape, examples_per_class: int | None, rng: np.random.Generator) -> Examples:
        """Half as many test examples per class, or as many as there are; None: the whole test subset.

        Args:
            shape: Of one example, as the model takes it.
            examples_per_class: How many of each class are trained on.
            rng: Chooses them.
        """
        if examples_per_class is None:
            return self.test(shape)
        return _sample(self._test, shape, max(1, examples_per_class // 2), rng)

    def divide(self, into: int, scheme: str, seed: int) -> "list[Dataset]":
        """Cut into logical sites that share the decoded images; the test subset is dealt evenly.

        Args:
            into: How many sites.
            scheme: iid, shards or dirichlet:ALPHA.
            seed: The same seed gives the same sites.

        Raises:
            DataError: A site would be left without examples.
            UsageError: The scheme is impossible.
        """
        train = partition(self._train.labels, self._train.groups, into, scheme, seed)
        test = deal_examples(self._test.labels, into, seed)
        return [
            Dataset(
                self.classes,
                Excerpt(self._train, mine),
                Excerpt(self._test, its),
                inputs=self.inputs,
                is_held_out=self.is_held_out,
            )
            for mine, its in zip(train, test, strict=True)
        ]


def _counted(source: Source, classes: tuple[str, ...]) -> dict[str, int]:
    counts = count_per_class(source.labels, len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}


def open_data(
    spec: str,
    *,
    for_training: bool = True,
    shape: Shape = DEFAULT_SHAPE,
    seed: int = 0,
    classes: Declared | None = None,
    worker: str = "",
) -> Dataset | TableSet:
    """Open a folder of images, an .npz, or what MODULE:FUNCTION returns: examples of classes, or of any other form.

    Images are decoded here, so that those which can't be are known (one WARNING) and the counts are right.

    Args:
        spec: As `--data` takes it.
        for_training: Without a test subset, hold out a tenth of the training subset, whole patients. Otherwise
            the training subset is left alone: the test subset, or all of a set without one, is the test subset.
        shape: What images are decoded for now; another shape is decoded when a model wants it.
        seed: Chooses what is held out.
        classes: The classes as `--classes` names them, of which the data may lack some.
        worker: The worker's name, for a FUNCTION that takes it.

    Raises:
        DataError: There is no data, or it can't be used.
    """
    return _opened(
        find_listing(spec, classes, worker), spec, for_training=for_training, shape=shape, seed=seed
    )


def open_values(
    values: Any, *, for_training: bool = True, seed: int = 0, classes: Declared | None = None
) -> Dataset | TableSet:
    """Open what a caller gives: (x, y), or ((x_train, y_train), (x_test, y_test)), and after them the classes.

    Args:
        values: x of shape (n, ...), y of shape (n,) with class numbers; without a test part one is held out.
        for_training: As `open_data` takes it; so are the others.
        seed: Chooses what is held out.
        classes: The classes, of which the data may lack some.

    Raises:
        DataError: It is something else, or can't be used.
    """
    if not isinstance(values, tuple | list) or not 2 <= len(values) <= 3:
        raise DataError(
            f"Expected (x, y) or ((x_train, y_train), (x_test, y_test)) as data, received {type(values).__name__}."
        )
    whole = values if isinstance(values[0], tuple | list) else (values, None)
    listing = read_values(whole, _GIVEN, classes)
    return _opened(listing, _GIVEN, for_training=for_training, shape=DEFAULT_SHAPE, seed=seed)


def _opened(
    listing: Listing | Tables, spec: str, *, for_training: bool, shape: Shape, seed: int
) -> Dataset | TableSet:
    if isinstance(listing, Tables):
        return table_set_of(listing.train, listing.test, for_training=for_training, seed=seed)
    train, test, is_held_out = _choose_subsets(listing, spec, for_training=for_training, seed=seed)
    sources, inputs, skipped = open_sources(train, test, listing.classes, shape)
    return Dataset(
        listing.classes, *sources, inputs=inputs, is_held_out=is_held_out, skipped=listing.skipped + skipped
    )


def _choose_subsets(
    listing: Listing, spec: str, *, for_training: bool, seed: int
) -> tuple[Subset, Subset, bool]:
    """What is trained on, what is tested on, and whether the latter had to be held out of the former."""
    train, test = listing.train, listing.test
    if for_training and train is not None:
        return (train, test, False) if test is not None else (*_hold_out(train, listing.classes, seed), True)
    whole = train if test is None else test
    if for_training or whole is None:
        raise DataError(f"{spec!r} has a test part only. Put the images to train on under train/.")
    return whole.take(np.empty(0, np.int64)), whole, False


def _hold_out(subset: Subset, classes: tuple[str, ...], seed: int) -> tuple[Subset, Subset]:
    held_out = _choose_held_out(subset.labels, subset.patients, classes, np.random.default_rng(seed))
    rest = np.setdiff1d(np.arange(len(subset.labels)), held_out)
    return subset.take(rest), subset.take(held_out)


def _choose_held_out(
    labels: Labels, patients: Sequence[str] | None, classes: tuple[str, ...], rng: np.random.Generator
) -> Labels:
    """A tenth of each class, at least one; patients whole, in all classes at once, as far as that can be."""
    names = np.asarray(patients) if patients else np.arange(len(labels))
    _, owners = np.unique(names, return_inverse=True)
    counts = np.zeros((int(owners.max()) + 1, len(classes)), np.int64)
    np.add.at(counts, (owners, labels), 1)
    is_chosen = np.zeros(len(counts), bool)
    divided = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        if counts[:, label].sum() < 2:
            raise DataError(
                f"The class {classes[label]!r} has 1 example, and one must be held out. "
                "Bring at least two examples of each class, or a test part; --classes none if it is a number to learn."
            )
        _choose_owners(counts, is_chosen, label, rng)
        if not counts[is_chosen, label].any():  # one patient has all of a class, and must be divided
            members = rng.permutation(np.flatnonzero(labels == label))
            divided.append(members[: max(1, int(len(members) * _HELD_OUT))])
    return np.union1d(np.flatnonzero(is_chosen[owners]), np.concatenate(divided))


def _choose_owners(counts: Labels, is_chosen: Mask, label: np.int64, rng: np.random.Generator) -> None:
    """Mark random owners until a tenth of the class is held out; none that would use any class up."""
    total, held_out = counts.sum(axis=0), counts[is_chosen].sum(axis=0)
    for owner in rng.permutation(np.flatnonzero(counts[:, label])):
        if held_out[label] >= max(1, total[label] * _HELD_OUT):
            return
        more = held_out + counts[owner]
        if not is_chosen[owner] and ((more < total) | (counts[owner] == 0)).all():
            is_chosen[owner], held_out = True, more


def _sample(source: Source, shape: Shape, per_class: int, rng: np.random.Generator) -> Examples:
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(source.labels):
        members = np.flatnonzero(source.labels == label)
        chosen.append(rng.permutation(members)[:per_class])
    index = rng.permutation(np.concatenate(chosen))
    weights = None if source.weights is None else source.weights[index]
    return Examples(x=source.read(shape, index), y=source.labels[index], weights=weights)
