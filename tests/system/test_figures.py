"""Every figure of a training is what plain Keras says of the same data, and of all workers' data together."""

import threading
from typing import Any

import numpy as np
import pytest

from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Array
from coordinator.keras.trial import work_out
from coordinator.learning.measures import Measurement, pooled
from tests.system.test_training import fixed_weights, settings
from worker.data.data_set import Examples
from worker.learning.results import TrainingResult
from worker.learning.training import LocalModel
from worker.tensorflow import load_keras

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs

FEATURES, CLASSES = 6, 3


def classifier(loss: str, metrics: list[Any], optimizer: Any = None, classes: int = CLASSES) -> Any:
    keras = load_keras()
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="relu", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(classes, activation="softmax" if classes > 1 else "sigmoid"),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(0.05), loss, metrics=metrics)
    return model


def sparse() -> Any:
    metrics = load_keras().metrics
    return classifier(
        "sparse_categorical_crossentropy",
        [
            "accuracy",
            metrics.SparseTopKCategoricalAccuracy(2, name="top_2"),
            metrics.SparseCategoricalCrossentropy(name="ce"),
        ],
    )


def one_hot() -> Any:
    metrics = load_keras().metrics
    return classifier(
        "categorical_crossentropy",
        [
            "acc",
            metrics.AUC(name="area"),
            metrics.Precision(name="precision"),
            metrics.Recall(name="recall"),
            metrics.F1Score(average="macro", name="f1"),
        ],
    )


def binary() -> Any:
    metrics = load_keras().metrics
    root = metrics.RootMeanSquaredError(name="root")
    compiled = [metrics.BinaryAccuracy(name="right"), metrics.AUC(name="auc"), root]
    return classifier("binary_crossentropy", compiled, classes=1)


MODELS = pytest.mark.parametrize("build", [sparse, one_hot, binary])


def examples(count: int, classes: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = rng.normal(size=(count, FEATURES)) + y[:, None] * np.linspace(0, 1, FEATURES)
    return Examples(x=x.astype(np.float32), y=y)


def targets(model: Any, y: Array) -> Array:
    """The labels as a person would write them for such a loss."""
    if "sparse" in str(model.loss):
        return y
    outputs = model.output_shape[-1]
    return y.astype(np.float32)[:, None] if outputs == 1 else np.eye(outputs, dtype=np.float32)[y]


def one_epoch(model: LocalModel, weights: list[Array], data: Examples, seed: int = 3) -> TrainingResult:
    return model.train(
        weights, data, None, settings(epochs=1, batch_size=10), seed=seed, stop=threading.Event(),
        report=lambda _: None,
    )  # fmt: skip


@MODELS
def test_one_epoch_gives_the_figures_and_weights_of_plain_keras(build: Any) -> None:
    """One worker, the same order of the same examples: loss, every compiled metric and the weights, to 1e-5."""
    model, plain = LocalModel(build().to_json()), build()
    data, weights = examples(75, model.num_classes), fixed_weights(model)
    weights[5] = np.abs(weights[5]) + 1  # a variance
    result = one_epoch(model, weights, data)
    plain.set_weights(weights)
    order = np.random.default_rng([3, 1]).permutation(75)
    y = targets(plain, data.y)
    history = plain.fit(data.x[order], y[order], batch_size=10, epochs=1, shuffle=False, verbose=0).history
    assert result.metrics == pytest.approx({name: values[-1] for name, values in history.items()}, abs=1e-5)
    for ours, theirs in zip(result.weights, plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@MODELS
def test_a_test_gives_the_figures_of_plain_keras(build: Any) -> None:
    """Loss and every compiled metric, each under its own name; ours beside them."""
    model, plain = LocalModel(build().to_json()), build()
    data, weights = examples(131, model.num_classes), fixed_weights(model)
    weights[5] = np.abs(weights[5]) + 1
    plain.set_weights(weights)
    expected = plain.evaluate(data.x, targets(plain, data.y), batch_size=131, verbose=0, return_dict=True)
    found = model.evaluate(weights, data)
    assert found.metrics == pytest.approx(expected, abs=1e-5)
    assert {"accuracy", "balanced_accuracy"} <= found.figures.keys()


@MODELS
def test_the_figures_of_three_workers_are_those_of_their_examples_together(build: Any) -> None:
    """Exactly, also for metrics that are no means: AUC, Precision, Recall, F1, the root of a mean square."""
    model, child = LocalModel(build().to_json()), build()
    weights = fixed_weights(model)
    weights[5] = np.abs(weights[5]) + 1
    parts = [examples(count, model.num_classes, seed) for seed, count in enumerate((20, 50, 131))]
    found = [model.evaluate(weights, part) for part in parts]
    whole = Examples(
        x=np.concatenate([part.x for part in parts]), y=np.concatenate([part.y for part in parts])
    )
    together = pooled(
        [
            Measurement(num_examples=len(part), metrics=each.metrics, states=each.states, counts=each.counts)
            for part, each in zip(parts, found, strict=True)
        ],
        lambda sums: work_out(child, {name: list(state) for name, state in sums.items()}),
    )
    assert together == pytest.approx(model.evaluate(weights, whole).figures, abs=1e-5)


def test_a_schedule_goes_on_over_rounds() -> None:
    """0.5 until step 40, then 0: with 32 steps a round, round 2 trains for 8 steps more, round 3 not at all."""
    keras = load_keras()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([40], [0.5, 0.0])
    built = classifier("sparse_categorical_crossentropy", [], keras.optimizers.SGD(schedule))
    model = LocalModel(built.to_json())
    data, weights = examples(320, CLASSES), fixed_weights(model)
    weights[5] = np.abs(weights[5]) + 1
    moved = []
    for number in range(3):
        started = weights[0]
        weights = round_of(model, weights, data, settings(epochs=1, batch_size=10, epochs_before=number))
        moved.append(not np.array_equal(started, weights[0]))
    assert moved == [True, True, False]


def test_rounds_of_a_schedule_are_one_training_of_plain_keras() -> None:
    """Plain SGD keeps nothing else from step to step: three rounds of one worker are three epochs, to 1e-5."""
    keras = load_keras()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.8)
    built = classifier("sparse_categorical_crossentropy", [], keras.optimizers.SGD(schedule))
    model, plain = LocalModel(built.to_json()), built
    data, weights = examples(64, CLASSES), fixed_weights(model)
    weights[5] = np.abs(weights[5]) + 1
    plain.set_weights(weights)
    for number in range(3):
        order = np.random.default_rng([3, 1]).permutation(64)
        plain.fit(data.x[order], data.y[order], batch_size=16, epochs=1, shuffle=False, verbose=0)
        weights = round_of(model, weights, data, settings(epochs=1, batch_size=16, epochs_before=number))
    for ours, theirs in zip(weights, plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def round_of(model: LocalModel, weights: list[Array], data: Examples, how: TrainingSettings) -> list[Array]:
    return model.train(
        weights, data, None, how, seed=3, stop=threading.Event(), report=lambda _: None
    ).weights
