"""Where `coordinator serve` is reached, and by whom: the options, and what follows from them."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.link.address import LOCAL_HOSTS
from broker.web.origins import is_loopback
from coordinator.page.access import Access

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--port", type=click.IntRange(0, 65535), default=5000, show_default=True,
                 help="Where to listen; 0 takes any free port."),
    click.option("--host", default="127.0.0.1", show_default=True,
                 help="The address to listen on; 0.0.0.0 lets other machines in, without TLS."),
    click.option("--public-name", metavar="NAME[:PORT]",
                 help="What other machines call this page, such as fl.example.org: then a proxy that speaks TLS hands "
                 "their requests on, unless --host is an address that they reach themselves."),
    click.option("--behind-proxy", is_flag=True,
                 help="A proxy that speaks TLS hands requests on, whatever --host is: links are https."),
    click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                 help="Each run gets a folder there."),
    click.option("--token", help="What other machines need to launch and stop.  [default: a random one, printed]"),
    click.option("--read-token", help="What they need to look.  [default: --token alone opens the page to them]"),
    click.option("--trust-loopback/--no-trust-loopback", default=None,
                 help="Whoever is on this machine needs no token.  [default: with a --host that this machine alone "
                 "reaches, and without --behind-proxy, --public-name and --read-token]"),
)  # fmt: skip


def serve_options(function: _Function) -> _Function:
    """Add the options of `ServeOptions`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where a coordinator serves.

    Attributes:
        runs: Each run gets a folder there.
        token: What other machines need to launch and stop; None has one made.
        read_token: What they need to look; None: `token` alone opens the page to them.
        public_name: What they call it: NAME or NAME:PORT.
        behind_proxy: A proxy that speaks TLS hands their requests on.
        trust_loopback: Whoever is on this machine needs no token; None: where nobody else can be taken for one.
    """

    host: str
    port: int
    runs: Path
    token: str | None
    read_token: str | None = None
    public_name: str | None = None
    behind_proxy: bool = False
    trust_loopback: bool | None = None

    @property
    def is_local(self) -> bool:
        """Whether this machine alone reaches the port."""
        return self.host in LOCAL_HOSTS or is_loopback(self.host)

    @property
    def is_behind_proxy(self) -> bool:
        """A public name for a port that this machine alone reaches is that of a proxy."""
        return self.behind_proxy or (self.is_local and self.public_name is not None)

    @property
    def access(self) -> Access:
        """Who may look and who may change something.

        Raises:
            UsageError: It can't be so.
        """
        is_for_few = self.is_local and not self.is_behind_proxy and not self.read_token
        return Access(
            host=self.host,
            token=self.token or secrets.token_urlsafe(16),
            read_token=self.read_token or None,
            public_name=self.public_name,
            is_behind_proxy=self.is_behind_proxy,
            trusts_loopback=is_for_few if self.trust_loopback is None else self.trust_loopback,
        )
