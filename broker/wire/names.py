"""Names: of workers, queues and routing keys, and who may act for whom."""

import re

from broker.errors import UsageError

EXCHANGE = "federation"  #: the one topic exchange
COORDINATOR = "coordinator"  #: the coordinator's queue, its key, and its account
DEAD = "dead"  #: copies of what could not be accepted
EVERY_WORKER = "workers"  #: the key to which every worker queue is also bound

MOST_IN_A_SWARM = 10_000  #: workers of one account; each has two queues at the broker

_NAME = re.compile(r"[a-z0-9-]{1,48}")
_REPLY = re.compile(r"reply\.[0-9a-f]{16}")
_WORKER = re.compile(r"(?P<name>[a-z0-9-]{1,48})(\.(?P<number>[1-9][0-9]{0,5}))?")
_SWARM = re.compile(r"(?P<name>[a-z0-9-]{1,48})\.1-(?P<count>[1-9][0-9]{0,5})")


def check_name(name: str) -> str:
    """Return a name that a person chose for a worker, if it is one.

    Raises:
        UsageError: It is not 1 to 48 of a-z, 0-9 and -, or it is reserved.
    """
    if not _NAME.fullmatch(name) or name == COORDINATOR:
        raise UsageError(
            f"A worker's name is 1 to 48 of a-z, 0-9 and '-', and not '{COORDINATOR}'. "
            f"Received {name!r}. Try --name {_suggestion(name)}"
        )
    return name


def _suggestion(name: str) -> str:
    cleaned = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:48]
    return cleaned if cleaned and cleaned != COORDINATOR else "site-1"


def is_worker(name: str) -> bool:
    """Whether this is a worker's name: as a person chose it, or a swarm's NAME.i."""
    return _WORKER.fullmatch(name) is not None and name != COORDINATOR


def worker_queue(worker: str) -> str:
    """The queue (and routing key) that one worker reads."""
    return f"worker.{worker}"


def upload_queue(worker: str) -> str:
    """The queue (and routing key) that holds the parts of one worker's update."""
    return f"upload.{worker}"


def swarm_account(name: str, count: int) -> str:
    """What the account of a swarm is called: its workers are NAME.1 to NAME.COUNT.

    The broker tells every reader the sender's account, and nothing else of it: so the name says whom it may speak for.
    """
    return f"{name}.1-{count}"


def workers_of(account: str) -> list[str]:
    """The workers that an invited account may speak for."""
    swarm = _SWARM.fullmatch(account)
    if swarm is None:
        return [account]
    return [f"{swarm['name']}.{number}" for number in range(1, int(swarm["count"]) + 1)]


def invited_name(account: str) -> str:
    """The name that an account was invited by: a swarm's is that of all its workers."""
    swarm = _SWARM.fullmatch(account)
    return account if swarm is None else swarm["name"]


def invitation(account: str) -> str:
    """What `broker invite` was told to make this account."""
    swarm = _SWARM.fullmatch(account)
    return account if swarm is None else f"{swarm['name']} --swarm {swarm['count']}"


def is_of(account: str, worker: str) -> bool:
    """Whether a broker account speaks for this worker: its own name, or of a swarm's account one of its numbers."""
    if worker == account:
        return True
    swarm, its = _SWARM.fullmatch(account), _WORKER.fullmatch(worker)
    if swarm is None or its is None or its["number"] is None:
        return False
    return its["name"] == swarm["name"] and int(its["number"]) <= int(swarm["count"])


def is_own_queue(account: str, queue: str) -> bool:
    """Whether this is a queue of a worker that the account speaks for."""
    worker = queue.partition(".")[2]
    return queue in (worker_queue(worker), upload_queue(worker)) and is_of(account, worker)


def is_reply_queue(name: str) -> bool:
    """Whether this is a queue for an answer: nothing else is written to because a message says so."""
    return _REPLY.fullmatch(name) is not None
