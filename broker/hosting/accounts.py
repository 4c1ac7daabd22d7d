"""Accounts with the least rights that a role needs, so that the broker itself says who sent a message."""

import re
import secrets

from broker.errors import UsageError
from broker.hosting.management import Management, Rights
from broker.wire import names

_PASSWORD_BYTES = 24


def invite(management: Management, vhost: str, name: str) -> str:
    """Create the account of a worker, or of the coordinator; its new password.

    Raises:
        UsageError: The name can't be a worker's, or has an account already.
        BrokerError: The management API did not do it.
    """
    is_coordinator = name == names.COORDINATOR
    name = name if is_coordinator else names.check_name(name)
    if management.has_user(name):
        raise UsageError(
            f"{name} has an account already, and its password is not stored here. "
            f"To give it a new one: `broker revoke {name}`, then `broker invite {name}`"
        )
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    management.put_exchange(vhost, names.EXCHANGE, kind="topic")  # a worker may not declare it
    management.put_user(name, password)
    if is_coordinator:
        management.set_permissions(vhost, name, Rights(configure=".*", write=".*", read=".*"))
    else:
        _limit(management, vhost, name)
    return password


def revoke(management: Management, name: str) -> int:
    """Delete an account and close its connections; how many there were.

    Raises:
        UsageError: It was never invited.
        BrokerError: The management API did not do it.
    """
    if name != names.COORDINATOR:
        names.check_name(name)
    if not management.delete_user(name):
        raise UsageError(f"{name} has no account at {management.address}. Try `broker status`.")
    return management.close_connections(user=name)


def _limit(management: Management, vhost: str, name: str) -> None:
    """Let a worker use its own queues (and its swarm's NAME.i), and publish under its own keys."""
    own = rf"(worker|upload)\.{re.escape(name)}(\.[1-9][0-9]*)?"
    queues_and_exchange = (
        f"^({names.EXCHANGE}|{own})$"  # a binding needs write on the queue, read on the exchange
    )
    management.set_permissions(
        vhost, name, Rights(configure=f"^{own}$", write=queues_and_exchange, read=queues_and_exchange)
    )
    management.set_topic_permissions(
        vhost,
        name,
        names.EXCHANGE,
        write=f"^({names.COORDINATOR}|{names.DEAD}|{own})$",
        read=f"^({names.EVERY_WORKER}|{own})$",  # without it a worker could bind its queue to #
    )
