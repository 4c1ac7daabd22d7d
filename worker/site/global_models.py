"""The global models that came to this site, kept as files that anybody can open: what was sent can be shown."""

import contextlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from broker.disk import sync
from broker.errors import DataError

logger = logging.getLogger(__name__)

_OURS = re.compile(r"[A-Za-z0-9-]+-round-[0-9]+\.(keras|npz)")
_UNFIT = re.compile(r"[^A-Za-z0-9-]+")


class GlobalModels:
    """A folder with the newest of them; of other files there it touches none.

    Args:
        folder: Where.
        last: How many are kept; older ones are removed.
    """

    def __init__(self, folder: Path, last: int) -> None:
        self._folder = folder
        self._last = last

    def keep(self, run_id: str, closed_round: int, suffix: str, write: Callable[[Path], None]) -> None:
        """Keep a model: whole under its name, or not at all.

        Args:
            run_id: Of which run it is.
            closed_round: And of which round; 0: what the run began with.
            suffix: .keras or .npz.
            write: Writes it to a path.

        Raises:
            DataError: It can't be written. Of the folder the coordinator is told nothing.
        """
        path = self._folder / f"{_UNFIT.sub('-', run_id)[:100]}-round-{closed_round}{suffix}"
        aside = path.with_name(f".{os.getpid()}-{path.name}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write(aside)
            sync(aside)
            aside.replace(path)
            sync(self._folder)
            self._remove_older()
        except OSError as exc:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            logger.error("Can't keep %s: %s", path, exc)
            raise DataError(
                f"The global model can't be kept at this site (--keep-models): {exc.strerror or type(exc).__name__}."
            ) from exc

    def _remove_older(self) -> None:
        ours = [path for path in self._folder.iterdir() if _OURS.fullmatch(path.name)]
        newest_first = sorted(ours, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in newest_first[self._last :]:
            path.unlink(missing_ok=True)
