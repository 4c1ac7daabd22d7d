"""Which broker is meant: one that `broker up` started in this home, or another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from broker.audit import AUDIT_FILE, AuditLog
from broker.audit import user as this_user
from broker.command import admin_access_options, log_options, management_url_option
from broker.hosting import server
from broker.hosting.encryption import Encryption
from broker.hosting.management import Management
from broker.link.access import Access
from broker.link.address import without_password

_Function = TypeVar("_Function", bound=Callable[..., Any])


def home_option(function: _Function) -> _Function:
    """Add `--home`."""

    def absolute(_ctx: click.Context, _param: click.Parameter, home: Path | None) -> Path:
        return (home or server.default_home()).absolute()

    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        callback=absolute,
        help="Folder of what `broker up` starts.  [default: ~/.local/state/warren]",
    )(function)


def address_options(function: _Function) -> _Function:
    """Add what says which broker it is, and how it is reached."""
    return admin_access_options(management_url_option(home_option(log_options(function))))


def known_broker(access: Access, home: Path) -> tuple[Access, Encryption | None]:
    """What was asked for, completed by what `up` recorded."""
    source = click.get_current_context().get_parameter_source("amqp_url")
    return server.known_access(access, home, is_given=source is not ParameterSource.DEFAULT)


def note(home: Path, event: str, amqp_url: str, **fields: object) -> None:
    """Note in the home's audit log what was done to a broker, and who did it."""
    AuditLog(home / AUDIT_FILE).note(event, user=this_user(), broker=without_password(amqp_url), **fields)


def management_of(access: Access, management_url: str | None, home: Path) -> Management:
    """Its management API."""
    return Management(server.known_management_url(access, management_url, home), tls=access.tls())
