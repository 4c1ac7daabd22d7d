"""A live bar for the round under way, for the person who started `coordinator run` at a terminal."""

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from coordinator.view import RunView

_DRAW_SECONDS = 0.2


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
            self._bar.update(len(view.answers) - self._bar.pos)

    def _begin(self, view: RunView, num_invited: int) -> None:
        number = view.closed_rounds + 1
        label = "measuring" if view.phase == "measuring" else f"round {number}/{view.rounds}"
        self._bar = click.progressbar(
            length=num_invited, label=label, file=sys.stderr, show_pos=True, show_eta=False
        )
        self._bar.render_progress()

    def end(self) -> None:
        """Leave the line of the bar."""
        if self._bar is not None:
            self._bar.render_finish()
        self._bar = None
