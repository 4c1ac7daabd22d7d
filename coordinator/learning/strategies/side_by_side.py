"""Strategies that need every update side by side: each is spooled to disk as it comes, and read back in lockstep.

So memory stays bounded whatever the model and the number of workers, each update is judged whole before it counts,
and the upload queues are emptied as for a sum. What is acknowledged is on disk before.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.disk import sync
from broker.errors import CheckpointError
from broker.wire.tensors import FLOAT32, Layout, Values, Vector, sections_of
from coordinator.files import make_folder
from coordinator.learning.exact_sum import Doubles
from coordinator.learning.spares import Spares
from coordinator.learning.strategies.base import Aggregate, Plain, check_finite

_VALUES_AT_ONCE = 1 << 22  #: of all updates together: 16 MB


class SideBySide(Plain):
    """What such strategies share; they say how the values of one coordinate become one."""

    def combine(self, values: NDArray[np.float32]) -> Doubles:
        """One value for each coordinate.

        Args:
            values: (k, m): the updates of k workers at m coordinates.

        Returns:
            (m,).
        """
        raise NotImplementedError

    def collect(self, layout: Layout, _exponent: int, folder: Path, _spares: Spares) -> Aggregate:
        """The spool."""
        return Spool(self, layout, folder)


class Spool:
    """The updates of a round, a file each.

    Args:
        strategy: Says how they are combined.
        layout: Of the model.
        folder: Of its own; what was left there by an earlier round is removed with the first update.
    """

    def __init__(self, strategy: SideBySide, layout: Layout, folder: Path) -> None:
        self._strategy = strategy
        self._sections = sections_of(layout)
        self._folder = folder
        self._examples: dict[str, int] = {}
        self._unsynced: set[str] = set()

    @property
    def num_examples(self) -> int:
        """Σ n of what was added."""
        return sum(self._examples.values())

    def add(self, worker: str, update: Values, num_examples: int) -> None:
        """Write one judged update, shape (U,), to its file, as float32.

        Raises:
            CheckpointError: There is no space left, or no permission.
        """
        if not self._examples:
            shutil.rmtree(self._folder, ignore_errors=True)
            make_folder(self._folder)
        try:
            update.astype("<f4", copy=False).tofile(self._folder / worker)
        except OSError as exc:
            raise CheckpointError(
                f"Can't write {self._folder / worker}: {exc.strerror or exc}. Make room, and run the same command "
                "again."
            ) from exc
        self._examples[worker] = num_examples
        self._unsynced.add(worker)

    def save(self) -> list[NDArray[Any]]:
        """See to it that every file is on disk for good."""
        for worker in sorted(self._unsynced):
            sync(self._folder / worker)
        if self._unsynced:
            sync(self._folder)
        self._unsynced.clear()
        return []

    def restore(self, _arrays: NDArray[np.uint8], accepted: Mapping[str, int]) -> None:
        """Go on with the files of these workers.

        Raises:
            CheckpointError: One is missing or cut off.
        """
        for worker in accepted:
            path = self._folder / worker
            size = path.stat().st_size if path.is_file() else -1
            if size != self._sections.num_up * FLOAT32.itemsize:
                raise CheckpointError(
                    f"{path} can't be used: expected {self._sections.num_up * FLOAT32.itemsize} bytes, got {size}. "
                    "Restore it from a copy, or choose another --out."
                )
        self._examples = dict(accepted)

    def next_weights(self, weights: Vector, state: tuple[Vector, ...], out: Vector) -> Vector:
        """Trainable weights move by what the updates combine to; statistics become it; frozen ones stay.

        Raises:
            ModelDiverged: The result isn't finite.
        """
        del state
        num_trainable, num_up = self._sections.num_trainable, self._sections.num_up
        with np.errstate(over="ignore", invalid="ignore"):
            for span, values in self._chunks():
                out[span] = self._strategy.combine(values)
            out[:num_trainable] += weights[:num_trainable]
        check_finite(out[:num_up], type(self._strategy).__name__)
        out[num_up:] = weights[num_up:]
        return out

    def _chunks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The same coordinates of all updates, (k, m), chunk by chunk, in the order of the workers' names."""
        workers, num_up = sorted(self._examples), self._sections.num_up
        step = max(1, _VALUES_AT_ONCE // max(1, len(workers)))
        for begin in range(0, num_up, step):
            count = min(step, num_up - begin)
            offset = begin * FLOAT32.itemsize
            rows = [np.fromfile(self._folder / worker, FLOAT32, count, offset=offset) for worker in workers]
            yield slice(begin, begin + count), np.stack(rows)

    def end(self, _spares: Spares) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)
