"""Where the coordinator's loop lays out what goes on, and the page's threads look at it."""

import threading
from dataclasses import dataclass

from coordinator.folder.history import Row
from coordinator.status import ServingStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One state of affairs; never changed once it is shown.

    Attributes:
        version: Grows with every change.
        status: What goes on; None before the loop has begun.
        run: The folder of the run under way, or None.
        history: Of the run under way.
    """

    version: int
    status: ServingStatus | None = None
    run: str | None = None
    history: tuple[Row, ...] = ()


class LatestSnapshot:
    """Shows the newest state; whoever wants the next one waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._snapshot = Snapshot(version=0)

    @property
    def snapshot(self) -> Snapshot:
        """The newest state."""
        return self._snapshot

    def show(self, status: ServingStatus, run: str | None, history: list[Row]) -> None:
        """Show a state, if it differs from the last one."""
        former = self._snapshot
        if (status, run) == (former.status, former.run):
            return
        with self._changed:
            self._snapshot = Snapshot(
                version=former.version + 1, status=status, run=run, history=tuple(history)
            )
            self._changed.notify_all()

    def wait(self, version: int, seconds: float) -> Snapshot:
        """The first state after this version, or the present one when so many seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._snapshot.version != version, seconds)
            return self._snapshot
