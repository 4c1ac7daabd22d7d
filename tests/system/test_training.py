"""Local training with real Keras on tiny data: every call starts afresh, whatever went before."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import DataError, ModelError
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Array
from worker.data.data_set import Examples
from worker.learning.results import TrainingProgress, TrainingResult
from worker.learning.training import LocalModel
from worker.learning.wire_model import build_model
from worker.tensorflow import load_keras

SHAPE = (24, 24, 1)

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


def small_model(outputs: int = 2, loss: str = "sparse_categorical_crossentropy", rate: Any = 0.01) -> Any:
    """The shape of the chest X-ray model: augmentation in a nested model, convolutions, dropout."""
    keras = load_keras()
    layers = keras.layers
    inputs = keras.Input(SHAPE)
    augment = keras.Sequential(
        [layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), layers.RandomZoom(0.1)]
    )
    x = layers.Rescaling(1 / 255)(augment(inputs))
    x = layers.Conv2D(8, 3, use_bias=False)(x)
    x = layers.Activation("relu")(layers.GroupNormalization(4)(x))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    activation = "sigmoid" if outputs == 1 else "softmax"
    model = keras.Model(inputs, layers.Dense(outputs, activation=activation)(x))
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def examples(count: int = 30, classes: int = 2) -> Examples:
    """Noise with upright stripes, 1 pixel wide in class 0, 2 in class 1, and so on."""
    y = np.arange(count) % classes
    widths = y[:, None] + 1
    stripes = np.arange(SHAPE[1]) % (2 * widths) < widths
    noise = np.random.default_rng(0).integers(0, 60, (count, *SHAPE))
    x = noise + 180 * stripes[:, None, :, None]
    return Examples(x=x.astype(np.uint8), y=y.astype(np.int64))


def settings(**changes: Any) -> TrainingSettings:
    values: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": None,
        "class_weight": "none",
        "examples_per_class": None,
        "seed": 1,
        "deterministic": False,
    }
    return TrainingSettings(**values | changes)


def train(model: LocalModel, weights: list[Array], seed: int = 7, **changes: Any) -> TrainingResult:
    return model.train(
        weights,
        examples(),
        examples(8),
        settings(**changes),
        seed=seed,
        stop=threading.Event(),
        report=lambda _: None,
    )


def digest(weights: list[Array]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(weight).tobytes() for weight in weights)).hexdigest()


def fixed_weights(model: LocalModel) -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.normal(0, 0.1, weight.shape).astype(np.float32) for weight in model.weights()]


@pytest.fixture(scope="module")
def model_json() -> str:
    return str(small_model().to_json())


@pytest.fixture(scope="module")
def model(model_json: str) -> LocalModel:
    return LocalModel(model_json)


def noted(method: Callable[..., Any], name: str, seen: list[str]) -> Callable[..., Any]:
    """The same method; each call adds its name to `seen`."""

    def call(*args: Any, **more: Any) -> Any:
        seen.append(name)
        return method(*args, **more)

    return call


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows whenever TensorFlow runs Keras's Python again, which it does only to trace; compute_metrics trains."""
    seen: list[str] = []
    kind = load_keras().Model
    for name in ("compute_metrics", "compute_loss"):
        monkeypatch.setattr(kind, name, noted(getattr(kind, name), name, seen))
    return seen


def test_training_learns_and_reports(model: LocalModel) -> None:
    """A few epochs tell two patterns apart; metrics carry the names that history.csv knows."""
    seen: list[TrainingProgress] = []
    weights = fixed_weights(model)
    result = model.train(
        weights,
        examples(64),
        examples(16),
        settings(epochs=8, learning_rate=0.05),
        seed=1,
        stop=threading.Event(),
        report=seen.append,
    )
    assert result.finished
    assert result.num_examples == 64
    assert set(result.metrics) == {"loss", "accuracy"}
    assert set(result.validation) == {"loss", "accuracy", "balanced_accuracy", "auc"}
    assert result.validation["auc"] > 0.9
    ends = [(each.epoch, each.batch) for each in seen if "val_loss" in each.metrics]
    assert ends == [(epoch, 8) for epoch in range(1, 9)]
    assert model.evaluate(result.weights, examples(16)).figures == result.validation


def test_a_second_round_is_not_traced_again(model_json: str, traces: list[str]) -> None:
    """Building, compiling and tracing happen in the first round, whatever settings change later."""
    model = LocalModel(model_json)
    weights = fixed_weights(model)
    train(model, weights)
    model.evaluate(weights, examples(9))
    before = list(traces)
    assert "compute_metrics" in before
    train(model, weights, batch_size=7, learning_rate=0.5, class_weight="balanced", epochs=1)
    model.evaluate(weights, examples(70))
    assert traces == before


def test_another_strength_of_a_term_is_not_traced_again(model_json: str, traces: list[str]) -> None:
    """The step is traced without terms and with them, whatever μ is, in whatever order the rounds come."""
    model = LocalModel(model_json)
    weights = fixed_weights(model)
    for terms in ({}, {"prox_mu": 0.01}):
        train(model, weights, epochs=1, terms=terms)
    before = list(traces)
    assert before[-1] == "compute_metrics"
    for mu in (0.5, 0.0, 0.01):
        train(model, weights, epochs=1, terms={"prox_mu": mu})
    assert traces == before


def test_a_last_call_of_fewer_steps_is_not_traced_again(traces: list[str]) -> None:
    """Several steps in one call: the number of batches may differ from worker to worker of a swarm."""
    keras = load_keras()
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(2, activation="softmax"),
    ]
    made = keras.Sequential([keras.Input(SHAPE), *layers])
    made.compile("sgd", "mse", steps_per_execution=4)
    model = LocalModel(made.to_json())
    for batch_size in (3, 4, 5, 7, 30):
        train(model, fixed_weights(model), epochs=1, batch_size=batch_size)
    assert traces.count("compute_metrics") == 1


def test_a_round_leaves_nothing_behind(model: LocalModel) -> None:
    """Optimizer, learning rate, metrics and random layers begin anew: no round depends on another."""
    weights = fixed_weights(model)
    first = train(model, weights)
    train(model, [weight + 1 for weight in weights], seed=8, learning_rate=0.5, epochs=3)
    again = train(model, weights)
    assert again.metrics == pytest.approx(first.metrics, rel=1e-4)
    for one, other in zip(first.weights, again.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_another_seed_trains_otherwise(model: LocalModel) -> None:
    """The seed decides shuffling and random layers, so that two workers do not drop the same units."""
    weights = fixed_weights(model)
    assert digest(train(model, weights, seed=1).weights) != digest(train(model, weights, seed=2).weights)


_CHILD = """
import json, sys
sys.path.insert(0, {root!r})
from tests.system.test_training import LocalModel, digest, fixed_weights, train
model = LocalModel(sys.stdin.read(), deterministic=True)
weights = fixed_weights(model)
if {has_history}:
    train(model, [weight + 1 for weight in weights], seed=8, deterministic=True, learning_rate=0.5, epochs=3)
results = [train(model, weights, deterministic=True) for _ in range(2)]
print(json.dumps([digest(result.weights) for result in results]))
"""


def digests_of_a_process(model_json: str, *, has_history: bool) -> list[str]:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(root=root, has_history=has_history)],
        input=model_json,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_a_restarted_process_computes_the_same_bits(model_json: str) -> None:
    """With --deterministic the result depends on weights, data, settings and seed alone."""
    fresh = digests_of_a_process(model_json, has_history=False)
    used = digests_of_a_process(model_json, has_history=True)
    assert len({*fresh, *used}) == 1


def test_stopping_ends_at_the_next_batch(model: LocalModel) -> None:
    """A round that is told to stop ends without training on, and says that it isn't finished."""
    stop = threading.Event()
    stop.set()
    weights = fixed_weights(model)
    result = model.train(
        weights, examples(), None, settings(epochs=10**6), seed=1, stop=stop, report=lambda _: None
    )
    assert not result.finished
    assert digest(result.weights) == digest(weights)


@pytest.mark.parametrize(
    ("outputs", "loss", "classes"),
    [(3, "categorical_crossentropy", 3), (1, "binary_crossentropy", 2), (2, "mse", 2)],
)
def test_labels_take_the_form_of_the_loss(outputs: int, loss: str, classes: int) -> None:
    """Class numbers become one-hot rows or one column, as the compiled loss wants them."""
    model = LocalModel(small_model(outputs, loss).to_json())
    assert model.num_classes == classes
    weights = fixed_weights(model)
    result = model.train(
        weights,
        examples(12, classes),
        examples(6, classes),
        settings(epochs=1),
        seed=1,
        stop=threading.Event(),
        report=lambda _: None,
    )
    assert ("auc" in result.validation) == (classes == 2)
    assert all(np.isfinite(value) for value in (result.metrics | result.validation).values())


@pytest.mark.parametrize("form", ["list", "dict", "object"])
def test_a_loss_in_a_list_or_a_dict_of_one_trains_as_the_loss_alone(form: str) -> None:
    """The same bits of the trained weights, and the same measures."""
    keras = load_keras()
    made = small_model(1)
    loss = keras.losses.BinaryCrossentropy()
    forms = {"list": ["binary_crossentropy"], "dict": {made.output_names[0]: "bce"}, "object": [loss]}
    results = []
    for each in ("binary_crossentropy", forms[form]):
        made.compile(keras.optimizers.SGD(0.01), each, metrics=["accuracy"])
        model = LocalModel(made.to_json())
        results.append(train(model, fixed_weights(model), epochs=1))
    alone, wrapped = results
    assert wrapped.metrics == pytest.approx(alone.metrics, rel=1e-5)
    for one, other in zip(alone.weights, wrapped.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_logit_is_judged_by_its_sign() -> None:
    """Accuracy of a logit head is that of logits above 0, though all lie between 0 and 1 or none does."""
    keras = load_keras()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    local = LocalModel(model.to_json())
    logits = np.array([[0.2], [0.4], [0.9], [0.3]], np.float32)
    measured = local.evaluate(
        [np.ones((1, 1), np.float32), np.zeros(1, np.float32)],
        Examples(x=logits, y=np.array([1, 1, 0, 1])),
    ).figures
    assert measured["accuracy"] == 0.75  # as probabilities they would be 0.25
    assert measured["auc"] == 0.0
    expected = np.mean(np.logaddexp(0, logits.ravel()) - logits.ravel() * [1, 1, 0, 1])
    assert measured["loss"] == pytest.approx(expected, rel=1e-6)


def test_what_does_not_fit_is_refused(model: LocalModel) -> None:
    """Wrong weights, images of another size and labels of another class are errors before any training."""
    weights = fixed_weights(model)
    with pytest.raises(ModelError):
        train(model, weights[:-1])
    with pytest.raises(DataError):
        model.evaluate(weights, Examples(x=np.zeros((1, 9, 9, 1), np.uint8), y=np.zeros(1, np.int64)))
    with pytest.raises(DataError):
        model.evaluate(weights, examples(6, classes=3))


def test_a_learning_rate_schedule_is_kept_or_refused() -> None:
    """A schedule runs as compiled; asking for another rate is an error that says so."""
    schedule = load_keras().optimizers.schedules.CosineDecay(0.01, 10)
    model = LocalModel(small_model(rate=schedule).to_json())
    weights = fixed_weights(model)
    assert train(model, weights, epochs=1).finished
    with pytest.raises(ModelError, match="schedule"):
        train(model, weights, learning_rate=0.1)


def test_a_model_too_large_for_memory_is_refused_before_it_is_built() -> None:
    """A model's size is known before memory is taken for it; one bad model does not spoil the next."""
    keras = load_keras()
    with keras.StatelessScope(initialize_variables=False):
        huge = keras.Sequential([keras.Input((1024,)), keras.layers.Dense(2**20), keras.layers.Dense(2)])
        config = json.loads(huge.to_json())
    compiled = json.loads(small_model().to_json())["compile_config"]
    with pytest.raises(ModelError, match="parameters"):
        build_model(json.dumps(config | {"compile_config": compiled}))
    assert build_model(small_model().to_json()).built


def test_a_layer_too_large_for_memory_is_refused() -> None:
    """A layer may not blow one example up without bounds."""
    keras = load_keras()
    model = keras.Sequential(
        [keras.Input((99, 99, 1)), keras.layers.UpSampling2D(99), keras.layers.GlobalAveragePooling2D()]
    )
    model.compile("sgd", "mse")
    with pytest.raises(ModelError, match="up_sampling"):
        build_model(model.to_json())


def test_an_uncompiled_model_is_refused() -> None:
    """A model without compile settings can't be trained; the message says what to do."""
    keras = load_keras()
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(ModelError, match="compile"):
        build_model(model.to_json())


def test_weights_that_are_dear_to_draw_or_to_keep_are_refused_before_they_are_made() -> None:
    """QR takes rows × columns², an orthogonal regularizer a matrix of rows × rows: both far beyond the weights."""
    keras = load_keras()

    def wide(units: int, **more: Any) -> str:
        made = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
        )
        made.compile("sgd", "sparse_categorical_crossentropy")
        config = json.loads(made.to_json())
        dense = config["config"]["layers"][-1]
        before = json.loads(json.dumps(dense))
        before["config"] |= {"name": "wide", "units": 2**15, "activation": "linear"}
        after = json.loads(json.dumps(dense))
        after["config"] |= {"name": "dear", "units": units, "activation": "linear"} | more
        for each in (before, after, dense):
            each["build_config"] = {}
        config["config"]["layers"][-1:] = [before, after, dense]
        return json.dumps(config)

    assert build_model(wide(8)).built
    with pytest.raises(ModelError, match=r"orthogonal initializers take .*dear/kernel"):
        build_model(wide(4096, kernel_initializer="orthogonal"))
    with pytest.raises(ModelError, match=r"orthogonal regularizer of .*dear/kernel makes 32768²"):
        build_model(wide(8, kernel_regularizer="orthogonal_regularizer"))


def test_metrics_that_keep_numbers_for_each_class_and_threshold_are_bounded_by_both() -> None:
    """10,000 thresholds are allowed, and a million outputs are: their product would be tens of gigabytes."""
    keras = load_keras()

    def measured(outputs: int) -> str:
        made = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(outputs, "softmax")]
        )
        auc = keras.metrics.AUC(num_thresholds=10_000, multi_label=True, name="auc")
        made.compile("sgd", "sparse_categorical_crossentropy", metrics=[auc])
        return str(made.to_json())

    assert build_model(measured(2)).built
    with pytest.raises(ModelError, match=r"10000 thresholds for each of 1000 outputs"):
        build_model(measured(1000))


def test_a_stop_ends_an_evaluation_at_the_next_batch() -> None:
    """A round that has closed needs no test: of the present weights or, in training, at the end of an epoch."""
    model = LocalModel(small_model().to_json())
    stop = threading.Event()
    steps: list[int] = []

    def each_step() -> None:
        steps.append(len(steps))
        if len(steps) == 2:
            stop.set()

    assert model.evaluate(model.weights(), examples(64 * 5), stop=stop, each_step=each_step) is None
    assert len(steps) == 2
