"""How much may wait at the broker, and for how long: set as policies, of which a queue has one at a time."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from broker.hosting.api import Fields
from broker.hosting.management import Management
from broker.wire import names

__all__ = ["MOST_WAITING", "UPLOAD_BYTES", "Need", "limit_account", "make_room", "set_policies", "unlimit"]

MOST_WAITING = (
    10_000  #: messages in each queue of an account; a model of 1 GB in its smallest parts is half of that
)
UPLOAD_BYTES = 2**30  #: what may wait in each queue of an account until a run's model says how much must

# A policy's name is the badge that a person sees beside the queue at the management page.
_EXPIRY = "warren: deleted when nobody reads it for 14 days"
_WORKER_QUEUES = r"^(worker|upload)\.[a-z0-9-]{1,48}(\.[0-9]+)?$"
# A laptop may stay closed over a holiday; a worker that never comes back must not fill the disk for ever.
# An upload queue that nobody looks into for so long holds nothing that a round still waits for, and its worker makes it
# again when it next uploads. This is for workers without an account of their own: others' queues have another policy.
_EXPIRES_MILLISECONDS = 14 * 24 * 3600 * 1000

_SIZED = 10  #: the priority of what is said of one account; a number that is left to others is 0
_AS_ASKED = 11  #: the same, where whoever invited it said how much: no run changes that
_STEP_BYTES = 64 * 2**20  # a bound is a multiple of this: most runs find it as they need it
_AROUND_BYTES = 16 * 2**20  # round starts without their weights, roll calls
# This round's and the one before, that the coordinator has not acknowledged; and two that lost connections cut short:
# what is published again begins anew, and the worker can't take back what is there.
_UPDATES = 4
_STARTS = 2  # an older one may wait unread while the next comes
_LIMITS_DELIVERIES = (4, 0)  # RabbitMQ's version
_KEEPS_READERS = (4, 3)
_READER_MILLISECONDS = 3000
_COORDINATOR = "warren: at most 512 MiB, then nothing more is taken"
_COORDINATOR_BYTES = 512 * 2**20  # updates of 64 KiB of 8,000 workers, while no coordinator is there
_COORDINATOR_WAITING = 100_000
_DEAD = "warren: at most 64 MiB, then the oldest are dropped"
_DEAD_BYTES = 64 * 2**20  # 1,000 copies, as it may hold


def set_policies(management: Management, vhost: str) -> None:
    """Set what Warren wants of every federation's queues.

    A worker's queues go when nobody comes back for them. What everybody may write to is bounded: no account fills the
    disk by way of the coordinator's queue, or of `dead`. The coordinator's takes nothing more when it is full, so that
    who was told that his word is there can rely on it; of the others' copies the newest are worth most.
    """
    deliveries = _deliveries(management, vhost)
    management.put_policy(
        vhost,
        _EXPIRY,
        pattern=_WORKER_QUEUES,
        definition={"expires": _EXPIRES_MILLISECONDS, **deliveries},
    )
    management.put_policy(
        vhost,
        _COORDINATOR,
        pattern=f"^{names.COORDINATOR}$",
        definition={
            "max-length-bytes": _COORDINATOR_BYTES,
            "max-length": _COORDINATOR_WAITING,
            "overflow": "reject-publish",
            **deliveries,
        },
    )
    management.put_policy(
        vhost, _DEAD, pattern=f"^{names.DEAD}$", definition={"max-length-bytes": _DEAD_BYTES}
    )


def _deliveries(management: Management, vhost: str) -> dict[str, int]:
    """What keeps quorum queues from deleting an update that was delivered more than 20 times, as RabbitMQ 4 does.

    Until a checkpoint holds it an update is not acknowledged, and each connection that ends counts: 21 restarts or
    reconnects of a coordinator between two checkpoints would cost it. It has to stand in the one policy that a queue
    has. Where it does not belong it must be missing: RabbitMQ 3 refuses it, and a classic queue of RabbitMQ 4 then gets
    nothing of the policy.

    RabbitMQ 4.3 keeps a reader whose node is gone for the active one of its queue for 60 s: whoever came back in its
    place at another node would hear nothing for so long, and take it for another process.
    """
    major, minor, *_ = str(management.overview()["rabbitmq_version"]).split(".")
    version = (int(major), int(minor))
    if version < _LIMITS_DELIVERIES or (
        management.api.get("vhosts", vhost).get("default_queue_type") != "quorum"
    ):
        return {}
    readers = {"consumer-disconnected-timeout": _READER_MILLISECONDS} if version >= _KEEPS_READERS else {}
    return {"delivery-limit": -1, **readers}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one round moves, by way of the two queues of one process.

    Attributes:
        start_bytes: Of a round start's weights.
        update_bytes: Of one update.
        parts: Messages that the larger of the two travels in.
        workers: How many of them upload by way of one queue.
    """

    start_bytes: int
    update_bytes: int
    parts: int
    workers: int = 1

    @property
    def reading(self) -> dict[str, int]:
        """The bounds of the queue that it reads: one round start, however many workers it is for."""
        return _bounds(_STARTS * self.start_bytes, _STARTS * self.parts)

    @property
    def uploading(self) -> dict[str, int]:
        """The bounds of its upload queue."""
        number = _UPDATES * self.workers
        return _bounds(number * self.update_bytes, number * self.parts)


def _bounds(num_bytes: int, num_messages: int) -> dict[str, int]:
    steps = -(-(num_bytes + _AROUND_BYTES) // _STEP_BYTES)
    return {"max-length": MOST_WAITING + num_messages, "max-length-bytes": steps * _STEP_BYTES}


def limit_account(management: Management, vhost: str, name: str, *, most_bytes: int | None) -> None:
    """Set how much may wait for a worker (or each of a swarm), and of it.

    Without a number it is what most models need, and `make_room` sizes it by the model of each run.

    Full, its upload queue takes nothing more, so that it learns of that; from the queue that it reads the oldest goes:
    a round start that was never fetched is replaced by the next. Neither expires, as its account can't make it again:
    a worker that is away for a year finds both, and `broker revoke` deletes them.

    A quorum queue takes some more than this, of what is under way while it becomes full (measured with 50 channels at
    once: 60 MB where the bound was 4), and takes again when it is down to four fifths.
    """
    bounds = {
        "max-length": MOST_WAITING,
        "max-length-bytes": most_bytes or UPLOAD_BYTES,
        **_deliveries(management, vhost),
    }
    workers = rf"{re.escape(name)}(\.[1-9][0-9]*)?"
    for badge, queue, overflow in (
        (_reading(name), names.worker_queue, "drop-head"),
        (_uploading(name), names.upload_queue, "reject-publish"),
    ):
        kind = re.escape(queue(""))
        management.put_policy(
            vhost,
            badge,
            pattern=f"^{kind}{workers}$",
            definition={**bounds, "overflow": overflow},
            priority=_AS_ASKED if most_bytes else _SIZED,
        )


def make_room(management: Management, vhost: str, needs: Mapping[str, Need]) -> dict[str, int]:
    """Size what may wait for these invited accounts, and of them, by what a run moves; never below that.

    A queue has one policy alone: whatever else stands in an account's stays in it. What was said at its invitation is
    left as it is, and so is who was not invited.

    Args:
        management: As an administrator, or with the tag "policymaker".
        vhost: The federation's virtual host.
        needs: By the name that each was invited with.

    Returns:
        The bytes that an update needs to be taken, of each account whose own limit is below them.

    Raises:
        BrokerError: The management API did not do it.
    """
    there = {policy["name"]: policy for policy in management.api.get("policies", vhost)}
    for name, need in needs.items():
        for badge, bounds in ((_reading(name), need.reading), (_uploading(name), need.uploading)):
            found = there.get(badge)
            if found is not None and found["priority"] == _SIZED:
                _set_bounds(management, vhost, found, bounds)
    return {
        name: need.update_bytes
        for name, need in needs.items()
        if (found := there.get(_uploading(name))) is not None
        and found["priority"] != _SIZED
        and found["definition"]["max-length-bytes"] < need.update_bytes
    }


def _set_bounds(management: Management, vhost: str, found: Fields, bounds: Mapping[str, int]) -> None:
    definition = {**found["definition"], **bounds}
    if definition != found["definition"]:
        management.put_policy(
            vhost, found["name"], pattern=found["pattern"], definition=definition, priority=found["priority"]
        )


def unlimit(management: Management, vhost: str, name: str) -> None:
    """Take back what was set for one account's queues."""
    for badge in (_reading(name), _uploading(name)):
        management.api.delete("policies", vhost, badge)


def _reading(name: str) -> str:
    return f"warren: what waits for {name}"


def _uploading(name: str) -> str:
    return f"warren: what {name} may upload"
