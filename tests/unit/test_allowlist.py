"""What a model from the wire may hold; JSON alone, no TensorFlow."""

import copy
import json
from typing import Any

import pytest

from broker.errors import ModelError
from broker.model.allowlist import MAX_DEPTH, check_config, check_model_json
from broker.model.limits import MAX_LAYERS


def part(module: str, class_name: str, **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def layer(class_name: str, **config: Any) -> dict[str, Any]:
    return part("keras.layers", class_name, **config)


def model(*layers: dict[str, Any], **compile_config: Any) -> dict[str, Any]:
    settings = {
        "optimizer": part("keras.optimizers", "SGD", learning_rate=0.1),
        "loss": "mse",
        "metrics": ["acc"],
    }
    return {
        **part("keras", "Sequential", layers=[layer("InputLayer", batch_shape=[None, 8, 8, 1]), *layers]),
        "build_config": {"input_shape": [None, 8, 8, 1]},
        "compile_config": settings | compile_config,
    }


GOOD_DENSE = layer(
    "Dense",
    units=2,
    activation="softmax",
    dtype=part("keras", "DTypePolicy", name="float32"),
    kernel_initializer=part("keras.initializers", "GlorotUniform", seed=None),
    kernel_regularizer=part("keras.regularizers", "L2", l2=0.01),
    kernel_constraint=part("keras.constraints", "MaxNorm", max_value=2),
    quantization_config=None,
)
SCHEDULE = part("keras.optimizers.schedules", "CosineDecay", initial_learning_rate=0.1, decay_steps=9)
TENSOR = {
    "class_name": "__keras_tensor__",
    "config": {"shape": [None, 8], "dtype": "float32", "keras_history": ["a", 0, 0]},
}


@pytest.mark.parametrize(
    "config",
    [
        model(GOOD_DENSE),
        model(GOOD_DENSE, optimizer="adam", loss=part("keras.losses", "CategoricalCrossentropy")),
        model(GOOD_DENSE, optimizer=part("keras.optimizers", "Adam", learning_rate=SCHEDULE)),
        model(GOOD_DENSE, metrics=[["accuracy"], part("keras.metrics", "AUC")], loss={"out": "mse"}),
        model(model(layer("RandomFlip", mode="horizontal", seed=None)), GOOD_DENSE),
        model({**layer("Add"), "inbound_nodes": [{"args": [[TENSOR, TENSOR]], "kwargs": {"mask": None}}]}),
        model({**part("keras.src.ops.numpy", "Multiply", name="multiply"), "registered_name": "Multiply"}),
        model(layer("TimeDistributed", layer=GOOD_DENSE)),
        model({**GOOD_DENSE, "shared_object_id": 140_472_345_113_040}),
        model(
            layer(
                "Rescaling", scale={"class_name": "__numpy__", "config": {"value": [1], "dtype": "float32"}}
            )
        ),
    ],
)
def test_models_of_built_in_parts_pass(config: dict[str, Any]) -> None:
    """Layers, their settings, nested models and compile settings pass if Keras brings every one of them."""
    check_config(config)


FUNCTION = {
    "class_name": "function",
    "module": "builtins",
    "config": "softmax",
    "registered_name": "function",
}
LAMBDA = {"class_name": "__lambda__", "config": {"value": ["4wAA", None, None]}}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (model(layer("Lambda", function=LAMBDA)), "Lambda"),
        (model(layer("Activation", activation=LAMBDA)), "__lambda__"),
        (model(layer("TFSMLayer", filepath="/tmp/x")), "TFSMLayer"),
        (model(layer("TorchModuleWrapper", wrapped={})), "TorchModuleWrapper"),
        (model(layer("JaxLayer")), "JaxLayer"),
        (model(layer("FlaxLayer")), "FlaxLayer"),
        (model(layer("StringLookup", vocabulary="/etc/passwd")), "StringLookup"),
        (model(layer("TextVectorization", vocabulary="/etc/passwd")), "TextVectorization"),
        (model(part("os", "system")), "system"),
        (model(part("keras.layersx", "Dense")), "Dense"),
        (model(part("kerasx.layers", "Dense")), "Dense"),
        (model(part("keras.utils", "get_file")), "get_file"),
        (model({**layer("Dense"), "registered_name": "mine>Dense"}), "mine>Dense"),
        (model({**layer("Dense"), "module": None}), "Dense"),
        (model({"class_name": "Dense", "config": {}}), "Dense"),
        (model({"module": "keras.layers", "registered_name": "x"}), "without class_name"),
        (model(layer("Dense", kernel_initializer=part("mine", "Init"))), "Init"),
        (model(layer("Dense", dtype=part("keras", "QuantizedDTypePolicy"))), "QuantizedDTypePolicy"),
        (model(layer("Activation", activation="mine")), "mine"),
        (model(layer("Activation", activation={**FUNCTION, "config": "eval"})), "eval"),
        (model(layer("Activation", activation={**FUNCTION, "module": "os"})), "os"),
        (model(layer("Activation", activation={**FUNCTION, "registered_name": "a>b"})), "softmax"),
        (model(layer("Rescaling", scale={"class_name": "__typespec__", "config": []})), "__typespec__"),
        (model(layer("Rescaling", s={"class_name": "__numpy__", "config": {"dtype": "object"}})), "object"),
        (
            model(
                layer(
                    "Rescaling", s={"class_name": "__tensor__", "config": {"dtype": "int8", "value": ["x"]}}
                )
            ),
            "holds text",
        ),
        (model(GOOD_DENSE, loss="mine"), "mine"),
        (model(GOOD_DENSE, loss=["mse", "mine"]), "mine"),
        (model(GOOD_DENSE, loss=part("mine", "Loss")), "Loss"),
        (model(GOOD_DENSE, metrics=["acc", ["mine"]]), "mine"),
        (model(GOOD_DENSE, weighted_metrics={"out": "mine"}), "mine"),
        (model(GOOD_DENSE, optimizer="mine"), "mine"),
        (model(GOOD_DENSE, optimizer=part("keras.optimizers", "Mine")), "Mine"),
        (model(GOOD_DENSE, callbacks=[]), "callbacks"),
        ({**model(GOOD_DENSE), "class_name": "Mine"}, "Mine"),
        (part("keras.layers", "Dense"), "Dense"),
        ([], "list"),
    ],
)
def test_anything_else_is_refused_by_name(config: Any, named: str) -> None:
    """Whatever could run code, read a file or import a class is refused, and the message names it."""
    with pytest.raises(ModelError) as refused:
        check_config(config)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        model(layer("Dense", units=2**20 + 1)),
        model(layer("Dropout", seed=2**31)),
        model(layer("Reshape", target_shape=[2**14, 2**14])),
        model(layer("InputLayer", batch_shape=[None, 9000, 9000, 1])),
        model(*[layer("Dropout")] * MAX_LAYERS),
    ],
)
def test_absurd_sizes_are_refused(config: dict[str, Any]) -> None:
    """A few bytes of JSON must not ask for more memory or time than a machine has."""
    with pytest.raises(ModelError):
        check_config(config)


ORTHOGONAL = part("keras.initializers", "Orthogonal", gain=1.0, seed=None)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            layer("SpectralNormalization", name="sn", layer=GOOD_DENSE, power_iterations=2**30),
            "power_iterations = 1073741824 in SpectralNormalization 'sn', which Warren does not run. Expected at most "
            "100.",
        ),
        (
            layer("SpectralNormalization", layer=GOOD_DENSE, power_iterations=1e9),
            "power_iterations = 1000000000.0",
        ),
        (
            layer(
                "SpectralNormalization",
                layer=GOOD_DENSE,
                power_iterations={"class_name": "__numpy__", "config": {"value": 2**30, "dtype": "int32"}},
            ),
            "Expected a plain number",
        ),
        (
            layer("Dense", name="d", units=12_000, kernel_initializer=ORTHOGONAL),
            "12000 units with an orthogonal initializer in Dense 'd', which Warren does not run. Expected at most "
            "4096.",
        ),
        (layer("Dense", units=12_000, kernel_initializer="orthogonal"), "orthogonal"),
        (layer("Embedding", output_dim=12_000, embeddings_initializer=ORTHOGONAL), "orthogonal"),
        (layer("LSTM", units=12_000, recurrent_activation="sigmoid"), "orthogonal"),
        (layer("LSTM", name="l", units=4, unroll=True), "unroll = True in LSTM 'l'"),
        (layer("MultiHeadAttention", num_heads=2**20, key_dim=1), "num_heads"),
        (layer("GroupQueryAttention", num_key_value_heads=2**20, head_dim=1), "num_key_value_heads"),
        (layer("Conv2D", filters=1, kernel_size=[1, 2**20]), "kernel_size = 1048576"),
        (layer("Conv2D", filters=1, kernel_size=[512, 512]), "65536 points"),
        (layer("RandomGaussianBlur", kernel_size=2**20), "kernel_size"),
        (layer("Conv2D", filters=1, dilation_rate=[2**20, 1]), "dilation_rate"),
        (layer("MaxPooling2D", pool_size=[2**20, 1]), "pool_size"),
        (layer("AdaptiveMaxPooling1D", output_size=2**20), "output_size"),
        (layer("UpSampling2D", size=[2**20, 2]), "size = 1048576"),
        (layer("ZeroPadding2D", padding=[[2**20, 0], [0, 0]]), "padding"),
        (layer("Resizing", height=2**20, width=1), "height"),
        (layer("RepeatVector", n=2**30), "n = 1073741824"),
        (layer("Discretization", num_bins=2**30), "num_bins"),
        (layer("Discretization", bin_boundaries=[0.5] * 65_537), "65537 bin_boundaries"),
        (layer("Equalization", bins=2**30), "bins"),
        (layer("STFTSpectrogram", fft_length=2**30), "fft_length"),
        (layer("MelSpectrogram", num_mel_bins=2**20), "num_mel_bins"),
        (layer("Dropout", anything_new=2**30), "anything_new"),
    ],
)
def test_what_would_never_end_is_refused_by_layer_and_limit(config: dict[str, Any], named: str) -> None:
    """Whatever Keras counts or loops over by a number has a limit; what comes with a later Keras has one, too."""
    with pytest.raises(ModelError) as refused:
        check_config(model(config))
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"metrics": [part("keras.metrics", "AUC", num_thresholds=2**26)]}, "num_thresholds = 67108864 in AUC"),
        ({"metrics": [part("keras.metrics", "Recall", thresholds=[0.5] * 10_001)]}, "10001 thresholds"),
        ({"metrics": [part("keras.metrics", "MeanIoU", num_classes=2**20)]}, "num_classes"),
        ({"metrics": ["acc"] * 101}, "101 metrics"),
        ({"steps_per_execution": 2**30}, "steps_per_execution"),
        ({"optimizer": part("keras.optimizers", "Muon", ns_steps=2**30)}, "ns_steps"),
        (
            {
                "optimizer": part(
                    "keras.optimizers",
                    "SGD",
                    learning_rate=part("keras.optimizers.schedules", "PiecewiseConstantDecay", boundaries=[1] * 1001),
                )
            },
            "1001 boundaries",
        ),
    ],
)  # fmt: skip
def test_compile_settings_that_would_never_end_are_refused(settings: dict[str, Any], named: str) -> None:
    """Metrics, schedules and optimizers loop, too."""
    with pytest.raises(ModelError) as refused:
        check_config(model(GOOD_DENSE, **settings))
    assert named in str(refused.value)


def test_values_are_no_counts() -> None:
    """A seed, a schedule's steps, a mean or a scale may be as large as a number is."""
    large = 2**31 - 1
    check_config(
        model(
            layer("Dropout", rate=0.5, seed=large),
            layer("Rescaling", scale=large, offset=-large),
            layer("Normalization", mean=[large], variance=[large]),
            GOOD_DENSE,
            optimizer=part(
                "keras.optimizers",
                "SGD",
                learning_rate=part("keras.optimizers.schedules", "CosineDecay", decay_steps=large),
            ),
        )
    )


def called(inner: dict[str, Any], times: int) -> dict[str, Any]:
    """A model that calls this one so often."""
    node = {"args": [TENSOR], "kwargs": {}}
    return model({**inner, "inbound_nodes": [node] * times})


def doubled(levels: int) -> dict[str, Any]:
    """Models inside of models, each calls the one in it twice."""
    config = model(GOOD_DENSE)
    for _ in range(levels):
        config = called(config, 2)
    return config


@pytest.mark.parametrize("config", [doubled(20), called(model(GOOD_DENSE), 10_000)], ids=["doubled", "often"])
def test_few_lines_that_mean_billions_of_layers_are_refused(config: dict[str, Any]) -> None:
    """A model is built as often as it is called, with all that is in it: 20 levels of 2 are a million."""
    with pytest.raises(ModelError, match="more than 10000 calls of layers"):
        check_config(config)


def test_wrappers_that_copy_count_for_each_copy() -> None:
    """Bidirectional makes what it wraps three times: nested, that multiplies."""
    config = GOOD_DENSE
    for _ in range(9):
        config = layer("Bidirectional", layer=config)
    with pytest.raises(ModelError, match="more than 10000 calls of layers"):
        check_config(model(config))


def test_layers_that_are_shared_a_few_times_pass() -> None:
    """Siamese models and the like are what sharing is for."""
    check_config(doubled(3))


def test_deep_nesting_is_refused() -> None:
    """Models inside models are followed to a fixed depth, and refused below it, without recursion."""
    config = model(GOOD_DENSE)
    for _ in range(MAX_DEPTH):
        config = model(config)
    with pytest.raises(ModelError, match="levels deep"):
        check_config(config)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"x"', "null", " " * (16 * 2**20 + 1)])
def test_text_that_is_no_model_is_refused(text: str) -> None:
    """Broken, endless or empty JSON is one line of ModelError, never a traceback."""
    with pytest.raises(ModelError):
        check_model_json(text)


def test_checking_changes_nothing() -> None:
    """The checked config is what the JSON says."""
    config = model(GOOD_DENSE)
    assert check_model_json(json.dumps(config)) == copy.deepcopy(config)
