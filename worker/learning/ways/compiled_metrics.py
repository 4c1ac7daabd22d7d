"""A compiled model's own metrics, each under its own name, with what adds up over workers."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from broker.wire.tensors import Array
from worker.tensorflow import load_keras


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Metrics at the end of an epoch or a test.

    Attributes:
        metrics: By name.
        states: Of those that are no means over examples, the sums that they keep: float64, shape (k,).
    """

    metrics: dict[str, float] = field(default_factory=dict)
    states: dict[str, Array] = field(default_factory=dict)


def measure_compiled(model: Any, targets: Array, outputs: Array) -> Kept:
    """The compiled metrics (without the loss) of outputs already computed.

    Args:
        model: A compiled Keras model with one output.
        targets: As its loss wants them.
        outputs: (n, k).
    """
    compiled = model._compile_metrics
    if compiled is None:
        return Kept()
    compiled.reset_state()
    compiled.update_state(targets, outputs)
    return kept_by(model, {name: float(value) for name, value in compiled.result().items()})


def kept_by(model: Any, metrics: dict[str, float], *, with_means: bool = False) -> Kept:
    """The metrics just worked out, and what their objects keep of it.

    Args:
        model: A compiled Keras model.
        metrics: By name.
        with_means: Tell the sums of means, too.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return Kept(metrics=metrics)
    objects = dict(zip(compiled.result(), compiled.metrics, strict=True))
    states = {
        name: _state_of(metric) for name, metric in objects.items() if with_means or not is_mean(metric)
    }
    return Kept(metrics=metrics, states=states)


def is_mean(metric: Any) -> bool:
    """Whether a metric is a mean over examples, so that its mean over workers, by examples, is that of all."""
    mean = load_keras().metrics.Mean
    return isinstance(metric, mean) and type(metric).result is mean.result


def _state_of(metric: Any) -> Array:
    return np.concatenate([np.ravel(variable.numpy()).astype(np.float64) for variable in metric.variables])
