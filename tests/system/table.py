"""The table of models: every kind that Keras trains with `fit`, each as small as it can be, with its data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worker.tensorflow import load_keras

NUM_EXAMPLES = 20
TEXTS = np.array(["good and fine", "bad", "very good", "so bad so bad", "fine"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A compiled model, and what a site has for it.

    Attributes:
        arrays: As they lie in an .npz: x_train.NAME, y_train.NAME, sample_weight_train, …
        x: What `fit` is given.
        is_general: It is no classifier of one array with class numbers.
    """

    model: Any
    arrays: dict[str, Any]
    x: Any
    y: Any
    weights: Any = None
    is_general: bool = True
    trusted: tuple[str, ...] = field(default=())


TABLE: dict[str, Callable[[], Case]] = {}


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    TABLE[function.__name__] = function
    return function


def keras() -> Any:
    return load_keras()


def layers() -> Any:
    return load_keras().layers


def numbers(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(size=(NUM_EXAMPLES, *shape)).astype(np.float32)


def labels(count: int, *shape: int) -> Any:
    return np.arange(NUM_EXAMPLES * int(np.prod(shape))).reshape(NUM_EXAMPLES, *shape) % count


def tokens(length: int = 5) -> Any:
    return np.random.default_rng(9).integers(0, 9, (NUM_EXAMPLES, length))


def texts() -> Any:
    return np.resize(TEXTS, NUM_EXAMPLES)


def compiled(model: Any, loss: Any, rate: float = 0.1, **more: Any) -> Any:
    model.compile(keras().optimizers.SGD(rate, momentum=0.5), loss, **more)
    return model


def alone(model: Any, x: Any, y: Any, *, weights: Any = None, is_general: bool = True, **more: Any) -> Case:
    """One array each."""
    arrays = {"x_train": x, "y_train": y} | ({} if weights is None else {"sample_weight_train": weights})
    return Case(model=model, arrays=arrays, x=x, y=y, weights=weights, is_general=is_general, **more)


def dense(*units: int, activation: str = "softmax", shape: tuple[int, ...] = (4,)) -> Any:
    inner = [layers().Dense(each, activation="tanh") for each in units[:-1]]
    return keras().Sequential(
        [keras().Input(shape), *inner, layers().Dense(units[-1], activation=activation)]
    )


# --- classifiers of one array with class numbers ----------------------------------------------------------------


def classifier(model: Any, loss: Any, x: Any, count: int = 3, weights: Any = None, **more: Any) -> Case:
    more.setdefault("metrics", ["accuracy"])
    y = labels(count)
    given = compiled(model, loss, **more)
    one_hot = np.eye(count, dtype=np.float32)[y] if "sparse" not in str(loss).lower() and count > 2 else y
    arrays = {"x_train": x, "y_train": y} | ({} if weights is None else {"sample_weight_train": weights})
    if count == 2:
        one_hot = y.astype(np.float32)[:, np.newaxis]
    return Case(model=given, arrays=arrays, x=x, y=one_hot, weights=weights, is_general=False)


@case
def softmax() -> Case:
    return classifier(dense(6, 3), "sparse_categorical_crossentropy", numbers(4))


@case
def one_hot() -> Case:
    return classifier(dense(3), "categorical_crossentropy", numbers(4))


@case
def sigmoid() -> Case:
    return classifier(dense(1, activation="sigmoid"), "binary_crossentropy", numbers(4), 2, metrics=["auc"])


@case
def logits() -> Case:
    loss = keras().losses.SparseCategoricalCrossentropy(from_logits=True)
    return classifier(dense(3, activation="linear"), loss, numbers(4))


@case
def weighted_classes() -> Case:
    weights = np.linspace(0, 2, NUM_EXAMPLES).astype(np.float32)
    return classifier(dense(3), "sparse_categorical_crossentropy", numbers(4), weights=weights)


@case
def batch_norm() -> Case:
    inner = [
        keras().Input((4,)),
        layers().Dense(5),
        layers().BatchNormalization(),
        layers().Dense(3, "softmax"),
    ]
    return classifier(keras().Sequential(inner), "sparse_categorical_crossentropy", numbers(4))


@case
def frozen_backbone() -> Case:
    inputs = keras().Input((6, 6, 1))
    backbone = keras().Sequential(
        [keras().Input((6, 6, 1)), layers().Conv2D(3, 3), layers().BatchNormalization()]
    )
    backbone.trainable = False
    x = layers().GlobalAveragePooling2D()(backbone(inputs))
    return classifier(
        keras().Model(inputs, layers().Dense(3, "softmax")(x)),
        "sparse_categorical_crossentropy",
        numbers(6, 6, 1),
    )


@case
def low_rank_adapters() -> Case:
    model = dense(6, 3)
    model.layers[0].enable_lora(2)
    return classifier(model, "sparse_categorical_crossentropy", numbers(4))


@case
def mixed_precision() -> Case:
    inner = [layers().Dense(5, "tanh", dtype="mixed_float16"), layers().Dense(3, "softmax", dtype="float32")]
    return classifier(
        keras().Sequential([keras().Input((4,)), *inner]), "sparse_categorical_crossentropy", numbers(4)
    )


@case
def embedding() -> Case:
    inner = [layers().Embedding(9, 3), layers().GlobalAveragePooling1D(), layers().Dense(3, "softmax")]
    return classifier(
        keras().Sequential([keras().Input((5,)), *inner]), "sparse_categorical_crossentropy", tokens()
    )


@case
def recurrent() -> Case:
    inner = [keras().Input((5, 2)), layers().LSTM(4), layers().Dense(3, "softmax")]
    return classifier(keras().Sequential(inner), "sparse_categorical_crossentropy", numbers(5, 2))


@case
def steps_per_execution() -> Case:
    return classifier(dense(3), "sparse_categorical_crossentropy", numbers(4), steps_per_execution=2)


@case
def schedule() -> Case:
    given = classifier(dense(3), "sparse_categorical_crossentropy", numbers(4))
    rate = keras().optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    given.model.compile(keras().optimizers.SGD(rate), given.model.loss)
    return given


# --- numbers ----------------------------------------------------------------------------------------------------


@case
def regression() -> Case:
    model = compiled(dense(3, 1, activation="linear"), "mse", metrics=["mae", "r2_score"])
    return alone(model, numbers(4), numbers())


@case
def robust_regression() -> Case:
    return alone(compiled(dense(1, activation="linear"), keras().losses.Huber(0.5)), numbers(4), numbers(1))


@case
def several_numbers() -> Case:
    return alone(compiled(dense(3, activation="linear"), "mae"), numbers(4), numbers(3))


@case
def counts() -> Case:
    model = compiled(dense(1, activation="exponential"), "poisson", 0.01)
    return alone(model, numbers(4), labels(7).astype(np.int64)[:, np.newaxis])


@case
def weighted_numbers() -> Case:
    weights = np.linspace(0, 2, NUM_EXAMPLES).astype(np.float32)
    model = compiled(dense(1, activation="linear"), "mse", weighted_metrics=["mae"])
    return alone(model, numbers(4), numbers(1), weights=weights)


@case
def autoencoder() -> Case:
    x = numbers(6, 6, 1)
    inner = [
        keras().Input((6, 6, 1)),
        layers().Conv2D(2, 3, padding="same"),
        layers().Conv2DTranspose(1, 3, padding="same"),
    ]
    return alone(compiled(keras().Sequential(inner), "mse"), x, x)


# --- several labels an example ----------------------------------------------------------------------------------


@case
def multi_label() -> Case:
    model = compiled(
        dense(4, activation="sigmoid"), "binary_crossentropy", metrics=["binary_accuracy", "auc"]
    )
    return alone(model, numbers(4), labels(2, 4))


@case
def soft_labels() -> Case:
    y = np.abs(numbers(3))
    return alone(compiled(dense(3), "categorical_crossentropy"), numbers(4), y / y.sum(axis=1, keepdims=True))


# --- several inputs and outputs ---------------------------------------------------------------------------------


def two_inputs() -> tuple[Any, Any]:
    return keras().Input((3,), name="age"), keras().Input((2,), name="site")


def of_two(model: Any, y: Any, *, is_dict: bool) -> Case:
    x = {"age": numbers(3), "site": numbers(2)[:, ::-1]}
    arrays = {f"x_train.{name}": each for name, each in x.items()} | {"y_train": y}
    return Case(model=model, arrays=arrays, x=x if is_dict else list(x.values()), y=y)


@case
def inputs_in_a_dict() -> Case:
    age, site = two_inputs()
    output = layers().Dense(1)(layers().Concatenate()([age, site]))
    return of_two(
        compiled(keras().Model({"site": site, "age": age}, output), "mse"), numbers(1), is_dict=True
    )


@case
def inputs_in_a_list() -> Case:
    age, site = two_inputs()
    output = layers().Dense(3, "softmax")(layers().Concatenate()([age, site]))
    loss = "sparse_categorical_crossentropy"
    model = compiled(keras().Model([age, site], output), loss, metrics=["accuracy"])
    return of_two(model, labels(3), is_dict=False)


@case
def class_numbers_for_rows() -> Case:
    age, site = two_inputs()
    output = layers().Dense(3, "softmax")(layers().Concatenate()([age, site]))
    given = of_two(
        compiled(keras().Model([age, site], output), "categorical_crossentropy"), labels(3), is_dict=False
    )
    return Case(model=given.model, arrays=given.arrays, x=given.x, y=np.eye(3, dtype=np.float32)[given.y])


def two_outputs(*, is_dict: bool, **more: Any) -> Any:
    inputs = keras().Input((4,))
    price = layers().Dense(1, name="price")(inputs)
    kind = layers().Dense(3, "softmax", name="kind")(inputs)
    losses = {"price": "mse", "kind": "sparse_categorical_crossentropy"}
    outputs = {"price": price, "kind": kind} if is_dict else [price, kind]
    metrics = {"price": ["mae"], "kind": ["accuracy"]}
    return compiled(keras().Model(inputs, outputs), losses, metrics=metrics, **more)


def with_two(model: Any, y: dict[str, Any], weights: dict[str, Any] | None = None, *, is_dict: bool) -> Case:
    x = numbers(4)
    arrays = {"x_train": x} | {f"y_train.{name}": each for name, each in y.items()}
    arrays |= {f"sample_weight_train.{name}": each for name, each in (weights or {}).items()}
    return Case(
        model=model,
        arrays=arrays,
        x=x,
        y=y if is_dict else list(y.values()),
        weights=weights if is_dict or weights is None else list(weights.values()),
    )


@case
def outputs_in_a_dict() -> Case:
    return with_two(two_outputs(is_dict=True), {"price": numbers(1), "kind": labels(3)}, is_dict=True)


@case
def outputs_in_a_list() -> Case:
    model = two_outputs(is_dict=False, loss_weights={"price": 0.5, "kind": 2.0})
    return with_two(model, {"price": numbers(1), "kind": labels(3)}, is_dict=False)


@case
def weights_for_each_output() -> Case:
    weights = {"price": np.linspace(0, 1, NUM_EXAMPLES), "kind": np.linspace(1, 0, NUM_EXAMPLES)}
    y = {"price": numbers(1), "kind": labels(3)}
    return with_two(
        two_outputs(is_dict=False), y, {k: w.astype(np.float32) for k, w in weights.items()}, is_dict=False
    )


# --- texts, sequences, pictures of labels ------------------------------------------------------------------------


@case
def text_classes() -> Case:
    vectorize = layers().TextVectorization(output_sequence_length=4)
    vectorize.adapt(TEXTS)
    inner = [
        keras().Input((), dtype="string"),
        vectorize,
        layers().Embedding(20, 3),
        layers().GlobalAveragePooling1D(),
    ]
    model = keras().Sequential([*inner, layers().Dense(2, "softmax")])
    return alone(compiled(model, "sparse_categorical_crossentropy", metrics=["accuracy"]), texts(), labels(2))


@case
def text_numbers() -> Case:
    vectorize = layers().TextVectorization(output_mode="tf_idf")
    vectorize.adapt(TEXTS)
    model = keras().Sequential([keras().Input((1,), dtype="string"), vectorize, layers().Dense(1)])
    return alone(compiled(model, "mse"), texts()[:, np.newaxis], numbers(1))


@case
def named_categories() -> Case:
    lookup = layers().StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    inputs = keras().Input((1,), dtype="string", name="ward"), keras().Input((3,), name="values")
    joined = layers().Concatenate()([lookup(inputs[0]), inputs[1]])
    model = compiled(keras().Model(list(inputs), layers().Dense(1)(joined)), "mse")
    x = {"ward": np.resize(np.array(["a", "b", "c"]), (NUM_EXAMPLES, 1)), "values": numbers(3)}
    arrays = {f"x_train.{name}": each for name, each in x.items()} | {"y_train": numbers(1)}
    return Case(model=model, arrays=arrays, x=list(x.values()), y=numbers(1))


@case
def sequence_labels() -> Case:
    inner = [keras().Input((5, 2)), layers().GRU(4, return_sequences=True), layers().Dense(3, "softmax")]
    loss = "sparse_categorical_crossentropy"
    return alone(compiled(keras().Sequential(inner), loss, metrics=["accuracy"]), numbers(5, 2), labels(3, 5))


@case
def segmentation() -> Case:
    inner = [keras().Input((6, 6, 1)), layers().Conv2D(3, 3, padding="same", activation="softmax")]
    loss = "sparse_categorical_crossentropy"
    return alone(
        compiled(keras().Sequential(inner), loss), numbers(6, 6, 1), labels(3, 6, 6).astype(np.uint8)
    )


@case
def mask_of_any_size() -> Case:
    inner = [keras().Input((None, None, 1)), layers().Conv2D(1, 3, padding="same", activation="sigmoid")]
    model = compiled(keras().Sequential(inner), "binary_crossentropy", metrics=[keras().metrics.BinaryIoU()])
    return alone(model, numbers(6, 5, 1), labels(2, 6, 5))


@case
def any_length() -> Case:
    inner = [keras().Input((None, 2)), layers().GRU(3), layers().Dense(1)]
    return alone(compiled(keras().Sequential(inner), "mse"), numbers(7, 2), numbers(1))


@case
def masked_tokens() -> Case:
    inner = [
        keras().Input((None,)),
        layers().Embedding(9, 3, mask_zero=True),
        layers().LSTM(3),
        layers().Dense(3),
    ]
    loss = keras().losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
    return alone(compiled(keras().Sequential(inner), loss), tokens(6), labels(3))


# --- parts of one's own -----------------------------------------------------------------------------------------


@case
def operations() -> Case:
    ops, inputs = keras().ops, keras().Input((4,))
    joined = ops.concatenate([ops.sin(inputs), ops.square(inputs[:, :2]) * 0.5], axis=-1)
    total = ops.sum(inputs, axis=-1, keepdims=True)
    return alone(
        compiled(keras().Model(inputs, layers().Dense(1)(joined) + total), "mse"), numbers(4), numbers(1)
    )


@case
def trusted_parts() -> Case:
    from tests.system.parts import Gate, WithinHalf, pinball

    model = keras().Sequential([keras().Input((4,)), Gate(), layers().Dense(1)])
    given = compiled(model, pinball, metrics=[WithinHalf(), pinball])
    return alone(given, numbers(4), numbers(1), trusted=("tests.system.parts",))
