"""A live bar for the round under way, for the person who started `coordinator run` at a terminal."""

import sys
import time
from collections.abc import Callable
from typing import Any

from coordinator.learning.measure_names import ALL_RESULTS
from coordinator.play.run_view import RunView

_DRAW_SECONDS = 0.2
_FORMAT = "{desc} |{bar:30}| {n_fmt} of {total_fmt} answered, {elapsed}"


class Console:
    """Draws how many have answered; nothing where stderr is no terminal, for the log's lines say it there.

    Args:
        look: The run as it is now.
    """

    def __init__(self, look: Callable[[], RunView]) -> None:
        self._look = look
        self._is_terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._round: tuple[int, int] | None = None
        self._drawn_at = float("-inf")

    def draw(self) -> None:
        """Bring the bar up to date; cheap to call at every turn."""
        now = time.monotonic()
        if not self._is_terminal or now - self._drawn_at < _DRAW_SECONDS:
            return
        self._drawn_at = now
        view = self._look()
        record = view.record
        opened = (record.round_number, record.attempt) if record else None
        if opened != self._round:
            self.end()
            self._round = opened
            if record is not None:
                self._begin(view, len(record.invited))
        if self._bar is not None:
            self._bar.n = len(view.answers)
            self._bar.refresh()

    def _begin(self, view: RunView, num_invited: int) -> None:
        from tqdm import tqdm  # 50 ms that only a command with a bar shall pay

        number = view.closed_rounds + 1
        label = "measuring" if view.phase == "measuring" else f"round {number}/{view.rounds}"
        self._bar = tqdm(desc=label, total=num_invited, bar_format=_FORMAT, leave=False)

    def end(self) -> None:
        """Take the bar away; the log has told how the round ended."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class RoundsBar:
    """One bar for all rounds of a run, wherever stderr leads: a notebook shows it, too.

    Args:
        look: The run as it is now.
        rounds: How many there are.
        is_shown: Else nothing is drawn.
    """

    def __init__(self, look: Callable[[], RunView], rounds: int, *, is_shown: bool) -> None:
        self._look = look
        self._bar: Any = None
        self._drawn_at = float("-inf")
        if is_shown:
            from tqdm import tqdm  # late, as above

            self._bar = tqdm(total=rounds, unit=" rounds")

    def draw(self) -> None:
        """Bring the bar up to date; cheap to call at every turn."""
        now = time.monotonic()
        if self._bar is not None and now - self._drawn_at >= _DRAW_SECONDS:
            self._drawn_at = now
            self._show()

    def end(self) -> None:
        """Leave it as it is at last."""
        if self._bar is not None:
            self._show()
            self._bar.close()

    def _show(self) -> None:
        view = self._look()
        last = view.history[-1].test if view.history else {}
        shown = {name: f"{last[name]:.4f}" for name in ALL_RESULTS if name in last}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.n = view.closed_rounds
        self._bar.refresh()
