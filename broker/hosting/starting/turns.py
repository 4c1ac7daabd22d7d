"""One `broker up` or `broker down` at a time in a home, so that two of them start one broker."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.errors import BrokerError
from broker.hosting.private import wait_until

_TURN_SECONDS = 120.0


@contextmanager
def in_turn(home: Path) -> Iterator[None]:
    """Let one `up` or `down` at a time work in this home.

    Raises:
        BrokerError: Another one is busy there for two minutes.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "lock").open("w") as lock:
        if not wait_until(lambda: _is_locked(lock.fileno()), _TURN_SECONDS):
            raise BrokerError(
                f"Another `broker up` or `broker down` is busy in {home}. Try again, or another --home."
            )
        yield


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
