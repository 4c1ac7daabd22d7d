"""Builds a model that came over the wire, and nothing else that such a text could build."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from broker.errors import ModelError
from broker.model.allowlist import MAX_INPUT_ELEMENTS, check_model_json
from worker.tensorflow import load_keras

MAX_PARAMETERS = 2**29  #: 2 GiB of float32; the optimizer may hold that three times more


def build_model(model_json: str) -> Any:
    """Build a model from Keras's JSON, compiled as its compile settings say.

    Args:
        model_json: What `model.to_json()` gave on a compiled model.

    Returns:
        The compiled `keras.Model`, with freshly initialised weights.

    Raises:
        ModelError: The JSON holds something not allowed, is too large for a machine, or Keras can't build it.
    """
    config = check_model_json(model_json)
    keras = load_keras()
    _check_size(keras, config)
    model = _deserialize(keras, config)
    if not model.built or getattr(model, "optimizer", None) is None:
        raise ModelError(
            "The model has no input shape or no compile settings. Try model.compile(...) before saving it."
        )
    return model


def _check_size(keras: Any, config: dict[str, Any]) -> None:
    """Build it once without memory for its variables, and look how large it would be."""
    # In a thread of its own: Keras keeps a list of variables without memory per thread, and fills all of them
    # at the next occasion. With the thread, the list is gone.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_check_draft, keras, config).result()


def _check_draft(keras: Any, config: dict[str, Any]) -> None:
    bare = {key: value for key, value in config.items() if key != "compile_config"}
    with keras.StatelessScope(initialize_variables=False):
        draft = _deserialize(keras, bare)
        parameters = sum(math.prod(weight.shape) for weight in draft.weights)
    if parameters > MAX_PARAMETERS:
        raise ModelError(f"The model has {parameters} parameters; at most {MAX_PARAMETERS} are allowed.")
    for layer in _every_layer(draft):
        _check_output(layer)


def _every_layer(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from _every_layer(layer) if hasattr(layer, "layers") else (layer,)


def _check_output(layer: Any) -> None:
    for shape in _output_shapes(layer):
        elements = math.prod(size for size in shape[1:] if size is not None)
        if elements > MAX_INPUT_ELEMENTS:
            raise ModelError(
                f"Layer {layer.name} gives {elements} numbers; at most {MAX_INPUT_ELEMENTS} are allowed."
            )


def _output_shapes(layer: Any) -> list[tuple[int | None, ...]]:
    try:
        output = layer.output
    except (AttributeError, ValueError):
        return []  # never called on its own, as one that a wrapper holds
    values = output if isinstance(output, list | tuple) else [output]
    return [value.shape for value in values if hasattr(value, "shape")]


def _deserialize(keras: Any, config: dict[str, Any]) -> Any:
    # Keras changes the config it reads, and raises whatever its layers raise: any of it means a wrong model.
    try:
        return keras.saving.deserialize_keras_object(_copy(config), safe_mode=True)
    except Exception as exc:
        raise ModelError(f"Keras can't build the model. {type(exc).__name__}: {_first_line(exc)}") from exc


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n", 1)[0][:300]
