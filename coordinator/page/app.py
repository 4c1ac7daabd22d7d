"""The network's page and the JSON behind it: who is there, Launch training, and how the run learns.

    GET  /                      the page
    GET  /events                server-sent events: the state at once, and again whenever it has changed
    GET  /api/state             {"broker", "workers", "run", "last_run", "tasks", "num_dead", "version"}
    GET  /api/runs              {"runs": [...]}: every run under --runs, the newest first
    GET  /api/runs/ID           the same of one run, with "history" (a row a round), "workers" (a row a worker)
                                and "measure_names" (of which a row may have NAME, val_NAME and central_NAME)
    POST /api/launch            {"task": "mnist", "options": {"rounds": 3, "from-scratch": true}}; 202 {"run": ID}
    POST /api/stop              {"now": false}: end after the round under way, or at once; 202 {"run": ID}
    GET  /runs/ID/FILE          model.keras or model.npz, best.keras, history.csv, workers.csv, curves.png, workers.png
    GET  /livez, /readyz, /healthz   {"status": "ok", "is_connected": true}; see `health`
    GET  /metrics               for Prometheus
    GET  /login                 where a browser turns a token into a cookie

Options are those of `coordinator launch`, by name. Without `workers` a run is launched with the workers that are
present. Errors are JSON, {"error": "..."}: 400 not possible, 401 no token to look, 403 a foreign page or no token to
change something, 404, 415 not JSON, 429 too many wrong tokens, 503 the coordinator waits for the broker. From another
machine a request needs the header X-Warren-Token, or Authorization: Bearer.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, abort, current_app, jsonify, render_template, request, send_file
from werkzeug.exceptions import HTTPException, TooManyRequests

from broker.audit import OFF, AuditLog, sha256_of_file
from broker.errors import NobodyServes, ProtocolError, UsageError, WarrenError
from broker.link.validity import CertificateWatch
from broker.web import pages
from broker.web.http_server import Caps
from broker.wire.fields import to_plain
from broker.wire.plain_json import json_text, read_json
from coordinator.folder.history import flat_workers, names_of_measures
from coordinator.folder.keepsakes import BEST, KEPT
from coordinator.folder.run_folder import ARRAYS_FILE, KERAS_FILE
from coordinator.folder.run_index import read_rows
from coordinator.folder.tracking.kinds import KINDS
from coordinator.learning.strategies import STRATEGIES
from coordinator.page.access import Access, Right
from coordinator.page.health import HEALTH
from coordinator.page.login import guard, is_logged_in, right_here
from coordinator.page.prometheus import Watched, metrics_text
from coordinator.page.scheduler import Scheduler
from coordinator.page.snapshot import Snapshot
from coordinator.page.visits import note_visit
from coordinator.status import plain_status

_FILES = {
    KERAS_FILE: "application/octet-stream",
    ARRAYS_FILE: "application/octet-stream",
    "history.csv": "text/csv",
    "workers.csv": "text/csv",
    "curves.png": "image/png",
    "workers.png": "image/png",
}
_MOST_BODY_BYTES = 64 * 1024
_MOST_LISTENERS = 64  # each holds a thread; whoever comes later asks every two seconds
_LOOK_SECONDS = 1.0
#: Listeners never starve the other requests: eight threads are kept for these.
CAPS = Caps(
    threads=_MOST_LISTENERS + 8,
    connections=200,
    body_bytes=_MOST_BODY_BYTES,
    bodies_bytes=64 * _MOST_BODY_BYTES,
)
_KEEP_ALIVE_SECONDS = 15.0

_pages = Blueprint("network", __name__)


class _Page:
    """What the requests share."""

    def __init__(
        self, scheduler: Scheduler, stop: threading.Event, certificates: CertificateWatch | None
    ) -> None:
        self.scheduler = scheduler
        self.stop = stop
        self.certificates = certificates
        self.listeners = threading.BoundedSemaphore(_MOST_LISTENERS)


def create_app(
    scheduler: Scheduler,
    *,
    access: Access,
    stop: threading.Event,
    audit_log: AuditLog = OFF,
    certificates: CertificateWatch | None = None,
) -> Flask:
    """Make the page.

    Args:
        scheduler: What it shows, and whom it asks.
        access: Who may look and who may change something.
        stop: Set when the process ends: open event streams end, too.
        audit_log: Told who launches and stops runs, and who takes which model.
        certificates: Knows how long those of the broker's connection are valid; None where nobody looks.
    """
    app = Flask(__name__)
    app.config.update(
        MAX_CONTENT_LENGTH=_MOST_BODY_BYTES, PAGE=_Page(scheduler, stop, certificates), SCHEDULER=scheduler
    )
    app.config["AUDIT"] = audit_log
    app.json = pages.PageJson(app)
    app.after_request(_add_headers)
    app.register_error_handler(HTTPException, _explain)
    app.register_error_handler(WarrenError, _explain_ours)
    guard(app, access)
    app.register_blueprint(_pages)
    app.register_blueprint(HEALTH)
    app.register_blueprint(pages.SHARED)
    return app


def _page() -> _Page:
    page: _Page = current_app.config["PAGE"]
    return page


# What is shown


@_pages.get("/")
def show_page() -> str:
    """The page; whoever may look alone is asked for the token before anything is changed."""
    return render_template(
        "network.html",
        needs_token=right_here() < Right.CHANGE,
        is_logged_in=is_logged_in(),
        strategies=list(STRATEGIES),
        trackers=KINDS,
    )


@_pages.get("/api/state")
def _show_state() -> Response:
    scheduler = _page().scheduler
    return jsonify(_current(scheduler.latest.snapshot, is_connected=scheduler.is_connected))


def _current(snapshot: Snapshot, *, is_connected: bool) -> dict[str, Any]:
    """The state with the connection as it is now: a loop that waits for the broker shows nothing new."""
    plain = plain_status(snapshot.status) if snapshot.status else {}
    broker = {**plain.get("broker", {}), "is_connected": is_connected}
    now = round(time.time(), 1)  # a browser's clock may be wrong
    return {"version": snapshot.version, "now": now, **plain, "broker": broker}


@_pages.get("/events")
def _show_events() -> Response:
    page = _page()
    if not page.listeners.acquire(blocking=False):
        abort(503, "Too many pages listen. Ask /api/state instead.")
    is_gone = request.environ.get("waitress.client_disconnected", lambda: False)
    response = Response(_events(page, is_gone), mimetype="text/event-stream")
    response.call_on_close(page.listeners.release)
    return response


def _events(page: _Page, is_gone: Callable[[], bool]) -> Iterator[str]:
    """The state at once, then every change; a comment now and then keeps the connection open."""
    yield "retry: 1000\n\n"
    told: tuple[int, bool] | None = None
    told_at = time.monotonic()
    while not (page.stop.is_set() or is_gone()):
        snapshot = page.scheduler.latest.wait(told[0] if told else -1, _LOOK_SECONDS)
        is_connected = page.scheduler.is_connected
        if told != (snapshot.version, is_connected):
            told, told_at = (snapshot.version, is_connected), time.monotonic()
            yield f"id: {snapshot.version}\ndata: {json_text(_current(snapshot, is_connected=is_connected))}\n\n"
        elif time.monotonic() - told_at > _KEEP_ALIVE_SECONDS:
            told_at = time.monotonic()
            yield ": still here\n\n"


@_pages.get("/api/runs")
def _show_runs() -> Response:
    return jsonify({"runs": [to_plain(each) for each in _page().scheduler.run_index.summaries()]})


@_pages.get("/api/runs/<run>")
def _show_run(run: str) -> Response:
    """Of the run under way from memory, of an earlier one from its files."""
    scheduler = _page().scheduler
    folder, snapshot = _folder(run), scheduler.latest.snapshot
    summary = next((each for each in scheduler.run_index.summaries() if each.id == run), None)
    if snapshot.run == run:
        history, workers = [row.flat for row in snapshot.history], flat_workers(snapshot.history)
    else:
        history, workers = read_rows(folder / "history.csv"), read_rows(folder / "workers.csv")
    told = to_plain(summary) if summary else {"id": run}
    return jsonify(
        {**told, "history": history, "workers": workers, "measure_names": names_of_measures(history)}
    )


def _folder(run: str) -> Path:
    folder = _page().scheduler.run_index.find(run)
    if folder is None:
        abort(404, f"There is no run {run!r}.")
    return folder


@_pages.get("/runs/<run>/<file>")
def _send(run: str, file: str) -> Response:
    path = _folder(run) / file
    if file not in _FILES and not KEPT.fullmatch(file) and not BEST.fullmatch(file):
        abort(404, f"There is no such file. Try one of {', '.join(_FILES)}.")
    if not path.is_file():
        abort(404, f"The run {run} has no {file} yet.")
    kind = _FILES.get(file, "application/octet-stream")
    name = f"{run}{path.suffix}" if file in (KERAS_FILE, ARRAYS_FILE) else file
    if BEST.fullmatch(file) or KEPT.fullmatch(file):
        name = f"{run}-{file}"
    is_shown = kind == "image/png"
    sha256 = sha256_of_file(path) if kind == "application/octet-stream" and request.method == "GET" else None
    response = send_file(
        path.resolve(), kind, as_attachment=not is_shown, download_name=name, conditional=True
    )
    if sha256 and response.status_code != 304:  # that one says: as you have it
        note_visit("downloaded", folder=run, file=file, bytes=response.content_length, sha256=sha256)
    return response


@_pages.get("/metrics")
def _show_metrics() -> Response:
    scheduler, watch = _page().scheduler, _page().certificates
    text, content_type = metrics_text(
        Watched(
            status=scheduler.latest.snapshot.status,
            is_connected=scheduler.is_connected,
            takes_messages=scheduler.takes_messages,
            tallied=scheduler.tally.told,
            disk=scheduler.run_index.disk,
            certificates=watch.seen if watch else (),
        )
    )
    return Response(text, content_type=content_type)


# What is asked for


@_pages.post("/api/launch")
def _launch() -> tuple[Response, int]:
    asked = _asked({"task", "options"})
    task, options = asked.get("task"), asked.get("options", {})
    if not isinstance(task, str) or not isinstance(options, dict):
        abort(400, 'Expected {"task": "...", "options": {...}}.')
    run = _page().scheduler.launch(
        task, {str(name): _as_text(name, value) for name, value in options.items()}
    )
    note_visit("launched", task=task, folder=run)
    return jsonify({"run": run}), 202


def _as_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        abort(400, f"Expected a text or a number for {name!r:.60}, got {value!r:.60}.")
    return str(value)


@_pages.post("/api/stop")
def _stop() -> tuple[Response, int]:
    is_now = _asked({"now"}).get("now", False)
    if not isinstance(is_now, bool):
        abort(400, 'Expected {"now": true} or {"now": false}.')
    run = _page().scheduler.stop_run(now=is_now)
    note_visit("stop-asked", folder=run, now=is_now)
    return jsonify({"run": run}), 202


def _asked(fields: set[str]) -> dict[str, Any]:
    """The request's JSON object; a form of another site can't send this type without being asked first."""
    if request.mimetype != "application/json":
        abort(415, "Expected the Content-Type application/json.")
    try:
        asked = read_json(request.get_data(cache=False))
    except ProtocolError:
        asked = None
    if not isinstance(asked, dict) or not asked.keys() <= fields:
        abort(400, f"Expected a JSON object of {', '.join(sorted(fields))}.")
    return asked


# Answers


def _add_headers(response: Response) -> Response:
    for name, value in pages.HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _explain(exc: HTTPException) -> tuple[Response, int]:
    """Any HTTP error as JSON, for the page and for programs."""
    if getattr(exc, "original_exception", None):  # a bug: Flask has logged its traceback
        return jsonify({"error": "A fault in the coordinator; its log tells more."}), exc.code or 500
    response = jsonify({"error": exc.description})
    if isinstance(exc, TooManyRequests):
        response.headers["Retry-After"] = str(exc.retry_after)
    return response, exc.code or 500


def _explain_ours(exc: WarrenError) -> tuple[Response, int]:
    code = 400 if isinstance(exc, UsageError) else 503 if isinstance(exc, NobodyServes) else 500
    return jsonify({"error": str(exc)}), code
