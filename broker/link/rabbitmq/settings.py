"""How the broker is reached, and what pika is told of it."""

import random
import threading
from dataclasses import dataclass, field
from typing import Literal

import pika

from broker.errors import UsageError
from broker.link.access import Access
from broker.link.address import without_password

_HEARTBEAT_SECONDS = 15

Role = Literal["publish", "consume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """How to reach the broker and what to be called there.

    Attributes:
        access: Its address, and what is shown and believed there.
        name: Shown at the management page, e.g. "worker hospital-1".
        connect_seconds: How long the first connection is tried; None: until told to stop.
        stop: The process's wish to end: every wait then ends within about a second.
        addresses: In an order by chance: of many processes not all go to one node, and both connections of one do.
    """

    access: Access
    name: str
    connect_seconds: float | None = 10.0
    stop: threading.Event = field(default_factory=threading.Event)
    addresses: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        urls = self.access.amqp_urls
        object.__setattr__(self, "addresses", tuple(random.sample(urls, len(urls))))

    @property
    def account(self) -> str:
        """Whom the broker knows as the sender."""
        return self.access.account

    def parameters(self, role: Role) -> dict[str, pika.URLParameters]:
        """What pika wants to know, by address.

        Raises:
            UsageError: An address can't be understood.
        """
        return {url: self._parameters_at(url, role) for url in self.access.amqp_urls}

    def _parameters_at(self, url: str, role: Role) -> pika.URLParameters:
        try:
            parameters = pika.URLParameters(url)
        except (ValueError, TypeError, SyntaxError, LookupError, OSError) as exc:
            raise UsageError(
                f"The broker's address {without_password(url)!r} has an option after its '?' that can't be "
                f"used: {exc}"
            ) from exc
        parameters.heartbeat = _HEARTBEAT_SECONDS
        if (context := self.access.tls()) is not None and parameters.ssl_options is not None:
            parameters.ssl_options = pika.SSLOptions(context, parameters.host)
        if self.access.is_by_certificate:
            parameters.credentials = pika.credentials.ExternalCredentials()
        parameters.client_properties = {
            "connection_name": f"{self.name} ({role})",
            "product": "warren",
        }
        return parameters
