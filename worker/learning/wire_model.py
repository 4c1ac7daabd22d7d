"""Builds a model that came over the wire, and nothing else that such a text could build."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from broker.errors import ModelError
from broker.model.allowlist import check_model_json
from broker.model.limits import MAX_INPUT_ELEMENTS
from broker.model.trust import NOTHING, Trusted
from worker.tensorflow import load_keras

MAX_ORTHOGONAL_WORK = 2**38  #: of all orthogonal initializers, rows × columns²: a minute and a half
MAX_THRESHOLDS = 2**22  #: of one metric, for all outputs together
MAX_PARAMETERS = 2**29  #: 2 GiB of float32; the optimizer may hold that three times more


def build_model(model_json: str, trusted: Trusted = NOTHING) -> Any:
    """Build a model from Keras's JSON, compiled as its compile settings say.

    Args:
        model_json: What `model.to_json()` gave on a compiled model.
        trusted: Registered names of parts of one's own that may occur.

    Returns:
        The compiled `keras.Model`, with freshly initialised weights.

    Raises:
        ModelError: The JSON holds something not allowed, is too large for a machine, or Keras can't build it.
    """
    config = check_model_json(model_json, trusted)
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
    # at the next occasion. With the thread, the list is gone. No pool's thread, which a process waits for at its end.
    looked: Future[None] = Future()

    def look() -> None:
        try:
            _check_draft(keras, config)
            looked.set_result(None)
        except Exception as exc:  # noqa: BLE001 - carried to the thread that waits
            looked.set_exception(exc)

    threading.Thread(target=look, name="draft", daemon=True).start()
    looked.result()


def _check_draft(keras: Any, config: dict[str, Any]) -> None:
    bare = {key: value for key, value in config.items() if key != "compile_config"}
    with keras.StatelessScope(initialize_variables=False):
        draft = _deserialize(keras, bare)
        parameters = sum(math.prod(weight.shape) for weight in draft.weights)
        _check_work(keras, draft.weights)
    if parameters > MAX_PARAMETERS:
        raise ModelError(f"The model has {parameters} parameters; at most {MAX_PARAMETERS} are allowed.")
    outputs = max((_elements(output.shape) for output in draft.outputs), default=0)
    _check_metrics(config.get("compile_config"), outputs)
    for layer in _every_layer(draft):
        _check_output(layer)


def _check_work(keras: Any, weights: list[Any]) -> None:
    """What costs more than the size of a weight: to draw it orthogonal, or to keep it so."""
    orthogonal = keras.initializers.Orthogonal
    shapes = [_as_matrix(each) for each in weights if isinstance(each._initializer, orthogonal)]
    work = sum(max(shape) * min(shape) ** 2 for shape in shapes)
    if work > MAX_ORTHOGONAL_WORK:
        raise ModelError(
            f"The model's orthogonal initializers take {work:.2g} steps for {_largest(weights, orthogonal)} and the "
            f"like; at most {MAX_ORTHOGONAL_WORK:.2g} are allowed."
        )
    for each in weights:
        if isinstance(each.regularizer, keras.regularizers.OrthogonalRegularizer):
            side = each.shape[0 if each.regularizer.mode == "rows" else -1]
            if side**2 > MAX_INPUT_ELEMENTS:
                raise ModelError(
                    f"The orthogonal regularizer of {each.path} makes {side}² numbers; at most "
                    f"{MAX_INPUT_ELEMENTS} are allowed."
                )


def _check_metrics(settings: Any, outputs: int) -> None:
    """A metric may keep numbers for each threshold and output."""
    if isinstance(settings, list):
        for each in settings:
            _check_metrics(each, outputs)
    elif isinstance(settings, dict):
        given = settings.get("thresholds")
        number = settings.get("num_thresholds")
        thresholds = max(
            number if isinstance(number, int) else 0, len(given) if isinstance(given, list) else 0
        )
        if thresholds * outputs > MAX_THRESHOLDS:
            raise ModelError(
                f"A metric has {thresholds} thresholds for each of {outputs} outputs; at most {MAX_THRESHOLDS} "
                "are allowed in all."
            )
        _check_metrics(list(settings.values()), outputs)


def _as_matrix(weight: Any) -> tuple[int, int]:
    *rows, columns = weight.shape
    return math.prod(rows), columns


def _largest(weights: list[Any], initializer: type) -> str:
    drawn = [each for each in weights if isinstance(each._initializer, initializer)]
    largest: str = max(drawn, key=lambda each: math.prod(each.shape)).path
    return largest


def _every_layer(model: Any) -> Iterator[Any]:
    """Layers and operations, with those inside of models."""
    functional = getattr(model, "_functional", None) or model
    for each in getattr(functional, "operations", model.layers):
        yield from _every_layer(each) if hasattr(each, "layers") else (each,)


def _check_output(layer: Any) -> None:
    for shape in _output_shapes(layer):
        elements = _elements(shape)
        if elements > MAX_INPUT_ELEMENTS:
            raise ModelError(
                f"Layer {layer.name} gives {elements} numbers; at most {MAX_INPUT_ELEMENTS} are allowed."
            )


def _elements(shape: tuple[int | None, ...]) -> int:
    """Numbers that belong to one example."""
    return math.prod(size for size in shape[1:] if size is not None)


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
