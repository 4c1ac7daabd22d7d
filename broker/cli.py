"""The command `broker`: a broker to work with, what goes on in it, and who may take part."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import click

from broker.command import (
    CommandGroup,
    amqp_url_option,
    log_options,
    management_url_option,
    read_environment,
)
from broker.hosting import accounts, probe, server
from broker.hosting.management import Fields, Management
from broker.link.address import LOCAL_HOSTS, without_password
from broker.logs import LogContext
from broker.wire.names import COORDINATOR

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
      broker invite hospital-1           prints the address to hand over
      broker revoke hospital-1
    """


def _home_option(function: _Function) -> _Function:
    def absolute(_ctx: click.Context, _param: click.Parameter, home: Path | None) -> Path:
        return (home or server.default_home()).absolute()

    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        callback=absolute,
        help="Folder of what `broker up` starts.  [default: ~/.local/state/warren]",
    )(function)


def _address_options(function: _Function) -> _Function:
    return amqp_url_option(management_url_option(_home_option(log_options(function))))


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Start a private broker on exactly this port.")
@click.option(
    "--management-port",
    type=click.IntRange(1, 65535),
    help="Where its management page shall be.  [default: the port + 10000]",
)
@_address_options
def up(
    port: int | None,
    management_port: int | None,
    amqp_url: str,
    management_url: str | None,
    home: Path,
    log: LogContext,
) -> None:
    """Have a broker to work with, and wait until it is ready.

    One that is reachable at the AMQP URL is used as it is; else a container is started, if an engine runs;
    else a private rabbitmq-server, on loopback. A port keeps the kind of broker that has data there.
    Prints its AMQP URL and the address of its management page.

    \b
    broker up
    broker up --port 5700 --management-port 15700
    AMQP_URL=amqps://me:secret@broker.example.org/lab broker up
    """
    running = server.up(
        amqp_url=amqp_url,
        management_url=management_url,
        port=port,
        management_port=management_port,
        home=home,
    )
    user, password = probe.login_of(running.amqp_url)
    is_guest = (user, password) == ("guest", "guest")
    logger.info(
        "%s broker is ready; the management page takes %s",
        {"found": "the reachable", "container": "our container's", "private": "our private"}[running.kind],
        "guest / guest" if is_guest else f"{user} and its password",
    )
    click.echo(running.amqp_url)
    click.echo(Management(running.management_url).address)


@main.command()
@click.option(
    "--delete-data", is_flag=True, help="Delete its queues and accounts, too; otherwise they are kept."
)
@amqp_url_option
@_home_option
@log_options
def down(delete_data: bool, amqp_url: str, home: Path, log: LogContext) -> None:
    """End what `broker up` started; its data are kept for the next `broker up`.

    A broker that was merely found is left alone.
    """
    ended = server.down(home, with_data=delete_data)
    for address in ended:
        click.echo(f"ended {address}")
    if probe.ask(amqp_url, seconds=2) is probe.Answer.READY:
        click.echo(
            f"The broker at {without_password(amqp_url)} was not started by `broker up`: it is left alone."
        )
    elif not ended:
        click.echo("Nothing to end: no broker that `broker up` started is running.")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_address_options
def status(as_json: bool, amqp_url: str, management_url: str | None, home: Path, log: LogContext) -> None:
    """Show the broker's health, its queues and who is connected.

    Counts are up to 5 seconds old.
    """
    management = _management(amqp_url, management_url, home)
    found = _look(management, probe.vhost_of(amqp_url))
    click.echo(json.dumps(found, indent=2) if as_json else _table(found))


@main.command()
@click.argument("name")
@_address_options
def invite(name: str, amqp_url: str, management_url: str | None, home: Path, log: LogContext) -> None:
    """Create a worker's own account, and print the AMQP URL to hand over to it.

    The account may read its own queue and publish its own updates, nothing else. The name `coordinator`
    creates the coordinator's account, with all rights in the virtual host. The password is shown this once.

    \b
    broker invite hospital-1
    broker invite coordinator
    """
    management = _management(amqp_url, management_url, home)
    password = accounts.invite(management, probe.vhost_of(amqp_url), name)
    host, _ = probe.host_and_port(amqp_url)
    if host in LOCAL_HOSTS:
        logger.info("the address says %s: put the name that others know this machine by in its place", host)
    click.echo(_with_login(amqp_url, name, password))
    logger.info(
        "%s uses it as AMQP_URL", "the coordinator" if name == COORDINATOR else f"`worker run --name {name}`"
    )


@main.command()
@click.argument("name")
@_address_options
def revoke(name: str, amqp_url: str, management_url: str | None, home: Path, log: LogContext) -> None:
    """Delete an invited account and close its connections; its queues stay.

    \b
    broker revoke hospital-1
    """
    closed = accounts.revoke(_management(amqp_url, management_url, home), name)
    click.echo(f"{name} is no longer invited; {closed} of its connections closed")


def _management(amqp_url: str, management_url: str | None, home: Path) -> Management:
    return Management(server.known_management_url(amqp_url, management_url, home))


def _with_login(amqp_url: str, user: str, password: str) -> str:
    parts = urlsplit(amqp_url)
    address = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{address}").geturl()


def _look(management: Management, vhost: str) -> dict[str, Any]:
    """What `status --json` prints."""
    return {
        "version": management.overview()["rabbitmq_version"],
        "virtual_host": vhost,
        "memory_bytes": sum(node.get("mem_used", 0) for node in management.nodes()),
        "alarms": management.alarms(),
        "queues": [_queue(queue) for queue in management.queues(vhost)],
        "connections": [_connection(connection) for connection in management.connections(vhost)],
    }


def _queue(queue: Fields) -> dict[str, Any]:
    return {
        "name": queue["name"],
        "ready": queue.get("messages_ready", 0),
        "unacked": queue.get("messages_unacknowledged", 0),
        "consumers": queue.get("consumers", 0),
    }


def _connection(connection: Fields) -> dict[str, Any]:
    given = connection.get("user_provided_name") or connection.get("client_properties", {}).get(
        "connection_name"
    )
    return {
        "name": given or connection.get("name", ""),
        "user": connection.get("user", ""),
        "state": connection.get("state", ""),
    }


def _table(found: dict[str, Any]) -> str:
    alarms = ", ".join(found["alarms"]) or "none"
    lines = [
        f"RabbitMQ {found['version']}, virtual host {found['virtual_host']}, "
        f"{found['memory_bytes'] / _MEGABYTE:.0f} MB of memory, alarms: {alarms}",
        "",
        *_rows(found["queues"], ("name", "ready", "unacked", "consumers"), "queue", "no queues yet"),
        "",
        *_rows(found["connections"], ("name", "user", "state"), "connection", "no connections"),
    ]
    return "\n".join(lines)


def _rows(entries: list[dict[str, Any]], fields: tuple[str, ...], title: str, otherwise: str) -> list[str]:
    if not entries:
        return [otherwise]
    table = [(title, *fields[1:]), *(tuple(str(entry[field]) for field in fields) for entry in entries)]
    widths = [max(len(row[column]) for row in table) for column in range(len(fields))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


read_environment(main)
