"""From the command line to a coordinator that serves: the port, the folder, the broker, then the page and the loop."""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker import web
from broker.errors import NameInUse
from broker.http_server import PageServer
from broker.link.address import LOCAL_HOSTS
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.logs import LogContext
from coordinator.files import lock_folder
from coordinator.folder.run_index import RunIndex
from coordinator.page.app import CAPS, create_app
from coordinator.page.scheduler import Scheduler
from coordinator.presence.broker_room import BrokerRoom
from coordinator.status import BrokerStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where a coordinator serves.

    Attributes:
        runs: Each run gets a folder there.
        token: What other machines need to launch and stop; None has one made.
    """

    host: str
    port: int
    runs: Path
    token: str | None


def serve_page(
    link: RabbitLink,
    asked: ServeOptions,
    at: BrokerStatus,
    stop: threading.Event,
    log: LogContext,
    announce: Callable[[str], None],
    room: BrokerRoom | None = None,
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

    Raises:
        UsageError: The address can't be used, or another coordinator has this folder or virtual host.
        BrokerError: The broker is unreachable, or refused the login.
        Interrupted: Told to stop in the middle of a run.
    """
    token = asked.token or secrets.token_urlsafe(12)
    run_index = RunIndex(asked.runs)
    with web.listen(asked.host, asked.port) as listener, _locked(asked.runs, stop):
        link.open()
        try:
            scheduler = Scheduler(link, run_index, at, stop=stop, log=log, room=room)
            app = create_app(scheduler, host=asked.host, token=token, stop=stop)
            with PageServer(app, listener, CAPS):
                _announce(announce, web.address_of(listener, asked.host), asked, token)
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


def _announce(announce: Callable[[str], None], address: str, asked: ServeOptions, token: str) -> None:
    announce(f"The network's page is open at {address}")
    if asked.host not in LOCAL_HOSTS:
        logger.warning("Listening on %s: whoever reaches this address can look.", asked.host)
        announce(f"From other machines, launching and stopping needs the token {token}")
