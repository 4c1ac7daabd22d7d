"""From the command line to a coordinator that serves: the port, the folder, the broker, then the page and the loop."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from broker.errors import NameInUse
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.validity import CertificateWatch
from broker.logs import LogContext
from broker.web.http_server import PageServer
from broker.web.listening import address_of, listen
from coordinator.files import lock_folder
from coordinator.folder.run_index import RunIndex
from coordinator.page.access import Access
from coordinator.page.app import CAPS, create_app
from coordinator.page.scheduler import Scheduler
from coordinator.page.serve_options import ServeOptions
from coordinator.presence.broker_room import BrokerRoom
from coordinator.status import BrokerStatus

logger = logging.getLogger(__name__)


def serve_page(
    link: RabbitLink,
    asked: ServeOptions,
    at: BrokerStatus,
    stop: threading.Event,
    log: LogContext,
    announce: Callable[[str], None],
    room: BrokerRoom | None,
    certificates: CertificateWatch,
) -> None:
    """Serve until told to stop; everything is let go of in the reverse order.

    Args:
        link: Not yet open.
        asked: Where.
        at: The broker, as the page shows it.
        stop: The wish to end.
        log: What this process is busy with.
        announce: Told the address once the page is there.
        room: What the broker has room for, where workers were invited.
        certificates: Watches those of the connection, from when it is open.

    Raises:
        UsageError: The address can't be used, or another coordinator has this folder or virtual host.
        BrokerError: The broker is unreachable, or refused the login.
        Interrupted: Told to stop in the middle of a run.
    """
    access = asked.access
    run_index = RunIndex(asked.runs)
    with listen(asked.host, asked.port) as listener, _locked(asked.runs, stop):
        link.open()
        try:
            scheduler = Scheduler(link, run_index, at, stop=stop, log=log, room=room)
            app = create_app(
                scheduler, access=access, stop=stop, audit_log=scheduler.audit, certificates=certificates
            )
            with certificates, PageServer(app, listener, CAPS):
                _announce(announce, address_of(listener, asked.host), asked, access)
                try:
                    scheduler.serve()
                finally:
                    stop.set()  # open event streams end
        finally:
            link.close()


@contextmanager
def _locked(runs: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the folder of runs for this process."""
    try:
        stream = lock_folder(runs, wait=False, stop=stop)
    except NameInUse as exc:
        raise NameInUse(f"Another coordinator serves the folder {runs}. Choose another --runs.") from exc
    with stream:
        yield


def _announce(announce: Callable[[str], None], address: str, asked: ServeOptions, access: Access) -> None:
    """Say where the page is, and how it is opened; a token that somebody chose is not printed."""
    announce(f"The network's page is open at {_public_address(address, access)}")
    if access.trusts_loopback and asked.is_local and not access.is_behind_proxy:
        return
    if access.trusts_loopback:
        logger.warning("From this machine no token is needed, nor through a proxy on it that adds no header.")
    if not asked.token:
        needing = (
            "launching and stopping need" if access.read_token else "looking, launching and stopping need"
        )
        announce(f"From other machines, {needing} the token {access.token}")
    if not access.is_behind_proxy and not asked.is_local:
        logger.warning(
            "Listening on %s without TLS: tokens can be overheard. See deploy/README.md.", asked.host
        )


def _public_address(address: str, access: Access) -> str:
    """What others type into a browser."""
    if access.public_name is None:
        return address
    if access.is_behind_proxy:
        return f"https://{access.public_name}"
    has_port = urlsplit(f"//{access.public_name}").port is not None
    return f"http://{access.public_name}" + ("" if has_port else f":{urlsplit(address).port}")
