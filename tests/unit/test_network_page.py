"""The page's HTTP side without a broker: who may ask for what, and how errors are said."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from broker.audit import AuditLog
from broker.errors import NobodyServes, UsageError
from broker.web import origins
from coordinator.folder.history import Row
from coordinator.folder.run_index import RunIndex
from coordinator.page.access import TOKEN_HEADER, Access
from coordinator.page.app import create_app
from coordinator.page.snapshot import LatestSnapshot
from coordinator.page.tally import Tally
from tests.unit.test_status import serving, view

TOKEN = "correct-horse"
LOCAL = {"REMOTE_ADDR": "127.0.0.1"}
HERE = Access(host="127.0.0.1", token=TOKEN)
ELSEWHERE = {"REMOTE_ADDR": "192.0.2.7"}


class FakeScheduler:
    """Takes launches and remembers them."""

    def __init__(self, folder: Path) -> None:
        self.run_index = RunIndex(folder)
        self.latest = LatestSnapshot()
        self.tally = Tally()
        self.is_connected = True
        self.takes_messages = True
        self.launched: list[tuple[str, dict[str, str]]] = []
        self.error: Exception | None = None

    def launch(self, task: str, options: dict[str, str]) -> str:
        if self.error:
            raise self.error
        self.launched.append((task, options))
        return f"{task}-1"

    def stop_run(self, *, now: bool) -> str:
        raise UsageError("There is no run under way." if not now else "now")


@pytest.fixture
def scheduler(tmp_path: Path) -> FakeScheduler:
    return FakeScheduler(tmp_path)


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def client(scheduler: FakeScheduler, stop: threading.Event) -> FlaskClient:
    app = create_app(scheduler, access=HERE, stop=stop)  # type: ignore[arg-type]
    return app.test_client()


def launch(client: FlaskClient, origin: dict[str, str], **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = client.post("/api/launch", json={"task": "mnist"}, environ_base=origin, headers=named)
    return answer.status_code


def test_this_machine_launches_without_a_token(client: FlaskClient, scheduler: FakeScheduler) -> None:
    """Numbers and flags become the texts that a message holds."""
    body = {
        "task": "mnist",
        "options": {"rounds": 3, "from-scratch": True, "learning-rate": 0.5, "seed": "1"},
    }
    answer = client.post("/api/launch", json=body, environ_base=LOCAL)
    assert (answer.status_code, answer.json) == (202, {"run": "mnist-1"})
    options = {"rounds": "3", "from-scratch": "true", "learning-rate": "0.5", "seed": "1"}
    assert scheduler.launched == [("mnist", options)]


def test_another_machine_needs_the_token(client: FlaskClient, scheduler: FakeScheduler) -> None:
    """Also one behind a proxy on this machine."""
    assert launch(client, ELSEWHERE) == 403
    assert launch(client, ELSEWHERE, X_Warren_Token="wrong") == 403
    assert launch(client, LOCAL, X_Forwarded_For="192.0.2.7") == 403
    assert scheduler.launched == []
    assert launch(client, ELSEWHERE, X_Warren_Token=TOKEN) == 202


def test_another_sites_page_changes_nothing(client: FlaskClient, scheduler: FakeScheduler) -> None:
    """Neither with a foreign Origin, nor as a browser marks it, nor by a form, nor under another name."""
    assert launch(client, LOCAL, Origin="https://evil.example") == 403
    assert launch(client, LOCAL, Sec_Fetch_Site="cross-site") == 403
    assert launch(client, LOCAL, Host="evil.example") == 403
    form = client.post("/api/launch", data={"task": "mnist"}, environ_base=LOCAL)
    assert form.status_code == 415
    text = client.post("/api/launch", data='{"task": "mnist"}', content_type="text/plain", environ_base=LOCAL)
    assert text.status_code == 415
    assert scheduler.launched == []
    assert launch(client, LOCAL, Origin="http://localhost") == 202


def test_nothing_is_shown_under_a_foreign_name(client: FlaskClient) -> None:
    """DNS rebinding reads nothing."""
    assert client.get("/api/state", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "body", [[], {"task": 1}, {"task": "mnist", "more": 1}, {"task": "mnist", "options": {"rounds": []}}, {}]
)
def test_a_wrong_body_is_said_to_be_wrong(client: FlaskClient, body: Any) -> None:
    """400, with a reason."""
    answer = client.post("/api/launch", json=body, environ_base=LOCAL)
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 30_000, b'{"task":' * 7000, b'{"task": "mnist", "options": {"rounds": NaN}}',
     b'{"task": "mnist", "options": {"rounds": null}}',
     b'{"task": "mnist", "options": {"rounds": ' + b"9" * 9999 + b"}}"],
)  # fmt: skip
def test_what_is_no_json_of_ours_is_a_400(client: FlaskClient, scheduler: FakeScheduler, body: bytes) -> None:
    """However deep, however long, and NaN isn't JSON."""
    answer = client.post("/api/launch", data=body, content_type="application/json", environ_base=LOCAL)
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["error"].isprintable()
    assert scheduler.launched == []


def test_what_is_no_number_is_null_in_every_answer(
    client: FlaskClient, scheduler: FakeScheduler, stop: threading.Event
) -> None:
    """The page's script can read the state, the stream and the runs, whatever a worker measured."""
    bad = Row(
        round=1, metrics={"loss": float("nan")}, test={"loss": float("inf")}, central={"auc": -float("inf")}
    )
    scheduler.latest.show(serving([], {}, view(history=[bad])), "a", [bad])
    folder = scheduler.run_index.folder / "a"
    folder.mkdir()
    (folder / "run.json").write_text(
        '{"task": "mnist", "strategy": "fedavg", "rounds": 1, "started_at": "x"}'
    )
    (folder / "history.csv").write_text("round,val_loss,val_auc\n0,nan,-inf\n")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for path in ("/api/state", "/api/runs", "/api/runs/a"):
        json.loads(client.get(path, environ_base=LOCAL).text, parse_constant=refuse)
    assert client.get("/api/runs", environ_base=LOCAL).json["runs"][0]["measures"] == {
        "auc": None,
        "loss": None,
    }  # type: ignore[index]
    events = iter(client.get("/events", environ_base=LOCAL).response)
    next(events)  # type: ignore[arg-type]
    told = next(events).decode().partition("data: ")[2]  # type: ignore[arg-type,union-attr]
    stop.set()
    assert json.loads(told, parse_constant=refuse)["run"]["last_round"]["loss"] is None


def test_a_bug_is_a_500_and_the_page_goes_on(client: FlaskClient, scheduler: FakeScheduler) -> None:
    """What went wrong stands in the log, and not in the answer."""
    scheduler.error = ZeroDivisionError("secret")
    answer = client.post("/api/launch", json={"task": "mnist"}, environ_base=LOCAL)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    scheduler.error = None
    assert launch(client, LOCAL) == 202


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "\x00", "http://localhost:99999"])
def test_an_origin_that_is_no_address_is_foreign(client: FlaskClient, origin: str) -> None:
    """403, and no traceback."""
    assert launch(client, LOCAL, Origin=origin) == 403


def test_errors_of_ours_are_answers(client: FlaskClient, scheduler: FakeScheduler) -> None:
    """Impossible is 400, not now is 503; both say why."""
    scheduler.error = UsageError("busy")
    assert launch(client, LOCAL) == 400
    scheduler.error = NobodyServes("away")
    assert launch(client, LOCAL) == 503
    answer = client.post("/api/stop", json={"now": False}, environ_base=LOCAL)
    assert (answer.status_code, answer.json) == (400, {"error": "There is no run under way."})


@pytest.mark.parametrize(
    "path", ["/runs/../x/model.keras", "/runs/none/model.keras", "/api/runs/none", "/runs/a/checkpoint"]
)
def test_only_a_runs_own_files_are_given(client: FlaskClient, scheduler: FakeScheduler, path: str) -> None:
    """No checkpoint, and nothing outside of --runs."""
    place = scheduler.run_index.folder / "a"
    place.mkdir()
    (place / "run.json").write_text("{}")
    (place / "checkpoint").write_text("secret")
    assert client.get(path, environ_base=LOCAL).status_code == 404


def test_every_answer_forbids_what_the_page_does_not_need(client: FlaskClient) -> None:
    """A strict content security policy, on errors too."""
    for path in ("/", "/nothing", "/metrics"):
        headers = client.get(path, environ_base=LOCAL).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'self'")
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_events_tell_the_state_at_once_and_the_connection_as_it_is(
    client: FlaskClient, scheduler: FakeScheduler, stop: threading.Event
) -> None:
    """A loop that waits for the broker shows nothing new; the stream says that the broker is away all the same."""
    scheduler.latest.show(serving([], {}, None), None, [])
    scheduler.is_connected = False
    events = iter(client.get("/events", environ_base=LOCAL).response)
    assert b"retry" in next(events)  # type: ignore[arg-type]
    told = next(events)
    stop.set()
    assert isinstance(told, bytes)
    state = json.loads(told.decode().partition("data: ")[2])
    assert state["broker"]["is_connected"] is False
    assert state["version"] == 1


def test_the_latest_snapshot_counts_changes_alone() -> None:
    """The same state shown again wakes nobody."""
    latest = LatestSnapshot()
    latest.show(serving([], {}, None), None, [])
    latest.show(serving([], {}, None), None, [])
    assert latest.snapshot.version == 1
    assert latest.wait(0, 1.0).version == 1
    assert latest.wait(1, 0.01).version == 1


@pytest.mark.parametrize(
    ("header", "host", "is_own"),
    [
        ("127.0.0.1:5000", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("[::1]:5000", "127.0.0.1", True),
        ("evil.example", "127.0.0.1", False),
        ("192.0.2.7:5000", "127.0.0.1", False),
        ("192.0.2.7:5000", "0.0.0.0", True),
        ("evil.example:5000", "0.0.0.0", False),
        ("lab.example", "lab.example", True),
        ("", "127.0.0.1", False),
        ("[", "127.0.0.1", False),
    ],
)
def test_only_this_machines_names_are_its_own(header: str, host: str, is_own: bool) -> None:
    """A name that someone else can point here is refused."""
    assert origins.is_own_name(header, host) is is_own


def test_the_header_of_the_token_is_the_one_that_the_page_sends() -> None:
    """Two files agree."""
    script = Path(__file__).parents[2] / "coordinator" / "page" / "static" / "network.js"
    assert f'headers["{TOKEN_HEADER}"]' in script.read_text(encoding="utf-8")


def test_who_takes_a_model_or_launches_stands_in_the_audit_log(
    scheduler: FakeScheduler, stop: threading.Event, tmp_path: Path
) -> None:
    """With its address, and SHA-256 of what it got; who has it already, or only asks whether it is there, gets none."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "model.keras").write_bytes(b"a model")
    log = tmp_path / "audit.jsonl"
    app = create_app(scheduler, access=HERE, stop=stop, audit_log=AuditLog(log))  # type: ignore[arg-type]
    client = app.test_client()
    token = {TOKEN_HEADER: TOKEN}
    with client.get("/runs/a/model.keras", headers=token, environ_base=ELSEWHERE) as answer:
        known = token | {"If-None-Match": answer.headers["ETag"]}
    client.get("/runs/a/model.keras", headers=known, environ_base=ELSEWHERE).close()
    client.head("/runs/a/model.keras", headers=token, environ_base=ELSEWHERE).close()
    assert client.get("/runs/a/model.keras", environ_base=ELSEWHERE).status_code != 200
    assert launch(client, LOCAL) == 202
    assert launch(client, ELSEWHERE) == 403
    assert launch(client, ELSEWHERE, X_Warren_Token="wrong") == 403
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["downloaded", "launched", "token-refused"]
    assert lines[0]["sha256"] == hashlib.sha256(b"a model").hexdigest()
    assert (lines[0]["address"], lines[0]["bytes"], lines[0]["folder"]) == ("192.0.2.7", 7, "a")
    assert lines[1]["address"] == "127.0.0.1"
