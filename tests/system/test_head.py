"""Real Keras models: what they end with is found however deep it is, and their answers don't depend on company."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.model.ending import ending_of
from broker.model.head import head_of
from tests.clinics import running_clinic, save_xray
from worker.clinic.current_model import open_classifier
from worker.clinic.gradcam import GradCam
from worker.data.images import read_image
from worker.learning.evaluation import auc_of, confusion_of
from worker.learning.inference import Inference
from worker.learning.saved_model import load_model
from worker.learning.training import LocalModel
from worker.tensorflow import load_keras

SHAPE = (24, 24, 1)

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs

Build = Callable[[], Any]
Ending = Callable[[Any, Any], Any]


def functional(ending: Ending, loss: Any = None) -> Any:
    """A model that is what a function makes of Keras's layers and a tensor of 576 pixels from 0 to 1."""
    keras = load_keras()
    inputs = keras.Input(SHAPE)
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, ending(keras.layers, flat))
    if loss is not None:
        model.compile("sgd", loss)
    return model


def image(k: Any, x: Any) -> Any:
    return k.Reshape(SHAPE)(x)


def rows(k: Any, x: Any) -> Any:
    return k.Reshape(SHAPE[:2])(x)


def half(build: Build) -> Any:
    """A model of mixed precision."""
    keras = load_keras()
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        return build()
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def nested(activation: str) -> Any:
    """A head inside a model inside a model."""
    keras = load_keras()
    layers = keras.layers
    head = keras.Sequential([layers.Dense(3, activation), layers.Dropout(0.1)])
    inner = keras.Input((24 * 24,))
    body = keras.Model(inner, head(layers.Dense(4)(inner)))
    return functional(lambda layers, x: body(x))


def logits_loss(name: str) -> Any:
    return getattr(load_keras().losses, name)(from_logits=True)


# What a model ends with


ENDINGS: list[tuple[Ending, str, str]] = [
    (lambda k, x: k.Dense(3, "softmax")(x), "softmax", "probabilities"),
    (lambda k, x: k.Softmax()(k.Dense(3)(x)), "softmax", "probabilities"),
    (lambda k, x: k.Activation("softmax")(k.Dense(3)(x)), "softmax", "probabilities"),
    (lambda k, x: load_keras().ops.softmax(k.Dense(3)(x)), "softmax", "probabilities"),
    (lambda k, x: k.Activation("linear")(k.Dense(3, "softmax")(x)), "softmax", "probabilities"),
    (
        lambda k, x: k.Flatten()(k.Conv2D(3, 24, activation="softmax")(image(k, x))),
        "softmax",
        "probabilities",
    ),
    (
        lambda k, x: k.GlobalAveragePooling2D()(k.Conv2D(3, 1, activation="softmax")(image(k, x))),
        "softmax",
        "probabilities",
    ),
    (
        lambda k, x: k.GlobalAveragePooling1D()(k.TimeDistributed(k.Dense(3, "softmax"))(rows(k, x))),
        "softmax",
        "probabilities",
    ),
    (
        lambda k, x: k.Average()([k.Dense(3, "softmax")(x), k.Dense(3, "softmax")(x)]),
        "softmax",
        "probabilities",
    ),
    (
        lambda k, x: k.Reshape((1,))(k.Conv2D(1, 24, activation="sigmoid")(image(k, x))),
        "sigmoid",
        "probability",
    ),
    (lambda k, x: k.Dense(2, "sigmoid")(x), "sigmoid", "shares"),
    (lambda k, x: k.Dense(3, "log_softmax")(x), "log_softmax", "logits"),
    (lambda k, x: k.Dense(3)(x), "linear", "logits"),
    (lambda k, x: k.Dropout(0.5)(k.Dense(1)(x)), "linear", "logit"),
    (lambda k, x: k.Rescaling(5.0)(k.Dense(3, "softmax")(x)), "unknown", "logits"),
    (lambda k, x: k.Flatten()(k.Softmax()(k.Reshape((3, 2))(k.Dense(6)(x)))), "unknown", "logits"),
    (lambda k, x: k.Flatten()(k.Softmax(axis=1)(k.Reshape((1, 1, 3))(k.Dense(3)(x)))), "unknown", "logits"),
    (lambda k, x: k.Average()([k.Dense(3, "softmax")(x), k.Dense(3)(x)]), "unknown", "logits"),
    (lambda k, x: k.GRU(3, activation="softmax")(rows(k, x)), "unknown", "logits"),
]


@pytest.mark.parametrize(("ending", "activation", "reading"), ENDINGS)
def test_the_last_activation_is_found(ending: Ending, activation: str, reading: str) -> None:
    """As a layer, an operation or an argument; behind what changes nothing; and not where more follows."""
    model = functional(ending)
    assert ending_of(model).activation == activation
    assert head_of(model).reading == reading


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "linear"])
def test_a_head_inside_models_is_found_also_in_a_saved_model(activation: str, tmp_path: Path) -> None:
    """However deep, and the same after a round trip through a file."""
    nested(activation).save(tmp_path / "m.keras")
    again = load_keras().saving.load_model(tmp_path / "m.keras")
    assert ending_of(again).activation == activation


def test_a_softmax_in_half_precision_with_a_cast_behind_it_is_one() -> None:
    """The way that Keras's guide for mixed precision ends a model."""
    model = half(
        lambda: functional(lambda k, x: k.Activation("linear", dtype="float32")(k.Dense(3, "softmax")(x)))
    )
    assert head_of(model).reading == "probabilities"


# One image, alone and among others


def convolved(k: Any, x: Any) -> Any:
    x = k.BatchNormalization()(k.Conv2D(8, 3, activation="relu")(image(k, x)))
    x = k.DepthwiseConv2D(3, strides=2, activation="relu")(x)
    return k.SeparableConv2D(16, 3, activation="relu")(x)


def flat(k: Any, x: Any) -> Any:
    return k.Flatten()(convolved(k, x))


def pooled(k: Any, x: Any) -> Any:
    return k.GlobalAveragePooling2D()(convolved(k, x))


def attended(k: Any, x: Any) -> Any:
    x = k.Dense(16)(rows(k, x))
    return k.GlobalAveragePooling1D()(k.LayerNormalization()(k.MultiHeadAttention(4, 8)(x, x)))


def grouped(k: Any, x: Any) -> Any:
    return k.Flatten()(k.GroupNormalization(4)(k.Conv2D(8, 3)(image(k, x))))


MODELS: dict[str, Build] = {
    "dense": lambda: functional(lambda k, x: k.Dense(10, "softmax")(k.Dense(300, "tanh")(x))),
    "convolutions": lambda: functional(lambda k, x: k.Dense(2, "softmax")(flat(k, x))),
    "one sigmoid": lambda: functional(lambda k, x: k.Dense(1, "sigmoid")(pooled(k, x))),
    "one logit": lambda: functional(lambda k, x: k.Dense(1)(pooled(k, x)), logits_loss("BinaryCrossentropy")),
    "two sigmoids": lambda: functional(lambda k, x: k.Dense(2, "sigmoid")(x), "binary_crossentropy"),
    "attention": lambda: functional(lambda k, x: k.Dense(3, "softmax")(attended(k, x))),
    "recurrent": lambda: functional(
        lambda k, x: k.Dense(2, "softmax")(k.Bidirectional(k.GRU(20))(rows(k, x)))
    ),
    "half precision": lambda: half(lambda: functional(lambda k, x: k.Dense(2, "softmax")(flat(k, x)))),
    "groups": lambda: functional(lambda k, x: k.Dense(2)(grouped(k, x))),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_image_gets_the_same_bits_alone_among_others_and_in_the_clinic(name: str) -> None:
    """At any place, in any number, for a prediction, an evaluation and a heat map; near what Keras itself says."""
    load_keras().utils.set_random_seed(1)
    model = MODELS[name]()
    asked = Inference(model)
    images = np.random.default_rng(0).integers(0, 256, (70, *SHAPE)).astype(np.uint8)
    together = asked.probabilities(images)
    alone = np.concatenate([asked.probabilities(image[np.newaxis]) for image in images])
    backwards = Inference(model).probabilities(images[::-1])[::-1]
    evaluated, _, _ = asked.measure(images.astype(np.float32), np.zeros(len(images), np.int64))
    look = GradCam(asked).look
    looked = np.stack([look(image).probabilities for image in images[:5]])
    assert alone.tobytes() == together.tobytes() == backwards.tobytes() == evaluated.tobytes()
    assert looked.tobytes() == together[:5].tobytes()
    expected = asked.head.probabilities(model.predict(images, verbose=0))
    np.testing.assert_allclose(together, expected, atol=2e-3 if name == "half precision" else 1e-5)


def test_a_small_logit_means_the_same_everywhere() -> None:
    """A logit of 0.0108 is 0.5027 of class 1 alone, beside a logit of 7, in the clinic and in training."""
    model = functional(lambda k, x: k.Dense(1, use_bias=False)(x), logits_loss("BinaryCrossentropy"))
    model.layers[-1].set_weights([np.full((24 * 24, 1), 255 * 0.0108 / (24 * 24), np.float32)])
    images = np.ones((2, *SHAPE), np.float32)
    images[1] *= 7 / 0.0108
    asked = Inference(model)
    alone = asked.probabilities(images[:1])[0]
    assert alone[1] == pytest.approx(1 / (1 + np.exp(-0.0108)), abs=1e-6)
    assert asked.probabilities(images)[0].tolist() == alone.tolist()
    assert GradCam(asked).look(images[0]).probabilities.tolist() == alone.tolist()
    assert head_of(LocalModel(model.to_json())._model) == asked.head


# The three commands


def _worker(*arguments: object) -> Any:
    command = [sys.executable, "-c", "from worker.cli import main; main(prog_name='worker')"]
    done = subprocess.run(
        [*command, *map(str, arguments), "--json"], capture_output=True, check=True, text=True, timeout=120
    )
    return json.loads(done.stdout)


def _posted(address: str, images: list[Path]) -> Any:
    """POST images as one form."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n'
        % (image.name.encode(), image.read_bytes())
        for image in images
    ]
    request = urllib.request.Request(
        f"{address}/predict",
        b"".join(parts) + b"--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.parametrize("name", ["one logit", "convolutions"])
def test_predict_evaluate_and_the_clinic_give_the_same_bits(name: str, tmp_path: Path) -> None:
    """Three processes of their own, one image or forty; the AUC is that of the predicted probabilities, exactly."""
    load_keras().utils.set_random_seed(2)
    MODELS[name]().save(tmp_path / "m.keras")
    images = []
    for number in range(40):
        kind = ("0", "1")[number % 2]
        (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        images.append(save_xray(tmp_path / "data" / kind / f"{number}.png", ill=number % 2 == 1, seed=number))
    predicted = [each["probabilities"] for each in _worker("predict", tmp_path / "m.keras", *images)]
    assert _worker("predict", tmp_path / "m.keras", images[3])[0]["probabilities"] == predicted[3]
    with running_clinic(tmp_path / "m.keras") as address:
        assert [each["probabilities"] for each in _posted(address, images)] == predicted
        assert _posted(address, images[3:4])["probabilities"] == predicted[3]
    loaded = load_model(tmp_path / "m.keras")
    here = Inference(loaded.model).probabilities(np.stack([read_image(path, SHAPE) for path in images]))
    assert [dict(zip(("0", "1"), row, strict=True)) for row in here.tolist()] == predicted
    look = open_classifier(tmp_path / "m.keras").look(read_image(images[3], SHAPE))
    assert look.probabilities.tolist() == here[3].tolist()
    truth = np.arange(40) % 2
    evaluated = _worker("evaluate", tmp_path / "m.keras", "--data", tmp_path / "data")
    assert evaluated["auc"] == auc_of(truth == 1, here[:, 1])
    assert evaluated["confusion"] == confusion_of(truth, here.argmax(axis=1), 2).tolist()
