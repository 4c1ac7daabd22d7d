"""Fixtures of the attacks: accounts as `broker invite` makes them, an enemy's among them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import quote, urlsplit

import pytest

from broker.errors import UsageError
from broker.hosting import accounts
from broker.hosting.management import Management
from broker.link.address import vhost_of

Invite = Callable[..., str]


@pytest.fixture
def invite(vhost: str, management: Management) -> Iterator[Invite]:
    """Invites by name, with the options of `accounts.invite`; the AMQP URL to hand over. All are revoked at the end."""
    names = []

    def invited(name: str, **options: int) -> str:
        login = accounts.invite(management, vhost_of(vhost), name, **options)  # type: ignore[arg-type]
        names.append(name)
        parts = urlsplit(vhost)
        user = f"{login.user}:{quote(login.password or '', safe='')}"
        return parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}").geturl()

    yield invited
    for name in names:
        with suppress(UsageError):  # the test has done it
            accounts.revoke(management, name)
