"""What this process has seen closed and ended, for whoever watches over weeks: rounds, runs, and each worker's part."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coordinator.folder.history import Row

OUTCOMES = ("done", "stopped", "failed")
OTHERS = "(others)"  #: no worker's name may look so
MOST_WORKERS = 250  #: each costs whoever keeps the figures several series


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallied:
    """The figures at one moment, since this process started.

    Attributes:
        rounds: Closed ones.
        late_rounds: Those of them that closed without somebody who was invited.
        closed_at: When the last one was seen closed, in seconds since 1970; None before.
        runs: By outcome.
        seconds: How long each worker trained in its last round.
        update_bytes: What each worker's accepted updates weighed on the wire.
        rejected: Updates of each that were rejected, and rounds that it declined.
        late: Rounds of each that closed without it.
    """

    rounds: int = 0
    late_rounds: int = 0
    closed_at: float | None = None
    runs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    seconds: dict[str, float] = field(default_factory=dict)
    update_bytes: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)


class Tally:
    """Counts each round and each run once; told by the coordinator's loop, read from any thread.

    What a former process had closed is not counted again: whoever adds up over restarts would have it twice.
    """

    def __init__(self, read_clock: Callable[[], float] = time.time) -> None:
        self._read_clock = read_clock
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._rounds = self._late_rounds = 0
        self._closed_at: float | None = None
        self._runs: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._seconds: dict[str, float] = {}
        self._bytes: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._counted_to: int | None = 0

    def begin(self, *, is_resumed: bool) -> None:
        """A run begins, or goes on with the rounds that it has."""
        self._counted_to = None if is_resumed else 0

    def look(self, history: Sequence[Row]) -> None:
        """Count the rounds that are new in the history of the run under way."""
        if not history:
            return
        last = history[-1].round
        if self._counted_to is None:
            self._counted_to = last
        with self._lock:
            for row in history[self._counted_to - last :] if last > self._counted_to else ():
                self._count(row)
        self._counted_to = last

    def end(self, outcome: str) -> None:
        """A run ended."""
        with self._lock:
            self._runs[outcome] += 1

    @property
    def told(self) -> Tallied:
        """The figures now."""
        with self._lock:
            return Tallied(
                rounds=self._rounds,
                late_rounds=self._late_rounds,
                closed_at=self._closed_at,
                runs=dict(self._runs),
                seconds=dict(self._seconds),
                update_bytes=dict(self._bytes),
                rejected=dict(self._rejected),
                late=dict(self._late),
            )

    def _count(self, row: Row) -> None:
        self._rounds += 1
        self._late_rounds += bool(row.late)
        self._closed_at = self._read_clock()
        trained = {worker: of_it for worker, of_it in row.workers.items() if of_it.num_examples}
        for worker, of_it in trained.items():
            name = self._name(worker)
            self._seconds[name] = of_it.seconds
            self._bytes[name] += row.update_bytes // len(trained)  # all updates of a round weigh the same
        self._rejected.update(map(self._name, row.rejected))
        self._late.update(map(self._name, row.late))

    def _name(self, worker: str) -> str:
        """Its own for the first so many, one for all others."""
        if len(self._known) < MOST_WORKERS:
            self._known.add(worker)
        return worker if worker in self._known else OTHERS
