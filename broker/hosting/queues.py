"""Queues that the admin side makes and binds, so that a worker's account needs no right to make any."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from broker.hosting.api import Fields
from broker.hosting.management import PLAIN_QUEUES, Management
from broker.link.seam import Queue
from broker.wire import names

logger = logging.getLogger(__name__)

_KINDS = ("classic", "quorum")  # a stream is read from the beginning each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """How many queues are gone, and how many messages with them; RabbitMQ counts those of quorum queues every 5 s."""

    queues: int
    messages: int


def make(management: Management, vhost: str, wanted: Sequence[Queue]) -> None:
    """Make these queues, of the virtual host's own type, and bind them.

    One that is there is kept with what is in it, if it is what it should be; else it is made anew: whoever made it
    could have its messages go where they like.
    """
    for (
        queue
    ) in wanted:  # each is asked for by itself: a list is of the queues of all that were invited before
        found = management.api.get("queues", vhost, queue.name, query=PLAIN_QUEUES, missing_ok=True)
        if found is not None and not _is_as_wanted(found, queue):
            logger.warning("The queue %r was there with other arguments; it is made anew.", queue.name)
            _make_anew(management, vhost, queue)
        elif found is None:
            _make(management, vhost, queue)
        for key in queue.keys:
            binding = {"routing_key": key, "arguments": {}}
            management.api.post("bindings", vhost, "e", names.EXCHANGE, "q", queue.name, body=binding)


def _make(management: Management, vhost: str, queue: Queue) -> None:
    body = {"durable": True, "auto_delete": False, "arguments": queue.arguments}
    management.api.put("queues", vhost, queue.name, body=body)


def _make_anew(management: Management, vhost: str, queue: Queue) -> None:
    """Delete it and make it; who read it connects again.

    RabbitMQ 3.10 doesn't tell the reader of a quorum queue that is there again at once: it would hear nothing more.
    """
    connections = _reading(management, vhost, queue.name)
    management.api.delete("queues", vhost, queue.name)
    _make(management, vhost, queue)
    for name in connections:
        management.api.delete("connections", name)


def are_read(management: Management, vhost: str, name: str) -> bool:
    """Whether somebody reads a queue of this worker, or of its swarm; who has just begun is not told yet."""
    own = {names.worker_queue(reader) for reader in readers(management, vhost, name)}
    return any(each["queue"]["name"] in own for each in management.api.get("consumers", vhost))


def _reading(management: Management, vhost: str, queue: str) -> list[str]:
    """The connections that read a queue, as far as RabbitMQ tells them yet: of a new one not for some seconds."""
    return [
        each["channel_details"]["connection_name"]
        for each in management.api.get("consumers", vhost)
        if each["queue"]["name"] == queue and each["channel_details"]
    ]


def are_there(management: Management, vhost: str, name: str) -> bool:
    """Whether a worker, or a swarm in one process or several, has a queue to read."""
    first = (names.worker_queue(reader) for reader in (name, f"{name}.1"))
    return any(
        management.api.get("queues", vhost, queue, query=PLAIN_QUEUES, missing_ok=True) for queue in first
    )


def readers(management: Management, vhost: str, name: str) -> list[str]:
    """The processes that have a queue to read: a worker, or the parts of its swarm."""
    return readers_of(of(management, vhost, name))


def readers_of(own: Sequence[Fields]) -> list[str]:
    """The processes that have one of these queues to read."""
    found = (str(queue["name"]) for queue in own)
    return [queue.partition(".")[2] for queue in found if queue.startswith(names.worker_queue(""))]


def of(management: Management, vhost: str, name: str) -> list[Fields]:
    """The queues of a worker, or of its swarm, as RabbitMQ lists them."""
    listed: list[Fields] = management.api.get("queues", vhost, query=PLAIN_QUEUES)
    return [queue for queue in listed if _is_for(queue["name"], name)]


def unused(management: Management, vhost: str, age: timedelta) -> dict[str, list[Fields]]:
    """The queues of workers and swarms of which nobody has read any, or put anything into it, for so long, by name.

    RabbitMQ tells since when a classic queue is idle, which counts anew from a start of the broker on; of a quorum
    queue it doesn't tell, and its worker is left out.
    """
    since = datetime.now(UTC) - age
    found: dict[str, list[Fields]] = {}
    for queue in management.queues(vhost):
        name = queue["name"].partition(".")[2].partition(".")[0]
        if _is_for(queue["name"], name):
            found.setdefault(name, []).append(queue)
    return {name: own for name, own in found.items() if all(_is_idle_since(queue, since) for queue in own)}


def _is_idle_since(queue: Fields, moment: datetime) -> bool:
    told = queue.get("idle_since")
    if queue.get("consumers") or not told:
        return False
    idle_since = datetime.fromisoformat(told)
    return (idle_since if idle_since.tzinfo else idle_since.replace(tzinfo=UTC)) <= moment


def remove(management: Management, vhost: str, own: Sequence[Fields], *, are_unread: bool = False) -> Removed:
    """Delete queues with what is in them.

    Args:
        management: Of the broker.
        vhost: Where they are.
        own: The queues, as RabbitMQ listed them.
        are_unread: Nobody is thought to read them. RabbitMQ looks once more, at a classic queue; at a quorum queue it
            can't.

    Raises:
        BrokerError: Somebody reads one after all.
    """
    found = sorted(own, key=lambda queue: str(queue["name"]), reverse=True)  # what is read before what is not
    for queue in found:
        looks = are_unread and queue.get("type") == "classic"
        management.api.delete("queues", vhost, queue["name"], query="if-unused=true" if looks else "")
    return Removed(queues=len(found), messages=sum(queue.get("messages") or 0 for queue in found))


def _is_as_wanted(found: Fields, wanted: Queue) -> bool:
    arguments = {key: value for key, value in found["arguments"].items() if key != "x-queue-type"}
    is_plain = found["durable"] and not found["auto_delete"] and not found.get("exclusive")
    return bool(is_plain) and found.get("type") in _KINDS and arguments == wanted.arguments


def _is_for(queue: str, name: str) -> bool:
    worker = queue.partition(".")[2]
    is_workers = queue in (names.worker_queue(worker), names.upload_queue(worker))
    return is_workers and names.is_worker(worker) and worker.partition(".")[0] == name
