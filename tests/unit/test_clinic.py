"""The doctor's page without TensorFlow: a model made of three lines answers, everything around it is real."""

import base64
import io
import json
import logging
import re
import socket
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from flask.testing import FlaskClient
from PIL import Image

from broker.errors import ModelError, UsageError
from broker.model.card import ModelCard
from broker.web.listening import address_of, listen
from broker.web.origins import is_own_name
from deploy.synthetic import make_xray
from tests.dicoms import SECRETS, dicom, ramp
from worker.clinic.app import MAX_UPLOAD_BYTES, create_app
from worker.clinic.current_model import Classifier, ModelSource, describe
from worker.clinic.gradcam import Look, heat_of
from worker.clinic.report import doubt_about, draw_heat
from worker.data.images import Pixels

CLASSES = ("NORMAL", "PNEUMONIA")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def card(round_number: int = 3) -> ModelCard:
    return ModelCard(
        task="chest-xray",
        classes=CLASSES,
        run_id="r1",
        round_number=round_number,
        saved_at="2026-01-02T03:04:05+00:00",
        num_examples=10,
        shape=(20, 20, 1),
        metrics={"val_auc": 0.9},
    )


def look_at_brightness(pixels: Pixels) -> Look:
    """The brighter, the more pneumonia; it looks at the bright places."""
    share = float(pixels.mean()) / 255
    return Look(probabilities=np.array([1 - share, share]), heat=pixels[..., 0] / 255, heat_class=1)


def open_fake(path: Path) -> Classifier:
    """The file's text is the round; anything else is a wrong model."""
    try:
        number = int(path.read_text())
    except (OSError, ValueError) as exc:
        raise ModelError(f"There is no model at {path.name!r}.") from exc
    return Classifier(card=card(number), shape=(20, 20, 1), classes=CLASSES, look=look_at_brightness)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(tmp_path: Path, clock: Clock) -> ModelSource:
    path = tmp_path / "model.keras"
    path.write_text("3")
    return ModelSource(path, open_fake, clock)


@pytest.fixture
def client(source: ModelSource) -> FlaskClient:
    return create_app(source).test_client()


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def an_xray(brightness: int = 0) -> bytes:
    pixels = make_xray(80, has_pneumonia=False, rng=np.random.default_rng(1)).astype(int)
    return png(np.clip(pixels + brightness, 0, 255).astype(np.uint8))


def form(*files: tuple[bytes, str]) -> dict[str, object]:
    return {"image": [(io.BytesIO(data), name) for data, name in files]}


# Answers


def test_one_image_as_multipart_gives_one_object(client: FlaskClient) -> None:
    """The documented fields, and no picture that was not asked for."""
    answer = client.post("/predict", data=form((an_xray(90), "a.png"))).get_json()

    assert answer["name"] == "a.png"
    assert answer["class"] == "PNEUMONIA"
    assert list(answer["probabilities"]) == list(CLASSES)
    assert answer["probability"] == max(answer["probabilities"].values())
    assert "heatmap" not in answer
    assert "seen" not in answer
    assert answer["model"] == {"version": 1, "run_id": "r1", "round": 3}
    assert answer["image"]["preprocessing"].startswith("80 × 80 pixels, grayscale; resized to 20 × 20")


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream"])
def test_one_image_as_the_body_gives_the_same(client: FlaskClient, content_type: str) -> None:
    """A program need not build a form."""
    answer = client.post("/predict", data=an_xray(), content_type=content_type)

    assert answer.status_code == 200
    assert answer.get_json()["class"] in CLASSES


def test_several_images_give_a_list_in_order_with_the_bad_one_marked(client: FlaskClient) -> None:
    """One broken file does not cost the others their answer."""
    answer = client.post("/predict", data=form((an_xray(), "a"), (b"rubbish", "b"), (an_xray(), "c")))

    assert answer.status_code == 200
    assert [each["name"] for each in answer.get_json()] == ["a", "b", "c"]
    assert [("error" in each) for each in answer.get_json()] == [False, True, False]


def test_only_bad_images_are_an_error(client: FlaskClient) -> None:
    """A program that looks at the status alone sees that nothing was classified."""
    answer = client.post("/predict", data=form((b"rubbish", "a"), (b"more", "b")))

    assert answer.status_code == 400
    assert answer.get_json()["error"]


def test_the_heat_map_is_a_png_of_the_whole_image(client: FlaskClient) -> None:
    """`?heatmap=1` brings a data URL, transparent where nothing is."""
    pixels = np.zeros((40, 40), np.uint8)
    pixels[:20, 20:] = 255  # bright at the top right
    answer = client.post("/predict?heatmap=1&seen=1", data=form((png(pixels), "a"))).get_json()

    assert answer["heatmap_class"] == "PNEUMONIA"
    with Image.open(io.BytesIO(_decode(answer["heatmap"]))) as picture:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    height, width = alpha.shape
    assert alpha[height // 4, 3 * width // 4] > 200
    assert alpha[3 * height // 4, width // 4] < 20
    with Image.open(io.BytesIO(_decode(answer["seen"]))) as seen:
        assert seen.size == (20, 20)


def test_without_any_heat_there_is_no_map() -> None:
    """A map that is all zero says nothing, and is not drawn."""
    ones = np.ones((2, 2, 1), np.float32)

    assert heat_of(ones, -ones) is None
    assert draw_heat(None, (20, 20, 1)) is None


def test_a_close_call_is_called_uncertain(client: FlaskClient) -> None:
    """0.5 against 0.5 is no finding."""
    answer = client.post("/predict", data=form((an_xray(), "a"))).get_json()

    assert answer["uncertain"] is True
    assert "uncertain" in answer["warning"]


def test_a_stretched_image_is_told(client: FlaskClient) -> None:
    """Who reads the answer learns that the proportions were changed."""
    answer = client.post("/predict", data=form((png(np.zeros((20, 60), np.uint8)), "a"))).get_json()

    assert answer["image"]["stretched"] is True
    assert "stretched to 20 × 20" in answer["image"]["preprocessing"]


def test_the_heat_is_the_papers_formula() -> None:
    """Two maps, α = (1, -2): ReLU(A1 - 2·A2), scaled to 1."""
    maps = np.zeros((2, 2, 2), np.float32)
    maps[..., 0] = [[4, 2], [0, 4]]
    maps[..., 1] = [[0, 0], [1, 2]]
    gradient = np.ones((2, 2, 2), np.float32)
    gradient[..., 1] = [[-4, 0], [-4, 0]]  # mean -2

    heat = heat_of(maps, gradient)

    assert heat is not None
    assert heat.tolist() == [[1, 0.5], [0, 0]]


# DICOM and TIFF


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    "content_type", ["application/dicom", "application/octet-stream", "multipart/form-data"]
)
def test_a_dicom_file_is_read_and_no_tag_gets_out(
    client: FlaskClient, content_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The doctor's own format: what the page is told are the picture's facts alone, in answer and log."""
    caplog.set_level(logging.DEBUG)
    data = dicom(ramp(12), BitsStored=12)
    body = form((data, "a.dcm")) if content_type.startswith("multipart") else data
    answer = client.post("/predict?heatmap=1&seen=1", data=body, content_type=content_type)

    assert answer.status_code == 200
    image = answer.get_json()["image"]
    assert (image["width"], image["height"], image["colour"]) == (20, 16, "12-bit grayscale")
    assert "20 × 16 pixels, 12-bit grayscale; stretched to 20 × 20" in image["preprocessing"]
    assert not any(secret in answer.get_data(as_text=True) + caplog.text for secret in SECRETS)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_dicom_file_that_can_not_be_read_says_why_without_a_tag(client: FlaskClient) -> None:
    """A film, a cut file, and one of a huge size."""
    for data, reason in (
        (dicom(ramp(), NumberOfFrames=4, Rows=4), "4 frames"),
        (dicom(ramp())[:-300], "damaged"),
        (dicom(ramp(), Rows=60_000, Columns=60_000), "60000 × 60000 pixels"),
    ):
        answer = client.post("/predict", data=form((data, "a.dcm")))
        assert answer.status_code == 400
        assert reason in answer.get_json()["error"]
        assert not any(secret in answer.get_data(as_text=True) for secret in SECRETS)


def test_a_tiff_with_pages_tells_which_is_read(client: FlaskClient) -> None:
    """And a deep picture how deep it is."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.stack([ramp(16)] * 3), photometric="minisblack")
    image = client.post("/predict", data=form((buffer.getvalue(), "a.tif"))).get_json()["image"]

    assert image["colour"] == "16-bit grayscale"
    assert image["preprocessing"].startswith("The first of 3 pages: 20 × 16 pixels")


def test_the_page_lets_a_doctor_choose_dicom(client: FlaskClient) -> None:
    """The file dialogue shows such files, and the help says so."""
    page = client.get("/").get_data(as_text=True)
    accepted = re.search(r'accept="([^"]*)"', page)
    assert accepted
    assert {"application/dicom", ".dcm", ".dicom", ".tif", ".tiff", ".jfif"} <= set(
        accepted.group(1).split(",")
    )
    assert "DICOM, TIFF, JPEG" in page


# The guard


def test_xrays_raise_no_doubt() -> None:
    """A warning on real X-rays would soon be ignored."""
    rng = np.random.default_rng(2)
    for index in range(20):
        gray = make_xray(64, has_pneumonia=bool(index % 2), rng=rng)
        assert doubt_about(np.repeat(gray[..., np.newaxis], 3, axis=2)) is None


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("coloured", lambda rng: np.full((64, 64, 3), (200, 80, 40)) + rng.integers(0, 30, (64, 64, 1))),
        ("uniform", lambda _: np.full((64, 64, 3), 90)),
        ("noise", lambda rng: np.repeat(rng.integers(0, 256, (64, 64, 1)), 3, axis=2)),
        (
            "white",
            lambda _: np.repeat(np.where(np.arange(64) < 10, 0, 255)[:, None, None], 64, 1).repeat(3, 2),
        ),
    ],
)
def test_what_is_no_xray_is_told(name: str, draw: Callable[[np.random.Generator], Pixels]) -> None:
    """A photo, a blank, noise and a page of paper each get their reason."""
    reason = doubt_about(draw(np.random.default_rng(0)).astype(np.uint8))

    assert reason is not None
    assert name in reason


def test_a_photo_is_answered_with_a_warning(client: FlaskClient) -> None:
    """The guard warns; it does not forbid."""
    photo = np.zeros((50, 50, 3), np.uint8)
    photo[..., 0] = np.arange(50) * 5
    answer = client.post("/predict", data=form((png(photo), "a")))

    assert answer.status_code == 200
    assert "does not look like an X-ray" in answer.get_json()["warning"]


# Errors


def zip_bomb() -> bytes:
    """A PNG of a few KB that says it has 30,000 × 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (30_000).to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + bytes([8, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image", "not an image"),
        (b"", "not an image"),
        (an_xray()[:200], "Expected a whole"),
        (zip_bomb(), "pixels"),
    ],
)
def test_what_can_not_be_read_is_a_400_that_says_why(client: FlaskClient, data: bytes, reason: str) -> None:
    """Rubbish, an empty file, a cut one, and one that would fill the memory."""
    answer = client.post("/predict", data=form((data, "a.png")))

    assert answer.status_code == 400
    assert reason in answer.get_json()["error"]


def test_more_than_50_mb_is_a_413_that_says_so(client: FlaskClient) -> None:
    """The limit is told, in JSON."""
    answer = client.post("/predict", data=bytes(MAX_UPLOAD_BYTES + 1), content_type="image/png")

    assert answer.status_code == 413
    assert "50 MB" in answer.get_json()["error"]


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain"]
)
def test_another_type_of_body_is_a_415_that_says_what_to_send(client: FlaskClient, content_type: str) -> None:
    """The lab's app took a JSON string; this one says what it takes."""
    answer = client.post("/predict", data=b'"data:..."', content_type=content_type)

    assert answer.status_code == 415
    assert "curl -F image=@" in answer.get_json()["error"]


def test_a_form_without_the_field_is_a_400(client: FlaskClient) -> None:
    """The field's name is told."""
    answer = client.post("/predict", data={"file": (io.BytesIO(an_xray()), "a")})

    assert answer.status_code == 400
    assert "'image'" in answer.get_json()["error"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/predict", 405)])
def test_a_wrong_address_is_json_too(client: FlaskClient, method: str, path: str, status: int) -> None:
    """A program never gets HTML for an error."""
    answer = client.open(path, method=method)

    assert answer.status_code == status
    assert answer.get_json()["error"]


def test_a_model_that_fails_on_an_image_is_a_500_that_says_so(tmp_path: Path) -> None:
    """NaN from the model is no answer."""

    def fail(_: Pixels) -> Look:
        raise ModelError("The model answers with NaN.")

    def open_failing(_: Path) -> Classifier:
        return Classifier(card=None, shape=(20, 20, 1), classes=CLASSES, look=fail)

    client = create_app(ModelSource(tmp_path, open_failing)).test_client()
    answer = client.post("/predict", data=form((an_xray(), "a")))

    assert answer.status_code == 500
    assert "NaN" in answer.get_json()["error"]


# Privacy and safety


@pytest.mark.parametrize("path", ["/", "/model", "/healthz", "/nothing", "/static/clinic.js"])
def test_every_answer_forbids_storing_framing_and_foreign_content(client: FlaskClient, path: str) -> None:
    """Static files and errors, too."""
    with client.get(path) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_upload_is_never_written_to_disk(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Werkzeug spools uploads above 500 KB into temporary files; this page does not."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was opened")

    for name in ("TemporaryFile", "SpooledTemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    monkeypatch.setattr("werkzeug.formparser.SpooledTemporaryFile", refuse)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200), dtype=np.uint8)
    head = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = (
        head + png(noise) + b"\r\n--cut--\r\n"
    )  # by hand: the test client would use a temporary file itself

    answer = client.post("/predict", data=body, content_type="multipart/form-data; boundary=cut")
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:5001", "[::1]:5001", "LOCALHOST:1", "clinic.lan"])
def test_its_own_names_are_answered(source: ModelSource, host: str) -> None:
    """Loopback in all spellings, and the name it was told to listen on."""
    client = create_app(source, "clinic.lan").test_client()

    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[", "", "10.0.0.1"]
)
def test_a_foreign_name_is_refused(client: FlaskClient, host: str) -> None:
    """DNS rebinding: a page of evil.example that comes to point at 127.0.0.1 reads nothing."""
    assert client.get("/model", headers={"Host": host}).status_code == 403


def test_on_every_address_numbers_are_taken_and_names_are_not() -> None:
    """A number can't be rebound."""
    assert is_own_name("192.168.1.7:5001", "0.0.0.0")
    assert is_own_name(socket.gethostname(), "0.0.0.0")
    assert not is_own_name("evil.example", "0.0.0.0")
    assert not is_own_name("", "")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_sites_post_is_refused(client: FlaskClient, headers: dict[str, str]) -> None:
    """No page but this one sends images here."""
    answer = client.post("/predict", data=form((an_xray(), "a")), headers=headers)

    assert answer.status_code == 403


def test_its_own_post_is_taken(client: FlaskClient) -> None:
    """What a browser sends from this very page."""
    headers = {"Host": "127.0.0.1:5001", "Origin": "http://127.0.0.1:5001", "Sec-Fetch-Site": "same-origin"}

    assert client.post("/predict", data=form((an_xray(), "a")), headers=headers).status_code == 200


def test_the_page_names_no_other_machine(client: FlaskClient) -> None:
    """Every address in the page, its style and its script is this machine's."""
    for path in ("/", "/static/clinic.css", "/static/clinic.js"):
        with client.get(path) as answer:
            found = set(re.findall(r"https?://[^/'\" ]+", answer.get_data(as_text=True)))
        assert found <= {
            "http://localhost",
            "http://www.w3.org",
        }  # the second names SVG, and is never fetched


# The model


def test_the_page_and_model_tell_the_round_the_run_and_the_auc(client: FlaskClient) -> None:
    """What is needed to know which model spoke."""
    page = client.get("/").get_data(as_text=True)
    model = client.get("/model").get_json()

    assert "Not for clinical use" in page
    assert "0.900" in page
    assert model["round"] == 3
    assert model["run_id"] == "r1"
    assert model["saved_at"] == "2026-01-02 03:04 UTC"
    assert model["auc"] == 0.9
    assert model["warning"] is None


def test_a_model_without_a_card_is_served(tmp_path: Path) -> None:
    """A model from elsewhere tells nothing, and answers."""
    fake = Classifier(card=None, shape=(20, 20, 3), classes=("0", "1"), look=look_at_brightness)
    source = ModelSource(tmp_path, lambda _: fake)
    client = create_app(source).test_client()

    assert describe(source.current(), tmp_path)["round"] is None
    assert "not told" in client.get("/").get_data(as_text=True)
    assert client.post("/predict", data=form((an_xray(), "a"))).get_json()["model"]["round"] is None


def test_a_new_model_is_taken_by_itself(source: ModelSource, client: FlaskClient, clock: Clock) -> None:
    """The next round's file answers the next request."""
    source.path.write_text("4 ")
    clock.now += 1

    assert client.get("/model").get_json()["round"] == 4
    answer = client.post("/predict", data=form((an_xray(), "a"))).get_json()
    assert answer["model"] == {"version": 2, "run_id": "r1", "round": 4}


def test_the_file_is_looked_at_once_a_second_at_most(source: ModelSource, clock: Clock) -> None:
    """A burst of requests costs one look."""
    source.path.write_text("4 ")
    clock.now += 0.9
    assert source.current().version == 1

    clock.now += 0.1
    assert source.current().version == 2


@pytest.mark.parametrize("harm", [lambda path: path.write_text("wrong"), lambda path: path.unlink()])
def test_a_wrong_new_model_leaves_the_old_one_with_a_warning(
    source: ModelSource, client: FlaskClient, clock: Clock, harm: Callable[[Path], object]
) -> None:
    """And the warning goes when a good one comes."""
    harm(source.path)
    clock.now += 1

    model = client.get("/model").get_json()
    assert model["round"] == 3
    assert "the former model still answers" in model["warning"]
    assert "the former model still answers" in client.get("/").get_data(as_text=True)
    assert client.post("/predict", data=form((an_xray(), "a"))).status_code == 200

    source.path.write_text("5 ")
    clock.now += 1
    assert client.get("/model").get_json()["warning"] is None


def test_a_wrong_model_at_the_start_is_an_error(tmp_path: Path) -> None:
    """There is no older one to answer."""
    with pytest.raises(ModelError):
        ModelSource(tmp_path / "none.keras", open_fake)


def test_one_call_into_the_model_at_a_time(tmp_path: Path) -> None:
    """Keras is not asked by two threads at once."""
    inside = threading.Lock()
    collisions: list[bool] = []

    def look(pixels: Pixels) -> Look:
        collisions.append(not inside.acquire(blocking=False))
        answer = look_at_brightness(np.tile(pixels, (50, 50, 1)))
        inside.release()
        return answer

    fake = Classifier(card=None, shape=(20, 20, 1), classes=CLASSES, look=look)
    app = create_app(ModelSource(tmp_path, lambda _: fake))
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(app.test_client().post("/predict", data=form((an_xray(), "a"))).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert statuses == [200] * 12
    assert not any(collisions)


# Listening


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """What to try is in it."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address_of(taken, "127.0.0.1") == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"Port {port} .* in use.*--port"):
            listen("127.0.0.1", port)


def test_a_foreign_address_is_one_line() -> None:
    """203.0.113.1 is nobody's (RFC 5737)."""
    with pytest.raises(UsageError, match="Can't listen"):
        listen("203.0.113.1", 0)


def _decode(url: str) -> bytes:
    assert url.startswith("data:image/png;base64,")
    return base64.b64decode(url.split(",", 1)[1])


def test_answers_are_plain_json(client: FlaskClient) -> None:
    """No NaN, no numpy: any JSON reader takes it."""
    text = client.post("/predict?heatmap=1", data=form((an_xray(), "a"))).get_data(as_text=True)

    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
