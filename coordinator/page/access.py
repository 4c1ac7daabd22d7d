"""Who may look and who may change something: this machine's own people, and whoever knows a token."""

import hmac
import re
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import urlsplit

from broker.errors import UsageError
from broker.web import origins

TOKEN_HEADER = "X-Warren-Token"  # noqa: S105 - the header's name

_NAME = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?")


class Right(IntEnum):
    """What a request may; each has what stands above it, too."""

    NOTHING = 0
    LOOK = 1
    CHANGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where a page is reached, and what opens it.

    Attributes:
        host: The address that it listens on.
        token: Opens everything.
        read_token: Opens what is to be seen; None: the other one alone does.
        public_name: What others call it: NAME or NAME:PORT.
        is_behind_proxy: A proxy that speaks TLS hands its requests on: browsers reach it by https alone.
        trusts_loopback: Whoever is on this machine needs no token; one who comes through a proxy that says so does.
    """

    host: str
    token: str
    read_token: str | None = None
    public_name: str | None = None
    is_behind_proxy: bool = False
    trusts_loopback: bool = True

    def __post_init__(self) -> None:
        """Check what can't be.

        Raises:
            UsageError: Something can't.
        """
        if self.token == self.read_token:
            raise UsageError("Expected a --read-token that is another than --token: it opens less.")
        if self.public_name is not None and not _NAME.fullmatch(self.public_name):
            raise UsageError(
                f"Expected a --public-name as fl.example.org, or fl.example.org:8443, got {self.public_name!r:.80}."
            )

    def trusts(self, address: str | None, *, is_forwarded: bool) -> bool:
        """Whether a request comes from this machine itself, through no proxy that says so, and that is enough."""
        return self.trusts_loopback and origins.is_loopback(address) and not is_forwarded

    def right_of(self, token: str) -> Right:
        """What a token opens."""
        if _is_same(token, self.token):
            return Right.CHANGE
        return Right.LOOK if self.read_token and _is_same(token, self.read_token) else Right.NOTHING

    def is_own_name(self, header: str) -> bool:
        """Whether a Host header names this page as it may be named."""
        hosts = (self.host,) if self.public_name is None else (self.host, _host_of(self.public_name))
        return any(origins.is_own_name(header, host) for host in hosts)

    def is_own_page(self, origin: str | None, fetch_site: str | None, own_host: str) -> bool:
        """Whether a request that changes something comes from this very page: a proxy may have changed its Host."""
        names = (own_host,) if self.public_name is None else (own_host, self.public_name)
        return any(origins.is_own_page(origin, fetch_site, name) for name in names)


def _is_same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), known.encode(errors="replace"))


def _host_of(name: str) -> str:
    return (urlsplit(f"//{name}").hostname or "").lower()
