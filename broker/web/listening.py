"""A port of one's own, and what to type into a browser."""

import errno
import socket

from broker.errors import UsageError

ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not listened on


def listen(host: str, port: int) -> socket.socket:
    """Take an address; port 0 takes any free one.

    Raises:
        UsageError: It is in use, not allowed, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} on {host} is in use. Try another one with --port, or 0 for any that is free."
            ) from exc
        raise UsageError(f"Can't listen on {host}:{port}: {exc.strerror}. Check --host and --port.") from exc


def address_of(listener: socket.socket, host: str) -> str:
    """What to type into a browser on this machine."""
    name = "localhost" if host in ANY_ADDRESS else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"
