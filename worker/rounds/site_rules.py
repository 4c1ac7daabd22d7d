"""What this site's operator allows, whatever a coordinator asks for."""

import math
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from broker.wire.messages import RoundStart
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import InputFacts
from worker.data.data_set import Dataset
from worker.rounds.failures import told, told_without_words
from worker.rounds.own_site import OwnSite
from worker.rounds.uploading import Measured
from worker.site.telling import outward
from worker.tables.table_set import TableSet

Share = Literal["weights", "metrics", "counts", "statistics"]
SHARES: tuple[Share, ...] = get_args(Share)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRules:
    """What a round may ask of this site, and what of its answer leaves it.

    The update of one example by one step of a linear model *is* that example: an update is the less telling, the more
    examples and steps it rests on (Zhu et al. 2019, "Deep Leakage from Gradients").

    Attributes:
        least_examples: An update rests on at least so many different examples.
        least_steps: And on so many steps of the optimizer.
        share: *weights*: the update and how many examples it rests on; the range of the inputs is rounded outwards, and
            of another library's error only its kind is told. *metrics*: also these, loss and metrics, of training and
            on the site's test examples, and how these were answered class by class. *counts*: also how many training
            examples there are of each class. *statistics*: also mean, spread, range and histogram of each feature, when
            a coordinator asks for them; they rest on `least_examples`, too. deploy/what-leaves.md lists every field.
        allow_tasks: Patterns of the names of tasks, as of files (`chest-*`); none allows all.
        least_participants: The next model rests on so many workers' updates at least, as the coordinator tells it.
    """

    least_examples: int = 1
    least_steps: int = 1
    share: Share = "metrics"
    allow_tasks: tuple[str, ...] = ()
    least_participants: int = 1

    def refusal_of(self, start: RoundStart, *, trains: bool) -> str | None:
        """Why a round is declined whatever the data, before its weights are taken; None if it isn't.

        Args:
            start: As the coordinator tells it.
            trains: Whether it asks this worker for an update.
        """
        if self.allow_tasks and not any(fnmatchcase(start.task, each) for each in self.allow_tasks):
            return (
                f"This site's operator allows the tasks {', '.join(self.allow_tasks)} (--allow-task), "
                f"and not {start.task!r:.100}."
            )
        fewest = min(start.participants, start.quorum)
        if trains and fewest < self.least_participants > 1:
            return (
                f"The next model may rest on {fewest} of {start.participants} workers' updates; this site's operator "
                f"allows no fewer than {self.least_participants} (--least-participants)."
            )
        return None

    def refusal(self, settings: TrainingSettings, num_examples: int) -> str | None:
        """Why a round is declined that would train on so many examples; None if it isn't."""
        if num_examples < self.least_examples:
            return (
                f"This round would train on {num_examples} examples of this site, whose operator allows no update of "
                f"fewer than {self.least_examples} (--least-examples)."
            )
        num_steps = settings.epochs * math.ceil(num_examples / settings.batch_size)
        if num_steps < self.least_steps:
            return (
                f"This round would take {num_steps} steps at this site, whose operator allows no update of fewer than "
                f"{self.least_steps} (--least-steps)."
            )
        return None

    def of(self, measured: Measured) -> Measured:
        """What may leave of what was measured."""
        if self.share != "weights":
            return measured
        return replace(
            measured,
            metrics={},
            states={},
            global_metrics={},
            global_states={},
            counts=None,
            num_test_examples=0,
        )

    def progress(self, metrics: dict[str, float]) -> dict[str, float]:
        """What may leave of the figures of a training under way."""
        return {} if self.share == "weights" else metrics

    def examples_per_class(self, data: Dataset | TableSet | OwnSite) -> tuple[int, ...]:
        """How many training examples there are of each class, or nothing."""
        return tuple(data.examples_per_class.values()) if self.share in ("counts", "statistics") else ()

    @property
    def statistics_refusal(self) -> str | None:
        """Why statistics of the examples are not told; None if they are."""
        if self.share == "statistics":
            return None
        return f"Its operator shares {self.share}, and no statistics of the examples (worker run --share statistics)."

    def num_test_examples(self, data: Dataset | TableSet | OwnSite) -> int:
        """How many test examples are told of."""
        return 0 if self.share == "weights" else data.num_test_examples

    def inputs(self, data: Dataset | TableSet | OwnSite) -> InputFacts | None:
        """What is told of the examples' form and range: their scale must be known, an extreme value need not."""
        facts = data.inputs
        if facts is None or facts.shape is None or self.share != "weights":
            return facts
        low, high = outward(facts.low, facts.high)
        return replace(facts, low=low, high=high)

    def reason(self, error: BaseException) -> str:
        """What is told of why a round, or a question, can't be answered."""
        return told_without_words(error) if self.share == "weights" else told(error)
