"""Who may look and who may change something at the network's page, and how a browser shows a token."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from broker.allowance import Allowance
from broker.audit import OFF, AuditLog
from broker.errors import UsageError
from coordinator.page import server
from coordinator.page.access import TOKEN_HEADER, Access
from coordinator.page.app import create_app
from coordinator.page.serve_options import ServeOptions
from tests.unit.test_network_page import ELSEWHERE, LOCAL, TOKEN, FakeScheduler, launch
from tests.unit.test_status import serving

READ_TOKEN = "battery-staple"
BEHIND_PROXY = Access(
    host="127.0.0.1", token=TOKEN, read_token=READ_TOKEN, public_name="fl.example.org", is_behind_proxy=True,
    trusts_loopback=False,
)  # fmt: skip
BEYOND = Access(host="0.0.0.0", token=TOKEN, read_token=READ_TOKEN, trusts_loopback=False)
#: All that is answered to whoever has no token.
OPEN = {"/livez", "/readyz", "/healthz", "/login", "/static/<path:filename>", "/shared/<path:filename>"}


@pytest.fixture
def scheduler(tmp_path: Path) -> FakeScheduler:
    made = FakeScheduler(tmp_path)
    made.latest.show(serving([], {}, None), None, [])
    return made


def app_of(scheduler: FakeScheduler, access: Access = BEYOND, audit_log: AuditLog = OFF) -> Flask:
    return create_app(scheduler, access=access, stop=threading.Event(), audit_log=audit_log)  # type: ignore[arg-type]


@pytest.fixture
def client(scheduler: FakeScheduler) -> FlaskClient:
    """Of a page that other machines reach."""
    return app_of(scheduler).test_client()


def status(client: FlaskClient, path: str, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get(path, environ_base=ELSEWHERE, headers=named).status_code


def test_nothing_but_health_and_login_is_answered_without_a_token(scheduler: FakeScheduler) -> None:
    """Every other rule is closed, also one that somebody adds tomorrow, and from this machine's own address."""
    app = app_of(scheduler)
    closed = [rule for rule in app.url_map.iter_rules() if rule.rule not in OPEN and "GET" in rule.methods]  # type: ignore[operator]
    assert len(closed) >= 7
    for rule in closed:
        path = rule.rule.replace("<run>", "a").replace("<file>", "model.keras")
        for origin in (ELSEWHERE, LOCAL):
            answer = app.test_client().get(path, environ_base=origin)
            assert answer.status_code == (303 if path == "/" else 401), path
    assert app.test_client().get("/nothing", environ_base=ELSEWHERE).status_code == 401


@pytest.mark.parametrize("shown", [{TOKEN_HEADER: "{}"}, {"Authorization": "Bearer {}"}])
def test_the_read_token_opens_what_is_to_be_seen_and_no_more(
    client: FlaskClient, scheduler: FakeScheduler, shown: dict[str, str]
) -> None:
    """Prometheus sends its token as a Bearer; the other token opens this, too."""
    [(name, form)] = shown.items()
    for path in ("/", "/api/state", "/api/runs", "/metrics"):
        assert status(client, path, **{name: form.format(READ_TOKEN)}) == 200
        assert status(client, path, **{name: form.format(TOKEN)}) == 200
        assert status(client, path, **{name: form.format("wrong")}) in (303, 401)
    assert launch(client, ELSEWHERE, **{name: form.format(READ_TOKEN)}) == 403
    assert scheduler.launched == []
    assert launch(client, ELSEWHERE, **{name: form.format(TOKEN)}) == 202


@pytest.mark.parametrize("given", ["Basic abc", "Bearer", "Bearer ", "Bearer \xff", "x", ""])
def test_an_odd_authorization_opens_nothing(client: FlaskClient, given: str) -> None:
    """401, and no traceback."""
    assert status(client, "/api/state", Authorization=given) == 401


def test_behind_a_proxy_that_adds_no_header_nobody_is_taken_for_this_machine(
    scheduler: FakeScheduler,
) -> None:
    """All its requests come from loopback, without a word of a proxy."""
    client = app_of(scheduler, BEHIND_PROXY).test_client()
    assert launch(client, LOCAL) == 403
    assert client.get("/api/state", environ_base=LOCAL).status_code == 401
    assert launch(client, LOCAL, X_Warren_Token=TOKEN) == 202


def test_a_proxy_that_says_so_is_never_taken_for_this_machine(scheduler: FakeScheduler) -> None:
    """Not even where this machine is trusted."""
    client = app_of(scheduler, Access(host="127.0.0.1", token=TOKEN)).test_client()
    assert client.get("/api/state", environ_base=LOCAL).status_code == 200
    for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"):
        answer = client.get("/api/state", environ_base=LOCAL, headers={name: "192.0.2.7"})
        assert answer.status_code == 401, name


def logged_in(client: FlaskClient, token: str) -> Any:
    return client.post("/login", data={"token": token}, environ_base=ELSEWHERE)


def test_a_browser_shows_its_token_once(client: FlaskClient, scheduler: FakeScheduler) -> None:
    """The page leads to the form, the form to the page; with the read token the page asks for the other one."""
    assert client.get("/", environ_base=ELSEWHERE).headers["Location"] == "/login"
    answer = logged_in(client, READ_TOKEN)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    page = client.get("/", environ_base=ELSEWHERE).text
    assert 'id="token"' in page
    assert 'id="log-out"' in page
    assert launch(client, ELSEWHERE) == 403
    logged_in(client, f" {TOKEN}\n")  # as it was copied
    assert 'id="token"' not in client.get("/", environ_base=ELSEWHERE).text
    assert launch(client, ELSEWHERE) == 202
    assert client.post("/logout", environ_base=ELSEWHERE).status_code == 204
    assert status(client, "/api/state") == 401


def test_a_wrong_token_is_said_and_noted(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    """The form again, and a line in the log with the address, not with the token; no more than a few a minute."""
    for _ in range(8):
        answer = logged_in(client, "guessed")
        assert answer.status_code == 403
        assert "That is not the token." in answer.text
    assert "Set-Cookie" not in answer.headers
    notes = [record.getMessage() for record in caplog.records]
    assert notes == ["A wrong token came from 192.0.2.7."] * 5


def test_who_logged_in_stands_in_the_audit_log(scheduler: FakeScheduler, tmp_path: Path) -> None:
    """From where and for what, and that a wrong token came; the token never."""
    client = app_of(scheduler, audit_log=AuditLog(tmp_path / "audit.jsonl")).test_client()
    logged_in(client, "guessed")
    logged_in(client, READ_TOKEN)
    logged_in(client, TOKEN)
    text = (tmp_path / "audit.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["event"], line.get("may")) for line in lines] == [
        ("token-refused", None), ("logged-in", "look"), ("logged-in", "launch"),
    ]  # fmt: skip
    assert {line["address"] for line in lines} == {"192.0.2.7"}
    assert not any(token in text for token in ("guessed", READ_TOKEN, TOKEN))


@pytest.mark.parametrize(("access", "name"), [(BEYOND, "warren"), (BEHIND_PROXY, "__Host-warren")])
def test_the_cookie_is_no_scripts_and_no_other_sites(
    scheduler: FakeScheduler, access: Access, name: str
) -> None:
    """HttpOnly and SameSite=Strict; under TLS Secure; no token is in it, and it is worth nothing elsewhere."""
    answer = logged_in(app_of(scheduler, access).test_client(), TOKEN)
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"{name}=")
    assert "; HttpOnly" in cookie
    assert "; SameSite=Strict" in cookie
    assert "; Path=/" in cookie
    assert ("; Secure" in cookie) is access.is_behind_proxy
    assert TOKEN not in cookie
    restarted = app_of(scheduler, access).test_client()
    assert status(restarted, "/api/state", Cookie=cookie.partition(";")[0]) == 401


def test_another_sites_form_logs_nobody_in_or_out(client: FlaskClient) -> None:
    """Neither is asked for by a page of somebody else's."""
    for path in ("/login", "/logout"):
        answer = client.post(
            path, data={"token": TOKEN}, environ_base=ELSEWHERE, headers={"Origin": "https://evil.example"}
        )
        assert answer.status_code == 403


def test_only_the_login_page_may_send_a_form(client: FlaskClient) -> None:
    """Its content security policy allows it, to this page alone."""
    form = client.get("/login", environ_base=ELSEWHERE)
    assert form.headers["Referrer-Policy"] == "same-origin"  # without a referrer its Origin would be null
    policy = form.headers["Content-Security-Policy"]
    assert "form-action 'self'" in policy
    assert "default-src 'self'" in policy
    signed = client.get("/", environ_base=ELSEWHERE, headers={TOKEN_HEADER: TOKEN})
    assert "form-action 'none'" in signed.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("access", "says"),
    [
        (BEYOND, "The one to look"),
        (Access(host="0.0.0.0", token=TOKEN, trusts_loopback=False), "was given, or printed"),
        (Access(host="127.0.0.1", token=TOKEN), "serve --token"),  # its own token is printed nowhere
    ],
)
def test_the_form_says_which_token_it_means(scheduler: FakeScheduler, access: Access, says: str) -> None:
    """And tells none."""
    text = app_of(scheduler, access).test_client().get("/login", environ_base=ELSEWHERE).text
    assert says in text.replace("<code>", "").replace("</code>", "")
    assert not {TOKEN, READ_TOKEN} & set(re.findall(r"[\w-]+", text))


def test_whoever_needs_no_token_is_led_to_the_page(scheduler: FakeScheduler) -> None:
    """A person on this machine never meets the form."""
    client = app_of(scheduler, Access(host="127.0.0.1", token=TOKEN)).test_client()
    assert client.get("/login", environ_base=LOCAL).headers["Location"] == "/"
    assert "log-out" not in client.get("/", environ_base=LOCAL).text


@pytest.mark.parametrize(
    ("host", "origin", "is_taken"),
    [
        ("fl.example.org", "https://fl.example.org", True),
        ("FL.example.org", "https://fl.example.org", True),
        ("fl.example.org:443", "https://fl.example.org", True),
        ("127.0.0.1:5000", "https://fl.example.org", True),  # a proxy that passes no Host on
        ("127.0.0.1:5000", None, True),
        ("fl.example.org", "https://evil.example", False),
        ("evil.example", "https://evil.example", False),
        ("fl.example.org.evil.example", None, False),
    ],
)
def test_the_public_name_is_one_of_its_own(
    scheduler: FakeScheduler, host: str, origin: str | None, is_taken: bool
) -> None:
    """As the proxy passes it on or not; another name is refused as ever."""
    headers = {"Host": host, TOKEN_HEADER: TOKEN} | ({"Origin": origin} if origin else {})
    client = app_of(scheduler, BEHIND_PROXY).test_client()
    answer = client.post("/api/launch", json={"task": "mnist"}, environ_base=LOCAL, headers=headers)
    assert answer.status_code == (202 if is_taken else 403)


@pytest.mark.parametrize(
    "name", ["", "https://fl.example.org", "fl.example.org/x", "a@b", "a:b", "a:0", "[", "a b"]
)
def test_a_public_name_is_a_name(name: str) -> None:
    """No address, no path."""
    with pytest.raises(UsageError, match="--public-name"):
        Access(host="127.0.0.1", token=TOKEN, public_name=name)


def test_both_tokens_are_not_the_same() -> None:
    """Whoever hands out the one would hand out the other."""
    with pytest.raises(UsageError, match="--read-token"):
        Access(host="127.0.0.1", token=TOKEN, read_token=TOKEN)


@pytest.mark.parametrize(
    ("asked", "trusts", "is_behind_proxy"),
    [
        ({}, True, False),
        ({"host": "::1"}, True, False),
        ({"host": "localhost", "token": TOKEN}, True, False),
        ({"read_token": READ_TOKEN}, False, False),
        ({"behind_proxy": True}, False, True),
        ({"public_name": "fl.example.org"}, False, True),
        ({"host": "0.0.0.0"}, False, False),
        ({"host": "192.0.2.7"}, False, False),
        ({"host": "0.0.0.0", "public_name": "fl.example.org"}, False, False),
        ({"host": "0.0.0.0", "behind_proxy": True}, False, True),
        ({"host": "0.0.0.0", "trust_loopback": True}, True, False),
        ({"behind_proxy": True, "trust_loopback": True}, True, True),
        ({"trust_loopback": False}, False, False),
    ],
)
def test_this_machine_is_trusted_only_where_nobody_else_can_be_taken_for_it(
    asked: dict[str, Any], trusts: bool, is_behind_proxy: bool
) -> None:
    """Or where somebody asks for it."""
    access = ServeOptions(**{"host": "127.0.0.1", "port": 0, "runs": Path(), "token": None, **asked}).access
    assert (access.trusts_loopback, access.is_behind_proxy) == (trusts, is_behind_proxy)
    assert len(access.token) >= 12


@pytest.mark.parametrize(
    ("fault", "codes", "says"),
    [
        ({}, (200, 200, 200), "ok"),
        ({"is_connected": False, "takes_messages": False}, (200, 503, 503), "the broker is away"),
        ({"takes_messages": False}, (200, 200, 503), "alarms"),
    ],
)
def test_health_tells_what_is_wrong(
    client: FlaskClient, scheduler: FakeScheduler, fault: dict[str, bool], codes: tuple[int, ...], says: str
) -> None:
    """Restarting helps against none of it; without a broker nothing can be launched; an alarm holds up the rounds."""
    for name, value in fault.items():
        setattr(scheduler, name, value)
    answers = [client.get(path, environ_base=ELSEWHERE) for path in ("/livez", "/readyz", "/healthz")]
    assert tuple(answer.status_code for answer in answers) == codes
    assert says in answers[2].json["status"]  # type: ignore[index]


def test_a_coordinator_that_waits_behind_another_is_not_ready(scheduler: FakeScheduler) -> None:
    """Nor one whose loop has not begun."""
    client = app_of(scheduler).test_client()
    scheduler.latest.show(serving([], {}, None, is_ready=False), None, [])
    assert status(client, "/readyz") == 503
    assert status(app_of(FakeScheduler(scheduler.run_index.folder)).test_client(), "/readyz") == 503


@pytest.mark.parametrize(
    ("asked", "address", "says"),
    [
        ({}, "http://127.0.0.1:5000", None),
        ({"public_name": "fl.example.org"}, "https://fl.example.org", "looking, launching and stopping need"),
        ({"public_name": "fl.example.org", "read_token": READ_TOKEN}, "https://fl.example.org",
         "machines, launching and stopping need"),
        ({"public_name": "fl.example.org:8443", "token": TOKEN}, "https://fl.example.org:8443", None),
        ({"host": "0.0.0.0", "public_name": "lab"}, "http://lab:5000", "need the token"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:5000", "need the token"),
        ({"behind_proxy": True, "trust_loopback": True}, "http://127.0.0.1:5000", "need the token"),
    ],
)  # fmt: skip
def test_what_is_printed_opens_the_page_and_tells_no_token_that_was_given(
    asked: dict[str, Any], address: str, says: str | None
) -> None:
    """The address that others type, and the token if nobody chose one; on a laptop the address alone."""
    options = ServeOptions(**{"host": "127.0.0.1", "port": 0, "runs": Path(), "token": None, **asked})
    said: list[str] = []
    server._announce(said.append, "http://127.0.0.1:5000", options, options.access)
    assert said[0] == f"The network's page is open at {address}"
    assert not {TOKEN, READ_TOKEN} & set(" ".join(said).split())
    assert len(said) == (1 if says is None else 2)
    assert says is None or says in said[1]


# Guessing


@pytest.fixture
def now() -> list[float]:
    """The time that the page reads."""
    return [1000.0]


def guessed_at(app: Flask, now: list[float]) -> FlaskClient:
    app.config["GUESSES"] = Allowance(10, 60.0, lambda: now[0], most_senders=100)
    return app.test_client()


def ask(client: FlaskClient, token: str, address: str = "192.0.2.7", *, forwarded: str | None = None) -> int:
    headers = {TOKEN_HEADER: token} | ({"X-Forwarded-For": forwarded} if forwarded else {})
    host = {"Host": "fl.example.org"} if forwarded else {}
    answer = client.get("/api/state", environ_base={"REMOTE_ADDR": address}, headers=headers | host)
    return answer.status_code


def test_who_guesses_is_not_listened_to_for_the_rest_of_a_minute(
    scheduler: FakeScheduler, now: list[float]
) -> None:
    """Ten a minute: then a right token opens nothing either, or guessing would just go on. Others go on meanwhile."""
    client = guessed_at(app_of(scheduler), now)
    assert [ask(client, f"guess-{i}") for i in range(12)] == [401] * 10 + [429] * 2
    now[0] += 59.0
    answer = client.get("/api/state", environ_base=ELSEWHERE, headers={TOKEN_HEADER: TOKEN})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert ask(client, TOKEN, "192.0.2.8") == 200
    now[0] += 1.0
    assert ask(client, TOKEN) == 200


def test_the_form_counts_too_and_who_is_logged_in_goes_on(scheduler: FakeScheduler, now: list[float]) -> None:
    """A colleague behind the same address, with a cookie, notices nothing of somebody who guesses."""
    app = app_of(scheduler)
    colleague, guesser = guessed_at(app, now), app.test_client()

    def log_in(client: FlaskClient, token: str) -> int:
        return client.post("/login", data={"token": token}, environ_base=ELSEWHERE).status_code

    assert log_in(colleague, READ_TOKEN) == 303
    assert [log_in(guesser, "guess") for _ in range(10)] == [403] * 10
    assert log_in(guesser, TOKEN) == 429
    assert colleague.get("/api/state", environ_base=ELSEWHERE).status_code == 200


def test_behind_a_proxy_each_visitor_counts_by_itself(scheduler: FakeScheduler, now: list[float]) -> None:
    """By what the proxy added last: what a visitor says before that helps it no more than it harms another."""
    client = guessed_at(app_of(scheduler, BEHIND_PROXY), now)
    codes = [ask(client, "guess", "127.0.0.1", forwarded=f"198.51.100.{i}, 203.0.113.9") for i in range(12)]
    assert codes == [401] * 10 + [429] * 2
    assert ask(client, TOKEN, "127.0.0.1", forwarded="203.0.113.9, 203.0.113.10") == 200


def test_without_a_proxy_nobody_chooses_an_address(scheduler: FakeScheduler, now: list[float]) -> None:
    """A header that a proxy would add is the visitor's own invention; and of IPv6 one house has many addresses."""
    client = guessed_at(app_of(scheduler), now)
    headers = [{TOKEN_HEADER: "guess", "X-Forwarded-For": f"198.51.100.{i}"} for i in range(11)]
    codes = [client.get("/api/state", environ_base=ELSEWHERE, headers=each).status_code for each in headers]
    assert codes == [401] * 10 + [429]
    assert [ask(client, "guess", f"2001:db8::{i}:1") for i in range(11)] == [401] * 10 + [429]
    assert ask(client, TOKEN, "2001:db8:0:1::1") == 200
