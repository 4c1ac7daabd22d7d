"""`broker invite`, `revoke` and `forget`: who may take part, and who no longer does."""

import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

import click

from broker.command import ByteSize, Number
from broker.errors import UsageError
from broker.hosting import accounts, probe
from broker.hosting.certificates import check_not_revoked, make_client
from broker.hosting.commands import certs
from broker.hosting.commands.home import address_options, known_broker, management_of, note
from broker.hosting.encryption import SERVER_DAYS, Encryption
from broker.link.access import Access, read_pem, with_host, with_login
from broker.link.address import check_host, is_loopback, vhost_of
from broker.link.invitation import check_is_new, write_invitation
from broker.logs import LogContext
from broker.wire.names import COORDINATOR, MOST_IN_A_SWARM

logger = logging.getLogger(__name__)


@click.command()
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
@address_options
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
    access, own = known_broker(access, home)
    if by_certificate and (own is None or not own.takes_clients or invitation is None):
        raise UsageError(
            "--by-certificate needs an --invitation to put it into, and a broker of this home that was started with "
            "--tls --client-certificates."
        )
    management = management_of(access, management_url, home)
    if own is not None and own.takes_clients and not (again or new_password):
        check_not_revoked(Path(own.folder), accounts.user_of(name, swarm))
    login = accounts.invite(
        management,
        vhost_of(access.amqp_url),
        name,
        swarm=swarm,
        parts=parts,
        upload_bytes=upload_limit,
        again=again,
        has_password=not by_certificate,
        new_password=new_password,
    )
    note(home, "invited", access.amqp_url, account=login.user, swarm=swarm, again=again or new_password)
    if again and not new_password:
        click.echo(f"{name} has its rights, limits and queues; its password is as it was")
        return
    secret = f"{login.user}:{quote(login.password, safe='')}" if login.password else None
    urls = [with_login(each, secret) for each in access.amqp_urls]
    if (name_there := public_host or (own.public_name if own else None)) is not None:
        urls = [with_host(each, name_there) for each in urls]
    url = ",".join(dict.fromkeys(urls))
    if url == urls[0] and len(urls) > 1:
        logger.info(
            "the %d addresses are one in the invitation, %s: it is what must not fail", len(urls), name_there
        )
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


@click.command()
@click.argument("name")
@address_options
def revoke(name: str, access: Access, management_url: str | None, home: Path, log: LogContext) -> None:
    """Delete an invited account with its connections, its limits, and its queues with what is in them.

    The coordinator is told that it left. Of a name without an account the queues are deleted.

    \b
    broker revoke hospital-1
    """
    access, own = known_broker(access, home)
    vhost = vhost_of(access.amqp_url)
    revoked = accounts.revoke(management_of(access, management_url, home), name, vhost)
    note(
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
    for told in certs.revoked(own, revoked.users):
        click.echo(told)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--unused-days",
    type=Number(0, 36500),
    metavar="DAYS",
    help="All whose queues nobody has used for so long, instead of those named. RabbitMQ counts from its own start on, "
    "and doesn't tell it of quorum queues.",
)
@address_options
def forget(
    names: tuple[str, ...],
    unused_days: float | None,
    access: Access,
    management_url: str | None,
    home: Path,
    log: LogContext,
) -> None:
    """Delete what workers without an account left behind for good: their queues, and their lines in the status.

    One that is there is left alone; so is one that was invited, which `broker revoke` ends. Nobody need do this: what
    nobody reads for 14 days goes by itself. One that joins again is as new.

    \b
    broker forget laptop-7
    broker forget --unused-days 2
    """
    if bool(names) == (unused_days is not None):
        raise UsageError("Say whom to forget: names, or --unused-days DAYS. Try `broker status`.")
    access, _ = known_broker(access, home)
    management, vhost = management_of(access, management_url, home), vhost_of(access.amqp_url)
    num_forgotten = 0
    for name, removed in (
        ((name, accounts.forget(management, name, vhost)) for name in names)
        if unused_days is None
        else accounts.forget_unused(management, vhost, timedelta(days=unused_days))
    ):
        num_forgotten += 1
        counts = {"queues": removed.queues, "messages": removed.messages}
        note(home, "forgotten", access.amqp_url, worker=name, **counts)
        click.echo(f"{name} is forgotten; {removed.queues} queues deleted, with {removed.messages} messages")
    if not num_forgotten:
        click.echo(
            f"There is nobody without an account whose queues nobody has used for {unused_days:g} days."
        )
