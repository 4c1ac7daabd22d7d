"""When this site takes no rounds: while its operator has it paused, and outside its hours."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from broker.errors import UsageError

_HOURS = re.compile(r"(\d{1,2})(?::(\d{2}))?-(\d{1,2})(?::(\d{2}))?")
_DAY = 24 * 60
_PAUSED = "paused by its operator"


@dataclass(frozen=True, slots=True)
class Hours:
    """A time of each day, in minutes after midnight of this machine's own time; over midnight where it ends earlier."""

    begin: int
    end: int

    def __str__(self) -> str:
        return f"{_shown(self.begin)} to {_shown(self.end)}"

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day lies within."""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def outside(self, now: time.struct_time) -> str:
        """Why nothing is taken at this moment, and when it would be; empty within."""
        if self.holds(60 * now.tm_hour + now.tm_min):
            return ""
        zone = time.strftime("UTC%z", now)
        return f"outside its hours, {self} ({zone}); it takes rounds again at {_shown(self.begin)}"


def _shown(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def parse_hours(text: str) -> Hours:
    """Hours as a person writes them: 20-6, or 20:30-6:15.

    Raises:
        UsageError: They are none.
    """
    found = _HOURS.fullmatch(text.strip())
    begin, end = (_minute(found[1], found[2]), _minute(found[3], found[4])) if found else (-1, -1)
    if not (0 <= begin < _DAY and 0 <= end <= _DAY and begin != end):
        raise UsageError(
            f"Expected --hours as 20-6 or 20:30-6:15, of this machine's own time, got {text[:50]!r}."
        )
    return Hours(begin, end)


def _minute(hours: str, minutes: str | None) -> int:
    return 60 * int(hours) + int(minutes or 0) if int(minutes or 0) < 60 else -1


def default_folder() -> Path:
    """Where what belongs to this machine's workers is kept, unless the operator says otherwise (--state)."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "warren" / "workers"


class PauseSwitch:
    """A file that says that a worker is paused: set by a person from another process, and there after a restart.

    Args:
        folder: Of what this machine's workers keep.
        name: The worker's, or the swarm's.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.paused"

    @property
    def is_on(self) -> bool:
        """Whether the worker is paused."""
        return self.path.exists()

    def set(self) -> None:
        """Pause it; once more changes nothing.

        Raises:
            UsageError: The file can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.is_on:
                self.path.write_text(f"since {datetime.now(UTC).isoformat(timespec='seconds')}\n")
        except OSError as exc:
            raise UsageError(
                f"Can't write {self.path}: {exc.strerror}. Expected the worker's own --state."
            ) from exc

    def clear(self) -> None:
        """Let it take rounds again.

        Raises:
            UsageError: The file can't be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as exc:
            raise UsageError(f"Can't remove {self.path}: {exc.strerror}.") from exc


class Resting:
    """Whether this site takes rounds at this moment.

    Args:
        switch: Of its operator; None is never set.
        hours: In which it takes rounds; None: in all.
        clock: This machine's own time.
    """

    def __init__(
        self,
        switch: PauseSwitch | None = None,
        hours: Hours | None = None,
        clock: Callable[[], time.struct_time] = time.localtime,
    ) -> None:
        self._switch = switch
        self._hours = hours
        self._clock = clock

    @property
    def is_paused(self) -> bool:
        """Whether its operator wants nothing to go on: what is under way ends, too."""
        return self._switch is not None and self._switch.is_on

    @property
    def reason(self) -> str:
        """Why it takes no round now, as a coordinator is told; empty: it does."""
        if self.is_paused:
            return _PAUSED
        return self._hours.outside(self._clock()) if self._hours else ""
