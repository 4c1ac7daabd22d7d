"""How much memory processes take, as the operating system sees it."""

import resource
import sys
from collections.abc import Iterable
from pathlib import Path

from broker.errors import UsageError

_PAGE_BYTES = resource.getpagesize()


def resident_bytes(pids: Iterable[int]) -> int:
    """What these processes have in memory, together; one that has ended has nothing.

    What several of them map (arrays handed from one to the other, libraries) counts for each.
    """
    return sum(map(_resident, pids))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def require_measurable() -> None:
    """Raise a UsageError where memory can't be looked at."""
    if sys.platform != "linux":
        raise UsageError(f"--max-memory needs Linux's /proc, and this is {sys.platform}. Try without it.")
