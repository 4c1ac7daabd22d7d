"""One request to RabbitMQ's management API; the login goes to the address that was given, and to no other."""

import base64
import copy
import json
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from broker.errors import BrokerError, BrokerUnreachable, LoginRefused
from broker.link.address import LOCAL_HOSTS, check_management_url, not_trusted

Fields = dict[str, Any]  #: one JSON object of the API, as RabbitMQ documents it


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Python would send the password along to wherever an answer points, in the clear, too."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing: the answer is told as it is."""


class Api:
    """The management API at one address.

    Args:
        url: https://USER:PASSWORD@HOST:PORT; guest where it names no user.
        timeout_seconds: How long one request may take.
        tls: What checks its certificate; None: Python's default.

    Attributes:
        address: Without the login.

    Raises:
        UsageError: The address can't be understood.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 10, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(check_management_url(url))
        port = f":{parts.port}" if parts.port else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self.address = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
        self._authorization = _basic(unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        self._timeout_seconds = timeout_seconds
        # A proxy of the network knows nothing of this machine's own ports.
        proxies = [urllib.request.ProxyHandler({})] if parts.hostname in LOCAL_HOSTS else []
        self._opener = urllib.request.build_opener(
            _StayHere(), urllib.request.HTTPSHandler(context=tls), *proxies
        )

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

    def delete(self, *path: str) -> None:
        """Delete what is at a path; what is missing is as good as deleted."""
        self._call("DELETE", path, missing_ok=True)

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        body: Fields | None = None,
        *,
        query: str = "",
        missing_ok: bool = False,
    ) -> object:
        resource = "/".join(quote(piece, safe="") for piece in path)
        request = urllib.request.Request(  # noqa: S310 - the constructor allows http and https alone
            f"{self.address}/api/{resource}{query and '?'}{query}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self._authorization, "Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as response:
                return self._parsed(response.read())
        except urllib.error.HTTPError as exc:
            with exc:  # an answer, too: closed like one
                if exc.code == 404 and missing_ok:
                    return None
                raise self._refusal(method, resource, exc) from exc
        except (OSError, HTTPException) as exc:
            raise self._unreachable(exc) from exc

    def _parsed(self, answer: bytes) -> object:
        try:
            return json.loads(answer) if answer else {}
        except ValueError as exc:
            raise BrokerUnreachable(
                f"What answers at {self.address} is not RabbitMQ's management API. "
                "Try another --management-url."
            ) from exc

    def _unreachable(self, exc: Exception) -> BrokerError:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        if isinstance(reason, ssl.SSLCertVerificationError):
            return BrokerUnreachable(not_trusted(self.address, reason))
        return BrokerUnreachable(
            f"The management API at {self.address} does not answer ({exc}). "
            "Try `broker up`, or give --management-url."
        )

    def _refusal(self, method: str, resource: str, exc: urllib.error.HTTPError) -> BrokerError:
        said = exc.read(500).decode(errors="replace").strip()
        if exc.code in (401, 403):
            return LoginRefused(
                f"The management API at {self.address} refused {method} {resource}: {said or exc.reason}. "
                "Expected an account with the tag 'administrator'. Try its user and password in --amqp-url."
            )
        return BrokerError(
            f"The management API at {self.address} answered {exc.code} to {method} {resource}: {said}"
        )
