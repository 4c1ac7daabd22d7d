"""One request to RabbitMQ's management API; the login goes to the address that was given, and to no other."""

import base64
import copy
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from broker.errors import BrokerError, BrokerUnreachable, LoginRefused
from broker.link.address import LOCAL_HOSTS, addresses_in, check_management_url, not_trusted

Fields = dict[str, Any]  #: one JSON object of the API, as RabbitMQ documents it


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Python would send the password along to wherever an answer points, in the clear, too."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing: the answer is told as it is."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the API is asked, without the login."""

    address: str
    opener: urllib.request.OpenerDirector


class Api:
    """The management API at one address, or at those of a cluster's nodes: the next is asked where one is not there.

    Args:
        url: https://USER:PASSWORD@HOST:PORT; guest where it names no user. Several have commas between them.
        timeout_seconds: How long one request may take.
        tls: What checks its certificate; None: Python's default.

    Raises:
        UsageError: The address can't be understood.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 10, tls: ssl.SSLContext | None = None) -> None:
        urls = addresses_in(check_management_url(url))
        self._places = [_place_of(each, tls) for each in urls]
        parts = urlsplit(urls[0])
        self._authorization = _basic(unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        self._timeout_seconds = timeout_seconds

    @property
    def address(self) -> str:
        """Without the login; of several the one that answered last."""
        return self._places[0].address

    def logged_in_as(self, user: str, password: str) -> "Api":
        """The same API for another account."""
        other = copy.copy(self)
        other._authorization = _basic(user, password)
        return other

    def get(self, *path: str, query: str = "", missing_ok: bool = False) -> Any:
        """What is at a path, each piece of it as it is called; None when it may be missing, and is."""
        return self._call("GET", path, query=query, missing_ok=missing_ok)

    def put(self, *path: str, body: Fields) -> None:
        """Make or change what is at a path."""
        self._call("PUT", path, body)

    def post(self, *path: str, body: Fields) -> Any:
        """Add something to what is at a path, or have something done there; what comes of it."""
        return self._call("POST", path, body)

    def delete(self, *path: str, query: str = "") -> None:
        """Delete what is at a path; what is missing is as good as deleted."""
        self._call("DELETE", path, query=query, missing_ok=True)

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        body: Fields | None = None,
        *,
        query: str = "",
        missing_ok: bool = False,
    ) -> object:
        """Ask one place after the other, first the one that answered last: what is repeated here harms nothing."""
        for place in list(self._places):
            try:
                answer = self._ask(place, method, path, body, query=query, missing_ok=missing_ok)
            except BrokerUnreachable as exc:
                unreachable = exc
            else:
                self._places = [place, *(each for each in self._places if each is not place)]
                return answer
        raise unreachable

    def _ask(
        self,
        place: _Place,
        method: str,
        path: tuple[str, ...],
        body: Fields | None,
        *,
        query: str,
        missing_ok: bool,
    ) -> object:
        resource = "/".join(quote(piece, safe="") for piece in path)
        request = urllib.request.Request(  # noqa: S310 - the constructor allows http and https alone
            f"{place.address}/api/{resource}{query and '?'}{query}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self._authorization, "Content-Type": "application/json"},
        )
        try:
            with place.opener.open(request, timeout=self._timeout_seconds) as response:
                return _parsed(place.address, response.read())
        except urllib.error.HTTPError as exc:
            with exc:  # an answer, too: closed like one
                if exc.code == 404 and missing_ok:
                    return None
                raise _refusal(place.address, method, resource, exc) from exc
        except (OSError, HTTPException) as exc:
            raise _unreachable(place.address, exc) from exc


def _place_of(url: str, tls: ssl.SSLContext | None) -> _Place:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    # A proxy of the network knows nothing of this machine's own ports.
    proxies = [urllib.request.ProxyHandler({})] if parts.hostname in LOCAL_HOSTS else []
    opener = urllib.request.build_opener(_StayHere(), urllib.request.HTTPSHandler(context=tls), *proxies)
    return _Place(f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}", opener)


def _parsed(address: str, answer: bytes) -> object:
    try:
        return json.loads(answer) if answer else {}
    except ValueError as exc:
        raise BrokerUnreachable(
            f"What answers at {address} is not RabbitMQ's management API. Try another --management-url."
        ) from exc


def _unreachable(address: str, exc: Exception) -> BrokerError:
    reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
    if isinstance(reason, ssl.SSLCertVerificationError):
        return BrokerUnreachable(not_trusted(address, reason))
    return BrokerUnreachable(
        f"The management API at {address} does not answer ({exc}). Try `broker up`, or give --management-url."
    )


def _refusal(address: str, method: str, resource: str, exc: urllib.error.HTTPError) -> BrokerError:
    said = exc.read(500).decode(errors="replace").strip()
    if exc.code in (401, 403):
        return LoginRefused(
            f"The management API at {address} refused {method} {resource}: {said or exc.reason}. "
            "Expected an account with the tag 'administrator'. Try its user and password in --amqp-url."
        )
    return BrokerError(f"The management API at {address} answered {exc.code} to {method} {resource}: {said}")
