"""A saved model in use: small real Keras models, made here, opened and asked through the command `worker`."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEGLosslessSV1

from broker.errors import ModelError
from broker.model.card import ModelCard, write_card
from deploy.synthetic import XraySet, write_xrays
from tests.dicoms import SECRETS, dicom
from worker.data.data_set import Examples, open_data
from worker.learning.evaluation import evaluate
from worker.learning.inference import Inference
from worker.learning.saved_model import load_model
from worker.tensorflow import load_keras

CLASSES = ("NORMAL", "PNEUMONIA")
SIZE = 32
SHAPE = (SIZE, SIZE, 1)

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


def worker(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does."""
    command = [sys.executable, "-c", "from worker.cli import main; main(prog_name='worker')"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def build(outputs: int, loss: str) -> object:
    keras = load_keras()
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(outputs, activation="sigmoid" if outputs == 1 else "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(), loss=loss, metrics=["accuracy"])
    return model


def card(**changes: object) -> ModelCard:
    values: dict[str, object] = {
        "task": "chest-xray",
        "classes": CLASSES,
        "run_id": "r",
        "round_number": 1,
        "saved_at": "2026-01-01T00:00:00+00:00",
        "num_examples": 10,
        "shape": SHAPE,
    }
    return ModelCard(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up data set, small in number and size."""
    root = tmp_path_factory.mktemp("data") / "xrays"
    write_xrays(root, XraySet(train_patients=4, test_patients=4, size=64))
    return root


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.keras"
    build(2, "categorical_crossentropy").save(path)  # type: ignore[attr-defined]
    write_card(path, card())
    return path


@pytest.mark.parametrize(
    ("outputs", "loss"),
    [(2, "categorical_crossentropy"), (2, "sparse_categorical_crossentropy"), (1, "binary_crossentropy")],
)
def test_loss_and_accuracy_are_what_keras_itself_measures(xrays: Path, outputs: int, loss: str) -> None:
    """For softmax and sigmoid, one-hot and whole-number labels."""
    model = build(outputs, loss)
    examples = open_data(str(xrays), shape=SHAPE).test(SHAPE)
    result = evaluate(Inference(model), examples, CLASSES)
    targets = np.eye(2)[examples.y] if loss.startswith("cat") else examples.y.reshape(-1, 1)
    expected = model.evaluate(examples.x, targets, verbose=0, return_dict=True)  # type: ignore[attr-defined]
    assert result.loss == pytest.approx(expected["loss"], rel=1e-6)
    assert result.accuracy == pytest.approx(expected["accuracy"])
    assert result.auc is not None


@pytest.mark.parametrize("activity", [None, "l2"])
@pytest.mark.parametrize("form", ["name", "list", "dict"])
@pytest.mark.parametrize(
    ("outputs", "activation", "loss"),
    [
        (2, "softmax", "CategoricalCrossentropy"),
        (2, "softmax", "BinaryCrossentropy"),
        (2, "sigmoid", "CategoricalCrossentropy"),
        (2, "sigmoid", "BinaryFocalCrossentropy"),
        (1, "sigmoid", "BinaryCrossentropy"),
        (1, None, "BinaryCrossentropy from logits"),
        (2, None, "SparseCategoricalCrossentropy from logits"),
        (2, None, "MeanSquaredError"),
    ],
)
def test_the_loss_is_what_keras_evaluates_also_where_it_is_very_sure(
    outputs: int, activation: str | None, loss: str, form: str, activity: str | None
) -> None:
    """Keras computes from remembered logits where probabilities are 0 in single precision; so do we."""
    keras = load_keras()
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    head = keras.layers.Dense(outputs, activation, activity_regularizer=activity, name="head")
    model = keras.Model(inputs, head(inputs))
    name, _, is_from_logits = loss.partition(" ")
    made = getattr(keras.losses, name)(**({"from_logits": True} if is_from_logits else {}))
    model.compile("sgd", {"name": made, "list": [made], "dict": {"head": made}}[form])
    x = np.random.default_rng(0).normal(0, 40, (100, 6)).astype(np.float32)
    y = np.arange(100) % 2
    targets = y if loss.startswith("Sparse") else y.reshape(-1, 1) if outputs == 1 else np.eye(2)[y]
    expected = model.evaluate(x, targets, batch_size=100, verbose=0)
    _, found, _ = Inference(model).measure(x, y)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_model_opens_with_its_card_and_with_plain_keras(model_path: Path) -> None:
    """The card doesn't disturb keras.models.load_model."""
    loaded = load_model(model_path)
    assert (loaded.card, loaded.shape, loaded.classes) == (card(), SHAPE, CLASSES)
    plain = load_keras().models.load_model(model_path)
    assert all(
        np.array_equal(*pair) for pair in zip(plain.get_weights(), loaded.model.get_weights(), strict=True)
    )


def test_a_card_of_another_model_is_refused(tmp_path: Path) -> None:
    """A card whose shape or number of classes isn't the model's would give wrong names to right answers."""
    for changes in ({"shape": (8, 8, 1)}, {"classes": ("a", "b", "c")}):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.keras"
        build(2, "categorical_crossentropy").save(path)  # type: ignore[attr-defined]
        write_card(path, card(**changes))
        with pytest.raises(ModelError, match="belongs to another model"):
            load_model(path)


def test_a_lambda_layer_is_refused_unbuilt(tmp_path: Path) -> None:
    """Code inside a model file never runs."""
    keras = load_keras()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x[:, :2])])
    model.save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match="Lambda"):
        load_model(tmp_path / "m.keras")


def test_damaged_weights_are_one_model_error(model_path: Path, tmp_path: Path) -> None:
    """The description is whole and the weights are not."""
    with zipfile.ZipFile(model_path) as whole, zipfile.ZipFile(tmp_path / "m.keras", "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[: len(content) // 3] if name.endswith(".h5") else content)
    with pytest.raises(ModelError, match="Can't load the model"):
        load_model(tmp_path / "m.keras")


def test_evaluate_prints_exactly_the_promised_keys_and_no_chatter(model_path: Path, xrays: Path) -> None:
    """The test part of a set with parts; the same when its folder is named."""
    for path in (xrays, xrays / "test"):
        result = worker("evaluate", model_path, "--data", path, "--json")
        assert (result.returncode, result.stderr) == (0, "")
        measured = json.loads(result.stdout)
        assert set(measured) == {
            "accuracy", "balanced_accuracy", "auc", "loss", "confusion", "num_examples"
        }  # fmt: skip
        assert measured["num_examples"] == len(list(xrays.glob("test/*/*")))
        assert sum(map(sum, measured["confusion"])) == measured["num_examples"]
    assert "balanced accuracy" in worker("evaluate", model_path, "--data", xrays).stdout


def test_data_of_other_classes_is_refused_by_name(model_path: Path, xrays: Path, tmp_path: Path) -> None:
    """Exit code 5, and one line that names both sides' classes."""
    (tmp_path / "cats").symlink_to(xrays / "test" / "NORMAL")
    (tmp_path / "dogs").symlink_to(xrays / "test" / "PNEUMONIA")
    result = worker("evaluate", model_path, "--data", tmp_path)
    assert result.returncode == 5
    assert "expected ['NORMAL', 'PNEUMONIA'], found ['cats', 'dogs']" in result.stderr


def test_predict_takes_any_image_and_goes_on_after_an_unreadable_one(
    model_path: Path, tmp_path: Path
) -> None:
    """One line an image; the unreadable one's is on stderr, and the exit code is 5."""
    rng = np.random.default_rng(0)
    gray = Image.fromarray(rng.integers(0, 255, (70, 50), np.uint8))
    for mode in ("L", "RGB", "RGBA", "P"):
        gray.convert(mode).save(tmp_path / f"{mode}.png")
    (tmp_path / "broken.jpeg").write_bytes(b"\xff\xd8\xff broken")
    images = [tmp_path / name for name in ("L.png", "broken.jpeg", "RGB.png", "RGBA.png", "P.png")]
    result = worker("predict", model_path, *images)
    assert result.returncode == 5
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in images if path.suffix == ".png"]
    assert {line[1] for line in lines} <= set(CLASSES)
    assert len({line[2] for line in lines}) == 1  # the same picture in every colour mode
    assert "broken.jpeg" in result.stderr
    assert result.stderr.count("\n") == 2
    found = json.loads(worker("predict", model_path, images[0], images[2], "--json").stdout)
    assert [set(entry) for entry in found] == [{"path", "class", "probability", "probabilities"}] * 2
    assert found[0]["probability"] == found[0]["probabilities"][found[0]["class"]]


def test_dicom_is_evaluated_and_predicted_like_any_image(
    model_path: Path, xrays: Path, tmp_path: Path
) -> None:
    """The same X-rays as 12-bit DICOM without suffix: the same figures, and no tag in any output."""
    for path in xrays.glob("test/*/*"):
        place = tmp_path / "set" / path.parent.name / path.stem
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L"))
        tags = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "PatientID": path.stem}
        deep = np.rint(gray * (4095 / 255)).astype(np.uint16)
        place.write_bytes(dicom(deep, syntax=JPEGLosslessSV1, **tags))
    plain, deep_set = (
        worker("evaluate", model_path, "--data", path, "--json") for path in (xrays, tmp_path / "set")
    )
    assert (deep_set.returncode, deep_set.stderr) == (0, "")
    assert json.loads(deep_set.stdout)["loss"] == pytest.approx(json.loads(plain.stdout)["loss"], abs=1e-3)
    broken = tmp_path / "film.dcm"
    broken.write_bytes(dicom(deep, NumberOfFrames=2))
    result = worker("predict", model_path, place, broken)
    assert result.returncode == 5
    assert result.stdout.startswith(f"{place}  ")
    assert "2 frames" in result.stderr
    for output in (deep_set.stdout, result.stdout, result.stderr):
        assert not any(secret in output for secret in SECRETS)


def test_data_that_lack_a_class_are_evaluated_when_it_is_declared(
    model_path: Path, xrays: Path, tmp_path: Path
) -> None:
    """A hospital that has ill patients alone; and arrays, whose labels get the model's names."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "PNEUMONIA").symlink_to(xrays / "test" / "PNEUMONIA")
    assert worker("evaluate", model_path, "--data", tmp_path / "set").returncode == 5
    np.savez(tmp_path / "d.npz", x_train=np.zeros((3, *SHAPE), np.uint8), y_train=np.ones(3, int))
    for data in (tmp_path / "set", tmp_path / "d.npz"):
        result = worker("evaluate", model_path, "--data", data, "--classes", ",".join(CLASSES), "--json")
        assert (result.returncode, result.stderr) == (0, "")
        confusion = json.loads(result.stdout)["confusion"]
        assert sum(confusion[0]) == 0
        assert sum(confusion[1]) > 0


def test_a_model_learns_from_made_up_xrays(tmp_path: Path) -> None:
    """The set for machines without network is worth training on."""
    write_xrays(tmp_path / "x", XraySet(train_patients=40, test_patients=20, size=SIZE))
    data = open_data(str(tmp_path / "x"), shape=SHAPE)
    train, test = data.train(SHAPE), data.test(SHAPE)
    model = build(2, "sparse_categorical_crossentropy")
    model.fit(train.x, train.y, epochs=15, batch_size=16, verbose=0)  # type: ignore[attr-defined]
    result = evaluate(Inference(model), Examples(x=test.x, y=test.y), CLASSES)
    assert result.auc is not None
    assert result.auc > 0.75
