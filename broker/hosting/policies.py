"""How much may wait at the broker, and for how long: set as policies, of which a queue has one at a time.

At each policy that is new or changed RabbitMQ holds every queue of the virtual host against every policy of it, and a
queue that is made against every policy. So there are few, for all workers together, and what is there is not set again.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from broker.hosting.api import Fields
from broker.hosting.management import PLAIN_QUEUES, Management
from broker.link.seam import UNREAD_SECONDS
from broker.wire import names

__all__ = [
    "MOST_WAITING", "UPLOAD_BYTES", "Need", "has_own", "limit_account", "make_room", "set_policies", "unlimit",
]  # fmt: skip

MOST_WAITING = (
    10_000  #: messages in each queue of a worker; a model of 1 GB in its smallest parts is half of that
)
UPLOAD_BYTES = 2**30  #: what may wait in each queue of a worker until a run's model says how much must

# A policy's name is the badge that a person sees beside the queue at the management page.
_EXPIRY = "warren: deleted when nobody reads it for 14 days"
_LEFT_OVER = "warren: of an older one, deleted when nobody reads it for 14 days"
_READING = "warren: what waits for a worker"
_UPLOADING = "warren: what a worker may upload"
_READERS = r"[a-z0-9-]{1,48}(\.[0-9]+)?"
_EXPIRES = {"expires": 1000 * UNREAD_SECONDS}

# A number below is left to others; of what matches a queue the highest counts.
_COMMON = 8  #: the priority of what is said of all workers, once somebody was invited
_ABOVE_COMMON = 9  #: of queues that have nothing but a policy to make them expire
_SIZED = 10  #: of what is said of one account
_AS_ASKED = 11  #: the same, where whoever invited it said how much: no run changes that
_BOUNDS = ("max-length", "max-length-bytes")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policy:
    """A policy as it should be."""

    badge: str
    pattern: str
    definition: Mapping[str, object]
    priority: int = 0

    @property
    def is_sized(self) -> bool:
        """Whether a run changes its bounds."""
        return self.priority in (_COMMON, _SIZED)


def set_policies(management: Management, vhost: str) -> None:
    """Set what Warren wants of every federation's queues.

    A worker's queues go when nobody comes back for them: RabbitMQ deletes those that a worker without an account made
    whatever this says, and of an older Warren because this says so. What everybody may write to is bounded: no account
    fills the disk by way of the coordinator's queue, or of `dead`. The coordinator's takes nothing more when it is
    full, so that who was told that his word is there can rely on it; of the others' copies the newest are worth most.
    """
    there, deliveries = _there(management, vhost), _deliveries(management, vhost)
    coordinators = {
        "max-length-bytes": _COORDINATOR_BYTES,
        "max-length": _COORDINATOR_WAITING,
        "overflow": "reject-publish",
    }
    for badge, pattern, definition in (
        (_EXPIRY, rf"^(worker|upload)\.{_READERS}$", {**_EXPIRES, **deliveries}),
        (_COORDINATOR, f"^{names.COORDINATOR}$", {**coordinators, **deliveries}),
        (_DEAD, f"^{names.DEAD}$", {"max-length-bytes": _DEAD_BYTES}),
    ):
        _have(management, vhost, _Policy(badge=badge, pattern=pattern, definition=definition), there)


def _there(management: Management, vhost: str) -> dict[str, Fields]:
    """The policies of a virtual host, by their names."""
    return {policy["name"]: policy for policy in management.api.get("policies", vhost)}


def _have(management: Management, vhost: str, wanted: _Policy, there: Mapping[str, Fields]) -> None:
    """Set a policy, if what is there differs; the bounds that a run has set stay."""
    found = there.get(wanted.badge)
    definition = dict(wanted.definition)
    if found is not None and wanted.is_sized and found["priority"] == wanted.priority:
        definition |= {key: found["definition"][key] for key in _BOUNDS if key in found["definition"]}
    is_there = found is not None and (found["pattern"], found["definition"], found["priority"]) == (
        wanted.pattern,
        definition,
        wanted.priority,
    )
    if not is_there:
        management.put_policy(
            vhost, wanted.badge, pattern=wanted.pattern, definition=definition, priority=wanted.priority
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
    if management.api.get("vhosts", vhost).get("default_queue_type") != "quorum":
        return {}
    major, minor, *_ = str(management.overview()["rabbitmq_version"]).split(".")
    version = (int(major), int(minor))
    readers = {"consumer-disconnected-timeout": _READER_MILLISECONDS} if version >= _KEEPS_READERS else {}
    return {"delivery-limit": -1, **readers} if version >= _LIMITS_DELIVERIES else {}


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


def limit_account(
    management: Management, vhost: str, name: str, *, is_swarm: bool = False, most_bytes: int | None = None
) -> None:
    """Set how much may wait for a worker (or each of a swarm), and of it.

    All that were invited as one worker have two policies together, made for the first of them: an invitation sets none.
    A swarm needs as many times more as it has workers, and has its own, as has who was given a number.

    Without a number it is what most models need, and `make_room` sizes it by the model of each run.

    Full, its upload queue takes nothing more, so that it learns of that; from the queue that it reads the oldest goes:
    a round start that was never fetched is replaced by the next. Neither expires, as its account can't make it again:
    a worker that is away for a year finds both, and `broker revoke` deletes them.

    A quorum queue takes some more than this, of what is under way while it becomes full (measured with 50 channels at
    once: 60 MB where the bound was 4), and takes again when it is down to four fifths.
    """
    there, deliveries = _there(management, vhost), _deliveries(management, vhost)
    if is_swarm or most_bytes is not None:
        own = (_reading(name), _uploading(name))
        readers = rf"{re.escape(name)}(\.[1-9][0-9]*)?"
        priority = _SIZED if most_bytes is None else _AS_ASKED
        for each in _pair(own, readers, priority, most_bytes or UPLOAD_BYTES, deliveries):
            _have(management, vhost, each, there)
        return
    _keep_expiring(management, vhost, there, besides=name, deliveries=deliveries)
    for each in _pair((_READING, _UPLOADING), _READERS, _COMMON, UPLOAD_BYTES, deliveries):
        _have(management, vhost, each, there)
    if _has_own(name, there):
        unlimit(management, vhost, name)


def _pair(
    badges: tuple[str, str], readers: str, priority: int, num_bytes: int, deliveries: Mapping[str, int]
) -> list[_Policy]:
    """What is said of the queues that these processes read, and of those that they upload to."""
    bounds = {"max-length": MOST_WAITING, "max-length-bytes": num_bytes, **deliveries}
    kinds = ((names.worker_queue, "drop-head"), (names.upload_queue, "reject-publish"))
    return [
        _Policy(
            badge=badge,
            pattern=f"^{re.escape(queue(''))}{readers}$",
            definition={**bounds, "overflow": overflow},
            priority=priority,
        )
        for badge, (queue, overflow) in zip(badges, kinds, strict=True)
    ]


def _keep_expiring(
    management: Management,
    vhost: str,
    there: Mapping[str, Fields],
    *,
    besides: str,
    deliveries: Mapping[str, int],
) -> None:
    """Have what workers without an account left under an older Warren still expire, beside those that were invited.

    Their queues don't expire by themselves, and had a policy for that alone. They are named one by one: those that have
    it now, when the first worker is invited; and without the one that is invited of them.
    """
    left_over = there.get(_LEFT_OVER)
    is_one = left_over is not None and re.match(left_over["pattern"], names.worker_queue(besides))
    if not is_one and _READING in there:
        return
    found = {
        queue["name"].partition(".")[2]
        for queue in management.api.get("queues", vhost, query=PLAIN_QUEUES)
        if queue.get("policy") in (_EXPIRY, _LEFT_OVER) and "x-expires" not in queue["arguments"]
    }
    if readers := sorted(found - {besides}):
        pattern = rf"^(worker|upload)\.({'|'.join(map(re.escape, readers))})$"
        definition = {**_EXPIRES, **deliveries}
        wanted = _Policy(badge=_LEFT_OVER, pattern=pattern, definition=definition, priority=_ABOVE_COMMON)
        _have(management, vhost, wanted, there)
    elif left_over is not None:
        management.api.delete("policies", vhost, _LEFT_OVER)


def make_room(management: Management, vhost: str, needs: Mapping[str, Need]) -> dict[str, int]:
    """Size what may wait for these workers, and of them, by what a run moves; never below that.

    A queue has one policy alone: whatever else stands in it stays. What all have together is as much as one of those
    needs that have nothing of their own, a worker that was not invited among them. What was said at an invitation is
    left as it is; where nobody was invited there is nothing to size.

    Args:
        management: As an administrator, or with the tag "policymaker".
        vhost: The federation's virtual host.
        needs: By the name that each was invited with.

    Returns:
        The bytes that an update needs to be taken, of each account whose own limit is below them.

    Raises:
        BrokerError: The management API did not do it.
    """
    there = _there(management, vhost)
    largest: dict[str, dict[str, int]] = {_READING: {}, _UPLOADING: {}}
    for name, need in needs.items():
        for own, common, bounds in (
            (_reading(name), _READING, need.reading),
            (_uploading(name), _UPLOADING, need.uploading),
        ):
            if own in there:
                _set_bounds(management, vhost, there[own], bounds)
            else:
                so_far = largest[common]
                so_far |= {key: max(bound, so_far.get(key, 0)) for key, bound in bounds.items()}
    for common, bounds in largest.items():
        if common in there:
            _set_bounds(management, vhost, there[common], bounds)
    return {
        name: need.update_bytes
        for name, need in needs.items()
        if (found := there.get(_uploading(name))) is not None
        and found["priority"] == _AS_ASKED
        and found["definition"]["max-length-bytes"] < need.update_bytes
    }


def _set_bounds(management: Management, vhost: str, found: Fields, bounds: Mapping[str, int]) -> None:
    """Give a policy these bounds, unless it has them, or others were asked for."""
    definition = {**found["definition"], **bounds}
    if definition != found["definition"] and found["priority"] != _AS_ASKED:
        management.put_policy(
            vhost, found["name"], pattern=found["pattern"], definition=definition, priority=found["priority"]
        )


def has_own(management: Management, name: str) -> bool:
    """Whether something is set for one account alone, as for each swarm, in whatever virtual host."""
    return _has_own(name, [policy["name"] for policy in management.api.get("policies")])


def _has_own(name: str, badges: Collection[str]) -> bool:
    return _reading(name) in badges or _uploading(name) in badges


def unlimit(management: Management, vhost: str, name: str) -> None:
    """Take back what was set for one account's queues alone."""
    for badge in (_reading(name), _uploading(name)):
        management.api.delete("policies", vhost, badge)


def _reading(name: str) -> str:
    return f"warren: what waits for {name}"


def _uploading(name: str) -> str:
    return f"warren: what {name} may upload"
