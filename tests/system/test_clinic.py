"""The doctor's page with real Keras models: where Grad-CAM looks, and the command over real HTTP."""

import http.client
import io
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from broker.errors import DataError, ModelError
from broker.model.card import write_card
from tests.brokers import wait_until
from tests.clinics import CLASSES, card, replace_file, running_clinic, save_trained_model, save_xray, xray
from worker.clinic.current_model import open_classifier
from worker.clinic.gradcam import GradCam
from worker.learning.inference import Inference
from worker.learning.saved_model import load_model
from worker.tensorflow import load_keras

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


# Grad-CAM


def brightness_model(head: str, ending: str, *, is_nested: bool) -> Any:
    """Two feature maps, the image and its negative; the last class's score rises with the first map alone."""
    keras = load_keras()
    layers = keras.layers
    convolution = layers.Conv2D(2, 1, use_bias=False)
    body = [keras.Sequential([keras.Input((16, 16, 1)), convolution])] if is_nested else [convolution]
    activation = ending if ending in ("softmax", "sigmoid") else None
    dense = layers.Dense(1 if ending == "sigmoid" else 2, activation=activation)
    pool = layers.Flatten() if head == "flatten" else layers.GlobalAveragePooling2D()
    extra = {"Softmax": [layers.Softmax()], "Activation": [layers.Activation("softmax")]}.get(ending, [])
    model = keras.Sequential(
        [keras.Input((16, 16, 1)), layers.Rescaling(1 / 255), *body, pool, dense, *extra]
    )
    convolution.set_weights([np.array([[[[1.0, -1.0]]]])])
    kernel = np.zeros(dense.kernel.shape)
    kernel[0::2, -1] = 8 / (len(kernel) / 2)
    dense.set_weights([kernel, np.zeros(kernel.shape[1])])
    return model


@pytest.mark.parametrize("head", ["flatten", "pool"])
@pytest.mark.parametrize("ending", ["softmax", "sigmoid", "Softmax", "Activation", "logits"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_the_heat_is_the_bright_opacity(head: str, ending: str, is_nested: bool) -> None:
    """Equations 1 and 2 by hand: α is positive for the image's own map and 0 for the other: heat = image."""
    pixels = np.full((16, 16, 1), 20, np.uint8)
    pixels[3:7, 9:13] = 250
    model = brightness_model(head, ending, is_nested=is_nested)

    look = GradCam(Inference(model)).look(pixels)

    assert look.heat is not None
    np.testing.assert_allclose(look.heat, pixels[..., 0] / 250, atol=1e-5)
    assert look.probabilities[1] > 0.6
    assert look.heat_class == 1


def test_a_sigmoid_that_says_no_is_explained_by_what_speaks_against() -> None:
    """For class 0 of one output the score is -z: a falling score makes heat of what lowers it."""
    model = brightness_model("pool", "sigmoid", is_nested=False)
    dense = model.layers[-1]
    dense.set_weights([-dense.get_weights()[0], np.zeros(1)])
    pixels = np.full((16, 16, 1), 20, np.uint8)
    pixels[3:7, 9:13] = 250

    look = GradCam(Inference(model)).look(pixels)

    assert look.probabilities[0] > 0.6
    assert look.heat is not None
    np.testing.assert_allclose(look.heat, pixels[..., 0] / 250, atol=1e-5)


def test_where_nothing_speaks_for_the_answer_the_next_class_is_explained() -> None:
    """A bias alone says class 0, as a healthy lung shows no sign: the map is then class 1's, and says so."""
    model = brightness_model("pool", "softmax", is_nested=False)
    dense = model.layers[-1]
    dense.set_weights([dense.get_weights()[0], np.array([20.0, 0.0])])
    pixels = np.full((16, 16, 1), 20, np.uint8)
    pixels[3:7, 9:13] = 250

    look = GradCam(Inference(model)).look(pixels)

    assert look.probabilities[0] > 0.9
    assert look.heat_class == 1
    assert look.heat is not None
    np.testing.assert_allclose(look.heat, pixels[..., 0] / 250, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    """Listening to the layers leaves nothing behind, and predictions are the model's own."""
    model = brightness_model("pool", "softmax", is_nested=True)
    pixels = xray(ill=True, seed=1, size=16)[..., np.newaxis]
    before = model.get_config(), Inference(model).probabilities(pixels[np.newaxis])

    look = GradCam(Inference(model)).look(pixels)

    assert all("call" not in vars(layer) for layer in model.layers)
    assert model.get_config() == before[0]
    np.testing.assert_array_equal(look.probabilities, before[1][0])


def test_a_model_without_feature_maps_has_no_heat() -> None:
    """Pixels straight into a dense layer: there is no place to point at, and still an answer."""
    keras = load_keras()
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(2, "softmax")]
    )

    assert GradCam(Inference(model)).look(np.zeros((8, 8, 1), np.uint8)).heat is None


def test_a_frozen_network_inside_the_model_is_explained() -> None:
    """Transfer learning: a frozen functional network, in a functional model, with an operation in between."""
    keras = load_keras()
    keras.utils.set_random_seed(1)  # with all filters dead there would rightly be no map
    layers = keras.layers
    inner_input = keras.Input((16, 16, 1))
    inner = keras.Model(inner_input, layers.Conv2D(3, 3, strides=2, activation="relu")(inner_input))
    inner.trainable = False
    outer_input = keras.Input((16, 16, 1))
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(inner(outer_input / 255))
    model = keras.Model(outer_input, layers.Dense(3, "softmax")(layers.Flatten()(pooled)))

    look = GradCam(Inference(model)).look(xray(ill=True, seed=1, size=16)[..., np.newaxis])

    assert look.heat is not None
    assert look.heat.shape == (7, 7)  # of the convolution, not of the pooled 1 × 1


def test_a_model_that_answers_nan_is_refused_when_opened(tmp_path: Path) -> None:
    """A training that went wrong never reaches a doctor."""
    model = brightness_model("pool", "softmax", is_nested=False)
    model.layers[-1].set_weights([np.full((2, 2), np.nan), np.zeros(2)])
    model.save(tmp_path / "m.keras")

    with pytest.raises(ModelError, match="NaN"):
        open_classifier(tmp_path / "m.keras")


def test_a_model_for_no_images_is_refused_when_opened(tmp_path: Path) -> None:
    """The message says what shape it takes."""
    keras = load_keras()
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")]).save(tmp_path / "m.keras")

    with pytest.raises(DataError, match=r"\(4,\)"):
        open_classifier(tmp_path / "m.keras")


# The command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained_model(tmp_path_factory.mktemp("model") / "model.keras")


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with running_clinic(model) as address:
        yield address


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def post(url: str, body: bytes, content_type: str = "image/png") -> Any:
    """POST one image as the body."""
    request = urllib.request.Request(url, body, {"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_trained_model_tells_the_ill_from_the_well(address: str) -> None:
    """Over HTTP, on X-rays that it has not seen: at least 14 of 20 right, each with its heat map."""
    right = 0
    for index in range(20):
        ill = bool(index % 2)
        answer = post(f"{address}/predict?heatmap=1", png(xray(ill=ill, seed=1000 + index)))
        right += answer["class"] == CLASSES[ill]
        assert set(answer["probabilities"]) == set(CLASSES)
        assert answer["heatmap"] is None or answer["heatmap"].startswith("data:image/png;base64,")

    assert right >= 14


def test_the_page_answers_as_worker_predict_does(address: str, model: Path, tmp_path: Path) -> None:
    """One way in for images, one model: the two commands agree."""
    path = save_xray(tmp_path / "a.png", ill=True, seed=7)
    command = [sys.executable, "-c", "from worker.cli import main; main(prog_name='worker')", "predict"]
    done = subprocess.run(
        [*command, str(model), str(path), "--json"], capture_output=True, check=True, text=True, timeout=120
    )

    expected = json.loads(done.stdout)[0]
    answer = post(f"{address}/predict", path.read_bytes())
    assert answer["class"] == expected["class"]
    assert answer["probabilities"] == expected["probabilities"]


def test_an_upload_of_60_mb_gets_its_answer(address: str) -> None:
    """A client that is still sending is heard out, so that it reads the 413 and is not just cut off."""
    with pytest.raises(HTTPError) as raised:
        post(f"{address}/predict", bytes(60 << 20))

    assert raised.value.code == 413
    assert "50 MB" in json.load(raised.value)["error"]


def test_a_foreign_host_and_a_foreign_origin_are_refused(address: str) -> None:
    """As a rebound name and a foreign page would ask."""
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example", "Content-Type": "image/png"}):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        connection.request("POST", "/predict", png(xray(ill=True, seed=1)), headers)
        assert connection.getresponse().status == 403
        connection.close()


def test_ten_at_once_answer_as_one_alone(address: str) -> None:
    """Threads share one model, and no answer mixes with another."""
    images = [png(xray(ill=bool(i % 2), seed=i)) for i in range(10)]
    alone = [post(f"{address}/predict", image)["probability"] for image in images]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda image: post(f"{address}/predict", image)["probability"], images))

    assert together == alone


def test_the_next_round_is_taken_by_itself_and_a_wrong_file_is_not(model: Path, tmp_path: Path) -> None:
    """As a run goes on beside it: a new file renamed into place, then rubbish, then a good one again."""
    watched = tmp_path / "model.keras"
    watched.write_bytes(model.read_bytes())
    later = load_model(model).model
    later.save(tmp_path / "later.keras")
    write_card(tmp_path / "later.keras", card(round_number=4))
    with running_clinic(watched) as address:
        assert get(f"{address}/model")["round"] == 3
        replace_file(watched, (tmp_path / "later.keras").read_bytes())
        wait_until(lambda: get(f"{address}/model")["round"] == 4, 20, what="round 4")
        replace_file(watched, b"rubbish")
        wait_until(lambda: bool(get(f"{address}/model")["warning"]), 20, what="the warning")
        assert post(f"{address}/predict", png(xray(ill=True, seed=1)))["model"]["round"] == 4


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [(("--model", "none.keras"), 5, "There is no model at"), ((), 2, "--model")],
)
def test_a_wrong_start_is_one_line_and_its_exit_code(
    tmp_path: Path, options: tuple[str, ...], code: int, reason: str
) -> None:
    """No traceback for what a person got wrong."""
    command = [sys.executable, "-c", "from worker.cli import main; main(prog_name='worker')", "clinic"]
    done = subprocess.run(
        [*command, "--port", "0", *options], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )

    assert done.returncode == code
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_port_in_use_is_one_line_and_exit_code_2(model: Path) -> None:
    """Found before the model is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-c", "from worker.cli import main; main(prog_name='worker')", "clinic"]
        done = subprocess.run(
            [*command, "--model", str(model), "--port", str(taken.getsockname()[1])],
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert done.returncode == 2
    assert "in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1
