"""A task's model made, described and built again; called in the child, or in process for a simulation."""

import functools
import importlib
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import ModelError, UsageError
from broker.model.allowlist import check_model_json, parts_in
from broker.model.archive import read_config
from broker.model.arrays import NPZ, arrays_text
from broker.model.card import read_card
from broker.model.kinds import adapt_sole_normalization, apply_kinds, layout_of, renew_adapted
from broker.model.needs import needs_of
from broker.model.trust import Trusted, trust, without_unused
from broker.wire.fields import to_plain
from broker.wire.tensors import Array
from coordinator.keras.arrays import layout_of_arrays, read_arrays, started_from
from coordinator.keras.form import check_form, check_training
from coordinator.keras.vocabulary import carry_vocabularies

Normalization = dict[str, list[float]]  #: "means" and "variances", one of each feature
_trusted_modules: list[str] = []


def trust_modules(modules: Sequence[str]) -> None:
    """What these register may occur in this process's models from now on; nothing of anybody's own does before.

    Args:
        modules: Installed, or in the current folder.
    """
    _trusted_modules.extend(each for each in modules if each not in _trusted_modules)


def _trusted() -> Trusted:
    """What the trusted modules register."""
    return _registered_by(tuple(_trusted_modules))


@functools.cache
def _registered_by(modules: tuple[str, ...]) -> Trusted:
    return trust(modules)


def keras_here() -> Any:
    """Import Keras at the first need.

    Raises:
        ModelError: It isn't here.
    """
    try:
        with without_unused():
            import keras
    except ImportError as exc:
        raise ModelError(f"A Keras model needs TensorFlow: {exc}. Try pip install tensorflow.") from exc
    return keras


def describe(
    given: Any,
    initial_model: str | None,
    normalization: Normalization | None,
    private: Sequence[str],
) -> tuple[dict[str, Any], list[Array]]:
    """What the coordinator is to know of a model, and its initial weights in the order of its layout.

    Args:
        given: What the task gave: a Keras model, which is left as it is, or a mapping of names to arrays.
        initial_model: A file whose weights to start from.
        normalization: Means and variances for its Normalization layer.
        private: Patterns of weights that stay at the workers.

    Raises:
        UsageError: Weights of a task of arrays are to be private.
        ModelError: No worker could train it, or the weights to start from don't fit.
    """
    if isinstance(given, Mapping):
        if normalization is not None:
            raise ModelError("A task of arrays has no Normalization layer. Try without --normalize.")
        if private:
            raise UsageError("--private names weights of a Keras model. A task of arrays has none.")
        return _describe_arrays(given, initial_model)
    check_form(given)
    text = _to_json(given)
    copy = from_json(text)
    _check_copy(given, copy)
    layout = layout_of(given, private)
    apply_kinds(copy, layout)
    warnings = check_training(copy)
    needs = needs_of(given)
    weights = _values(given) if initial_model is None else _weights_for(given, Path(initial_model))
    if normalization is not None:
        weights = _normalized(given, normalization)
    answer = {
        "model_json": text,
        "layout": [to_plain(spec) for spec in layout],
        "input_shape": list(given.input_shape[1:]) if needs.num_classes else [],
        "needs": to_plain(needs),
        "parts": parts_in(json.loads(text), _trusted()),
        "num_parameters": int(given.count_params()),
        "inputs": _trained_on(initial_model),
        "warnings": warnings,
    }
    return answer, weights


def _normalized(model: Any, normalization: Normalization) -> list[Array]:
    """The weights with the Normalization layer set; the model itself is left as it is."""
    former = _values(model)
    adapt_sole_normalization(model, **normalization)
    weights = _values(model)
    set_weights(model, former)
    return weights


def _describe_arrays(
    given: Mapping[Any, Any], initial_model: str | None
) -> tuple[dict[str, Any], list[Array]]:
    """A task of named arrays, which the sites' own trainers train."""
    arrays = read_arrays(given)
    if initial_model is not None:
        arrays = started_from(arrays, Path(initial_model))
    answer = {
        "model_json": arrays_text(arrays),
        "layout": [to_plain(spec) for spec in layout_of_arrays(arrays)],
        "input_shape": [],
        "needs": None,
        "parts": [],
        "num_parameters": sum(array.size for array in arrays.values()),
        "inputs": None,
        "warnings": [],
    }
    return answer, list(arrays.values())


def given_by(kind: str, source: str, seed: int) -> Any:
    """What a task gives: a Keras model, or a mapping of names to arrays; see `Task`.

    Raises:
        UsageError: There is no such module, function or file.
        ModelError: It is no model of built-in parts, or its code raised.
    """
    if kind == "file":
        keras_here().utils.set_random_seed(seed)
        return _load(Path(source))
    return given_by_function(source, _function(source), seed)


def given_by_function(name: str, function: Callable[[], Any], seed: int) -> Any:
    """What a task's function gives, with all random numbers seeded.

    A function of arrays is to need no Keras. So where its module brings none it is called without; should it give a
    Keras model then, it is called once more, for seeds that were set before Keras came are not the run's.

    Raises:
        ModelError: It raised.
    """
    if "keras" not in sys.modules:
        random.seed(seed)
        np.random.seed(seed)
        given = _called(name, function)
        if isinstance(given, Mapping):
            return given
    keras_here().utils.set_random_seed(seed)
    return _called(name, function)


def _trained_on(initial_model: str | None) -> dict[str, Any] | None:
    """What the examples of a model to start from were like, if its card says so."""
    card = read_card(Path(initial_model)) if initial_model is not None else None
    return to_plain(card.inputs) if card is not None and card.inputs is not None else None


def _function(source: str) -> Callable[[], Any]:
    """Find MODULE:FUNCTION.

    Raises:
        UsageError: There is no such module or function.
        ModelError: The module raised.
    """
    module_name, name = source.split(":")
    module = _import(module_name)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(
            f"Module {module_name} has no function {name!r}. Expected MODULE:FUNCTION as the task.{_origin(module)}"
        )
    found: Callable[[], Any] = function
    return found


def _called(source: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as exc:  # a person's own code may raise anything
        raise _raised(source, exc) from exc


def _origin(module: Any) -> str:
    """Where a module was found: another one than was meant, if the person's own has the name of an installed one."""
    file = getattr(module, "__file__", None)
    return f" The module is {file}." if file else ""


def _import(module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as exc:
        if isinstance(exc, ModuleNotFoundError) and exc.name and module_name.startswith(exc.name):
            raise UsageError(
                f"There is no module {exc.name!r}. Try from its folder, or set PYTHONPATH."
            ) from exc
        raise _raised(f"Importing {module_name}", exc) from exc


def _raised(what: str, exc: Exception) -> ModelError:
    is_missing = isinstance(exc, ModuleNotFoundError) and exc.name in ("keras", "tensorflow")
    advice = ". Keras models need TensorFlow: try pip install tensorflow." if is_missing else ""
    return ModelError(f"{what} raised {one_line(exc)}{advice}")


def _load(path: Path) -> Any:
    """Load a .keras file whose config is allowed; Keras's safe mode stays on.

    Raises:
        UsageError: There is no such file.
        ModelError: It is no model of built-in parts, or can't be read.
    """
    if not path.is_file():
        raise UsageError(f"There is no model file {str(path)!r}.")
    if path.suffix == NPZ:
        raise ModelError(f"{path.name} holds arrays, and the task is a Keras model. Try a model.keras.")
    read_config(path, _trusted())
    keras = keras_here()
    try:
        return keras.saving.load_model(path, safe_mode=True)
    except Exception as exc:  # whatever Keras's layers raise means a wrong file
        raise ModelError(f"Keras can't load {path.name}: {one_line(exc)}") from exc


def _to_json(model: Any) -> str:
    """The model's JSON, checked as every worker checks it."""
    try:
        text = str(model.to_json())
        config = json.loads(text)
        if carry_vocabularies(model, config):
            text = json.dumps(config)
    except Exception as exc:  # a custom part that can't be written
        raise ModelError(f"The model can't be written as JSON, so it can't be sent: {one_line(exc)}") from exc
    check_model_json(text, _trusted())
    return text


def from_json(text: str) -> Any:
    """Build a model from its JSON, compiled, of allowed parts alone.

    Raises:
        ModelError: It holds something else, or Keras can't build it.
    """
    keras = keras_here()
    try:
        return keras.saving.deserialize_keras_object(check_model_json(text, _trusted()), safe_mode=True)
    except Exception as exc:  # see _load
        raise ModelError(f"Keras can't rebuild the model from its JSON: {one_line(exc)}") from exc


def _check_copy(model: Any, copy: Any) -> None:
    """What the workers build must have the same weights in the same order."""
    ours, theirs = ([tuple(weight.shape) for weight in each.weights] for each in (model, copy))
    if ours != theirs:
        raise ModelError(
            f"The model changes when it is rebuilt from its JSON: {len(ours)} and {len(theirs)} weights."
        )


def _weights_for(model: Any, path: Path) -> list[Array]:
    """The weights of another model, which fit this one."""
    values = _values(_load(path))
    shapes, received = [value.shape for value in _values(model)], [value.shape for value in values]
    if shapes != received:
        raise ModelError(
            f"The weights of {path.name} don't fit the task's model. Expected {shapes}, received {received}."
        )
    return values


def _values(model: Any) -> list[Array]:
    return [weight.numpy() for weight in model.weights]


def set_weights(model: Any, values: list[Array]) -> None:
    """Set a model's weights, in Keras's order."""
    for weight, value in zip(model.weights, values, strict=True):
        weight.assign(value)
    renew_adapted(model)


def one_line(exc: Exception) -> str:
    """An exception as one line of a message."""
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:400]}"
