"""The room that the broker has for a run's messages: sized by its model, before workers are asked for updates."""

import logging
import threading
import time
from collections.abc import Mapping

from broker.errors import BrokerError
from broker.hosting import server
from broker.hosting.management import Management
from broker.hosting.policies import Need, make_room
from broker.link.access import Access
from broker.link.address import vhost_of
from broker.wire import names
from broker.wire.tensors import FLOAT32, Layout, part_count, sections_of

logger = logging.getLogger(__name__)

_MEGABYTE = 2**20
_REQUEST_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 5.0  #: that a round start waits for its room
_AGAIN_SECONDS = 60.0  #: so often it is looked at again: somebody may have been invited anew


class BrokerRoom:
    """Sizes what may wait for invited workers, and of them; where it can't, that is told once, and nothing fails.

    Args:
        management: As the coordinator's account, which `broker invite` has given the right to set policies.
        vhost: The federation's virtual host.
    """

    def __init__(self, management: Management, vhost: str) -> None:
        self._management = management
        self._vhost = vhost
        self._needs: dict[str, Need] = {}
        self._asked_at = float("-inf")
        self._told: set[str] = set()

    def make(self, layout: Layout, part_bytes: int, processes: Mapping[str, int]) -> None:
        """Have room for one round's messages; the first time for a worker, or a model, that is waited for.

        Args:
            layout: Of the model.
            part_bytes: Bytes of float32 values that one part of a transfer covers.
            processes: How many workers each process speaks for, by the name of its queues.
        """
        found = needs_of(layout, part_bytes, processes)
        is_news = any(self._needs.get(name) != need for name, need in found.items())
        if not is_news and time.monotonic() - self._asked_at < _AGAIN_SECONDS:
            return
        self._needs |= found
        self._asked_at = time.monotonic()
        asking = threading.Thread(target=self._ask, args=(dict(self._needs),), name="room", daemon=True)
        asking.start()
        if is_news:
            asking.join(_LONGEST_WAIT_SECONDS)

    def _ask(self, needs: Mapping[str, Need]) -> None:
        try:
            too_tight = make_room(self._management, self._vhost, needs)
        except BrokerError as exc:
            self._tell_once(
                "",
                "What may wait at the broker stays as `broker invite` has set it, whatever this model's size: %s "
                "(an account of an older Warren: `broker invite coordinator --again`)",
                exc,
            )
            return
        for name, num_bytes in too_tight.items():
            self._tell_once(
                name,
                "%s was invited with an --upload-limit below one update of this model, %d MB: it can't answer. Try "
                "`broker invite %s --again`, without a limit or with a higher one.",
                name,
                -(-num_bytes // _MEGABYTE),
                name,
            )

    def _tell_once(self, about: str, text: str, *words: object) -> None:
        if about not in self._told:
            self._told.add(about)
            logger.warning(text, *words)


def room_at(access: Access, management_url: str | None = None) -> BrokerRoom | None:
    """The room at a broker; None for another login than the coordinator's own, which invited workers don't hear."""
    if access.account != names.COORDINATOR:
        return None
    url = server.known_management_url(access, management_url, server.default_home())
    management = Management(url, timeout_seconds=_REQUEST_SECONDS, tls=access.tls())
    return BrokerRoom(management, vhost_of(access.amqp_url))


def needs_of(layout: Layout, part_bytes: int, processes: Mapping[str, int]) -> dict[str, Need]:
    """What each account moves in a round, by the name that it was invited with; the largest of its processes counts."""
    largest: dict[str, int] = {}
    for reader, number in processes.items():
        name = names.swarm_of(reader)
        largest[name] = max(largest.get(name, 0), number)
    sections = sections_of(layout)
    start_bytes, update_bytes = (size * FLOAT32.itemsize for size in (sections.size, sections.num_up))
    parts = part_count(start_bytes, part_bytes)
    return {
        name: Need(start_bytes=start_bytes, update_bytes=update_bytes, parts=parts, workers=number)
        for name, number in largest.items()
    }
