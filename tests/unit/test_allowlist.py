"""What a model from the wire may hold; JSON alone, no TensorFlow."""

import copy
import json
from typing import Any

import pytest

from broker.errors import ModelError
from broker.model.allowlist import MAX_DEPTH, MAX_LAYERS, check_config, check_model_json


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
