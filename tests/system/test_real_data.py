"""Data as their own libraries make them: a pandas DataFrame, a tf.data.Dataset, a keras PyDataset."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.system.federation import Models, play
from tests.system.table import compiled, dense
from worker.cli import main
from worker.data.data_set import open_data
from worker.rounds.participant import KerasTrainer
from worker.tables.table_set import TableSet
from worker.tensorflow import load_keras

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs

SITES = """
import numpy as np

X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5, 0.0]).astype(np.float32)


def frame():
    import pandas

    table = pandas.DataFrame(X, columns=list("abcd")).assign(price=Y)
    train, test = table[:20], table[20:]
    return (train[list("abcd")], train["price"]), (test[list("abcd")], test["price"])


def dataset():
    import tensorflow as tf

    whole = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    return tf.data.Dataset.from_tensor_slices((X[:20], Y[:20])).batch(8), whole.unbatch().skip(20).batch(4)


def py_dataset():
    import keras

    class Batches(keras.utils.PyDataset):
        def __init__(self, begin, end):
            super().__init__()
            self.begin, self.end = begin, end

        def __len__(self):
            return -(-(self.end - self.begin) // 8)

        def __getitem__(self, place):
            mine = slice(self.begin + 8 * place, min(self.begin + 8 * place + 8, self.end))
            return X[mine], Y[mine]

    return Batches(0, 20), Batches(20, 30)


def dataset_alone():
    return dataset()[1]


def words():
    import pandas

    table = pandas.DataFrame({"ward": ["a", "b"] * 15, "age": np.arange(30)})
    return (table, pandas.DataFrame({"price": Y})), None
"""
KINDS = ("frame", "dataset", "py_dataset")


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sites_of_real_data.py").write_text(SITES, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_pandas_tensorflow_and_keras_data_are_trained_on_and_measured(sites: Path) -> None:
    """The same examples in each form: each site trains, all learn alike, and `worker evaluate` finds in each what
    Keras finds in the arrays."""
    load_keras().utils.set_random_seed(1)
    model = compiled(dense(1, activation="linear"), "mse", metrics=["mae"])
    data = {kind.replace("_", "-"): open_data(f"sites_of_real_data:{kind}") for kind in KINDS}
    for each in data.values():
        assert isinstance(each, TableSet)
        assert (each.num_train_examples, each.num_test_examples) == (20, 10)
    outcome = play(Models(model), data, sites / "run", trainer=KerasTrainer(), batch_size=8)
    row = outcome.state.history[2]
    assert set(row.accepted) == set(data)
    assert row.test["loss"] < outcome.state.history[0].test["loss"]
    for variable, value in zip(model.weights, outcome.weights, strict=True):
        variable.assign(value)
    model.save(sites / "model.keras")
    expected = measured_by_keras(model)
    for kind in (*KINDS, "dataset_alone"):
        words = ["evaluate", str(sites / "model.keras"), "--data", f"sites_of_real_data:{kind}", "--json"]
        found = CliRunner().invoke(main, words)
        assert found.exit_code == 0, found.output
        told = json.loads(found.stdout)
        assert told == pytest.approx({"num_examples": 10} | expected, rel=1e-5), kind


def measured_by_keras(model: Any) -> Any:
    import sites_of_real_data as site

    return model.evaluate(site.X[20:], site.Y[20:], verbose=0, return_dict=True)


def test_a_frame_with_texts_is_an_input_a_column(sites: Path) -> None:
    """pandas keeps texts in a type of its own."""
    held = open_data("sites_of_real_data:words").holds
    assert [(each.name, each.dtype if each.role == "input" else each.role, each.shape) for each in held] == [
        ("ward", "string", ()),
        ("age", "int32", ()),
        ("0", "target", (1,)),
    ]
