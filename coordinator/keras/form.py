"""Whether workers can train a model, found out before any of them waits; called in the child that has Keras."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from broker.errors import ModelError, UsageError
from broker.model.ending import EACH_ALONE, ONE_OF_ALL, UNKNOWN, ending_of
from broker.model.head import BINARY, CATEGORICAL, num_outputs
from broker.model.loss import encode_labels, loss_name, sole_loss, takes_class_numbers, takes_logits
from broker.model.needs import needs_of, num_classes_of
from coordinator.keras.rehearsal import reason_of, rehearse, step_without_optimizer
from coordinator.learning.measure_names import ACCURACY

_MODELS = frozenset({"Functional", "Sequential"})
# What a categorical cross-entropy, which divides by the sum, can take for probabilities.
_NEVER_NEGATIVE = frozenset({"exponential", "relu", "relu6", "softplus", "sparse_plus", "squareplus"})
# Keras's metrics that compare the wrong thing, and don't say so, when labels have another form.
_ON_ONE_HOT = frozenset({"categoricalaccuracy", "onehotiou", "onehotmeaniou", "topkcategoricalaccuracy"})
_ON_CLASSES = _ON_ONE_HOT | {"sparsecategoricalaccuracy", "sparsetopkcategoricalaccuracy"}
_AT_ONE_HALF = frozenset({"acc", ACCURACY, "binary_accuracy"})


def check_form(model: Any) -> None:
    """Whether a task gave a compiled Sequential or functional model.

    Raises:
        ModelError: It is something else.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise ModelError(f"The task gave a {type(model).__name__}. Expected a compiled Keras model.")
    if type(model).__name__ not in _MODELS:
        raise ModelError(
            f"The model is a {type(model).__name__}, a class of its own, whose code workers don't have. Expected "
            "a Sequential or functional model. Try keras.Model(inputs, outputs) with built-in layers."
        )
    if not model.compiled or model.optimizer is None:
        raise ModelError("The model is not compiled. Try model.compile(optimizer, loss, metrics) before.")
    if not model.built:
        raise ModelError("The model has no input shape. Try keras.Input(shape) as its first layer.")


def check_training(copy: Any) -> list[str]:
    """Whether outputs, losses and metrics fit together and take what workers have.

    Args:
        copy: A compiled copy of the model, which is given away: a step changes its statistics.

    Returns:
        What works and is hardly meant, a sentence each.

    Raises:
        ModelError: No worker could train it.
    """
    if not num_classes_of(copy):
        return _check_general(copy)
    if sole_loss(copy.loss) is None:
        raise ModelError(
            f"The model is compiled with {_shown(copy.loss)} as its loss. Expected one loss for its one output, "
            "as model.compile(optimizer, 'sparse_categorical_crossentropy')."
        )
    activation, outputs = ending_of(copy).activation, num_outputs(copy)
    metrics = list(_metrics_of(copy))
    _check_ending(activation, copy.loss, outputs)
    _check_metrics(metrics, copy.loss, outputs)
    _rehearse(copy, metrics)
    return [*_doubts(activation, copy.loss, outputs), *_doubts_about(metrics, copy.loss, outputs)]


def _check_general(copy: Any) -> list[str]:
    """The same of a model that is no classifier of one input."""
    needs = needs_of(copy)
    if len(needs.targets) == 1:
        target, activation = needs.targets[0], ending_of(copy).activation
        _check_ending(activation, copy.loss, target.num_classes or 2)
        doubts = list(_doubts(activation, copy.loss, target.num_classes or 2))
    else:
        doubts = []
    rehearse(copy, needs)
    return doubts


def has_schedule(model_json: str) -> bool:
    """Whether a model's learning rate is a schedule, which no other rate can replace."""
    return any(isinstance(rate, dict) for rate in _rates_in(model_json))


def compiled_rate(model_json: str) -> float | None:
    """The learning rate that a model was compiled with; None for a schedule, and where there is none."""
    return next((float(rate) for rate in _rates_in(model_json) if isinstance(rate, int | float)), None)


def _rates_in(model_json: str) -> Iterator[object]:
    """The learning rate of each optimizer, from the outermost in."""
    optimizer = (json.loads(model_json).get("compile_config") or {}).get("optimizer")
    while isinstance(optimizer, dict):
        config = optimizer.get("config") or {}
        yield config.get("learning_rate")
        optimizer = config.get("inner_optimizer")


def refuse_other_rate(model_json: str, learning_rate: float | None) -> None:
    """Whether the model can be trained with the learning rate that was asked for, if one was.

    Raises:
        UsageError: Its own is a schedule.
    """
    if learning_rate is not None and has_schedule(model_json):
        raise UsageError(
            f"The model's learning rate is a schedule, so it can't be set to {learning_rate:g}. Try without "
            "--learning-rate, or compile the model with a plain number."
        )


def refuse_decay(model_json: str, learning_rate: float | None, decay: float) -> None:
    """Whether there is a learning rate that can become lower from round to round, if that was asked for.

    Args:
        model_json: Of the model.
        learning_rate: What was asked for, if anything was.
        decay: What each round's is multiplied with for the next.

    Raises:
        UsageError: There is none, or it is a schedule.
    """
    if decay < 1 and learning_rate is None and compiled_rate(model_json) is None:
        why = "is a schedule already" if has_schedule(model_json) else "is not known"
        raise UsageError(
            f"The model's learning rate {why}, so it can't decay from round to round. Try without "
            "--learning-rate-decay, or say from where with --learning-rate."
        )


def _check_ending(activation: str, loss: object, outputs: int) -> None:
    """Refuse what can't learn; each is a well-known slip."""
    name = loss_name(loss)
    if outputs == 1 and activation in ONE_OF_ALL | {"log_softmax"}:
        raise ModelError(
            f"The model has one output, and {activation} makes that always the same. Try "
            "Dense(1, activation='sigmoid') with binary_crossentropy, or an output per class."
        )
    if outputs == 1 and name in CATEGORICAL:
        raise ModelError(
            f"The loss {_shown(loss)} needs an output per class, and the model has one output. Try two "
            "outputs with softmax, or binary_crossentropy with one sigmoid."
        )
    likely = ONE_OF_ALL | EACH_ALONE | {UNKNOWN} | (_NEVER_NEGATIVE if name in CATEGORICAL else set())
    if name in CATEGORICAL | BINARY and not takes_logits(loss) and activation not in likely:
        better = "sigmoid" if name in BINARY else "softmax"
        raise ModelError(
            f"The loss {_shown(loss)} expects probabilities, and the last activation is {activation}, which "
            f"gives none. Try activation={better!r} in the last layer, or from_logits=True in the loss."
        )


def _check_metrics(metrics: list[str], loss: object, outputs: int) -> None:
    for metric in metrics:
        plain = metric.lower().replace("_", "")
        if outputs == 1 and plain in _ON_CLASSES:
            raise ModelError(
                f"The metric {metric} needs an output per class, and the model has one. Try 'accuracy'."
            )
        if takes_class_numbers(loss) and plain in _ON_ONE_HOT:
            raise ModelError(
                f"The metric {metric} takes one-hot labels, and the loss {_shown(loss)} class numbers; both get "
                "the same. Try a metric with 'sparse' in its name, 'accuracy', or categorical_crossentropy."
            )


def _doubts(activation: str, loss: object, outputs: int) -> Iterator[str]:
    name = loss_name(loss)
    is_bounded = activation in ONE_OF_ALL | EACH_ALONE
    if is_bounded and takes_logits(loss):
        yield (
            f"The loss {_shown(loss)} is told that it gets logits, and the last activation is {activation}. The "
            "outputs are read as probabilities; try the loss without from_logits."
        )
    elif activation in EACH_ALONE and outputs > 1 and name in CATEGORICAL:
        yield (
            f"The last activation is {activation}, of each class alone, and the loss {_shown(loss)} is for one "
            "class of all. The outputs are read as shares of their sum; try softmax."
        )
    elif activation in ONE_OF_ALL and name in BINARY:
        yield (
            f"The last activation is {activation} and the loss {_shown(loss)}, which Keras computes from each "
            "class alone: probabilities become too sure. Try categorical_crossentropy."
        )


def _doubts_about(metrics: list[str], loss: object, outputs: int) -> Iterator[str]:
    if outputs == 1 and takes_logits(loss):
        for metric in sorted(_AT_ONE_HALF & set(metrics)):
            yield (
                f"The metric {metric} compares the model's logit with 0.5. Try "
                "keras.metrics.BinaryAccuracy(threshold=0)."
            )


def _rehearse(copy: Any, metrics: list[str]) -> None:
    """One step as a worker does it, without the optimizer, on a few empty examples."""
    import tensorflow as tf

    outputs = num_outputs(copy)
    # As many as there are classes, and labels of the wrong form could pass for the right one.
    number = 3 if outputs == 2 else 2
    y = encode_labels(copy.loss, np.arange(number) % max(outputs, 2), outputs)
    x = tf.zeros((number, *copy.input_shape[1:]), copy.inputs[0].dtype)
    weights = tf.ones(number)
    form = f"{y.dtype} of shape {('n', *y.shape[1:])}".replace("'", "")
    by_name = ", given by the output's name," if isinstance(copy.loss, Mapping) else ""
    try:
        answers = step_without_optimizer(copy, x, y, weights)
    except ModelError:
        raise
    except Exception as exc:  # whatever a loss and layers raise
        raise _unfit(f"The loss {_shown(copy.loss)}{by_name}", form, exc) from exc
    try:
        copy.compute_metrics(x, y, answers, sample_weight=weights)
    except Exception as exc:  # whatever metrics raise
        raise _unfit(f"One of the metrics {', '.join(metrics)}", form, exc) from exc


def _unfit(what: str, form: str, exc: Exception) -> ModelError:
    return ModelError(
        f"{what} fails on a worker's labels, {form}. {reason_of(exc)} Labels are class numbers for "
        "a loss with 'sparse' in its name, one column for one output, else one-hot rows. Try a loss and metrics "
        "that take these."
    )


def _metrics_of(model: Any) -> Iterator[str]:
    config = model.get_compile_config() or {}
    for key in ("metrics", "weighted_metrics"):
        yield from _names_in(config.get(key))


def _names_in(value: object) -> Iterator[str]:
    """The metrics in a compile setting: one, a list, a list of lists, or a map by output."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and "class_name" in value:
        yield value["config"] if value["class_name"] == "function" else value["class_name"]
    elif isinstance(value, Mapping):
        yield from _names_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _names_in(each)


def _shown(loss: object) -> str:
    sole = sole_loss(loss)
    if sole is None:
        return "nothing" if loss is None else str(list(loss))  # type: ignore[call-overload]
    return sole if isinstance(sole, str) else str(getattr(sole, "__name__", type(sole).__name__))
