"""How a training is shown to the person at the terminal: a live bar, and one line an epoch."""

import logging
import sys
from typing import Any

import click

from worker.training import TrainingProgress

logger = logging.getLogger(__name__)


class Console:
    """Shows progress; the bar only on a terminal, the lines always."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._bar: Any = None

    def show(self, progress: TrainingProgress) -> None:
        """Show how far a training is."""
        is_end = progress.batch == progress.batches
        if self._is_terminal:
            self._draw(progress, is_end=is_end)
        if is_end:
            logger.info("Epoch %d of %d: %s", progress.epoch, progress.epochs, _text(progress.metrics))

    def _draw(self, progress: TrainingProgress, *, is_end: bool) -> None:
        if self._bar is None:
            label = f"epoch {progress.epoch}/{progress.epochs}"
            self._bar = click.progressbar(
                length=progress.batches, label=label, file=sys.stderr, show_pos=True
            )
            self._bar.render_progress()
        self._bar.update(progress.batch - self._bar.pos)
        if is_end:
            self._bar.render_finish()
            self._bar = None


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
