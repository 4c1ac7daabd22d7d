"""What RabbitMQ's management API tells of a broker, and what is set there: virtual hosts, policies, accounts."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from broker.errors import BrokerError, LoginRefused
from broker.hosting.api import Api, Fields

__all__ = ["PLAIN_QUEUES", "Fields", "Management", "Rights"]

#: A query for queues with their counts and without statistics, which are slow with thousands of queues, and late.
PLAIN_QUEUES = "disable_stats=true&enable_queue_totals=true"

_PAGE_SIZE = 500  #: RabbitMQ's own limit
_QUEUE_COLUMNS = (
    "name", "type", "policy", "messages", "messages_ready", "messages_unacknowledged", "consumers", "idle_since",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What an account may do in one virtual host; each is a regular expression over names."""

    configure: str
    write: str
    read: str


class Management:
    """The broker behind a management API.

    Args:
        url: https://USER:PASSWORD@HOST:PORT; guest where it names no user.
        timeout_seconds: How long one request may take.
        tls: What checks its certificate; None: Python's default.

    Attributes:
        api: For what is asked in one place alone.

    Raises:
        UsageError: The address can't be understood.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 10, tls: ssl.SSLContext | None = None) -> None:
        self.api = Api(url, timeout_seconds=timeout_seconds, tls=tls)

    @property
    def address(self) -> str:
        """The API's, without the login."""
        return self.api.address

    # What there is

    def overview(self) -> Fields:
        """Version, node and totals."""
        return cast(Fields, self.api.get("overview"))

    def is_ready(self) -> bool:
        """Whether the API answers; a broker that is starting does not, or answers 500 for a moment."""
        try:
            return bool(self.overview())
        except LoginRefused:
            raise
        except BrokerError:
            return False

    def nodes(self) -> list[Fields]:
        """Memory, disk and alarms of each node."""
        return cast(list[Fields], self.api.get("nodes"))

    def alarms(self) -> list[str]:
        """Which alarms stop publishers now, such as "memory alarm on rabbit@host"."""
        flags = {"mem_alarm": "memory", "disk_free_alarm": "disk"}
        return [
            f"{word} alarm on {node['name']}"
            for node in self.nodes()
            for flag, word in flags.items()
            if node.get(flag)
        ]

    def queues(self, vhost: str) -> list[Fields]:
        """Each queue with its counts, by name; RabbitMQ refreshes them every 5 seconds.

        Page by page: of ten thousand queues at once the API gives no answer within a minute.
        """
        found: list[Fields] = []
        page, num_pages = 1, 1
        while page <= num_pages:
            query = f"page={page}&page_size={_PAGE_SIZE}&columns={','.join(_QUEUE_COLUMNS)}"
            answer = self.api.get("queues", vhost, query=query)
            found += answer["items"]
            page, num_pages = page + 1, answer["page_count"]
        return found

    def connections(self, vhost: str) -> list[Fields]:
        """Each connection to the virtual host."""
        return cast(list[Fields], self.api.get("vhosts", vhost, "connections"))

    def users(self) -> list[str]:
        """The accounts, by name."""
        return [str(user["name"]) for user in self.api.get("users", query="columns=name")]

    def has_user(self, user: str) -> bool:
        """Whether there is an account of this name."""
        return self.api.get("users", user, missing_ok=True) is not None

    # What is set

    def create_vhost(self, vhost: str) -> None:
        """Create a virtual host; this login's own account gets all rights in it."""
        self.api.put("vhosts", vhost, body={})

    def delete_vhost(self, vhost: str) -> None:
        """Delete a virtual host with all its queues; one that is missing is no error."""
        self.api.delete("vhosts", vhost)

    def put_policy(
        self, vhost: str, name: str, *, pattern: str, definition: Mapping[str, object], priority: int = 0
    ) -> None:
        """Set a policy on the queues whose names match; of several, a queue has the one with the highest priority."""
        body = {
            "pattern": pattern,
            "definition": dict(definition),
            "apply-to": "queues",
            "priority": priority,
        }
        self.api.put("policies", vhost, name, body=body)

    def put_user(self, user: str, password: str | None, *, tags: str = "") -> None:
        """Create an account, or give it this password; None: no password logs in, only a certificate."""
        secret = {"password_hash": ""} if password is None else {"password": password}
        self.api.put("users", user, body={**secret, "tags": tags})

    def tags(self, user: str) -> tuple[str, ...]:
        """What an account may do at the management API, e.g. ("administrator",)."""
        found = self.api.get("users", user)["tags"]  # before 3.9 they are one text, with commas
        return tuple(found.split(",")) if isinstance(found, str) and found else tuple(found)

    def set_tags(self, user: str, tags: str) -> None:
        """Set what an account may do at the management API; its password stays."""
        found = self.api.get("users", user)
        kept = {key: found[key] for key in ("password_hash", "hashing_algorithm")}
        self.api.put("users", user, body={**kept, "tags": tags})

    def delete_user(self, user: str) -> None:
        """Delete an account with its rights and limits; one that is missing is no error."""
        self.api.delete("users", user)

    def set_permissions(self, vhost: str, user: str, rights: Rights) -> None:
        """Set what an account may configure, write and read."""
        body = {"configure": rights.configure, "write": rights.write, "read": rights.read}
        self.api.put("permissions", vhost, user, body=body)

    def close_connections(self, *, user: str) -> int:
        """Close every connection of an account, in whatever virtual host; how many there were."""
        connections = cast(list[Fields], self.api.get("connections"))
        names = [str(connection["name"]) for connection in connections if connection.get("user") == user]
        for name in names:
            self.api.delete("connections", name)
        return len(names)
