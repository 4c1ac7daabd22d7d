"""A broker to work with: one that is reachable, else a container, else a private process; and its end."""

import logging
import os
import secrets
import shutil
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from broker.command import management_url_for
from broker.errors import BrokerError, BrokerUnreachable, LoginRefused, UsageError
from broker.hosting import probe
from broker.hosting.container import Container, running_engine
from broker.hosting.encryption import Encryption
from broker.hosting.management import Management
from broker.hosting.policies import set_policies
from broker.hosting.private import PrivateBroker, find_program, free_ports, is_installed, wait_until
from broker.hosting.probe import Answer
from broker.hosting.starting import cluster
from broker.hosting.starting.turns import in_turn
from broker.link.access import Access, login_in, with_login
from broker.link.address import LOCAL_HOSTS, addresses_in, not_trusted, vhost_of, without_password

__all__ = [
    "Ours",
    "PrivateBroker",
    "Running",
    "can_be_up",
    "down",
    "is_running",
    "known_access",
    "known_management_url",
    "ours",
    "recorded",
    "up",
    "up_cluster",
    "up_encrypted",
]

logger = logging.getLogger(__name__)

_MANAGEMENT_OFFSET = 10_000  # RabbitMQ's own: 5672 and 15672
_OTHER_PORTS = range(5673, 5700)  # tried in turn when the standard port is taken
_PASSWORD_BYTES = 24
_READY_SECONDS = 60.0
_REFUSED_SECONDS = 5.0  #: how long a login is refused until that is believed


Ours = PrivateBroker | Container  #: what `up` started, now or earlier


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A broker that is ready, and where it came from.

    Attributes:
        amqp_url: Its address, with the login.
        management_url: Its management API's address, with the login.
        kind: "found" was there already and is not ours; the others were started by `up`, now or earlier.
    """

    amqp_url: str
    management_url: str
    kind: Literal["found", "container", "private"]


def up(
    *, access: Access, management_url: str | None, port: int | None, management_port: int | None, home: Path
) -> Running:
    """Find a broker or start one, and wait until it is ready.

    Args:
        access: How one may be reached that runs already; its port and login are those of a new one.
        management_url: Of the one that may run already.
        port: A private broker on exactly this port is wanted.
        management_port: Where a new one shall have its management page.
        home: The folder of everything that `up` starts.

    Raises:
        BrokerError: There is none, and none can be started; the message says what to do.
    """
    with in_turn(home):
        if port is not None:
            running = _private(_on_port(access.amqp_url, port, management_port, home))
        else:
            running = _reachable_or_new(access, management_url, management_port, home)
    _set_policies_on(running, access.tls())
    return running


def up_cluster(
    *, access: Access, num_nodes: int, port: int | None, management_port: int | None, home: Path
) -> Running:
    """Have a cluster of private nodes on this machine, on loopback, and wait until all are ready.

    Args:
        access: Its login and virtual host are those of a new one, its port that of the first node.
        num_nodes: How many nodes a new one has.
        port: Of the first node; the others are on the next free ones.
        management_port: Of the first node.
        home: The folder of everything that `up` starts.

    Raises:
        UsageError: There is one with another number of nodes, or a broker on this port is none of a cluster.
        BrokerError: It could not be started.
    """
    with in_turn(home):
        known = [each for each in recorded(home) if each.cluster and port in (None, each.cluster[0])]
        if not known:
            preferred = port or probe.host_and_port(access.amqp_url)[1]
            ports = cluster.ports_for(num_nodes, preferred, home, is_exact=port is not None)
            known = cluster.new_nodes(_new(access.amqp_url, ports[0], management_port, home), ports)
        if len(known[0].cluster) != num_nodes:
            raise UsageError(
                f"There is a cluster of {len(known[0].cluster)} nodes in this home already, with its data. Expected "
                f"--nodes {len(known[0].cluster)}, another --port, or first: broker down --all --delete-data"
            )
        running = _started(cluster.nodes_of(known[0]) if known[0].has_data else known)
    _set_policies_on(running, None)
    return running


def up_encrypted(
    *,
    port: int,
    management_port: int | None,
    home: Path,
    admin: str | None,
    encryption: Callable[[Path, Encryption | None], Encryption],
) -> PrivateBroker:
    """Have a private broker that others reach, by TLS alone, and wait until it is ready.

    Args:
        port: Where it speaks AMQP.
        management_port: Where its management page is; None: where it was, or the usual offset above the port.
        home: The folder of everything that `up` starts.
        admin: The account that its first start creates, with a password that is made; there is no guest. None: who it
            was, or `admin`.
        encryption: Has the certificates in its own folder, which is passed in, with what it had at its former start.

    Raises:
        UsageError: On this port is, or was, one of another kind; the certificates can't be used.
        BrokerError: It could not be started.
    """
    folder = home / str(port)
    with in_turn(home):
        broker = PrivateBroker.recorded(folder)
        if broker is None and not probe.is_free(port):
            raise BrokerError(f"Port {port} is taken by {_who_is_at(port)}. Try another --port.")
        if broker is not None and (broker.encryption is None or broker.user != (admin or broker.user)):
            raise UsageError(
                f"On port {port} there is a broker of another kind, with data of its own: its administrator is "
                f"{broker.user!r}, {'with' if broker.encryption else 'without'} TLS. Try another --port, or end it "
                "with its data: broker down --delete-data"
            )
        if broker is None:
            broker = PrivateBroker(
                home=folder,
                port=port,
                management_port=port + _MANAGEMENT_OFFSET,
                user=admin or "admin",
                password=secrets.token_urlsafe(_PASSWORD_BYTES),
            )
        if not broker.is_running():
            broker = replace(
                broker,
                management_port=management_port or broker.management_port,
                encryption=encryption(folder / "certificates", broker.encryption),
            )
            logger.info("starting an encrypted rabbitmq-server on port %d; its files are in %s", port, folder)
        broker.start(seconds=_READY_SECONDS)
    set_policies(Management(broker.management_url, tls=broker.access.tls()), broker.vhost)
    return broker


def known_access(access: Access, home: Path, *, is_given: bool) -> tuple[Access, Encryption | None]:
    """How an administrator reaches a broker: as asked, and as `up` recorded it where that says less.

    Args:
        access: What was asked for.
        home: The folder of everything that `up` starts.
        is_given: Whether a person said an address; if not, an encrypted broker that runs here alone is meant.
    """
    if not is_given and _own_at(access.amqp_url, home) is None:
        running = [each for each in recorded(home) if each.encryption and each.is_running()]
        return (running[0].access, running[0].encryption) if len(running) == 1 else (access, None)
    own = _own_at(access.amqp_url, home)
    if isinstance(own, PrivateBroker) and own.cluster and not access.others:
        urls = [with_login(each.amqp_url, login_in(access.amqp_url)) for each in cluster.nodes_of(own)]
        return access.at(*urls), None
    if not isinstance(own, PrivateBroker) or own.encryption is None:
        return access, None
    url = access.amqp_url if login_in(access.amqp_url) else with_login(access.amqp_url, own.login)
    return replace(access, amqp_url=url, ca=access.ca or own.encryption.ca), own.encryption


def can_be_up(amqp_url: str) -> bool:
    """Whether `up` has something to work with; if not, rabbitmq-server must be installed first."""
    is_reachable = probe.ask(amqp_url) is Answer.READY
    return is_reachable or running_engine() is not None or is_installed()


def down(home: Path, *, amqp_url: str | None, with_data: bool = False) -> list[str]:
    """End the broker at this address if `up` started it in this home; the address, if it ran.

    Args:
        home: The folder of everything that `up` starts.
        amqp_url: None for every broker of the home.
        with_data: Delete its queues and accounts, too, also of one that does not run.

    Raises:
        BrokerError: The container engine could not take its container down.
    """
    with in_turn(home):
        chosen = ours(home, amqp_url)
        ended = [without_password(broker.amqp_url) for broker in chosen if is_running(broker, home)]
        cluster.stop([broker for broker in chosen if isinstance(broker, PrivateBroker)])
        for broker in chosen:
            _end(broker, home, with_data=with_data)
    return ended


def ours(home: Path, amqp_url: str | None = None) -> list[Ours]:
    """What `up` started in this home, whether it runs or not: at this address, or all of it; of a cluster all nodes."""
    container = Container.recorded(home) or Container.recorded(home, is_stopped=True)
    known: list[Ours] = [*recorded(home), *([container] if container else [])]
    if amqp_url is None:
        return known
    host, port = probe.host_and_port(amqp_url)
    return [broker for broker in known if host in LOCAL_HOSTS and port in _ports_of(broker)]


def _ports_of(broker: Ours) -> tuple[int, ...]:
    return (broker.port, *(broker.cluster if isinstance(broker, PrivateBroker) else ()))


def is_running(broker: Ours, home: Path) -> bool:
    """Whether there is something to end; of a container that nobody stopped it is believed."""
    return broker.is_running() if isinstance(broker, PrivateBroker) else Container.recorded(home) is not None


def _end(broker: Ours, home: Path, *, with_data: bool) -> None:
    if isinstance(broker, PrivateBroker):
        if with_data:
            shutil.rmtree(broker.home)
    elif with_data or is_running(broker, home):
        broker.stop(home, with_data=with_data)


def recorded(home: Path) -> list[PrivateBroker]:
    """The private brokers that `up` ever started in this home, by port, whether they run or not."""
    folders = sorted(
        (folder for folder in home.glob("[0-9]*") if folder.is_dir()), key=lambda folder: int(folder.name)
    )
    return [broker for folder in folders if (broker := PrivateBroker.recorded(folder)) is not None]


def default_home() -> Path:
    """Where `up` keeps what it starts, unless it is told otherwise."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "warren"


def known_management_url(access: Access, management_url: str | None, home: Path) -> str:
    """The management API of the broker at this address: as given, as `up` recorded it, or the usual port."""
    own = [] if management_url else [_own_at(url, home) for url in access.amqp_urls]
    found = [each.management_url for each in own if each is not None]
    return ",".join(found) or _management_url_of(access, management_url)


def _management_url_of(access: Access, management_url: str | None) -> str:
    return management_url_for(",".join(access.amqp_urls), management_url or access.management_url)


def _reachable_or_new(
    access: Access, management_url: str | None, management_port: int | None, home: Path
) -> Running:
    amqp_url = access.amqp_url
    for url in reversed(access.amqp_urls):
        answer = probe.ask(url, tls=access.tls())
        if answer is Answer.READY:
            return _found(access.at(url), management_url, home)
    if urlsplit(amqp_url).hostname not in LOCAL_HOSTS or access.others:
        raise _unusable(amqp_url, answer)
    wanted = _somewhere(amqp_url, answer, management_port, home)
    return _contained(wanted, home) or _private(wanted)


def _set_policies_on(running: Running, tls: ssl.SSLContext | None) -> None:
    try:
        vhost = vhost_of(addresses_in(running.amqp_url)[0])
        set_policies(Management(running.management_url, tls=tls), vhost)
    except BrokerError as exc:
        if running.kind != "found":
            raise
        logger.warning("worker queues get no expiry: %s", exc)


def _found(access: Access, management_url: str | None, home: Path) -> Running:
    amqp_url = access.amqp_url
    own = _own_at(amqp_url, home)
    if own is not None:
        kind: Literal["container", "private"] = "private" if isinstance(own, PrivateBroker) else "container"
        return Running(amqp_url=amqp_url, management_url=own.management_url, kind=kind)
    url = _management_url_of(access, management_url)
    return Running(amqp_url=amqp_url, management_url=url, kind="found")


def _own_at(amqp_url: str, home: Path) -> Ours | None:
    """The broker at this address, if `up` started it."""
    host, port = probe.host_and_port(amqp_url)
    private = PrivateBroker.recorded(home / str(port))
    is_here = private is not None and private.encryption is not None and host in private.encryption.names
    if host not in LOCAL_HOSTS and not is_here:
        return None
    container = Container.recorded(home)
    if container is not None and container.port == port:
        return container
    is_up = private is not None and any(node.is_running() for node in cluster.nodes_of(private))
    return private if is_up else None


def _on_port(amqp_url: str, port: int, management_port: int | None, home: Path) -> PrivateBroker:
    """The private broker of exactly this port, new or as it was recorded."""
    known = PrivateBroker.recorded(home / str(port))
    if known is not None and known.encryption is not None:
        raise UsageError(f"The broker on port {port} was started with --tls. Say so again: broker up --tls")
    if known is not None and known.is_running():
        return known
    if not probe.is_free(port):
        raise BrokerError(
            f"Port {port} is taken by {_who_is_at(port)} that `broker up` did not start in {home}. "
            f"Try another --port; or, if it is a broker you want, AMQP_URL=amqp://USER:PASSWORD@localhost:{port}/"
        )
    if known is None:
        return _new(amqp_url, port, management_port, home)
    return known if management_port is None else replace(known, management_port=management_port)


def _who_is_at(port: int) -> str:
    answer = probe.ask(f"amqp://localhost:{port}/")
    return "something else than RabbitMQ" if answer is Answer.FOREIGN else "another broker"


def _somewhere(amqp_url: str, answer: Answer, management_port: int | None, home: Path) -> PrivateBroker:
    """A private broker on the address's own port, or, where that is taken, on the next free one."""
    preferred = probe.host_and_port(amqp_url)[1]
    for port in (preferred, *_OTHER_PORTS):
        known = PrivateBroker.recorded(home / str(port))
        if probe.is_free(port) or (known is not None and known.is_running()):
            if port != preferred:
                logger.warning("at %s is %s: another port is used", without_password(amqp_url), answer.value)
            return _on_port(amqp_url, port, management_port, home)
    raise BrokerError(
        f"Port {preferred} and all of 5673 to 5699 are taken. Try `broker up --port` with a free one."
    )


def _new(amqp_url: str, port: int, management_port: int | None, home: Path) -> PrivateBroker:
    user, password = probe.login_of(amqp_url)
    return PrivateBroker(
        home=home / str(port),
        port=port,
        management_port=management_port or _management_port_beside(port),
        user=user,
        password=password,
        vhost=vhost_of(amqp_url),
    )


def _management_port_beside(port: int) -> int:
    usual = port + _MANAGEMENT_OFFSET
    return usual if usual < 2**16 and probe.is_free(usual) else free_ports(1)[0]


def _private(broker: PrivateBroker) -> Running:
    return _started(cluster.nodes_of(broker))


def _started(nodes: list[PrivateBroker]) -> Running:
    for node in nodes:
        if not node.is_running():
            find_program()
            logger.info(
                "starting a private rabbitmq-server on port %d; its files are in %s", node.port, node.home
            )
    cluster.start(nodes, seconds=_READY_SECONDS * len(nodes))
    return Running(
        amqp_url=",".join(node.amqp_url for node in nodes),
        management_url=",".join(node.management_url for node in nodes),
        kind="private",
    )


def _contained(wanted: PrivateBroker, home: Path) -> Running | None:
    """The same broker in a container; None where no engine can, or a private one's data are there already."""
    if wanted.is_running() or wanted.has_data:
        return None
    known = Container.recorded(home)
    if (
        known is not None
        and known.port != wanted.port
        and probe.ask(known.amqp_url, seconds=2) in (Answer.READY, Answer.REFUSED)
    ):
        logger.info("the container is in use at port %d: a second broker is a private one", known.port)
        return None
    engine = running_engine()
    if engine is None:
        return None
    container = Container(
        engine=engine,
        port=wanted.port,
        management_port=wanted.management_port,
        user=wanted.user,
        password=wanted.password,
        vhost=wanted.vhost,
    )
    logger.info("starting a broker in a container with %s on port %d", engine, container.port)
    try:
        container.start(home)
        _wait_for(container)
    except LoginRefused:  # no reason for another broker: the data that are wanted are in this one
        with suppress(BrokerError):
            container.stop(home)
        raise
    except BrokerError as exc:
        logger.warning("%s; trying a private rabbitmq-server instead", exc)
        try:
            container.stop(home)
        except BrokerError:  # the engine can't even look: a private one takes over this port
            Container.forget(home)
        return None
    return Running(amqp_url=container.amqp_url, management_url=container.management_url, kind="container")


def _wait_for(container: Container) -> None:
    management = Management(container.management_url, timeout_seconds=2)

    def is_taken() -> bool:
        return probe.ask(container.amqp_url, seconds=2) is not Answer.REFUSED

    def is_ready() -> bool:
        answer = probe.ask(container.amqp_url, seconds=2)
        # Its listeners open last: the login is in its data, or never will be. Slowness looks the same, once.
        if answer is Answer.REFUSED and not wait_until(is_taken, _REFUSED_SECONDS):
            raise LoginRefused(
                f"The broker in the container refused the login {without_password(container.amqp_url)}: its "
                "data are of another one. Expected the login of its first start. Try that one in AMQP_URL, "
                "or, to lose its data, `broker down --delete-data`."
            )
        return answer is Answer.READY and management.is_ready()

    if not wait_until(is_ready, _READY_SECONDS):
        raise BrokerUnreachable(
            f"The broker in the container was not ready after {_READY_SECONDS:.0f} seconds."
        )


def _unusable(amqp_url: str, answer: Answer) -> BrokerError:
    where = without_password(amqp_url)
    if answer is Answer.REFUSED:
        return LoginRefused(
            f"The broker at {where} refused the login. Expected a user with its password and a right to "
            f"the virtual host {vhost_of(amqp_url)!r}. Try another AMQP_URL."
        )
    if answer is Answer.UNTRUSTED:
        return BrokerUnreachable(not_trusted(where))
    return BrokerUnreachable(
        f"At {where} is {answer.value}. Expected a RabbitMQ broker; only one on this machine can be started. "
        "Try another AMQP_URL, or none."
    )
