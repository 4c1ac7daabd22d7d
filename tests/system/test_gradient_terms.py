"""The terms that a strategy adds to the local gradient, against the papers' formulas and against plain Keras."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.errors import ModelError
from broker.wire.messages import RoundStart
from broker.wire.tensors import Array, flatten
from tests.system.test_training import digest, settings
from tests.unit.test_messages import EXAMPLES
from worker.data.data_set import Examples, open_data
from worker.learning.gradient_step import GradientSteps
from worker.learning.results import TrainingResult
from worker.learning.training import LocalModel
from worker.learning.wire_model import build_model
from worker.rounds.participant import KerasTrainer, Participant, Trained
from worker.tensorflow import load_keras

FEATURES, CLASSES = 6, 3
START = next(message for message in EXAMPLES if isinstance(message, RoundStart))

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


def sequential(*layers: Any, optimizer: Any, features: int = FEATURES, **more: Any) -> Any:
    keras = load_keras()
    made = keras.Sequential([keras.Input((features,)), *layers])
    made.compile(optimizer, "sparse_categorical_crossentropy", **more)
    return made


def linear() -> Any:
    keras = load_keras()
    return sequential(keras.layers.Dense(CLASSES, activation="softmax"), optimizer=keras.optimizers.SGD(0.1))


def deep(optimizer: Any, **more: Any) -> Any:
    """With all kinds of weights, and a loss of its own for some."""
    layers = load_keras().layers
    return sequential(
        layers.Dense(
            8, kernel_regularizer="l2", use_bias=False
        ),  # its gradient would be noise, which Adam enlarges
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.Dense(CLASSES, activation="softmax", dtype="float32"),
        optimizer=optimizer,
        **more,
    )


def mixed() -> Any:
    """Its loss is multiplied by 32768 before the gradients are taken."""
    keras = load_keras()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return deep(keras.optimizers.SGD(0.05))
    finally:
        keras.config.set_dtype_policy("float32")


def embedding() -> Any:
    """Its gradient names rows."""
    keras = load_keras()
    layers = keras.layers
    return sequential(
        layers.Rescaling(3.0),
        layers.Embedding(20, 4),
        layers.Flatten(),
        layers.Dense(CLASSES, activation="softmax"),
        optimizer=keras.optimizers.SGD(0.05),
    )


def partly_unreached() -> Any:
    """The loss doesn't depend on the first layer's weights: between it and the next no gradient goes."""
    keras = load_keras()
    layers = keras.layers
    return sequential(
        layers.Dense(4),
        layers.Discretization(bin_boundaries=[-0.1, 0.1]),
        layers.Dense(CLASSES, activation="softmax"),
        optimizer=keras.optimizers.AdamW(0.05, weight_decay=0.1),
    )


def examples(count: int = 75, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = rng.uniform(0, 3, (count, FEATURES)) + y[:, None] * np.linspace(0, 1, FEATURES)
    return Examples(x=x.astype(np.float32), y=y)


def fixed_weights(model: LocalModel) -> list[Array]:
    """Small, and where they must not be below 0, above it."""
    rng = np.random.default_rng(3)
    return [rng.uniform(0.01, 0.3, weight.shape).astype(np.float32) for weight in model.weights()]


def one_round(model: LocalModel, weights: list[Array], **terms: float) -> TrainingResult:
    return model.train(
        weights, examples(), None, settings(epochs=1, batch_size=10, terms=terms), seed=3,
        stop=threading.Event(), report=lambda _: None,
    )  # fmt: skip


def batches() -> list[tuple[Array, NDArray[np.int64]]]:
    """What `one_round` trains on, in its order."""
    data, order = examples(), np.random.default_rng([3, 1]).permutation(75)
    return [(data.x[rows], data.y[rows]) for rows in np.split(order, range(10, 75, 10))]


def test_fedprox_trains_a_linear_model_as_its_formula_says() -> None:
    """w ← w − η (∇F(w) + μ (w − wₜ)) in float64, softmax regression by hand (Li et al. 2020, equation 2), to 1e-5."""
    model, mu = LocalModel(linear().to_json()), 2.0
    start = fixed_weights(model)
    first_kernel, first_bias = (weight.astype(np.float64) for weight in start)
    kernel, bias = first_kernel, first_bias
    for x, y in batches():
        logits = np.exp(x.astype(np.float64) @ kernel + bias)
        wrong = (logits / logits.sum(axis=1, keepdims=True) - np.eye(CLASSES)[y]) / len(y)
        kernel, bias = (
            kernel - 0.1 * (x.T.astype(np.float64) @ wrong + mu * (kernel - first_kernel)),
            bias - 0.1 * (wrong.sum(axis=0) + mu * (bias - first_bias)),
        )
    result = one_round(model, start, prox_mu=mu)
    np.testing.assert_allclose(result.weights[0], kernel, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.weights[1], bias, rtol=1e-5, atol=1e-5)
    assert np.abs(result.weights[0] - one_round(model, start).weights[0]).max() > 0.05


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda made: made.Adam(0.01),
    "clipped": lambda made: made.SGD(0.05, momentum=0.9, global_clipnorm=0.3),
    "accumulated": lambda made: made.Adam(0.01, gradient_accumulation_steps=3),
    "scaled": lambda made: made.SGD(0.05, loss_scale_factor=1000.0),
}
MODELS: dict[str, Callable[[], Any]] = {
    "several_steps": lambda: deep(load_keras().optimizers.Adam(0.01), steps_per_execution=3),
    "mixed": mixed,
    "embedding": embedding,
    "partly_unreached": partly_unreached,
}


def made_as(name: str) -> Any:
    return MODELS[name]() if name in MODELS else deep(OPTIMIZERS[name](load_keras().optimizers))


def plain_fedprox(model: Any, mu: float) -> None:
    """Train on a loss that holds the proximal term, in TensorFlow's own loop."""
    import tensorflow as tf

    weights = model.trainable_weights
    start = [tf.constant(weight.value) for weight in weights]
    for x, y in batches():
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            loss = model.compute_loss(x=x, y=y, y_pred=outputs)
            away = tf.add_n(
                [tf.reduce_sum((w.value - w_t) ** 2) for w, w_t in zip(weights, start, strict=True)]
            )
            scaled = model.optimizer.scale_loss(loss + mu / 2 * away)
        model.optimizer.apply(tape.gradient(scaled, weights), weights)


@pytest.mark.parametrize("name", [*OPTIMIZERS, *MODELS])
def test_a_term_of_the_gradient_is_a_term_of_the_loss(name: str) -> None:
    """Plain Keras on F(w) + μ/2 · ‖w − wₜ‖² gives the weights to 1e-5, whatever clips, gathers or scales gradients."""
    made, mu = made_as(name), 0.5
    model, plain = LocalModel(made.to_json()), build_model(made.to_json())
    start = fixed_weights(model)
    plain.set_weights(start)
    if name == "partly_unreached":  # a loss reaches every weight that stands in it; Keras leaves this one out
        plain.layers[0].trainable = False
        plain.compile(plain.optimizer.from_config(plain.optimizer.get_config()), plain.loss)
    plain_fedprox(plain, mu)
    result = one_round(model, start, prox_mu=mu)
    for ours, theirs in zip(result.weights, plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    moved = [
        np.abs(a - b).max() for a, b in zip(result.weights, one_round(model, start).weights, strict=True)
    ]
    assert max(moved) > 1e-3


def test_the_loss_that_is_told_is_the_models_own() -> None:
    """Figures of fedprox and fedavg can be held against each other: before the first step nothing differs."""
    data = examples(10)
    model = LocalModel(linear().to_json())
    start = fixed_weights(model)
    how = settings(epochs=1, batch_size=10, terms={"prox_mu": 5.0})
    told = model.train(start, data, None, how, seed=3, stop=threading.Event(), report=lambda _: None).metrics
    assert told["loss"] == pytest.approx(model.evaluate(start, data).metrics["loss"], rel=1e-6)


def test_the_larger_mu_the_nearer_training_stays_to_the_global_weights() -> None:
    """The norm of the change falls with μ."""
    model = LocalModel(linear().to_json())
    start = fixed_weights(model)

    def moved(mu: float) -> float:
        ends = one_round(model, start, prox_mu=mu).weights
        return float(sum(np.sum((a - b) ** 2) for a, b in zip(ends, start, strict=True)))

    norms = [moved(mu) for mu in (0.0, 0.1, 1.0, 5.0)]
    assert norms == sorted(norms, reverse=True)
    assert norms[3] < 0.5 * norms[0]


def test_a_mu_of_0_gives_the_bits_of_fedavg() -> None:
    """It is the very same traced step, so nothing is added that could round."""
    made = linear()
    steps = GradientSteps(made, tuple)
    assert steps.begin({"prox_mu": 0.0}) is steps.begin({}) is not steps.begin({"prox_mu": 0.5})
    model = LocalModel(made.to_json())
    start = fixed_weights(model)
    assert digest(one_round(model, start, prox_mu=0.0).weights) == digest(one_round(model, start).weights)


def test_a_round_with_a_term_leaves_nothing_behind() -> None:
    """μ and the global weights are each round's own."""
    fresh, used = LocalModel(linear().to_json()), LocalModel(linear().to_json())
    start = fixed_weights(fresh)
    one_round(used, [weight + 1 for weight in start], prox_mu=3.0)
    for terms in ({"prox_mu": 0.5}, {}):
        expected = one_round(fresh, start, **terms).weights
        assert digest(one_round(used, start, **terms).weights) == digest(expected)


def test_a_setting_that_is_not_known_is_refused_by_its_name() -> None:
    """Training without it would be another strategy's."""
    model = LocalModel(linear().to_json())
    with pytest.raises(ModelError, match="'shrink'"):
        one_round(model, fixed_weights(model), prox_mu=0.1, shrink=0.0)


def answer(folder: Path, *, evaluate_only: bool, **terms: float) -> Trained | None:
    """A worker's whole answer to a round start with these terms."""
    data, made = examples(), linear()
    np.savez(folder / "site.npz", x_train=data.x, y_train=data.y, x_test=data.x[:9], y_test=data.y[:9])
    model = LocalModel(made.to_json())
    vector, integers = flatten(fixed_weights(model), model.layout)
    start = replace(
        START,
        model=made.to_json(),
        layout=model.layout,
        integers=tuple(integers),
        settings=settings(terms=terms),
    )
    worker = Participant(name="w", data=open_data(str(folder / "site.npz")), evaluate_only=evaluate_only)
    return KerasTrainer().answer(worker, start, vector, threading.Event(), lambda _: None)


def test_a_worker_declines_a_round_that_needs_what_it_does_not_know(tmp_path: Path) -> None:
    """The reason names the setting and what to do; a worker that only evaluates has no gradient, and answers."""
    with pytest.raises(ModelError, match="'shrink' that the strategy needs: upgrade it"):
        answer(tmp_path, evaluate_only=False, shrink=1.0, prox_mu=0.1)
    evaluated = answer(tmp_path, evaluate_only=True, shrink=1.0)
    assert evaluated is not None
    assert evaluated.vector is None


def test_a_worker_answers_fedprox_with_what_it_trained(tmp_path: Path) -> None:
    """The term goes all the way from the round start to the update."""
    near, free = (answer(tmp_path, evaluate_only=False, prox_mu=mu) for mu in (5.0, 0.0))
    assert near is not None and near.vector is not None
    assert free is not None and free.vector is not None
    assert 0 < np.linalg.norm(near.vector) < 0.7 * np.linalg.norm(free.vector)
