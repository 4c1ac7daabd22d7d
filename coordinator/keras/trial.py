"""Tries a model on made-up examples before it is committed, and works out metrics; in the child process with Keras."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.model.needs import needs_of
from broker.wire.settings import Needs
from broker.wire.tensors import Array
from coordinator.keras.rehearsal import made_up_inputs, made_up_outputs, made_up_targets

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
    return _are_spoiled([model(examples.astype(model.inputs[0].dtype), training=False)])


def unanswered_in_general(model: Any, needs: Needs) -> NDArray[np.bool_]:
    """The same of made-up examples for a model that is no classifier of one input."""
    answers = model(made_up_inputs(model, needs), training=False)
    return _are_spoiled(list(answers.values()) if isinstance(answers, Mapping) else answers)


def _are_spoiled(outputs: Any) -> NDArray[np.bool_]:
    every = outputs if isinstance(outputs, list | tuple) else [outputs]
    rows = [np.asarray(each, np.float32).reshape(len(each), -1) for each in every]
    return np.asarray(~np.isfinite(np.concatenate(rows, axis=1)).all(axis=1))


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
    targets, outputs = made_up_targets(model, needs_of(model)), made_up_outputs(model)
    compiled.build(targets, outputs)
    compiled.update_state(targets, outputs)


def _restore(metric: Any, values: NDArray[np.float64]) -> bool:
    if values.size != sum(int(np.prod(variable.shape)) for variable in metric.variables):
        return False
    begin = 0
    for variable in metric.variables:
        end = begin + int(np.prod(variable.shape))
        variable.assign(values[begin:end].reshape(variable.shape))
        begin = end
    return True
