"""One step of a training on made-up examples, as a worker takes it, before any worker waits; in the child process."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from broker.errors import ModelError
from broker.model.needs import inputs_struct, outputs_struct, packed
from broker.wire.settings import TEXT, InputSpec, Needs, TargetSpec
from broker.wire.tensors import Array

_NUM_EXAMPLES = 3
_ANY = 32  #: what an axis of any length has; an image's long enough for a few poolings
_TEXTS = ("", "a", "a few words of text")
_PLACE_IN_GRAPH = re.compile(r"\{\{.*?\}\}|\[Op:.*")  # where in TensorFlow an error arose


def rehearse(copy: Any, needs: Needs) -> None:
    """One step without the optimizer, and the metrics.

    Args:
        copy: A compiled copy of the model, which is given away: a step changes its statistics.
        needs: The model's.

    Raises:
        ModelError: No worker could train it.
    """
    x, y = made_up_inputs(copy, needs), made_up_targets(copy, needs)
    try:
        answers = step_without_optimizer(copy, x, y, None)
    except ModelError:
        raise
    except Exception as exc:  # whatever a loss and layers raise
        raise ModelError(
            f"The model or its loss fails on a worker's examples. {reason_of(exc)} Expected a loss that takes "
            f"{'class numbers' if needs.targets[0].kind == 'classes' else 'targets'} of the shapes "
            f"{[each.shape for each in needs.targets]}. Try model.fit on such arrays."
        ) from exc
    try:
        results = copy.compute_metrics(x, y, answers, sample_weight=None)
    except Exception as exc:  # whatever metrics raise
        raise ModelError(
            f"One of the model's metrics fails on a worker's examples. {reason_of(exc)} Try metrics that take "
            "what the loss takes."
        ) from exc
    for name, value in results.items():
        if np.ndim(value):
            raise ModelError(
                f"The metric {name} gives {np.size(value)} numbers. Expected one; try its mean, as average='macro'."
            )


def step_without_optimizer(copy: Any, x: Any, y: Any, weights: Any) -> Any:
    """What the model answers; its loss has a gradient.

    Raises:
        ModelError: It has none.
    """
    import tensorflow as tf

    variables = [weight.value for weight in copy.trainable_weights]
    with tf.GradientTape() as tape:
        answers = copy(x, training=True)
        loss = copy.compute_loss(x=x, y=y, y_pred=answers, sample_weight=weights, training=True)
    gradients = tape.gradient(loss, variables)
    if variables and all(gradient is None for gradient in gradients):
        raise ModelError("Nothing that can be trained changes the loss. Try a model without hard decisions.")
    return answers


def reason_of(exc: Exception) -> str:
    """What Keras or TensorFlow says, without where in its graph it arose."""
    return f"{type(exc).__name__}: {' '.join(_PLACE_IN_GRAPH.sub('', str(exc)).split())[:400]}"


def made_up_inputs(model: Any, needs: Needs) -> Any:
    """A few examples as the model takes them: zeros, random numbers from 0 to 1, a few words."""
    return packed(inputs_struct(model), [_input(spec) for spec in needs.inputs])


def made_up_targets(model: Any, needs: Needs) -> Any:
    """Targets for them, as the model's losses take them."""
    return packed(outputs_struct(model), [_target(spec) for spec in needs.targets])


def made_up_outputs(model: Any) -> Any:
    """Answers of the shapes that the model gives, for as many examples."""
    shapes = [_sizes(tensor.shape[1:]) for tensor in model.outputs]
    return packed(outputs_struct(model), [np.full(shape, 0.5, np.float32) for shape in shapes])


def _input(spec: InputSpec) -> Any:
    import tensorflow as tf

    shape = _sizes(spec.shape)
    if spec.dtype == TEXT:
        return tf.constant(np.resize(np.array(_TEXTS, object), shape))
    values = np.random.default_rng(0).random(shape) if "float" in spec.dtype else np.zeros(shape)
    values[0] = 0
    return tf.cast(values, spec.dtype)


def _target(spec: TargetSpec) -> Array:
    shape = _sizes(spec.shape)
    if spec.kind == "classes":
        return np.resize(np.arange(max(spec.num_classes, 1)), shape).astype(np.int64)
    if spec.kind == "rows":
        return np.eye(spec.num_classes, dtype=np.float32)[np.resize(np.arange(spec.num_classes), shape[:-1])]
    return np.resize([0.0, 1.0], shape).astype(np.float32)


def _sizes(shape: Sequence[int | None]) -> tuple[int, ...]:
    return (_NUM_EXAMPLES, *(_ANY if size is None else size for size in shape))
