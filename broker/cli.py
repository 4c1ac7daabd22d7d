"""The command `broker`: a broker to work with, what goes on in it, and who may take part."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.command import (
    CommandGroup,
    amqp_url_option,
    log_options,
    read_environment,
)
from broker.errors import UsageError
from broker.hosting import probe, server
from broker.hosting.commands import certs
from broker.hosting.commands.certs import Asked, encryption_options
from broker.hosting.commands.home import address_options, home_option, known_broker, management_of, note
from broker.hosting.commands.overview import look, table
from broker.hosting.commands.participants import forget, invite, revoke
from broker.hosting.management import Management
from broker.link.access import Access
from broker.link.address import addresses_in, vhost_of, without_password
from broker.link.invitation import write_invitation
from broker.logs import LogContext
from broker.wire.versions import release

logger = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_MEGABYTE = 1_000_000


@click.group(cls=CommandGroup, name="broker")
@click.version_option(package_name="warren")
def main() -> None:
    """RabbitMQ for a federation: start one, look at it, and invite workers.

    \b
    On a laptop:
      broker up                          a broker at amqp://guest:guest@localhost:5672/
      broker status
      broker down
    \b
    With partners:
      broker up --tls --listen 0.0.0.0 --admin me --name fl.example.org
      broker invite coordinator --invitation coordinator.toml
      broker invite hospital-1 --invitation hospital-1.toml     the file to hand over
      broker revoke hospital-1
    """


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Start a private broker on exactly this port.")
@click.option(
    "--management-port",
    type=click.IntRange(1, 65535),
    help="Where its management page shall be.  [default: the port + 10000]",
)
@click.option(
    "--nodes",
    type=click.IntRange(3, 9),
    metavar="N",
    help="Start a cluster of N private nodes on this machine, with quorum queues: for trying one.",
)
@encryption_options
@address_options
def up(
    port: int | None,
    management_port: int | None,
    nodes: int | None,
    tls: Asked | None,
    access: Access,
    management_url: str | None,
    home: Path,
    log: LogContext,
) -> None:
    """Have a broker to work with, and wait until it is ready.

    One that is reachable at the AMQP URL is used as it is; else a container is started, if an engine runs;
    else a private rabbitmq-server, on loopback. A port keeps the kind of broker that has data there.
    Prints its AMQP URL and the address of its management page.

    With --tls it is a private one that others reach: by TLS alone, with certificates of its own authority unless
    --certs gives others, without guest. Of its administrator no password is printed: it is in a file, and the other
    commands of this home know it.

    Settings of one's own belong into HOME/PORT/conf.d/own.conf, which is never overwritten.

    \b
    broker up
    broker up --port 5700 --management-port 15700
    broker up --nodes 3
    broker up --tls --listen 0.0.0.0 --admin me --name fl.example.org
    AMQP_URL=amqps://me:secret@broker.example.org/lab broker up
    """
    if tls is not None and nodes is not None:
        raise UsageError("--nodes is for trying a cluster on this machine alone: without --tls.")
    if tls is not None:
        _up_encrypted(tls, port, management_port, home)
        return
    if nodes is not None:
        running = server.up_cluster(
            access=access, num_nodes=nodes, port=port, management_port=management_port, home=home
        )
    else:
        running = server.up(
            access=access,
            management_url=management_url,
            port=port,
            management_port=management_port,
            home=home,
        )
    note(home, "up", running.amqp_url, kind=running.kind, version=release())
    user, password = probe.login_of(addresses_in(running.amqp_url)[0])
    is_guest = (user, password) == ("guest", "guest")
    logger.info(
        "%s broker is ready; the management page takes %s",
        {"found": "the reachable", "container": "our container's", "private": "our private"}[running.kind],
        "guest / guest" if is_guest else f"{user} and its password",
    )
    click.echo(running.amqp_url)
    click.echo(Management(running.management_url).address)


def _up_encrypted(asked: Asked, port: int | None, management_port: int | None, home: Path) -> None:
    broker = server.up_encrypted(
        port=port or certs.PORT,
        management_port=management_port,
        home=home,
        admin=asked.admin,
        encryption=asked.encryption,
    )
    login = broker.home / f"{broker.user}.toml"
    login.unlink(missing_ok=True)
    write_invitation(login, broker.access)
    logger.info("our encrypted broker is ready; the login of %s is in %s", broker.user, login)
    if broker.encryption is not None:
        if ignored := ", ".join(asked.ignored_by(broker.encryption)):
            logger.warning(
                "it was running and stays as it was started, without %s: `broker down` first", ignored
            )
        certs.warn_of_short(Path(broker.encryption.folder))
    click.echo(broker.access.address)
    click.echo(Management(broker.management_url).address)


@main.command()
@click.option("--all", "is_all", is_flag=True, help="End every broker that `broker up` started in this home.")
@click.option(
    "--delete-data", is_flag=True, help="Delete its queues and accounts, too; otherwise they are kept."
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
@amqp_url_option
@home_option
@log_options
def down(is_all: bool, delete_data: bool, yes: bool, amqp_url: str, home: Path, log: LogContext) -> None:
    """End the broker at the AMQP URL, if `broker up` started it; its data are kept for the next `broker up`.

    A broker that was merely found is left alone, and so are the others of this home.

    \b
    broker down
    AMQP_URL=amqp://guest:guest@localhost:5700/ broker down
    broker down --all --delete-data
    """
    amqp_url = known_broker(Access(amqp_url=amqp_url), home)[0].amqp_url
    chosen = None if is_all else amqp_url
    if delete_data and not yes:
        _confirm_loss(server.ours(home, chosen))
    ended = server.down(home, amqp_url=chosen, with_data=delete_data)
    for address in ended:
        click.echo(f"ended {address}")
    if not is_all and probe.ask(amqp_url, seconds=2) is probe.Answer.READY:
        click.echo(
            f"The broker at {without_password(amqp_url)} was not started by `broker up`: it is left alone."
        )
    elif not ended:
        where = "in this home" if is_all else f"at {without_password(amqp_url)}"
        click.echo(f"Nothing to end: no broker that `broker up` started is running {where}.")
    for address in _still_running(home):
        click.echo(f"Still running: {address} (--amqp-url ends one, --all ends every one)")


def _confirm_loss(brokers: list[server.Ours]) -> None:
    """Ask before anything is deleted that can't be had back; where nobody can be asked, it is not deleted.

    Raises:
        UsageError: Nobody said yes.
    """
    for broker in brokers:
        click.echo(f"{without_password(broker.amqp_url)}: all queues, messages and accounts", err=True)
    try:
        is_meant = not brokers or click.confirm("Delete that for good?", err=True)
    except click.Abort:
        is_meant = False
    if not is_meant:
        raise UsageError(
            "Nothing is ended, and nothing deleted: nobody said yes. With --yes nobody is asked."
        )


def _still_running(home: Path) -> list[str]:
    brokers = server.ours(home)
    return [without_password(broker.amqp_url) for broker in brokers if server.is_running(broker, home)]


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@address_options
def status(as_json: bool, access: Access, management_url: str | None, home: Path, log: LogContext) -> None:
    """Show the broker's health, its queues and who is connected.

    Counts are up to 5 seconds old.
    """
    access, _ = known_broker(access, home)
    management = management_of(access, management_url, home)
    found = look(management, vhost_of(access.amqp_url))
    found["certificates"] = [asdict(each) for each in certs.told_validities(access)]
    click.echo(json.dumps(found, indent=2) if as_json else table(found))


for _command in (invite, revoke, forget, certs.certs_command):
    main.add_command(_command)
read_environment(main)
