"""The doctor's page: an X-ray in; class, probability and where the model looked out; nothing is kept.

    GET  /         the page
    GET  /model    the model in use, as JSON
    POST /predict  images as multipart field `image`, or one as the body; an object for one, a list for more
    GET  /healthz  {"status": "ok"}

Errors are JSON, {"error": "..."}: 400 unreadable or too many pixels, 403 from a foreign page, 413 too large, 415 wrong
type, 503 busy.
"""

import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from flask import Blueprint, Flask, Request, Response, abort, current_app, jsonify, render_template, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from broker.command import Stop
from broker.errors import DataError, ModelError
from broker.link.address import LOCAL_HOSTS
from broker.web.http_server import Caps, PageServer
from broker.web.listening import address_of, listen
from broker.web.origins import is_own_name, is_own_page
from broker.web.pages import HEADERS, SHARED, PageJson
from worker.clinic.budget import Budget, Turns
from worker.clinic.current_model import ModelSource, describe, open_classifier
from worker.clinic.report import Wanted, read_xray
from worker.data.classes import Declared
from worker.data.images import size_of

MAX_UPLOAD_BYTES = 50 << 20
_CAPS = Caps(threads=16, connections=64, body_bytes=MAX_UPLOAD_BYTES, bodies_bytes=5 * MAX_UPLOAD_BYTES)
_BODY_TYPES = ("application/octet-stream", "application/dicom")
_HEADERS = HEADERS | {
    "Content-Security-Policy": HEADERS["Content-Security-Policy"] + "; img-src 'self' data: blob:"
}

_log = logging.getLogger(__name__)
_pages = Blueprint("clinic", __name__)


class _MemoryRequest(Request):
    """A request whose uploads stay in memory: werkzeug would write larger ones into temporary files."""

    def _get_file_stream(self, *_: object, **__: object) -> IO[bytes]:
        return io.BytesIO()


class _Clinic(Flask):
    request_class = _MemoryRequest


def create_app(source: ModelSource, host: str = "127.0.0.1") -> Flask:
    """Make the page for one model.

    Args:
        source: The model in use.
        host: The address it listens on; requests under other names are refused.
    """
    app = _Clinic(__name__)
    app.config.update(MAX_CONTENT_LENGTH=MAX_UPLOAD_BYTES, SOURCE=source, TURNS=Turns())
    app.json = PageJson(app)
    app.before_request(lambda: _check_origin(host))
    app.after_request(_add_headers)
    app.register_error_handler(HTTPException, _explain)
    app.register_blueprint(_pages)
    app.register_blueprint(SHARED)
    return app


def run_clinic(
    model: Path, host: str, port: int, announce: Callable[[str], None], declared: Declared | None = None
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        model: The model file, followed when it changes.
        host: Where to listen.
        port: 0 takes any free one.
        announce: Told the address once it listens.
        declared: The classes of a model from elsewhere, as a person says them.

    Raises:
        UsageError: The address can't be used.
        WarrenError: The model can't be used.
    """
    with Stop() as stop, listen(host, port) as listener:
        source = ModelSource(model, partial(open_classifier, declared=declared))
        _log.info("Answering with %s", describe(source.current(), model)["name"])
        if host not in LOCAL_HOSTS:
            _log.warning("Listening on %s: whoever reaches this address can use the page", host)
        with PageServer(create_app(source, host), listener, _CAPS):
            announce(f"The clinic is open at {address_of(listener, host)}")
            stop.event.wait()  # until a signal: serving is all that this process does


# The pages


@_pages.get("/")
def _show_page() -> str:
    return render_template("clinic.html", model=_model(), max_bytes=MAX_UPLOAD_BYTES)


@_pages.get("/model")
def _show_model() -> Response:
    return jsonify(_model())


@_pages.get("/healthz")
def _show_health() -> Response:
    return jsonify({"status": "ok", "model": _model()["name"]})


@_pages.post("/predict")
def _predict() -> tuple[Response, int]:
    wanted = Wanted(heatmap=request.args.get("heatmap") == "1", seen=request.args.get("seen") == "1")
    with _turns().request():
        budget = Budget()
        readings = [_reading(name, data, wanted, budget) for name, data in _uploads()]
    if len(readings) == 1:
        return jsonify(readings[0]), 400 if "error" in readings[0] else 200
    if all("error" in each for each in readings):
        return jsonify({"error": "None of the images can be read.", "images": readings}), 400
    return jsonify(readings), 200


def _model() -> dict[str, object]:
    source = _source()
    return describe(source.current(), source.path)


def _source() -> ModelSource:
    source: ModelSource = current_app.config["SOURCE"]
    return source


def _turns() -> Turns:
    turns: Turns = current_app.config["TURNS"]
    return turns


def _reading(name: str, data: bytes, wanted: Wanted, budget: Budget) -> dict[str, Any]:
    try:
        size, source = size_of(data), _source()
        budget.spend(size)
        return _turns().take(size, budget, lambda: read_xray(data, name, source, wanted))
    except DataError as exc:
        return {"name": name, "error": str(exc)}
    except ModelError as exc:
        _log.error("The model failed on an image: %s", exc)
        abort(500, f"The model failed on this image. {exc}")


def _uploads() -> list[tuple[str, bytes]]:
    """The request's images as (name, bytes)."""
    if request.mimetype.startswith("image/") or request.mimetype in _BODY_TYPES:
        return [("image", _not_empty(request.get_data(cache=False)))]
    if request.mimetype != "multipart/form-data":
        received = repr(request.mimetype) if request.mimetype else "nothing"
        abort(
            415,
            "Expected multipart/form-data with the field 'image', or an image as the body (Content-Type "
            f"image/… or application/dicom). Received {received}. "
            f"Try: curl -F image=@x-ray.png {request.host_url}predict",
        )
    files = request.files.getlist("image")
    if not files:
        abort(400, "There is no file in the field 'image'. Try: curl -F image=@x-ray.png …")
    return [(file.filename or "image", file.stream.read()) for file in files]


def _not_empty(data: bytes) -> bytes:
    if not data:
        abort(400, "The request holds no image.")
    return data


# Safety


def _check_origin(host: str) -> None:
    """Refuse other sites' pages: under another name (DNS rebinding), or posting across sites."""
    if not is_own_name(request.headers.get("Host", ""), host):
        abort(403, "This page answers under its own address only. Open the one that `worker clinic` printed.")
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    origin, fetch_site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    if not is_own_page(origin, fetch_site, request.headers["Host"]):
        abort(403, "Another site's page may not send images here.")


def _add_headers(response: Response) -> Response:
    response.headers.update(_HEADERS)
    return response


def _explain(exc: HTTPException) -> tuple[Response, int]:
    """Any HTTP error as JSON, for the page and for programs."""
    code = exc.code or 500
    if isinstance(exc, RequestEntityTooLarge):
        limit = MAX_UPLOAD_BYTES >> 20
        return jsonify({"error": f"The upload is larger than the {limit} MB that are taken."}), code
    if getattr(exc, "original_exception", None):  # a bug: Flask has logged its traceback
        return jsonify({"error": "A fault in the clinic; its log tells more."}), code
    return jsonify({"error": exc.description}), code
