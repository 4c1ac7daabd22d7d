"""How a training is shown to the person at the terminal: a live bar, and one line an epoch."""

import logging
import sys
from typing import Any

from worker.learning.results import TrainingProgress

logger = logging.getLogger(__name__)


class Console:
    """Shows progress; the bar only on a terminal, the lines always."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._bar: Any = None

    def show(self, progress: TrainingProgress) -> None:
        """Show how far a training is."""
        if self._is_terminal:
            self._draw(progress)
        if progress.batch == progress.batches:
            self.end()
            logger.info("Epoch %d of %d: %s", progress.epoch, progress.epochs, _text(progress.metrics))

    def _draw(self, progress: TrainingProgress) -> None:
        if self._bar is None:
            from tqdm import tqdm  # 50 ms that only a command with a bar shall pay

            label = f"epoch {progress.epoch}/{progress.epochs}"
            self._bar = tqdm(desc=label, total=progress.batches, unit=" batches", leave=False)
        self._bar.set_postfix_str(_text(progress.metrics), refresh=False)
        self._bar.update(progress.batch - self._bar.n)

    def end(self) -> None:
        """Take the bar away, also that of a training that was broken off."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def _text(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
