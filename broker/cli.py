"""The command `broker`: a broker to work with, what goes on in it, and who may take part."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import click
from click.core import ParameterSource

from broker.audit import AUDIT_FILE, AuditLog
from broker.audit import user as this_user
from broker.command import (
    ByteSize,
    CommandGroup,
    admin_access_options,
    amqp_url_option,
    log_options,
    management_url_option,
    read_environment,
)
from broker.errors import UsageError
from broker.hosting import accounts, certs_command, probe, server
from broker.hosting.certificates import check_not_revoked, make_client
from broker.hosting.certs_command import Asked, encryption_options
from broker.hosting.encryption import SERVER_DAYS, Encryption
from broker.hosting.management import Fields, Management
from broker.link.access import Access, read_pem, with_host, with_login
from broker.link.address import addresses_in, check_host, is_loopback, without_password
from broker.link.invitation import check_is_new, write_invitation
from broker.logs import LogContext
from broker.wire.names import COORDINATOR, MOST_IN_A_SWARM
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
    return admin_access_options(management_url_option(_home_option(log_options(function))))


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
@_address_options
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
    _audit(home, "up", running.amqp_url, kind=running.kind, version=release())
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
        port=port or certs_command.PORT,
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
        certs_command.warn_of_short(Path(broker.encryption.folder))
    click.echo(broker.access.address)
    click.echo(Management(broker.management_url).address)


@main.command()
@click.option("--all", "is_all", is_flag=True, help="End every broker that `broker up` started in this home.")
@click.option(
    "--delete-data", is_flag=True, help="Delete its queues and accounts, too; otherwise they are kept."
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
@amqp_url_option
@_home_option
@log_options
def down(is_all: bool, delete_data: bool, yes: bool, amqp_url: str, home: Path, log: LogContext) -> None:
    """End the broker at the AMQP URL, if `broker up` started it; its data are kept for the next `broker up`.

    A broker that was merely found is left alone, and so are the others of this home.

    \b
    broker down
    AMQP_URL=amqp://guest:guest@localhost:5700/ broker down
    broker down --all --delete-data
    """
    amqp_url = _known(Access(amqp_url=amqp_url), home)[0].amqp_url
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
@_address_options
def status(as_json: bool, access: Access, management_url: str | None, home: Path, log: LogContext) -> None:
    """Show the broker's health, its queues and who is connected.

    Counts are up to 5 seconds old.
    """
    access, _ = _known(access, home)
    management = _management(access, management_url, home)
    found = _look(management, probe.vhost_of(access.amqp_url))
    found["certificates"] = [asdict(each) for each in certs_command.told_validities(access)]
    click.echo(json.dumps(found, indent=2) if as_json else _table(found))


@main.command()
@click.argument("name")
@click.option(
    "--swarm",
    type=click.IntRange(1, MOST_IN_A_SWARM),
    metavar="N",
    help="Let it act for NAME.1 to NAME.N (`worker swarm --name NAME`), instead of for NAME.",
)
@click.option(
    "--parts",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="K",
    help="Queues for so many processes that share these workers (`worker swarm --part I/K`).",
)
@click.option(
    "--upload-limit",
    type=ByteSize(),
    metavar="SIZE",
    help="How much may wait in its upload queue, and in the one that it reads, whatever the model; five times the "
    "model's size is enough.  [default: 1G, until a run of the account `coordinator` sets what its model needs]",
)
@click.option(
    "--invitation",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.toml",
    help="Write address, login and --ca into this new file, to hand over; the password is then not printed.",
)
@click.option("--by-certificate", is_flag=True,
              help="Log in by a certificate, which the invitation holds, in place of a password.")  # fmt: skip
@click.option("--host", "public_host", metavar="HOST",
              help="What others call the broker's machine.  [default: as its certificate, or the address]")  # fmt: skip
@click.option(
    "--again", is_flag=True, help="It has an account: set rights, limits and queues; keep the password."
)
@click.option(
    "--new-password",
    is_flag=True,
    help="The same with another password, the former one ends; or with another certificate, beside the former one.",
)
@_address_options
def invite(
    name: str,
    swarm: int | None,
    parts: int,
    upload_limit: int | None,
    again: bool,
    new_password: bool,
    invitation: Path | None,
    by_certificate: bool,
    public_host: str | None,
    access: Access,
    management_url: str | None,
    home: Path,
    log: LogContext,
) -> None:
    """Create a worker's own account with its queues, and print the AMQP URL to hand over to it.

    The account may read its own queue and publish its own updates, nothing else, and no more than its limits say.
    The name `coordinator` creates the coordinator's account, with all rights in the virtual host: workers with
    accounts of their own take rounds from that one alone. The password is shown this once.

    \b
    broker invite coordinator
    broker invite hospital-1
    broker invite hospital-1 --invitation hospital-1.toml
    broker invite lab --swarm 100
    broker invite hospital-1 --upload-limit 4G --again
    broker invite hospital-1 --new-password --invitation hospital-1-new.toml
    """
    if parts > 1 and swarm is None:
        raise UsageError("--parts are of a swarm: expected it with --swarm.")
    if public_host is not None:
        check_host(public_host)
    if invitation is not None:
        check_is_new(invitation)
        if again:
            raise UsageError(
                "With --again the password stays what it was, and nobody knows it: no invitation."
            )
    access, own = _known(access, home)
    if by_certificate and (own is None or not own.takes_clients or invitation is None):
        raise UsageError(
            "--by-certificate needs an --invitation to put it into, and a broker of this home that was started with "
            "--tls --client-certificates."
        )
    management = _management(access, management_url, home)
    if own is not None and own.takes_clients and not (again or new_password):
        check_not_revoked(Path(own.folder), accounts.user_of(name, swarm))
    login = accounts.invite(
        management,
        probe.vhost_of(access.amqp_url),
        name,
        swarm=swarm,
        parts=parts,
        upload_bytes=upload_limit,
        again=again,
        has_password=not by_certificate,
        new_password=new_password,
    )
    _audit(home, "invited", access.amqp_url, account=login.user, swarm=swarm, again=again or new_password)
    if again and not new_password:
        click.echo(f"{name} has its rights, limits and queues; its password is as it was")
        return
    secret = f"{login.user}:{quote(login.password, safe='')}" if login.password else None
    urls = [with_login(each, secret) for each in access.amqp_urls]
    if (name_there := public_host or (own.public_name if own else None)) is not None:
        urls = [with_host(each, name_there) for each in urls]
    url = ",".join(dict.fromkeys(urls))
    host, _ = probe.host_and_port(urls[0])
    if is_loopback(host):
        logger.info(
            "the address says %s: put the name that others know this machine by in its place; they want amqps:// "
            "there, or --insecure",
            host,
        )
    if invitation is None:
        click.echo(url)
        logger.info("%s uses it as AMQP_URL", _user_of(name, swarm))
    else:
        page = _page_for_others(management.address, name_there if own else None) if len(urls) == 1 else None
        given = Access(amqp_url=url, name=name, ca=access.ca, management_url=page)
        write_invitation(invitation, _with_certificate(given, own, login.user) if by_certificate else given)
        click.echo(invitation)
        logger.info(
            "hand it over on a safe way: %s --invitation %s", _command_of(name, swarm), invitation.name
        )


def _page_for_others(address: str, host: str | None) -> str | None:
    """Where others reach the management page, which also tells them the time; None where nobody knows.

    Of a cluster it is left out: each node has one, at the usual port.

    Args:
        address: Where it is reached from here.
        host: What others call this machine, if the page listens wherever the broker does.
    """
    if host is not None:
        return with_host(address, host)
    return None if is_loopback(urlsplit(address).hostname or "") else address


def _with_certificate(given: Access, own: Encryption | None, account: str) -> Access:
    """An invitation whose login is a certificate, signed with the authority of a broker of this home."""
    assert own is not None  # noqa: S101 - asked before an account was made
    pair = make_client(Path(own.folder), account, days=SERVER_DAYS)
    return replace(given, certificate=read_pem(pair.certificate), key=read_pem(pair.key))


def _user_of(name: str, swarm: int | None) -> str:
    if name == COORDINATOR:
        return "the coordinator"
    return f"`worker run --name {name}`" if swarm is None else f"`worker swarm --name {name} --count {swarm}`"


def _command_of(name: str, swarm: int | None) -> str:
    if name == COORDINATOR:
        return "coordinator serve"
    return "worker run" if swarm is None else f"worker swarm --count {swarm}"


@main.command()
@click.argument("name")
@_address_options
def revoke(name: str, access: Access, management_url: str | None, home: Path, log: LogContext) -> None:
    """Delete an invited account with its connections, its limits, and its queues with what is in them.

    The coordinator is told that it left. Of a name without an account the queues are deleted.

    \b
    broker revoke hospital-1
    """
    access, own = _known(access, home)
    vhost = probe.vhost_of(access.amqp_url)
    revoked = accounts.revoke(_management(access, management_url, home), name, vhost)
    _audit(
        home,
        "revoked",
        access.amqp_url,
        account=name,
        connections=revoked.connections,
        queues=revoked.removed.queues,
        messages=revoked.removed.messages,
    )
    click.echo(f"{name} is no longer invited; {revoked.connections} of its connections closed")
    if revoked.removed.queues:
        click.echo(f"{revoked.removed.queues} queues deleted, with {revoked.removed.messages} messages")
    for told in certs_command.revoked(own, revoked.users):
        click.echo(told)


@main.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_address_options
def forget(
    names: tuple[str, ...], access: Access, management_url: str | None, home: Path, log: LogContext
) -> None:
    """Delete what workers without an account left behind for good: their queues, and their lines in the status.

    One that is there is left alone; so is one that was invited, which `broker revoke` ends. Nobody need do this: what
    nobody reads for 14 days goes by itself. One that joins again is as new.

    \b
    broker forget laptop-7
    """
    access, _ = _known(access, home)
    management, vhost = _management(access, management_url, home), probe.vhost_of(access.amqp_url)
    for name in names:
        removed = accounts.forget(management, name, vhost)
        counts = {"queues": removed.queues, "messages": removed.messages}
        _audit(home, "forgotten", access.amqp_url, worker=name, **counts)
        click.echo(f"{name} is forgotten; {removed.queues} queues deleted, with {removed.messages} messages")


def _known(access: Access, home: Path) -> tuple[Access, Encryption | None]:
    """What was asked for, completed by what `up` recorded."""
    source = click.get_current_context().get_parameter_source("amqp_url")
    return server.known_access(access, home, is_given=source is not ParameterSource.DEFAULT)


def _audit(home: Path, event: str, amqp_url: str, **fields: object) -> None:
    """Note in the home's audit log what was done to a broker, and who did it."""
    AuditLog(home / AUDIT_FILE).note(event, user=this_user(), broker=without_password(amqp_url), **fields)


def _management(access: Access, management_url: str | None, home: Path) -> Management:
    return Management(server.known_management_url(access, management_url, home), tls=access.tls())


def _look(management: Management, vhost: str) -> dict[str, Any]:
    """What `status --json` prints."""
    nodes = management.nodes()
    return {
        "version": management.overview()["rabbitmq_version"],
        "virtual_host": vhost,
        "memory_bytes": sum(node.get("mem_used", 0) for node in nodes),
        "nodes": [_node(node) for node in nodes],
        "alarms": management.alarms(),
        "queues": [_queue(queue) for queue in management.queues(vhost)],
        "connections": [_connection(connection) for connection in management.connections(vhost)],
    }


def _node(node: Fields) -> dict[str, Any]:
    return {
        "name": node["name"],
        "is_running": bool(node.get("running")),
        "memory_bytes": node.get("mem_used", 0),
        "cut_off_from": node.get("partitions", []),
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
        *_node_lines(found["nodes"]),
        *_rows(found["queues"], ("name", "ready", "unacked", "consumers"), "queue", "no queues yet"),
        "",
        *_rows(found["connections"], ("name", "user", "state"), "connection", "no connections"),
    ]
    if found["certificates"]:
        lines += ["", *_rows(found["certificates"], ("whose", "subject", "days_left"), "certificate", "")]
    return "\n".join(lines)


def _node_lines(nodes: list[dict[str, Any]]) -> list[str]:
    """Of a cluster alone."""
    rows = [
        {
            "name": node["name"],
            "state": "running" if node["is_running"] else "down",
            "memory": f"{node['memory_bytes'] / _MEGABYTE:.0f} MB",
            "cut off from": ", ".join(node["cut_off_from"]) or "-",
        }
        for node in nodes
    ]
    return (
        [*_rows(rows, ("name", "state", "memory", "cut off from"), "node", ""), ""] if len(nodes) > 1 else []
    )


def _rows(entries: list[dict[str, Any]], fields: tuple[str, ...], title: str, otherwise: str) -> list[str]:
    if not entries:
        return [otherwise]
    table = [(title, *fields[1:]), *(tuple(str(entry[field]) for field in fields) for entry in entries)]
    widths = [max(len(row[column]) for row in table) for column in range(len(fields))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


main.add_command(certs_command.certs_command)
read_environment(main)
