"""What both ways of training a model have in common."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from broker.wire.settings import TrainingSettings
from worker.learning.results import TestResult
from worker.learning.ways.compiled_metrics import Kept

EVALUATION_BATCH = 64

Given = TypeVar("Given", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBatches:
    """One epoch's batches.

    Attributes:
        number: How many.
        batches: To be iterated over once.
    """

    number: int
    batches: Any


class Way(Protocol[Given]):
    """How one model is trained and measured on examples of one kind."""

    def check(self, examples: Given) -> int:
        """How many examples there are.

        Raises:
            DataError: They don't fit the model, or there are none.
        """
        ...

    def num_batches(self, examples: Given, batch_size: int) -> int:
        """Of an epoch."""
        ...

    def epochs(self, examples: Given, settings: TrainingSettings, seed: int) -> Iterator[EpochBatches]:
        """Each epoch's batches.

        Raises:
            DataError: The settings can't be kept with these examples.
        """
        ...

    def measure(
        self, examples: Given, stop: threading.Event, each_step: Callable[[], None]
    ) -> TestResult | None:
        """What the model reaches; None when told to stop before the end.

        Raises:
            ModelError: Its outputs are no numbers.
        """
        ...

    def unpack(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """A batch's arrays as (x, y) or (x, y, example weights), each nested as the model has it."""
        ...

    def kept(self, metrics: dict[str, float]) -> Kept:
        """The metrics of an epoch, with what of them adds up over workers."""
        ...
