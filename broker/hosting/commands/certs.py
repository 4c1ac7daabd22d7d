"""The command `broker certs`, and the options of `broker up` that say how others reach it."""

import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.command import log_options
from broker.errors import UsageError
from broker.hosting.certificates import (
    certificates_in,
    end_of,
    make_authority,
    make_client,
    make_server,
    note_revoked,
    renew_server,
)
from broker.hosting.encryption import SERVER_DAYS, Encryption, encrypted
from broker.link.access import Access
from broker.link.address import check_host
from broker.link.validity import WARNING_DAYS, Validity, days_until, ends_in, validities
from broker.logs import LogContext
from broker.wire.names import check_name

logger = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FOLDER = click.Path(path_type=Path, file_okay=False)

_HERE = "127.0.0.1"
PORT = 5671  #: RabbitMQ's own for TLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `broker up --tls` asks for; nothing at all: the one that was there, as it was."""

    listen: str | None
    admin: str | None
    names: tuple[str, ...]
    folder: Path | None
    takes_clients: bool

    def encryption(self, own: Path, former: Encryption | None) -> Encryption:
        """The certificates, a person's or the broker's own, and what it listens on.

        Raises:
            UsageError: They can't be used, or nothing can listen there.
        """
        if former is not None and not any((self.listen, self.names, self.folder, self.takes_clients)):
            return encrypted(
                Path(former.folder),
                former.names,
                listen=former.listen,
                takes_clients=former.takes_clients,
                is_given=Path(former.folder) != own.absolute(),
            )
        listen = self.listen or _HERE
        _check_listens(listen)
        return encrypted(
            (self.folder or own).absolute(),
            self.names,
            listen=listen,
            takes_clients=self.takes_clients,
            is_given=self.folder is not None,
        )

    def ignored_by(self, running: Encryption) -> Iterator[str]:
        """What is asked for and not so of a broker that has been running: it keeps what it was started with."""
        if self.listen not in (None, running.listen):
            yield "--listen"
        if not set(self.names) <= set(running.names):
            yield "--name"
        if self.folder is not None and str(self.folder.absolute()) != running.folder:
            yield "--certs"
        if self.takes_clients and not running.takes_clients:
            yield "--client-certificates"


def _check_listens(address: str) -> None:
    """Find out before a broker is started, whose own words for it are fifty lines of Erlang."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.bind(place)
    except OSError as exc:
        raise UsageError(
            f"Nothing can listen at {address!r:.80} ({exc.strerror or exc}). Expected an address of this machine, or "
            "0.0.0.0 for all of them."
        ) from exc


def encryption_options(function: _Function) -> _Function:
    """Add --tls and what belongs to it; the command then takes `tls`, an `Asked` or None."""

    def gathered(ctx: click.Context, _param: click.Parameter, is_tls: bool) -> Asked | None:
        given = {
            name: ctx.params.pop(name) for name in ("listen", "admin", "names", "folder", "takes_clients")
        }
        if not is_tls and any(given.values()):
            raise UsageError("--listen, --admin, --name, --certs and --client-certificates belong to --tls.")
        return Asked(**given | {"names": tuple(map(check_host, given["names"]))}) if is_tls else None

    options = (
        click.option("--tls", is_flag=True, callback=gathered,
                     help="A broker that others reach: by TLS alone, for AMQP and management page, without guest. "
                          "With none of its options one that was there starts as it was."),
        click.option("--listen", is_eager=True, metavar="ADDRESS",
                     help="Where it listens; 0.0.0.0: everywhere.  [default: 127.0.0.1]"),
        click.option("--admin", is_eager=True, metavar="NAME",
                     help="Its administrator, whose password is made and kept in a file.  [default: admin]"),
        click.option("--name", "names", is_eager=True, multiple=True, metavar="HOST",
                     help="A host name or address that sites reach it by; may be repeated, the first is the one that "
                          "invitations say.  [default: this machine's]"),
        click.option("--certs", "folder", is_eager=True, type=_FOLDER, metavar="DIR",
                     help="Take the certificates in DIR: server.pem, server-key.pem, ca.pem.  [default: made]"),
        click.option("--client-certificates", "takes_clients", is_eager=True, is_flag=True,
                     help="A certificate that the authority signed logs in as whom it names, without a password."),
    )  # fmt: skip
    for option in options:
        function = option(function)
    return function


@click.command(name="certs", short_help="Make certificates.")
@click.option(
    "--out", type=_FOLDER, required=True, metavar="DIR", help="Where; an authority that is there signs."
)
@click.option("--name", "names", multiple=True, metavar="HOST",
              help="A host name or address of the broker; may be repeated.")  # fmt: skip
@click.option("--client", "clients", multiple=True, metavar="NAME",
              help="A site that logs in by certificate; may be repeated.")  # fmt: skip
@click.option("--renew", is_flag=True, help="Make the broker's certificate anew, for the names that it has.")
@click.option("--days", type=click.IntRange(1, 3650), default=SERVER_DAYS, show_default=True,
              help="How long they are valid; the authority is for 10 years.")  # fmt: skip
@log_options
def certs_command(
    out: Path, names: tuple[str, ...], clients: tuple[str, ...], renew: bool, days: int, log: LogContext
) -> None:
    """Make an authority of one's own in DIR, and what it signs: the broker's certificate, and sites' of their own.

    DIR then holds ca.pem (to hand out), ca-key.pem (to lock away), server.pem, server-key.pem, and client-NAME.pem with
    client-NAME-key.pem. The authority is never made anew; a certificate is, whenever its name is given again. With no
    more than --out it says how long those in DIR are valid. A broker that is running takes what is made anew within
    two minutes; sites that know the authority notice nothing.

    \b
    broker certs --out certs --name fl.example.org --name 192.0.2.7
    broker certs --out certs --client hospital-1 --client hospital-2
    broker up --tls --certs certs --listen 0.0.0.0
    broker certs --out certs
    broker certs --out certs --renew
    """
    folder = out.absolute()
    if renew and names:
        raise UsageError("--renew keeps the names that the certificate has. Expected it without --name.")
    if not (names or clients or renew):
        _show(folder)
        return
    for name in names:
        check_host(name)
    for client in clients:
        check_name(client)
    made = [renew_server(folder, days=days)] if renew else []
    click.echo(make_authority(folder).certificate)
    made += [make_server(folder, [*names], days=days)] if names else []
    made += [make_client(folder, client, days=days) for client in clients]
    for pair in made:
        click.echo(pair.certificate)
        logger.info("%s is valid until %s", pair.certificate.name, end_of(pair.certificate).date())
    warn_of_short(folder)


def _show(folder: Path) -> None:
    """A line for each certificate in a folder."""
    found = certificates_in(folder)
    if not found:
        raise UsageError(
            f"There are no certificates in {folder}. Expected a --name of the broker, or a --client."
        )
    width = max(len(path.name) for path in found)
    for path in found:
        end = end_of(path)
        click.echo(f"{path.name:<{width}}  valid until {end.date()}, {ends_in(days_until(end.timestamp()))}")
    warn_of_short(folder)


def warn_of_short(folder: Path) -> None:
    """Say which certificates in a folder expire soon."""
    for path in certificates_in(folder):
        days = days_until(end_of(path).timestamp())
        if days < WARNING_DAYS:
            logger.warning("%s %s: see deploy/README.md, Certificates", path, ends_in(days))


def told_validities(access: Access) -> list[Validity]:
    """How long those are valid that a broker's connection rests on; none without TLS. What is short is warned of."""
    try:
        seen = validities(access)
    except OSError as exc:
        logger.warning("The certificate at %s can't be seen: %s", access.address, exc)
        return []
    for each in seen:
        if each.is_short:
            logger.warning("%s", each.warning)
    return seen


def revoked(own: Encryption | None, accounts: tuple[str, ...]) -> Iterator[str]:
    """Keep in mind which certificates must not be let in again; what there is to say of each.

    Args:
        own: A broker of this home; None: the certificates of another one are not at hand.
        accounts: That are gone.
    """
    for account in accounts if own else ():
        if own and (end := note_revoked(Path(own.folder), account)):
            yield f"the certificate of {account}, valid until {end.date()}, logs in as nobody now"
