"""A process that reads a run's history.csv as it grows, and tells trackers what is new.

A tracker may be slow, or its server away: no round waits for it. The process ends when its stdin does, so it never
outlives a coordinator, even a killed one; a word there before says how the run ended.
"""

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from coordinator.folder.run_index import Cells, read_rows
from coordinator.folder.tracking.trackers import TRACKERS, Tracker

_LOOK_SECONDS = 1.0


def main(run: str, *kinds: str) -> None:
    """Follow a run until stdin ends.

    Args:
        run: Its folder.
        kinds: Of the trackers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the coordinator's to handle; the end of stdin is ours
    ended, words = threading.Event(), list[str]()

    def listen() -> None:
        words.extend(line.strip() for line in sys.stdin)
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    followers = [Follower(kind, Path(run), TRACKERS[kind]) for kind in kinds]
    while True:
        is_last = ended.wait(_LOOK_SECONDS)
        rows = read_rows(Path(run) / "history.csv")
        for each in followers:
            each.look(rows)
        if is_last:
            break
    for each in followers:
        each.end(words[-1] if words else "")


class Follower:
    """Tells one tracker what it has not been told yet.

    Args:
        kind: What it is called.
        run: The run's folder.
        make: Makes it; what that or a telling raises is said, and tried again at the next look.
    """

    def __init__(self, kind: str, run: Path, make: Callable[[Path], Tracker]) -> None:
        self._kind = kind
        self._run = run
        self._make = make
        self._tracker: Tracker | None = None
        self._told: set[tuple[int, str]] = set()
        self._said = ""

    def look(self, rows: Sequence[Cells]) -> None:
        """Tell what is new in these rows; a row becomes complete a round later."""
        if rows:
            self._try(lambda tracker: self._tell(tracker, rows))

    def end(self, outcome: str) -> None:
        """Say how the run ended, to whoever has heard of it."""
        if self._tracker is not None:
            self._try(lambda tracker: tracker.end(outcome))

    def _tell(self, tracker: Tracker, rows: Sequence[Cells]) -> None:
        for row in rows:
            number = int(row["round"])
            new = {
                name: float(value)
                for name, value in row.items()
                if name != "round" and not isinstance(value, str) and (number, name) not in self._told
            }
            if new:
                tracker.tell(number, new)
                self._told.update((number, name) for name in new)

    def _try(self, act: Callable[[Tracker], None]) -> None:
        try:
            if self._tracker is None:
                self._tracker = self._make(self._run)
            act(self._tracker)
        except Exception as exc:  # noqa: BLE001 - whatever a tracker raises, the run goes on without it
            said = f"{self._kind} can't be told: {type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
            if said != self._said:
                print(said, flush=True)  # noqa: T201 - the coordinator relays it into its log
            self._said = said


if __name__ == "__main__":
    main(*sys.argv[1:])
