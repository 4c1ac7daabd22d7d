"""Where the coordinator's loop lays out what goes on, and the page's threads look at it."""

import threading
from dataclasses import dataclass
from typing import Any

from coordinator.folder.history import Row

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One state of affairs; never changed once it is shown.

    Attributes:
        version: Grows with every change.
        state: See `coordinator.play.status`.
        run: The folder of the run under way, or None.
        history: Of the run under way.
    """

    version: int
    state: Fields
    run: str | None = None
    history: tuple[Row, ...] = ()


class LatestSnapshot:
    """Shows the newest state; whoever wants the next one waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._exhibit = Snapshot(version=0, state={})

    @property
    def snapshot(self) -> Snapshot:
        """The newest state."""
        return self._exhibit

    def show(self, state: Fields, run: str | None, history: list[Row]) -> None:
        """Show a state, if it differs from the last one."""
        former = self._exhibit
        if (state, run) == (former.state, former.run):
            return
        with self._changed:
            self._exhibit = Snapshot(version=former.version + 1, state=state, run=run, history=tuple(history))
            self._changed.notify_all()

    def wait(self, version: int, seconds: float) -> Snapshot:
        """The first state after this version, or the present one when so many seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._exhibit.version != version, seconds)
            return self._exhibit
