"""RabbitMQ's management API, as far as Warren needs it: policies, accounts, and what people want to see."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

from broker.errors import BrokerError, BrokerUnreachable, LoginRefused
from broker.link.address import LOCAL_HOSTS, check_management_url

Fields = dict[str, Any]  #: one JSON object of the API, as RabbitMQ documents it


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What an account may do in one virtual host; each is a regular expression over names."""

    configure: str
    write: str
    read: str


class Management:
    """The management API at one address.

    Args:
        url: http://USER:PASSWORD@HOST:PORT; guest where it names no user.
        timeout_seconds: How long one request may take.

    Raises:
        UsageError: The address can't be understood.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 10) -> None:
        parts = urlsplit(check_management_url(url))
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        port = f":{parts.port}" if parts.port else ""
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self.address = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"  #: without the login
        self._authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._timeout_seconds = timeout_seconds
        # A proxy of the network knows nothing of this machine's own ports.
        handlers = [urllib.request.ProxyHandler({})] if parts.hostname in LOCAL_HOSTS else []
        self._opener = urllib.request.build_opener(*handlers)

    # What there is

    def overview(self) -> Fields:
        """Version, node and totals."""
        return cast(Fields, self._call("GET", "overview"))

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
        return cast(list[Fields], self._call("GET", "nodes"))

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
        """Each queue with its counts; RabbitMQ refreshes them every 5 seconds."""
        return cast(list[Fields], self._call("GET", f"queues/{_quoted(vhost)}"))

    def connections(self, vhost: str) -> list[Fields]:
        """Each connection to the virtual host."""
        return cast(list[Fields], self._call("GET", f"vhosts/{_quoted(vhost)}/connections"))

    def has_user(self, user: str) -> bool:
        """Whether the account exists."""
        return self._call("GET", f"users/{_quoted(user)}", missing_ok=True) is not None

    # What is set

    def create_vhost(self, vhost: str) -> None:
        """Create a virtual host; this login's own account gets all rights in it."""
        self._call("PUT", f"vhosts/{_quoted(vhost)}", {})

    def delete_vhost(self, vhost: str) -> None:
        """Delete a virtual host with all its queues; one that is missing is no error."""
        self._call("DELETE", f"vhosts/{_quoted(vhost)}", missing_ok=True)

    def put_exchange(self, vhost: str, name: str, *, kind: str) -> None:
        """Declare a durable exchange."""
        body = {"type": kind, "durable": True}
        self._call("PUT", f"exchanges/{_quoted(vhost)}/{_quoted(name)}", body)

    def put_policy(self, vhost: str, name: str, *, pattern: str, definition: Mapping[str, object]) -> None:
        """Set a policy on the queues whose names match."""
        body = {"pattern": pattern, "definition": dict(definition), "apply-to": "queues"}
        self._call("PUT", f"policies/{_quoted(vhost)}/{_quoted(name)}", body)

    def put_user(self, user: str, password: str, *, tags: str = "") -> None:
        """Create an account, or give it this password."""
        self._call("PUT", f"users/{_quoted(user)}", {"password": password, "tags": tags})

    def delete_user(self, user: str) -> bool:
        """Delete an account with its rights; whether it was there."""
        was_there = self.has_user(user)
        self._call("DELETE", f"users/{_quoted(user)}", missing_ok=True)
        return was_there

    def set_permissions(self, vhost: str, user: str, rights: Rights) -> None:
        """Set what an account may configure, write and read."""
        body = {"configure": rights.configure, "write": rights.write, "read": rights.read}
        self._call("PUT", f"permissions/{_quoted(vhost)}/{_quoted(user)}", body)

    def set_topic_permissions(self, vhost: str, user: str, exchange: str, *, write: str, read: str) -> None:
        """Set with which routing keys an account may publish to an exchange, and bind to it."""
        body = {"exchange": exchange, "write": write, "read": read}
        self._call("PUT", f"topic-permissions/{_quoted(vhost)}/{_quoted(user)}", body)

    def close_connections(self, *, user: str) -> int:
        """Close every connection of an account, in whatever virtual host; how many there were."""
        connections = cast(list[Fields], self._call("GET", "connections"))
        names = [str(connection["name"]) for connection in connections if connection.get("user") == user]
        for name in names:
            self._call("DELETE", f"connections/{_quoted(name)}", missing_ok=True)
        return len(names)

    # How it is asked

    def _call(
        self, method: str, path: str, body: Fields | None = None, *, missing_ok: bool = False
    ) -> object:
        request = urllib.request.Request(  # noqa: S310 - the constructor allows http and https alone
            f"{self.address}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self._authorization, "Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as response:
                return self._parsed(response.read())
        except urllib.error.HTTPError as exc:
            with exc:  # an answer, too: closed like one
                if exc.code == 404 and missing_ok:
                    return None
                raise self._refusal(method, path, exc) from exc
        except (OSError, HTTPException) as exc:
            raise BrokerUnreachable(
                f"The management API at {self.address} does not answer ({exc}). "
                "Try `broker up`, or give --management-url."
            ) from exc

    def _parsed(self, answer: bytes) -> object:
        try:
            return json.loads(answer) if answer else {}
        except ValueError as exc:
            raise BrokerUnreachable(
                f"What answers at {self.address} is not RabbitMQ's management API. "
                "Try another --management-url."
            ) from exc

    def _refusal(self, method: str, path: str, exc: urllib.error.HTTPError) -> BrokerError:
        said = exc.read(500).decode(errors="replace").strip()
        if exc.code in (401, 403):
            return LoginRefused(
                f"The management API at {self.address} refused {method} {path}: {said or exc.reason}. "
                "Expected an account with the tag 'administrator'. Try its user and password in --amqp-url."
            )
        return BrokerError(
            f"The management API at {self.address} answered {exc.code} to {method} {path}: {said}"
        )


def _quoted(name: str) -> str:
    return quote(name, safe="")
