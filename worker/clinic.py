"""The doctor's page: an X-ray in; class, probability and where the model looked out; nothing is kept.

    GET  /         the page
    GET  /model    the model that answers now, as JSON
    POST /predict  images as multipart field `image`, or one as the body; an object for one, a list for more
    GET  /healthz  {"status": "ok"}

Errors are JSON, {"error": "..."}: 400 unreadable, 403 from a foreign page, 413 too large, 415 wrong type.
"""

import contextlib
import errno
import io
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Request, Response, abort, current_app, jsonify, render_template, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from broker.command import Stop
from broker.errors import DataError, ModelError, UsageError
from worker.clinic_model import ModelSource, describe
from worker.reading import Wanted, read_xray

MAX_UPLOAD_BYTES = 50 << 20
_MAX_DRAINED_BYTES = 1 << 30
_AT_ONCE = 2  # images being decoded: a large one takes a few hundred MB meanwhile
_SOCKET_SECONDS = 60.0  # who sends or takes nothing for as long is cut off
_STOP_SECONDS = 0.1  # how often the server looks whether it shall end

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not listened on
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
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
        source: The model that answers.
        host: The address it listens on; requests under other names are refused.
    """
    app = _Clinic(__name__)
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_UPLOAD_BYTES, SOURCE=source, ROOM=threading.BoundedSemaphore(_AT_ONCE)
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]  # classes keep the model's order
    app.before_request(lambda: _check_origin(host))
    app.after_request(_add_headers)
    app.register_error_handler(HTTPException, _explain)
    app.register_blueprint(_pages)
    return app


def run_clinic(model: Path, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        model: The model file, followed when it changes.
        host: Where to listen.
        port: 0 takes any free one.
        announce: Told the address once it answers.

    Raises:
        UsageError: The address can't be used.
        WarrenError: The model can't be used.
    """
    with Stop() as stop, listen(host, port) as listener:
        source = ModelSource(model)
        _log.info("Answering with %s", describe(source.current(), model)["name"])
        if host not in _LOCAL_NAMES:
            _log.warning("Listening on %s: whoever reaches this address can use the page", host)
        announce(f"The clinic is open at {address_of(listener, host)}")
        serve(create_app(source, host), listener, stop.event)


def listen(host: str, port: int) -> socket.socket:
    """Take the address.

    Raises:
        UsageError: It is in use, not allowed, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} on {host} is in use. Try another one with --port, or 0 for any that is free."
            ) from exc
        raise UsageError(f"Can't listen on {host}:{port}: {exc.strerror}. Check --host and --port.") from exc


def address_of(listener: socket.socket, host: str) -> str:
    """What to type into a browser on this machine."""
    name = "localhost" if host in _ANY_ADDRESS else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


def serve(app: Flask, listener: socket.socket, stop: threading.Event) -> None:
    """Answer requests, each in a thread of its own, until told to stop."""
    host, port = listener.getsockname()[:2]
    server = make_server(host, port, app, threaded=True, request_handler=_QuietHandler, fd=listener.fileno())
    thread = threading.Thread(target=_serve, args=(server, stop), name="clinic")
    thread.start()
    try:
        stop.wait()  # until a signal: serving is all that this process does
    finally:
        server.shutdown()
        thread.join(_SOCKET_SECONDS)


def _serve(server: BaseWSGIServer, stop: threading.Event) -> None:
    try:
        server.serve_forever(poll_interval=_STOP_SECONDS)
    finally:
        stop.set()


class _QuietHandler(WSGIRequestHandler):
    """Requests are no part of the story, and no name of a patient's file belongs into a log."""

    timeout = _SOCKET_SECONDS

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        _log.debug("%s %s", self.command, code)

    def version_string(self) -> str:
        return "Warren"


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
    answers = [_answer(name, data, wanted) for name, data in _uploads()]
    if len(answers) == 1:
        return jsonify(answers[0]), 400 if "error" in answers[0] else 200
    if all("error" in answer for answer in answers):
        return jsonify({"error": "None of the images can be read.", "images": answers}), 400
    return jsonify(answers), 200


def _model() -> dict[str, object]:
    source = _source()
    return describe(source.current(), source.path)


def _source() -> ModelSource:
    source: ModelSource = current_app.config["SOURCE"]
    return source


def _answer(name: str, data: bytes, wanted: Wanted) -> dict[str, Any]:
    try:
        with current_app.config["ROOM"]:
            return read_xray(data, name, _source(), wanted)
    except DataError as exc:
        return {"name": name, "error": str(exc)}
    except ModelError as exc:
        _log.error("The model failed on an image: %s", exc)
        abort(500, f"The model failed on this image. {exc}")


def _uploads() -> list[tuple[str, bytes]]:
    """The request's images as (name, bytes)."""
    if request.mimetype.startswith("image/") or request.mimetype == "application/octet-stream":
        return [("image", _not_empty(request.get_data(cache=False)))]
    if request.mimetype != "multipart/form-data":
        received = repr(request.mimetype) if request.mimetype else "nothing"
        abort(
            415,
            "Expected multipart/form-data with the field 'image', or an image as the body (Content-Type "
            f"image/…). Received {received}. Try: curl -F image=@x-ray.png {request.host_url}predict",
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
    origin = request.headers.get("Origin")
    is_foreign = origin is not None and urlsplit(origin).netloc.lower() != request.headers["Host"].lower()
    if is_foreign or request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        abort(403, "Another site's page may not send images here.")


def is_own_name(header: str, host: str) -> bool:
    """Whether a Host header names this machine as it may be named.

    Args:
        header: NAME or NAME:PORT, as the browser sent it.
        host: Where the server listens. On every address, all numeric ones are taken, for no foreign name can
            turn into one.
    """
    try:
        name = (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return False
    if name in _LOCAL_NAMES or name == host.lower():
        return bool(name)
    return host in _ANY_ADDRESS and (_is_address(name) or name == socket.gethostname().lower())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _add_headers(response: Response) -> Response:
    response.headers.update(_HEADERS)
    return response


def _explain(exc: HTTPException) -> tuple[Response, int]:
    """Any HTTP error as JSON, for the page and for programs."""
    code = exc.code or 500
    if isinstance(exc, RequestEntityTooLarge):
        _drain()
        limit = MAX_UPLOAD_BYTES >> 20
        return jsonify({"error": f"The upload is larger than the {limit} MB that are taken."}), code
    if getattr(exc, "original_exception", None):  # a bug: Flask has logged its traceback
        return jsonify({"error": "A fault in the clinic; its log tells more."}), code
    return jsonify({"error": exc.description}), code


def _drain() -> None:
    """Read what is still coming: a browser that is cut off while sending shows no answer at all."""
    stream = request.environ["wsgi.input"]
    remaining = min(request.content_length or 0, _MAX_DRAINED_BYTES)
    with contextlib.suppress(OSError):  # it went away, or fell silent
        while remaining > 0 and (chunk := stream.read(min(remaining, 1 << 16))):
            remaining -= len(chunk)
