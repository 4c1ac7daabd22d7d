"""What several workers measured, put together: exactly what one measurement of all their examples would have given.

A metric that is a mean over examples is averaged by examples. Any other (Precision, AUC, IoU, …) is worked out from
the sums that its metric object keeps, added up over the workers. Right answers and scores are counted, and the counts
added up. What one worker alone measured is taken as it is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from broker.wire.scores import AnswerCounts, merged, pooled_measures
from broker.wire.tensors import Array

Figures = dict[str, float]
#: The results of metrics by name, from the sums that they keep; asked only for metrics that are no means.
WorkOut = Callable[[Mapping[str, Array]], Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one worker measured on one set of its examples.

    Attributes:
        num_examples: How many they were.
        metrics: The model's loss and its compiled metrics, by name.
        states: Of those that are no mean over examples: the sums that they keep.
        counts: Of the answers, if these were counted.
        num_workers: Of how many this is: what a relay says is of all behind it.
    """

    num_examples: int
    metrics: Figures
    states: Mapping[str, Array]
    counts: AnswerCounts | None = None
    num_workers: int = 1

    @property
    def figures(self) -> Figures:
        """All there is to say; a compiled metric keeps its name, even where ours has the same."""
        counted = pooled_measures([self.counts]) if self.counts else {}
        return self.metrics | {name: counted[name] for name in counted if name not in self.metrics}


def pooled(measurements: Iterable[Measurement], work_out: WorkOut) -> Figures:
    """The figures of all examples together.

    Args:
        measurements: One a worker; one of no example does not count.
        work_out: Gives the metrics that are no means.
    """
    every = [each for each in measurements if each.num_examples]
    if sum(each.num_workers for each in every) < 2:
        return every[0].figures if every else {}
    sums = _summed(every)
    means = {
        name: _mean_of(name, every)
        for name in dict.fromkeys(name for each in every for name in each.metrics)
        if name not in sums
    }
    figures = means | (work_out(sums) if sums else {})
    counted = pooled_measures(each.counts for each in every if each.counts)
    return figures | {name: counted[name] for name in counted if name not in figures}


def together(measurements: Iterable[Measurement]) -> Measurement:
    """What several measured as one: pooled with what others measured it gives the figures of all examples, too."""
    every = [each for each in measurements if each.num_examples]
    if len(every) == 1:
        return every[0]
    counts = [each.counts for each in every if each.counts is not None]
    return Measurement(
        num_examples=sum(each.num_examples for each in every),
        metrics={
            name: _mean_of(name, every)
            for name in dict.fromkeys(name for each in every for name in each.metrics)
        },
        states=_summed(every),
        counts=merged(counts) if counts and len(counts) == len(every) else None,
        num_workers=sum(each.num_workers for each in every),
    )


def _summed(every: list[Measurement]) -> dict[str, Array]:
    """The sums of the metrics that every worker which has them keeps in the same shape."""
    sums: dict[str, Array] = {}
    for name in dict.fromkeys(name for each in every for name in each.states):
        states = [each.states[name] for each in every if name in each.states]
        if len({state.shape for state in states}) == 1:
            sums[name] = np.sum(states, axis=0)
    return sums


def _mean_of(name: str, every: list[Measurement]) -> float:
    """The mean by examples; a metric that one worker lacks is averaged over the others."""
    present = [(each.num_examples, each.metrics[name]) for each in every if name in each.metrics]
    return sum(number * value for number, value in present) / sum(number for number, _ in present)
