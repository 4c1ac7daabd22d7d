"""Names: of workers, queues and routing keys, and who may act for whom."""

import re
from collections.abc import Iterable

import numpy as np

from broker.errors import UsageError

EXCHANGE = "federation"  #: the one topic exchange
COORDINATOR = "coordinator"  #: the coordinator's queue, its key, and its account
DEAD = "dead"  #: copies of what could not be accepted
EVERY_WORKER = "workers"  #: the key to which every worker queue is also bound

MOST_IN_A_SWARM = 100_000  #: workers of one account, or of one process

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


def worker_queue(reader: str) -> str:
    """The queue (and routing key) that one process reads: a worker's, by its name, or a swarm's."""
    return f"worker.{reader}"


def upload_queue(reader: str) -> str:
    """The queue (and routing key) that holds the parts of the updates of one process."""
    return f"upload.{reader}"


def swarm_of(name: str) -> str:
    """The NAME in a swarm's NAME.i; another name as it is."""
    return name.partition(".")[0]


def numbered(reader: str, numbers: Iterable[int]) -> list[str]:
    """The workers of these numbers that a swarm's process speaks for."""
    stem = swarm_of(reader)
    return [f"{stem}.{number}" for number in numbers]


def number_of(worker: str) -> int:
    """The i of a swarm's NAME.i."""
    return int(worker.partition(".")[2])


def pack_numbers(numbers: Iterable[int]) -> bytes:
    """Numbers from 1 on as they travel: a bit for each, so that ten thousand take 1,250 bytes."""
    chosen = np.fromiter(numbers, np.int64)
    bits = np.zeros(int(chosen.max(initial=0)), np.uint8)
    bits[chosen - 1] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_numbers(packed: bytes) -> list[int]:
    """The numbers, the lowest first."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    found: list[int] = (np.flatnonzero(bits) + 1).tolist()
    return found


def swarm_account(name: str, count: int) -> str:
    """What the account of a swarm is called: its workers are NAME.1 to NAME.COUNT.

    The broker tells every reader the sender's account, and nothing else of it: so the name says whom it may speak for.
    """
    return f"{name}.1-{count}"


def readers_of(account: str, parts: int = 1) -> list[str]:
    """The names of the processes that an invited account may be used by, each of which has two queues.

    Args:
        account: Of one worker, or a swarm's.
        parts: Over how many processes that share its workers a swarm may be spread (`--part I/K`).
    """
    name = invited_name(account)
    return [name] if parts == 1 else [f"{name}.{part}" for part in range(1, parts + 1)]


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


def reads_for(account: str, reader: str) -> bool:
    """Whether a broker account is that of a swarm's process: of all of it, or of one that has a part of it."""
    return account != invited_name(account) and (reader == invited_name(account) or is_of(account, reader))


def is_own_queue(account: str, queue: str) -> bool:
    """Whether this is a queue of a worker, or of a swarm's process, that the account speaks for."""
    reader = queue.partition(".")[2]
    is_own = is_of(account, reader) or reads_for(account, reader)
    return is_own and queue in (worker_queue(reader), upload_queue(reader))


def is_reply_queue(name: str) -> bool:
    """Whether this is a queue for an answer: nothing else is written to because a message says so."""
    return _REPLY.fullmatch(name) is not None
