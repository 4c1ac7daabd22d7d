"""Statistics, frozen and trainable weights of real Keras models: what travels, what moves, and what it becomes."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from broker.errors import ModelError
from broker.model.kinds import apply_kinds, layout_of
from broker.wire.tensors import FLOAT32, Array, Layout, Sections, Vector, flatten, flatten_first, unflatten
from coordinator.learning.aggregation import UpdateSum, scale_exponent
from coordinator.learning.strategies import first_states, make_strategy
from coordinator.learning.strategies.mean import OfTheMean
from tests.steps import next_weights
from tests.system.test_training import settings
from worker.baseline import BaselineOptions, train_alone
from worker.data.data_set import Dataset, Examples
from worker.learning.saved_model import LoadedModel
from worker.learning.training import LocalModel
from worker.learning.wire_model import build_model
from worker.tensorflow import load_keras

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


def batch_norm() -> Any:
    keras = load_keras()
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(momentum=0.5),
            layers.Flatten(),
            layers.Dense(8),
            layers.BatchNormalization(momentum=0.5),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def site(seed: int, count: int, brightness: float) -> Examples:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = (
        rng.normal(brightness, 1, (count, 12, 12, 1))
        + y[:, None, None, None] * np.linspace(0, 1, 12)[:, None]
    )
    return Examples(x=x.astype(np.float32), y=y)


def trained(model: LocalModel, weights: list[Array], data: Examples) -> list[Array]:
    return model.train(
        weights, data, None, settings(epochs=1, batch_size=8, learning_rate=None), seed=1,
        stop=threading.Event(), report=lambda _: None,
    ).weights  # fmt: skip


def up(layout: Layout, weights: list[Array], vector: Vector) -> Vector:
    """What a worker sends, worked out here once more."""
    sections = Sections(layout)
    sent = flatten_first(weights, layout, sections.num_up)
    sent[: sections.num_trainable] -= vector[: sections.num_trainable]
    return sent


@pytest.mark.parametrize(
    ("name", "options"), [("fedavg", {}), ("fedavgm", {}), ("fedadam", {"learning_rate": "0.1"})]
)
def test_statistics_are_those_of_all_examples_whatever_the_strategy(
    name: str, options: dict[str, str]
) -> None:
    """20 rounds of a BatchNorm model at two unlike sites: Σ n·s / Σ n to 1e-6, variances pooled and never negative."""
    model = LocalModel(batch_norm().to_json())
    layout = model.layout
    strategy = make_strategy(name, options)
    assert isinstance(strategy, OfTheMean)
    vector, integers = flatten(model.weights(), layout)
    state = first_states(strategy, Sections(layout).num_trainable)
    sites = [site(1, 40, 0.0), site(2, 120, 3.0)]
    for _ in range(20):
        total = UpdateSum(layout, scale_exponent(160))
        locals_ = [trained(model, unflatten(layout, vector, integers), data) for data in sites]
        for weights, data in zip(locals_, sites, strict=True):
            total.add(up(layout, weights, vector), len(data))
        vector = next_weights(strategy, vector, total, state)
    last = unflatten(layout, vector, integers)
    share = [0.25, 0.75]
    for place, spec in enumerate(layout):
        values = [weights[place].astype(np.float64) for weights in locals_]
        if spec.kind == "statistic":
            np.testing.assert_allclose(
                last[place], sum(s * v for s, v in zip(share, values, strict=True)), rtol=1e-6, atol=1e-6
            )
        if spec.kind == "variance":
            means = [weights[place - 1].astype(np.float64) for weights in locals_]
            mean = sum(s * m for s, m in zip(share, means, strict=True))
            pooled = sum(s * (v + (m - mean) ** 2) for s, v, m in zip(share, values, means, strict=True))
            np.testing.assert_allclose(last[place], pooled, rtol=1e-6, atol=1e-6)
            assert last[place].min() >= 0
    assert np.isfinite(vector).all()
    assert np.isfinite(list(model.evaluate(last, sites[0]).figures.values())).all()


def mobile_net() -> Any:
    """411,489 parameters, of which the last layer's 1,281 are trained."""
    keras = load_keras()
    backbone = keras.applications.MobileNetV2(
        (96, 96, 3), alpha=0.35, include_top=False, pooling="avg", weights=None
    )
    backbone.trainable = False
    model = keras.Sequential([backbone, keras.layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "binary_crossentropy")
    return model


def lora() -> Any:
    keras = load_keras()
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(30, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    for layer in model.layers:
        layer.enable_lora(2)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def partly_frozen() -> Any:
    """One kernel alone is frozen: Keras's JSON does not tell."""
    keras = load_keras()
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(30, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.layers[0].kernel.trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize(
    ("build", "num_parameters", "num_up"),
    [(mobile_net, 411_489, 1281), (lora, 856, 30 + 2 * 50 + 2 + 2 * 32), (partly_frozen, 692, 30 + 62)],
)
def test_only_what_is_trained_travels_up(build: Callable[[], Any], num_parameters: int, num_up: int) -> None:
    """A frozen backbone stays home: 5 kB in the place of 1.6 MB."""
    model = build()
    sections = Sections(layout_of(model))
    assert (sections.size, sections.num_up) == (num_parameters, num_up)
    assert sections.num_up * FLOAT32.itemsize < 100_000


@pytest.mark.parametrize("build", [lora, partly_frozen])
def test_what_is_frozen_keeps_its_bits_through_a_training(build: Callable[[], Any]) -> None:
    """The layout says what is trained, weight by weight, whatever Keras's JSON has forgotten."""
    original = build()
    layout = layout_of(original)
    model = LocalModel(original.to_json(), layout)
    assert model.layout == layout
    rng = np.random.default_rng(0)
    data = Examples(x=rng.normal(size=(40, 20)).astype(np.float32), y=rng.integers(0, 2, 40))
    before = [weight.numpy() for weight in original.weights]
    after = trained(model, before, data)
    moved = [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]
    assert moved == [spec.kind == "trainable" for spec in layout]


def test_a_layer_s_kinds_are_told_apart() -> None:
    """Nested, wrapped and frozen layers; what `adapt` alone sets is frozen; a seed or a count is no float."""
    keras = load_keras()
    layers = keras.layers
    inner = keras.Sequential([keras.Input((5, 4)), layers.BatchNormalization(scale=False)])
    frozen = layers.BatchNormalization()
    frozen.trainable = False
    model = keras.Sequential(
        [keras.Input((5, 4)), layers.Normalization(), inner, frozen, layers.Bidirectional(layers.GRU(2)),
         layers.SpectralNormalization(layers.Dense(3)), layers.Dropout(0.5), layers.Dense(2)]
    )  # fmt: skip
    kinds = [spec.kind for spec in layout_of(model)]
    assert kinds == [
        "frozen", "frozen", "integer",  # Normalization: mean, variance, count
        "trainable", "statistic", "variance",  # beta, moving mean, moving variance
        *["frozen"] * 4,
        *["trainable"] * 6,
        "trainable", "statistic", "trainable",  # kernel, vector_u, bias
        "trainable", "trainable",
    ]  # fmt: skip


def test_an_adapted_layer_normalises_at_a_worker_as_it_did_where_it_was_adapted() -> None:
    """Keras normalises with a copy of the weights, made when it is built: also a traced function sees new ones."""
    keras = load_keras()
    rng = np.random.default_rng(0)
    data = Examples(x=rng.normal(50, 7, (64, 3)).astype(np.float32), y=rng.integers(0, 2, 64))
    model = None
    for shift in (0, 10):  # two runs with the same model, adapted to other data
        keras.utils.set_random_seed(1)
        original = keras.Sequential(
            [keras.Input((3,)), keras.layers.Normalization(), keras.layers.Dense(2, "softmax")]
        )
        original.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        original.layers[0].adapt(data.x + shift)
        model = model or LocalModel(original.to_json(), layout_of(original))
        weights = [weight.numpy() for weight in original.weights]
        found = model.evaluate(weights, data)
        assert found is not None
        assert found.metrics["loss"] == pytest.approx(original.evaluate(data.x, data.y, verbose=0), rel=1e-6)
        after = model.train(
            weights, data, None, settings(epochs=1, batch_size=64, learning_rate=None), seed=1,
            stop=threading.Event(), report=lambda _: None,
        ).weights  # fmt: skip
        original.fit(data.x, data.y, batch_size=64, verbose=0)
        np.testing.assert_allclose(after[-2], original.weights[-2].numpy(), atol=1e-6)


def test_the_baseline_begins_with_new_weights_where_training_moves_them() -> None:
    """What `adapt` found, or a frozen layer knows, no training would find again."""
    keras = load_keras()
    frozen = keras.layers.Dense(3)
    frozen.trainable = False
    original = keras.Sequential(
        [keras.Input((3,)), keras.layers.Normalization(), frozen, keras.layers.Dense(2, "softmax")]
    )
    original.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    original.layers[0].adapt(rng.normal(50, 7, (64, 3)))
    data = Examples(x=rng.normal(50, 7, (64, 3)).astype(np.float32), y=rng.integers(0, 2, 64))
    sites = cast(
        Dataset, SimpleNamespace(train=lambda _shape: data, test=lambda _shape: data, classes=("0", "1"))
    )
    before = original.get_weights()
    loaded = LoadedModel(model=original, card=None, shape=(3,), classes=("0", "1"))  # type: ignore[arg-type]
    assert train_alone(loaded, sites, BaselineOptions(epochs=1), threading.Event()) is not None
    same = [np.array_equal(one, other) for one, other in zip(before, original.get_weights(), strict=True)]
    assert same == [spec.kind in ("frozen", "integer") for spec in layout_of(original)]


def test_a_layout_of_another_model_is_refused() -> None:
    """Weights that do not fit are told before a round is trained in vain."""
    model = build_model(batch_norm().to_json())
    with pytest.raises(ModelError, match="not those that were announced"):
        apply_kinds(model, layout_of(lora()))
