"""Where a request comes from: this machine, this very page, or somebody else's."""

import ipaddress
import socket
from urllib.parse import urlsplit

from broker.link.address import LOCAL_HOSTS
from broker.web.listening import ANY_ADDRESS


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
