"""What the two pages share: a port of one's own, JSON that a script can read, and safety from other sites."""

import errno
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint
from flask.json.provider import DefaultJSONProvider

from broker.errors import UsageError
from broker.link.address import LOCAL_HOSTS
from broker.wire.plain_json import json_text

ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not listened on
SHARED = Blueprint(
    "shared", __name__, static_folder="static", static_url_path="/shared"
)  #: the style sheet of both
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def listen(host: str, port: int) -> socket.socket:
    """Take an address; port 0 takes any free one.

    Raises:
        UsageError: It is in use, not allowed, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} on {host} is in use. Try another one with --port, or 0 for any that is free."
            ) from exc
        raise UsageError(f"Can't listen on {host}:{port}: {exc.strerror}. Check --host and --port.") from exc


def address_of(listener: socket.socket, host: str) -> str:
    """What to type into a browser on this machine."""
    name = "localhost" if host in ANY_ADDRESS else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


class PageJson(DefaultJSONProvider):
    """A page's JSON: its script can read every answer, whatever was measured; classes keep their order."""

    sort_keys = False

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """One answer; what is no number is null."""
        del kwargs  # Flask's own: how to indent for a person
        return json_text(obj)


def is_own_name(header: str, host: str) -> bool:
    """Whether a Host header names this machine as it may be named (another name is DNS rebinding).

    Args:
        header: NAME or NAME:PORT, as the browser sent it.
        host: Where the server listens. On every address, all numeric ones are taken, for no foreign name can
            turn into one.
    """
    try:
        name = (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return False
    if name in LOCAL_HOSTS or name == host.lower():
        return bool(name)
    return host in ANY_ADDRESS and (_is_address(name) or name == socket.gethostname().lower())


def is_own_page(origin: str | None, fetch_site: str | None, own_host: str) -> bool:
    """Whether a request that changes something comes from this very page, or from no page at all.

    Args:
        origin: The header Origin.
        fetch_site: The header Sec-Fetch-Site.
        own_host: The header Host, already found to be ours.
    """
    if fetch_site in ("cross-site", "same-site"):
        return False
    try:
        return origin is None or urlsplit(origin).netloc.lower() == own_host.lower()
    except ValueError:  # of what is no address at all
        return False


def is_loopback(address: str | None) -> bool:
    """Whether a request comes from this machine."""
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
