"""A cluster of private nodes on one machine: for trying what a real one does, of which each node has its own."""

import logging
import os
import secrets
from itertools import islice
from pathlib import Path

from broker.errors import BrokerError, BrokerUnreachable
from broker.hosting import probe
from broker.hosting.management import Management, Rights
from broker.hosting.private import PrivateBroker, free_ports

logger = logging.getLogger(__name__)

_MORE_STARTS = 2
_COOKIE = ".erlang.cookie"
_COOKIE_BYTES = 20


def ports_for(num_nodes: int, preferred: int, home: Path, *, is_exact: bool) -> list[int]:
    """The first ports from this one on that nothing uses, and of which no broker of this home has data.

    Raises:
        BrokerError: There are too few, or exactly the preferred one was wanted, and is taken.
    """
    candidates = range(preferred, min(preferred + 100, 2**16))
    free = (
        port
        for port in candidates
        if PrivateBroker.recorded(home / str(port)) is None and probe.is_free(port)
    )
    found = list(islice(free, num_nodes))
    if len(found) < num_nodes or (is_exact and found[0] != preferred):
        raise BrokerError(f"Port {preferred} is taken, or too few after it are free. Try another --port.")
    return found


def new_nodes(first: PrivateBroker, ports: list[int]) -> list[PrivateBroker]:
    """The nodes of a new cluster, none of them started, on these ports; the first is as given."""
    folder, (epmd_port, *management_ports) = first.home.parent, free_ports(len(ports))
    names = [f"warren{port}@localhost" for port in ports]
    conf = (
        "cluster_formation.peer_discovery_backend = classic_config",
        *(f"cluster_formation.classic_config.nodes.{at} = {name}" for at, name in enumerate(names, 1)),
        "cluster_partition_handling = pause_minority",
        f"vm_memory_high_watermark.relative = {0.6 / len(ports):.2f}",
    )
    nodes = [
        PrivateBroker(
            home=folder / str(port),
            port=port,
            management_port=management_port,
            user=first.user,
            password=first.password,
            vhost=first.vhost,
            conf=conf,
            cluster=tuple(ports),
            epmd_port=epmd_port,
        )
        for port, management_port in zip(ports, [first.management_port, *management_ports], strict=True)
    ]
    cookie = secrets.token_hex(_COOKIE_BYTES)
    for node in nodes:
        node.home.mkdir(parents=True, exist_ok=True)
        _write_cookie(node.home / _COOKIE, cookie)
    return nodes


def nodes_of(broker: PrivateBroker) -> list[PrivateBroker]:
    """All nodes of the cluster that a broker is one of, as they were recorded; of another broker it alone."""
    found = [PrivateBroker.recorded(broker.home.parent / str(port)) for port in broker.cluster]
    return [each for each in found if each is not None] or [broker]


def start(nodes: list[PrivateBroker], *, seconds: float) -> None:
    """Start those that do not run, and wait until all are ready.

    The first is alone until it is ready, where none has data: the others then find whom to join. Nodes that were
    together before wait for each other, and so are started at once.

    Raises:
        BrokerUnreachable: One was not ready in time.
    """
    if not any(node.has_data for node in nodes):
        nodes[0].start(seconds=seconds)
    for node in nodes:
        node.launch()
    for node in nodes:
        _await(node, seconds)
    if len(nodes) > 1:
        _have_quorum_queues(nodes[0])


def _await(node: PrivateBroker, seconds: float) -> None:
    """Wait for a node; one that gave up is started again: RabbitMQ 3.10 does where another one is starting, too."""
    for _ in range(_MORE_STARTS):
        try:
            node.await_ready(seconds)
        except BrokerUnreachable as exc:
            logger.info("once more: %s", str(exc).partition("\n")[0])
            node.launch()
        else:
            return
    node.await_ready(seconds)


def stop(nodes: list[PrivateBroker]) -> None:
    """End these brokers, and with the last of a cluster the name server that its nodes share."""
    for node in nodes:
        node.stop()
    for node in nodes:
        if node.cluster and not any(each.is_running() for each in nodes_of(node)):
            node.end_epmd()


def _write_cookie(path: Path, cookie: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
        file.write(cookie)


def _have_quorum_queues(node: PrivateBroker) -> None:
    """Queues of its virtual host are quorum queues from the beginning: a classic one lives on one node.

    A virtual host's type is said when it is made, so the one that the first start has made is made anew, where it is
    empty. RabbitMQ 3.10 knows the word without underscores, and passes over the other one in silence.
    """
    management = Management(node.management_url)
    if management.api.get("vhosts", node.vhost).get("default_queue_type") == "quorum":
        return
    if management.queues(node.vhost):
        logger.warning("%r has queues already: new ones stay on one node, as they are", node.vhost)
        return
    management.delete_vhost(node.vhost)
    management.api.put("vhosts", node.vhost, body={"defaultqueuetype": "quorum"})
    management.set_permissions(node.vhost, node.user, Rights(configure=".*", write=".*", read=".*"))
    if management.api.get("vhosts", node.vhost).get("default_queue_type") != "quorum":
        raise BrokerError(f"The virtual host {node.vhost!r} can't be given quorum queues by this RabbitMQ.")
