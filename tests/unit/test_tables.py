"""Data of any form: what a function or a file gives becomes named arrays, in memory or streamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from broker.errors import DataError, UsageError
from broker.wire.settings import InputSpec, Needs, TargetSpec
from broker.wire.tensors import InputFacts
from worker.data.classes import parse_classes
from worker.data.data_set import Dataset, open_data
from worker.tables.fitted import fitted
from worker.tables.naming import named
from worker.tables.stream import Stream
from worker.tables.table import table_of
from worker.tables.table_set import TableSet

ROWS = Needs(
    inputs=(InputSpec(name="x", shape=(2,), dtype="float32"),),
    targets=(TargetSpec(name="y", shape=(1,), kind="numbers"),),
)
X, Y = np.arange(20.0).reshape(10, 2), np.arange(10) / 4


class Frame:
    """As much of a pandas DataFrame as is used."""

    def __init__(self, **columns: Any) -> None:
        self._columns = {name: np.asarray(each) for name, each in columns.items()}
        self.columns = list(columns)

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def to_numpy(self) -> Any:
        return np.stack(list(self._columns.values()), axis=1)


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", allow_pickle=False, **arrays)
    return str(folder / "data.npz")


def returned(monkeypatch: pytest.MonkeyPatch, value: Any) -> Any:
    """What a data function that returns this is opened as."""
    import sys
    import types

    module = types.ModuleType("a_site")
    module.data = value if callable(value) else lambda: value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_site", module)
    return open_data("a_site:data", worker="w1")


def test_an_npz_names_its_inputs_and_targets_behind_a_dot(tmp_path: Path) -> None:
    """x_train.age beside x_train.site; a tenth is held out where there is no test part, the same for the same seed."""
    arrays = {"x_train.age": X, "x_train.site": np.array(["a", "b"] * 5), "y_train": Y}
    data = open_data(npz(tmp_path, **arrays))
    assert isinstance(data, TableSet)
    assert [(each.name, each.role, each.shape, each.dtype) for each in data.holds] == [
        ("age", "input", (2,), "float32"),
        ("site", "input", (), "string"),
        ("0", "target", (), "float32"),
    ]
    assert (data.num_train_examples, data.num_test_examples, data.is_held_out) == (9, 1, True)


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        (np.arange(10) % 2, Dataset),
        (np.arange(10) % 2 * 1.0, Dataset),
        (Y, TableSet),
        (np.eye(10), TableSet),
    ],
)
def test_whole_numbers_one_an_example_are_classes_and_all_else_is_not(
    tmp_path: Path, y: Any, kind: type
) -> None:
    """Nobody has to say which it is."""
    assert type(open_data(npz(tmp_path, x_train=X, y_train=y, x_test=X, y_test=y))) is kind


def test_an_operator_says_that_whole_numbers_are_no_classes(tmp_path: Path) -> None:
    """Ages are whole numbers, too."""
    data = open_data(npz(tmp_path, x_train=X, y_train=np.arange(10)), classes=parse_classes("none"))
    assert isinstance(data, TableSet)
    assert data.classes == ()


def test_labelled_examples_serve_a_model_of_numbers_as_they_were_given(tmp_path: Path) -> None:
    """Class numbers are counted from 0 for a classifier alone."""
    data = open_data(npz(tmp_path, x_train=X, y_train=[3, 7] * 5, x_test=X, y_test=[3, 7] * 5))
    flat = next(iter(data.train_rows(ROWS).batches(4)))
    assert flat[1].tolist() == [[3.0], [7.0], [3.0], [7.0]]


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x_train.a": X, "y_train": Y[:5]}, "x.a 10, y 5 examples"),
        ({"x_train.a": X, "x_train": X, "y_train": Y}, "both x_train and x_train.a"),
        ({"x_train": X, "y_train": np.full((10, 2), np.nan)}, "holds NaN"),
        ({"x_train": X, "y_train": Y, "sample_weight_train": -Y}, "at least 0"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "lacks y_test"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path, arrays: Any, match: str) -> None:
    """Before anything is trained, and by name."""
    with pytest.raises(DataError, match=match):
        open_data(npz(tmp_path, **arrays))


def test_a_table_of_pandas_is_one_array_or_one_a_column() -> None:
    """Numbers alone are what a model of one input takes; with texts among them each column is an input."""
    assert named(Frame(a=[1.0, 2.0], b=[3, 4]), "x")["0"].tolist() == [[1, 3], [2, 4]]
    columns = named(Frame(a=[1.0, 2.0], b=np.array(["u", "ü"], object)), "x")
    assert columns["b"].tolist() == [b"u", "ü".encode()]
    assert columns["a"].dtype == np.float32


def test_columns_of_pandas_that_may_lack_numbers_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Int64 beside bool is no table of objects; a number that is missing is told as one, and not as a text."""
    table = pd.DataFrame({"age": pd.array([30, 41], "Int64"), "well": pd.array([True, False], "boolean")})
    assert named(table, "x")["0"].tolist() == [[30, 1], [41, 0]]
    assert named(table["age"], "y")["0"].tolist() == [30, 41]
    gaps = pd.DataFrame({"age": pd.array([30, None], "Int64"), "dose": [0.5, 1.5]})
    with pytest.raises(DataError, match="holds NaN or infinity"):
        named(gaps, "x")
    labelled = pd.concat([table] * 10), np.array([0, 1] * 10)
    data = returned(monkeypatch, lambda: (labelled, labelled))
    assert isinstance(data, Dataset)
    assert sorted(set(data.train((2,)).x.ravel().tolist())) == [0, 1, 30, 41]


def test_a_function_may_take_the_workers_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """One module serves many sites."""

    def data(name: str) -> Any:
        return ({"a": X}, Y * len(name)), ({"a": X}, Y)

    flat = next(iter(returned(monkeypatch, data).train_rows(ROWS).batches(10)))
    assert flat[1].ravel().tolist() == (Y * 2).astype(np.float32).tolist()


def batches() -> Iterator[Any]:
    yield X[:3], Y[:3]
    yield X[3:10], Y[3:10]


def test_a_generator_is_counted_once_and_streamed_in_batches_of_the_runs_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is never in memory whole, begins anew in each epoch, and keeps its order."""
    data = returned(monkeypatch, lambda: batches)
    assert isinstance(data, TableSet)
    assert (data.num_train_examples, data.num_test_examples) == (10, 0)
    rows = data.train_rows(ROWS)
    for _ in range(2):
        found = list(rows.batches(4))
        assert [len(batch[0]) for batch in found] == [4, 4, 2]
        assert np.concatenate([batch[0] for batch in found]).tolist() == X.tolist()
    assert rows.num_batches(4) == 3


class Sequence:
    """As much of a keras PyDataset as is used."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> Any:
        return X[place * 5 :][:5], Y[place * 5 :][:5], np.ones(5)

    def on_epoch_end(self) -> None:
        raise AssertionError("not a keras training loop")


def test_a_py_dataset_is_read_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its sample weights."""
    data = returned(monkeypatch, (Sequence(), (X, Y)))
    assert (data.num_train_examples, data.num_test_examples) == (10, 10)
    assert len(next(iter(data.train_rows(ROWS).batches(6)))) == 3


def test_batches_of_differing_length_stay_as_they_come() -> None:
    """They can't be put together; the axis in which they differ may have any size."""
    stream = Stream(lambda: [(np.zeros((2, 3)), [1, 2]), (np.zeros((4, 5)), [1, 2, 3, 4])], "a stream")
    assert [each.shape for each in stream.holds] == [(None,), ()]
    assert [len(batch) for batch in stream.batches(1)] == [2, 4]
    assert stream.num_batches(1) == 2


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (batches(), "read only once"),
        (lambda: iter(()), "gives no batch"),
        (lambda: iter([X]), "Expected batches"),
        (lambda: iter([(X, Y), (X[:, :1, None], Y)]), "differ"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_stream_that_can_not_be_used_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, value: Any, match: str
) -> None:
    """It says what is expected."""
    with pytest.raises(DataError, match=match):
        returned(monkeypatch, lambda: value)


def test_class_numbers_out_of_range_are_refused_but_for_those_that_the_loss_passes_over() -> None:
    """TensorFlow would answer with NaN, or with an error in the middle of a round."""
    target = TargetSpec(name="y", shape=(), kind="classes", num_classes=3, ignored=255)
    needs = Needs(inputs=ROWS.inputs, targets=(target,))
    y = np.array([0, 1, 2, 255])
    assert next(iter(fitted(table_of(X[:4], y, None, "t"), needs).batches(4)))[1].tolist() == y.tolist()
    with pytest.raises(DataError, match=r"class numbers from 0 to 2\. Received 3"):
        next(iter(fitted(table_of(X[:4], [0, 1, 2, 3], None, "t"), needs).batches(4)))


def test_one_input_of_numbers_has_a_range_and_parts_of_a_set_have_that_of_the_whole() -> None:
    """By which sites of another scale are found; of several inputs, of texts and of streams no one range would tell."""
    whole = TableSet(table_of(X, Y, None, "t"), table_of(-X, Y, None, "t"))
    assert whole.inputs == InputFacts(shape=(2,), dtype="float32", low=-19, high=19)
    assert {each.inputs for each in whole.divide(3, "iid", 0)} == {whole.inputs}
    for x in ({"a": X, "b": X}, ["u"] * 10):
        assert TableSet(table_of(x, Y, None, "t"), None).inputs is None
    assert TableSet(Stream(batches, "a stream"), None).inputs is None


def test_a_table_is_cut_into_sites_at_random_and_each_example_goes_to_one() -> None:
    """Without classes sites can't be uneven in them."""
    whole = TableSet(table_of(X, Y, None, "t"), table_of(X, Y, None, "t"))
    sites = whole.divide(3, "iid", 0)
    found = [value for site in sites for value in next(iter(site.train_rows(ROWS).batches(10)))[1].ravel()]
    assert sorted(found) == Y.tolist()
    with pytest.raises(UsageError, match="needs classes"):
        whole.divide(3, "shards", 0)
    with pytest.raises(DataError, match="too few"):
        whole.divide(11, "iid", 0)
