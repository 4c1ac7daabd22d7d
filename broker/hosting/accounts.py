"""Accounts with the least rights that a role needs, so that the broker itself says who sent a message.

A worker's account may configure nothing: its queues and their bindings are made with it, so that no argument of theirs
is the worker's to choose. Where RabbitMQ asks for more than one right:

- A passive declare needs any right to the queue (from 4.3.1 on; none before): read on the one, write on the other.
- To bind a queue needs write on it and read on the exchange: there is no read on the exchange.
- To publish needs write on the exchange and the routing key; the queue that gets it is not asked.
"""

import base64
import logging
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from broker.errors import BrokerError, UsageError
from broker.hosting import policies, queues
from broker.hosting.api import Api, Fields
from broker.hosting.management import Management, Rights
from broker.hosting.queues import Removed
from broker.link.seam import upload_queue, worker_queue
from broker.wire import messages, names
from broker.wire.messages import Left, SwarmLeft

logger = logging.getLogger(__name__)

_PASSWORD_BYTES = 24

# A process has two connections; after a cut the former ones are half open for 45 seconds, and a second process may wait
# behind the first. Each has one channel, and opens another one for what may be refused.
_CONNECTIONS = 10
_SWARM_CONNECTIONS = 60  # it may be spread over some processes, each with its part of the workers
_CHANNELS_PER_CONNECTION = 5

# It may set policies where it has all rights already, and see what it may use: so it sizes the room for each model.
_COORDINATORS_TAG = "policymaker"
_IS_THERE = "{} is there: somebody reads its queue. End it first, or leave it as it is."
_LAST_WORD_TAG = "management"  # of an account that is being revoked: without it nobody publishes by the API


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What an account is called at the broker, and its password; None where that stays what it was."""

    user: str
    password: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What went with an account.

    Attributes:
        users: What the account was called at the broker.
    """

    users: tuple[str, ...]
    connections: int
    removed: Removed


def invite(
    management: Management,
    vhost: str,
    name: str,
    *,
    swarm: int | None = None,
    parts: int = 1,
    upload_bytes: int | None = None,
    again: bool = False,
    has_password: bool = True,
    new_password: bool = False,
) -> Login:
    """Create the account of a worker, or of the coordinator, with its queues and its limits.

    Args:
        management: As an administrator.
        vhost: The federation's virtual host.
        name: The worker's, or `coordinator`.
        swarm: It may act for NAME.1 to NAME.SWARM, instead of for NAME.
        parts: Over how many processes these may be spread, each of which has queues of its own.
        upload_bytes: How much may wait in each of its queues, whatever a run's model is; None has each run size it.
        again: It is there: its rights, limits and queues are set as they should be, its password stays.
        has_password: Without one, only a certificate of its name logs in.
        new_password: It is there, and gets another password; whoever is connected with the former one is cut off.

    Raises:
        UsageError: The name can't be a worker's, or has an account already.
        BrokerError: The management API did not do it.
    """
    is_coordinator = name == names.COORDINATOR and swarm is None
    user = user_of(name, swarm)
    again = again or new_password
    _check_free(management, vhost, name, user, again=again)
    management.api.put("exchanges", vhost, names.EXCHANGE, body={"type": "topic", "durable": True})
    policies.set_policies(management, vhost)
    if not is_coordinator:
        policies.limit_account(management, vhost, name, is_swarm=swarm is not None, most_bytes=upload_bytes)
        readers, kinds = names.readers_of(user, parts), (worker_queue, upload_queue)
        queues.make(management, vhost, [kind(reader, is_kept=True) for kind in kinds for reader in readers])
    # The account comes last: whoever can log in finds all of it, and no moment without limits.
    is_to_set = new_password or not again
    password = secrets.token_urlsafe(_PASSWORD_BYTES) if has_password and is_to_set else None
    if is_to_set:
        management.put_user(user, password, tags=_tags_of(user))
    else:
        management.set_tags(user, _tags_of(user))
    if new_password:
        management.close_connections(user=user)
    if not is_coordinator:
        _limit(management, user, is_swarm=swarm is not None)
        _restrict(management, vhost, user)
    else:
        management.set_permissions(vhost, user, Rights(configure=".*", write=".*", read=".*"))
    return Login(user=user, password=password)


def forget(management: Management, name: str, vhost: str) -> Removed:
    """Delete what a worker without an account of its own left behind; the coordinator hears that it left for good.

    Raises:
        UsageError: It has an account, it is there, or there are no queues of it.
        BrokerError: The management API did not do it.
    """
    names.check_name(name)
    if _users_of(management, name):
        raise UsageError(f"{name} was invited, and may come back. To end that: `broker revoke {name}`.")
    if queues.are_read(management, vhost, name):
        raise UsageError(_IS_THERE.format(name))
    own = queues.of(management, vhost, name)
    if not own:
        policies.unlimit(management, vhost, name)
        raise UsageError(f"There are no queues of {name} in {vhost!r}. Try `broker status`.")
    return _forget(management, vhost, name, own)


def forget_unused(management: Management, vhost: str, age: timedelta) -> Iterator[tuple[str, Removed]]:
    """The same of each worker without an account whose queues nobody has used for so long, as far as RabbitMQ tells.

    All of it is asked for once: there may be thousands. One that comes meanwhile is left alone.
    """
    invited = {names.invited_name(user) for user in management.users()}
    for name, own in sorted(queues.unused(management, vhost, age).items()):
        if name not in invited:
            try:
                yield name, _forget(management, vhost, name, own)
            except UsageError as exc:
                logger.warning("%s", exc)


def _forget(management: Management, vhost: str, name: str, own: Sequence[Fields]) -> Removed:
    try:
        removed = queues.remove(management, vhost, own, are_unread=True)
    except BrokerError as exc:
        raise UsageError(_IS_THERE.format(name)) if "in use" in str(exc) else exc from exc
    policies.unlimit(management, vhost, name)
    _say_left(management.api, vhost, management.api.get("whoami")["name"], SwarmLeft, queues.readers_of(own))
    return removed


def revoke(management: Management, name: str, vhost: str = "/") -> Revoked:
    """Delete an account with its limits, its connections and its queues; the coordinator hears that it left for good.

    Queues that a worker without an account of its own left behind are deleted, too, in `vhost`.

    Raises:
        UsageError: It was never invited, and there are no queues of it; or it administers the broker.
        BrokerError: The management API did not do it.
    """
    if name != names.COORDINATOR:
        names.check_name(name)
    users = _users_of(management, name)
    for user in users:
        _check_is_invited(management, user)
    vhosts = {right["vhost"] for user in users for right in management.api.get("users", user, "permissions")}
    closed = sum(_shut_out(management, vhosts, name, user) for user in users)
    removed = _removed(management, vhosts or {vhost}, name)
    if not users and not removed.queues:
        raise UsageError(
            f"{name} has no account at {management.address}, and no queues in {vhost!r}. Try `broker status`."
        )
    return Revoked(users=tuple(users), connections=closed, removed=removed)


def _shut_out(management: Management, vhosts: set[str], name: str, user: str) -> int:
    """End an account; how many connections it had.

    Its last word is said for it, with a password that nobody else knows: the coordinator waits for it no longer.
    """
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    management.put_user(user, password, tags=_LAST_WORD_TAG)
    closed = management.close_connections(user=user)
    if name != names.COORDINATOR:
        for vhost in vhosts:
            _say_left(
                management.api.logged_in_as(user, password),
                vhost,
                user,
                Left if user == names.invited_name(user) else SwarmLeft,
                queues.readers(management, vhost, name),
            )
    management.delete_user(user)
    return closed


def _say_left(api: Api, vhost: str, user: str, kind: type[Left | SwarmLeft], readers: list[str]) -> None:
    """Say of these processes that they left for good: of a swarm's, or of any where nobody knows, as of a swarm's."""
    for reader in readers:
        message = {
            "properties": {"user_id": user, "delivery_mode": 2, "type": kind.TYPE},
            "routing_key": names.COORDINATOR,
            "payload": base64.b64encode(messages.encode(kind(worker=reader, for_good=True))).decode(),
            "payload_encoding": "base64",
        }
        try:
            api.post("exchanges", vhost, names.EXCHANGE, "publish", body=message)
        except BrokerError as exc:
            logger.warning("The coordinator will find out by itself that %s is gone: %s", reader, exc)


def _removed(management: Management, vhosts: set[str], name: str) -> Removed:
    """Clear up in each virtual host in which it had rights; the coordinator's queue holds what others sent."""
    if name == names.COORDINATOR:
        return Removed(queues=0, messages=0)
    found = []
    for vhost in vhosts:
        found.append(queues.remove(management, vhost, queues.of(management, vhost, name)))
        policies.unlimit(management, vhost, name)
    return Removed(queues=sum(each.queues for each in found), messages=sum(each.messages for each in found))


def user_of(name: str, swarm: int | None) -> str:
    """What the account of a worker, a swarm or the coordinator is called at the broker.

    Raises:
        UsageError: The name can't be a worker's.
    """
    if swarm is None and name == names.COORDINATOR:
        return name
    names.check_name(name)
    return name if swarm is None else names.swarm_account(name, swarm)


def _tags_of(user: str) -> str:
    return _COORDINATORS_TAG if user == names.COORDINATOR else ""


def _users_of(management: Management, name: str) -> list[str]:
    """The accounts that a name was invited with: alone, or as a swarm."""
    return [user for user in management.users() if names.invited_name(user) == name]


def _may_be_known(management: Management, vhost: str, name: str, user: str) -> bool:
    """Whether something speaks for an account of this name: then all are looked through, however many there are.

    A swarm's may be called by any number. Its limits and its queues are made before it is, and go after it.
    """
    return (
        any(management.has_user(each) for each in {name, user})
        or policies.has_own(management, name)
        or queues.are_there(management, vhost, name)
    )


def _check_free(management: Management, vhost: str, name: str, user: str, *, again: bool) -> None:
    known = _users_of(management, name) if _may_be_known(management, vhost, name, user) else []
    if not again and known:
        raise UsageError(
            f"{name} has an account already, and its password is not stored here. To give it a new one: "
            f"`broker revoke {name}`, then `broker invite {name}`. To set its rights, limits and queues as "
            f"they should be, and keep the password: `broker invite {names.invitation(known[0])} --again`"
        )
    if again and user not in known:
        others = f" (there is {', '.join(known)})" if known else ""
        raise UsageError(f"There is no account {user!r} to set again{others}. Try it without --again.")
    if again and management.tags(user) not in ((), (_tags_of(user),)):
        raise UsageError(f"The account {user!r} was not made by `broker invite`: it is left as it is.")


def _check_is_invited(management: Management, user: str) -> None:
    """Whoever revoked the administrator would be shut out of the broker for good."""
    if not set(management.tags(user)) <= {_LAST_WORD_TAG, _COORDINATORS_TAG}:
        raise UsageError(
            f"The account {user!r} administers this broker, and was not invited: it is left as it is."
        )


def _limit(management: Management, user: str, *, is_swarm: bool) -> None:
    connections = _SWARM_CONNECTIONS if is_swarm else _CONNECTIONS
    for limit, value in (
        ("max-connections", connections),
        ("max-channels", connections * _CHANNELS_PER_CONNECTION),
    ):
        management.api.put("user-limits", user, limit, body={"value": value})


def _restrict(management: Management, vhost: str, user: str) -> None:
    """Let a worker read its own queue, and publish under its own keys."""
    own = _own(user)
    management.set_permissions(
        vhost,
        user,
        Rights(configure="^$", write=rf"^({names.EXCHANGE}|upload\.{own})$", read=rf"^worker\.{own}$"),
    )
    keys = rf"^({names.COORDINATOR}|{names.DEAD}|(worker|upload)\.{own})$"
    rights = {"exchange": names.EXCHANGE, "write": keys, "read": "^$"}
    management.api.put("topic-permissions", vhost, user, body=rights)


def _own(user: str) -> str:
    """How an account's queues are called, as a pattern; over how many processes a swarm is spread its queues decide."""
    name = re.escape(names.invited_name(user))
    return name if user == names.invited_name(user) else rf"{name}(\.[1-9][0-9]*)?"
