"""Saved models of any kind on rows: measured, asked, and refused where only images will do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from broker.errors import DataError, ModelError
from broker.model.head import purpose_of
from tests.system.table import TABLE
from worker.baseline import measured_by
from worker.cli import main
from worker.clinic.current_model import open_classifier
from worker.data.data_set import open_data
from worker.learning.prediction import predict
from worker.learning.saved_model import load_model
from worker.learning.values import Measures, format_answer, format_measures, predict_rows
from worker.tensorflow import load_keras

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models, and the data that they fit."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name in ("outputs_in_a_list", "inputs_in_a_dict", "softmax"):
        case = TABLE[name]()
        case.model.save(folder / f"{name}.keras")
        np.savez(folder / f"{name}.npz", allow_pickle=False, **case.arrays)
        found[name] = folder / name
    return found


def test_a_model_without_classes_is_measured_as_keras_does(made: dict[str, Path]) -> None:
    """Loss and compiled metrics, those of each output by its name."""
    path = made["outputs_in_a_list"]
    loaded = load_model(path.with_suffix(".keras"))
    assert loaded.needs is not None
    data = open_data(str(path.with_suffix(".npz")), for_training=False)
    found = measured_by(loaded, data.test_rows(loaded.needs), ())
    assert isinstance(found, Measures)
    arrays = np.load(path.with_suffix(".npz"))
    expected: Any = (
        load_keras()
        .models.load_model(path.with_suffix(".keras"))
        .evaluate(
            arrays["x_train"], [arrays["y_train.price"], arrays["y_train.kind"]], verbose=0, return_dict=True
        )
    )
    assert found.metrics == pytest.approx(expected, rel=1e-5)
    assert "price mae" in format_measures(found)


def test_rows_of_a_csv_go_to_inputs_by_name(made: dict[str, Path], tmp_path: Path) -> None:
    """NAME.0, NAME.1 and so on are one input; columns that no input has are passed over."""
    loaded = load_model(made["inputs_in_a_dict"].with_suffix(".keras"))
    (tmp_path / "rows.csv").write_text("id,age.0,age.1,age.2,site.1,site.0\n7,1,2,3,5,4\n8,0,0,0,0,0\n")
    first, second = predict_rows(loaded, tmp_path / "rows.csv")
    x = {"age": np.array([[1.0, 2, 3]], np.float32), "site": np.array([[4.0, 5]], np.float32)}
    (name,) = first
    assert first[name] == pytest.approx(float(np.asarray(loaded.model(x))[0, 0]), rel=1e-5)
    assert format_answer(second).startswith(name)
    (tmp_path / "odd.csv").write_text("age\n1\n")
    with pytest.raises(DataError, match="the model needs"):
        list(predict_rows(loaded, tmp_path / "odd.csv"))


def test_rows_go_to_a_classifier_too(made: dict[str, Path], tmp_path: Path) -> None:
    """All columns in their order, or x of an .npz; each row has a class."""
    loaded = load_model(made["softmax"].with_suffix(".keras"))
    x = np.arange(8.0).reshape(2, 4)
    np.savez(tmp_path / "rows.npz", x=x)
    (tmp_path / "rows.csv").write_text("a,b,c,d\n0,1,2,3\n4,5,6,7\n")
    ours = list(predict_rows(loaded, tmp_path / "rows.npz"))
    assert ours == list(predict_rows(loaded, tmp_path / "rows.csv"))
    assert ours[0]["class"] in ("0", "1", "2")
    assert sum(ours[0]["probabilities"].values()) == pytest.approx(1)


def one_output(activation: str, loss: str | None, outputs: int = 1) -> Any:
    keras = load_keras()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs, activation)])
    if loss is not None:
        model.compile("sgd", loss)
    return model


@pytest.mark.parametrize(
    ("activation", "loss", "outputs", "purpose"),
    [
        ("softmax", None, 3, "classes"),
        ("softmax", "mse", 3, "classes"),
        ("log_softmax", None, 3, "classes"),
        ("linear", "sparse_categorical_crossentropy", 3, "classes"),
        ("tanh", "hinge", 1, "classes"),
        ("linear", "binary_crossentropy", 1, "classes"),
        ("sigmoid", "binary_crossentropy", 1, "classes"),
        ("sigmoid", None, 1, "classes"),
        ("linear", "mse", 1, "numbers"),
        ("relu", "mape", 1, "numbers"),
        ("linear", "huber", 3, "numbers"),
        ("exponential", "poisson", 1, "numbers"),
        ("sigmoid", "mse", 1, "open"),
        ("sigmoid", "binary_crossentropy", 3, "open"),
        ("linear", None, 1, "open"),
        ("linear", "kl_divergence", 3, "open"),
    ],
)
def test_a_model_says_whether_it_tells_classes_apart(
    activation: str, loss: str | None, outputs: int, purpose: str
) -> None:
    """By its last activation and its loss; where these leave both, it says nothing."""
    assert purpose_of(one_output(activation, loss, outputs)) == purpose


def test_a_regression_from_elsewhere_gives_numbers_and_no_classes(tmp_path: Path) -> None:
    """It has no card: its loss says what it is, also where whole numbers are to be learned."""
    path, model = tmp_path / "price.keras", one_output("linear", "mse")
    model.save(path)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.savez(tmp_path / "rows.npz", x=x)
    told = CliRunner().invoke(main, ["predict", str(path), str(tmp_path / "rows.npz"), "--json"])
    assert told.exit_code == 0, told.output
    answers = [value for row in json.loads(told.stdout) for value in row.values()]
    assert answers == pytest.approx(model(x).numpy().ravel().tolist(), rel=1e-5)
    np.savez(
        tmp_path / "ages.npz", x_train=x, y_train=np.array([30, 31]), x_test=x, y_test=np.array([31, 31])
    )
    told = CliRunner().invoke(main, ["evaluate", str(path), "--data", str(tmp_path / "ages.npz"), "--json"])
    assert told.exit_code == 0, told.output
    expected = ((model(x).numpy().ravel() - [31, 31]) ** 2).mean()
    assert json.loads(told.stdout) == pytest.approx({"num_examples": 2, "loss": expected}, rel=1e-5)
    with pytest.raises(ModelError, match="no classifier of images"):
        open_classifier(path)


def test_a_model_that_says_nothing_is_refused_until_a_person_says_it(tmp_path: Path) -> None:
    """Several sigmoids are classes or labels: wrong figures would look like right ones. The refusal names --classes."""
    path = tmp_path / "m.keras"
    one_output("sigmoid", "binary_crossentropy", 2).save(path)
    (tmp_path / "rows.csv").write_text("a,b,c,d\n0,1,2,3\n")

    def asked(*options: str) -> Any:
        return CliRunner().invoke(
            main, ["predict", str(path), str(tmp_path / "rows.csv"), "--json", *options]
        )

    refused = asked()
    assert (refused.exit_code, refused.stdout) == (5, "")
    assert "--classes none" in refused.output
    (row,) = json.loads(asked("--classes", "ill,well").stdout)
    assert set(row["probabilities"]) == {"ill", "well"}
    (row,) = json.loads(asked("--classes", "none").stdout)
    ((name, numbers),) = row.items()
    assert len(numbers) == 2, name
    assert asked("--classes", "a,b,c").exit_code == 2
    with pytest.raises(ModelError, match="--classes"):
        open_classifier(path)


def test_what_is_no_classifier_of_images_is_refused_in_one_line(made: dict[str, Path]) -> None:
    """By the clinic, and where images are given."""
    path = made["inputs_in_a_dict"].with_suffix(".keras")
    with pytest.raises(ModelError, match="no classifier of images"):
        open_classifier(path)
    with pytest.raises(DataError, match="Give it rows"):
        list(predict(load_model(path), [Path("x-ray.png")], lambda _: None))
