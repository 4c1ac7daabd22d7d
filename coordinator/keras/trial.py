"""Tries a model on made-up examples before it is committed, and works out metrics; in the child process with Keras."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.wire.tensors import Array

_NUM_RANDOM = 5


def made_up_examples(shape: Sequence[int], inputs: Mapping[str, Any] | None) -> Array:
    """A few examples within the range of the workers' own: the lowest, the highest, the middle, and random ones.

    Args:
        shape: Of one example.
        inputs: As `InputFacts`, by field; None takes 0 to 1.

    Returns:
        float32, shape (8, *shape); whole numbers where the workers' are.
    """
    low, high, dtype = (inputs["low"], inputs["high"], inputs["dtype"]) if inputs else (0.0, 1.0, "float32")
    levels = np.linspace(low, high, 3).reshape(-1, *[1] * len(shape))
    random = np.random.default_rng(0).uniform(low, high, (_NUM_RANDOM, *shape))
    examples = np.concatenate([np.broadcast_to(levels, (3, *shape)), random])
    return (examples if "float" in dtype else np.floor(examples)).astype(np.float32)


def unanswered(model: Any, examples: Array) -> NDArray[np.bool_]:
    """Which examples a model answers with NaN or infinity, shape (n,)."""
    outputs = np.asarray(model(examples.astype(model.inputs[0].dtype), training=False), np.float32)
    return np.asarray(~np.isfinite(outputs.reshape(len(examples), -1)).all(axis=1))


def work_out(model: Any, states: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The results of a model's compiled metrics from the sums that their objects keep.

    Args:
        model: A compiled Keras model.
        states: By the metric's name, the values of all its variables in a row; one that doesn't fit is left out.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return {}
    if not compiled.built:
        _build(model, compiled)
    results = {}
    for name, metric in zip(compiled.result(), compiled.metrics, strict=True):
        if name in states and _restore(metric, np.array(states[name], np.float64)):
            results[name] = float(metric.result())
    return results


def _build(model: Any, compiled: Any) -> None:
    """Have the metrics make their variables; what they see counts for nothing, for it is overwritten."""
    outputs = np.full((2, int(model.output_shape[-1])), 0.5, np.float32)
    for targets in (np.zeros(2, np.int64), np.zeros((2, 1), np.float32), np.eye(2, outputs.shape[1])):
        try:
            compiled.build(targets, outputs)
            compiled.update_state(targets, outputs)
        except (ValueError, TypeError):
            continue
        return


def _restore(metric: Any, values: NDArray[np.float64]) -> bool:
    if values.size != sum(int(np.prod(variable.shape)) for variable in metric.variables):
        return False
    begin = 0
    for variable in metric.variables:
        end = begin + int(np.prod(variable.shape))
        variable.assign(values[begin:end].reshape(variable.shape))
        begin = end
    return True
