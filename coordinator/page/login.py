"""What each request must show before it is answered, and the form that turns a token into a cookie."""

import logging
import math
import secrets
from datetime import timedelta

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    g,
    redirect,
    render_template,
    request,
    session,
)
from flask import url_for as address_of
from werkzeug.exceptions import TooManyRequests
from werkzeug.wrappers import Response as AnyResponse

from broker.allowance import Allowance
from broker.web import pages
from coordinator.page.access import TOKEN_HEADER, Access, Right
from coordinator.page.visits import note_visit, visitor

LOGIN = Blueprint("login", __name__)

_OPEN = frozenset({"static", "shared.static", "health.live", "health.ready", "health.health"})
_FORWARDING = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")  #: what a proxy adds that says so
_READING = ("GET", "HEAD", "OPTIONS")
_RIGHT = "right"
_REMEMBERED = timedelta(days=7)
_MOST_NOTES, _NOTE_SECONDS = 5, 60.0  # of all that guess
_MOST_GUESSES, _GUESS_SECONDS = (
    10,
    60.0,
)  # of one address; then its tokens are not looked at for the rest of a minute
_MOST_GUESSERS = 10_000

logger = logging.getLogger(__name__)


def guard(app: Flask, access: Access) -> None:
    """Let nobody in who may not, and keep who has shown a token in a cookie until this process ends.

    The cookie holds no token, and its key is made anew with each process: a token's change ends all of them.
    """
    app.secret_key = secrets.token_bytes(32)
    app.permanent_session_lifetime = _REMEMBERED
    app.config.update(
        ACCESS=access,
        NOTES=Allowance(_MOST_NOTES, _NOTE_SECONDS),
        GUESSES=Allowance(_MOST_GUESSES, _GUESS_SECONDS, most_senders=_MOST_GUESSERS),
        SESSION_COOKIE_NAME="__Host-warren" if access.is_behind_proxy else "warren",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_SECURE=access.is_behind_proxy,
        SESSION_REFRESH_EACH_REQUEST=False,
    )
    app.before_request(_check_request)
    app.register_blueprint(LOGIN)


def right_here() -> Right:
    """What the request under way may."""
    access = _access()
    is_forwarded = any(name in request.headers for name in _FORWARDING)
    if access.trusts(request.remote_addr, is_forwarded=is_forwarded):
        return Right.CHANGE
    kept = _right_kept()  # who has logged in goes on, whoever guesses at the same address
    return kept if kept is Right.CHANGE else max(_right_shown(access), kept)


def is_logged_in() -> bool:
    """Whether a cookie opened this."""
    return _right_kept() > Right.NOTHING


def _access() -> Access:
    access: Access = current_app.config["ACCESS"]
    return access


def _right_kept() -> Right:
    return Right(session.get(_RIGHT, Right.NOTHING))


def _right_shown(access: Access) -> Right:
    """By a header: of the page and of scripts, or the one that Prometheus sends."""
    shown = request.headers.get(TOKEN_HEADER)
    if shown is None and request.authorization is not None and request.authorization.type == "bearer":
        shown = request.authorization.token
    if shown and "right" not in g:  # judged once a request: a guess counts once
        g.right = _judged(access, shown)
    right: Right = g.get("right", Right.NOTHING)
    return right


def _judged(access: Access, token: str) -> Right:
    """What a token opens; one that opens nothing is noted, and too many of them are not looked at.

    Raises:
        TooManyRequests: For the rest of the minute, whatever the token is: else guessing would just go on.
    """
    guesses: Allowance = current_app.config["GUESSES"]
    guesser = visitor(is_behind_proxy=access.is_behind_proxy)
    if seconds := math.ceil(guesses.seconds_until_left(guesser)):
        raise TooManyRequests(
            f"Too many wrong tokens came from your address. Try again in {seconds} s.", retry_after=seconds
        )
    right = access.right_of(token)
    if right is Right.NOTHING:
        guesses.take(guesser)
        _note_guess(guesser)
    return right


def _note_guess(guesser: str) -> None:
    notes: Allowance = current_app.config["NOTES"]
    if notes.take("a guess"):
        logger.warning("A wrong token came from %s.", guesser)
        note_visit("token-refused")


def _check_request() -> AnyResponse | None:
    """Refuse other sites' pages, and whoever may not look or change something."""
    is_reading = request.method in _READING
    _check_names(is_reading=is_reading)
    is_open = request.blueprint == LOGIN.name or request.endpoint in _OPEN
    if is_open or right_here() >= (Right.LOOK if is_reading else Right.CHANGE):
        return None
    if request.endpoint == "network.show_page":
        return redirect(address_of("login.show_form"), 303)
    if is_reading:
        abort(
            401, f"From another machine this needs the token: log in at /login, or send it as {TOKEN_HEADER}."
        )
    return abort(
        403, "From another machine this needs the token that `coordinator serve` was given, or printed."
    )


def _check_names(*, is_reading: bool) -> None:
    access, headers = _access(), request.headers
    if not access.is_own_name(headers.get("Host", "")):
        abort(
            403,
            "This page answers under its own address only. Open the one that `coordinator serve` printed; "
            "--public-name says what others call it.",
        )
    is_own = access.is_own_page(headers.get("Origin"), headers.get("Sec-Fetch-Site"), headers["Host"])
    if not (is_reading or is_own):
        abort(403, "Another site's page may not ask for this.")


@LOGIN.get("/login")
def show_form() -> str | AnyResponse:
    """The form; whoever needs none is sent on."""
    if right_here() > Right.NOTHING and not is_logged_in():
        return redirect(address_of("network.show_page"), 303)
    return _form("")


def _form(error: str) -> str:
    return render_template("login.html", error=error, access=_access())


@LOGIN.post("/login")
def log_in() -> AnyResponse | tuple[str, int]:
    """Turn a token into a cookie."""
    try:
        right = _judged(_access(), request.form.get("token", "").strip())
    except TooManyRequests as exc:
        return _form(str(exc.description)), 429
    if right is Right.NOTHING:
        return _form("That is not the token."), 403
    session.clear()
    session.permanent = True
    session[_RIGHT] = int(right)
    note_visit("logged-in", may="launch" if right is Right.CHANGE else "look")
    return redirect(address_of("network.show_page"), 303)


@LOGIN.post("/logout")
def log_out() -> AnyResponse:
    """Forget the cookie."""
    session.clear()
    return Response(status=204)


@LOGIN.after_request
def allow_the_form(response: Response) -> Response:
    """The one page here that sends a form; a browser that may tell no referrer would send it with the Origin null."""
    policy = pages.HEADERS["Content-Security-Policy"].replace("form-action 'none'", "form-action 'self'")
    response.headers.update({"Content-Security-Policy": policy, "Referrer-Policy": "same-origin"})
    return response
