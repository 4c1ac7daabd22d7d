"""The coordinator's child process, for the coordinator never imports TensorFlow: builds and saves the model.

`coordinator.keras.process` starts it and talks to it: one JSON line a request on stdin, one JSON line a reply
on stdout. It ends when its stdin does, so it never outlives a coordinator, even a killed one.
"""

import functools
import importlib
import json
import os
import queue
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from broker.disk import sync
from broker.errors import ModelError, UsageError, WarrenError
from broker.model.allowlist import check_model_json, parts_in
from broker.model.archive import read_config
from broker.model.arrays import NPZ, arrays_text, is_arrays
from broker.model.card import ModelCard, read_card, write_card
from broker.model.kinds import adapt_sole_normalization, apply_kinds, layout_of, renew_adapted
from broker.model.needs import needs_of
from broker.model.trust import Trusted, trust
from broker.wire.fields import to_plain
from broker.wire.tensors import Array, unflatten
from coordinator.folder.history import flat, flat_workers
from coordinator.keras.arrays import layout_of_arrays, read_arrays, started_from, write_arrays
from coordinator.keras.curves import draw_curves, draw_workers
from coordinator.keras.form import check_form, check_training
from coordinator.keras.trial import made_up_examples, unanswered, unanswered_in_general, work_out
from coordinator.keras.vocabulary import carry_vocabularies

if TYPE_CHECKING:
    from coordinator.folder.checkpoint import Checkpoint

_LAST_SECONDS = 10  # what a request under way may still take once stdin has ended

Request = dict[str, Any]


def main() -> None:
    """Serve requests until stdin ends."""
    # Last, so that a person's json.py or broker.py here stands in for nobody else's; "" is where this process works.
    sys.path.append("")
    # Ctrl-C and a stop of the whole group are the coordinator's to handle; the end of stdin is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    replies = _claim_stdout()
    requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    done = threading.Event()
    threading.Thread(target=_read, args=(requests, done), daemon=True).start()
    while (request := requests.get()) is not None:
        replies.write(json.dumps(_answer(request)) + "\n")
        replies.flush()
    done.set()


def _claim_stdout() -> TextIO:
    """Keep stdout for replies; what a person's model code prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _read(requests: "queue.SimpleQueue[Request | None]", done: threading.Event) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    requests.put(None)
    if not done.wait(_LAST_SECONDS):
        os._exit(1)  # the coordinator is gone, and a request hangs


def _answer(request: Request) -> dict[str, Any]:
    try:
        return {"result": _OPERATIONS[request["op"]](request)}
    except WarrenError as exc:
        return {"error": type(exc).__name__, "text": str(exc)}
    except Exception as exc:  # noqa: BLE001 - a bug: its traceback is shown here, and its text there
        traceback.print_exc()
        return {"error": "bug", "text": f"{type(exc).__name__}: {exc}"}


@functools.cache
def _trusted() -> Trusted:
    """What the modules register that this process was started with."""
    return trust(sys.argv[1:])


def _warm(_request: Request) -> dict[str, Any]:
    """Import TensorFlow while the coordinator connects; where there is none, a task of arrays can still be trained."""
    try:
        import keras
    except ImportError:
        return {"keras": None}
    return {"keras": keras.__version__}


def _keras() -> Any:
    """Import Keras at the first need.

    Raises:
        ModelError: It isn't here.
    """
    try:
        import keras
    except ImportError as exc:
        raise ModelError(f"A Keras model needs TensorFlow: {exc}. Try pip install tensorflow.") from exc
    return keras


def _build(request: Request) -> dict[str, Any]:
    """Make the model of a task and its initial weights."""
    model = _given(request)
    if isinstance(model, Mapping):
        if request["private"]:
            raise UsageError("--private names weights of a Keras model. A task of arrays has none.")
        return _build_arrays(model, request)
    check_form(model)
    text = _to_json(model)
    copy = _from_json(text)
    _check_copy(model, copy)
    layout = layout_of(model, request["private"])
    apply_kinds(copy, layout)
    warnings = check_training(copy)
    needs = needs_of(model)
    if request["initial_model"] is not None:
        _take_weights(model, Path(request["initial_model"]))
    if request["normalization"] is not None:
        adapt_sole_normalization(model, **request["normalization"])
    np.savez(request["weights_path"], *(_values(model)))
    return {
        "model_json": text,
        "layout": [to_plain(spec) for spec in layout],
        "input_shape": list(model.input_shape[1:]) if needs.num_classes else [],
        "needs": to_plain(needs),
        "parts": parts_in(json.loads(text), _trusted()),
        "num_parameters": int(model.count_params()),
        "inputs": _trained_on(request["initial_model"]),
        "warnings": warnings,
    }


def _build_arrays(given: Mapping[Any, Any], request: Request) -> dict[str, Any]:
    """A task of named arrays, which the sites' own trainers train."""
    if request["normalization"] is not None:
        raise ModelError("A task of arrays has no Normalization layer. Try without --normalize.")
    arrays = read_arrays(given)
    if request["initial_model"] is not None:
        arrays = started_from(arrays, Path(request["initial_model"]))
    np.savez(request["weights_path"], *arrays.values())
    return {
        "model_json": arrays_text(arrays),
        "layout": [to_plain(spec) for spec in layout_of_arrays(arrays)],
        "input_shape": [],
        "needs": None,
        "parts": [],
        "num_parameters": sum(array.size for array in arrays.values()),
        "inputs": None,
        "warnings": [],
    }


def _given(request: Request) -> Any:
    """What a task gives: a Keras model, or a mapping of names to arrays.

    A function of arrays is to need no Keras. So where its module brings none it is called without; should it give a
    Keras model then, it is called once more, for seeds that were set before Keras came are not the run's.
    """
    if request["kind"] == "file":
        _keras().utils.set_random_seed(request["seed"])
        return _load(Path(request["source"]))
    function = _function(request["source"])
    if "keras" not in sys.modules:
        random.seed(request["seed"])
        np.random.seed(request["seed"])
        given = _called(request["source"], function)
        if isinstance(given, Mapping):
            return given
    _keras().utils.set_random_seed(request["seed"])
    return _called(request["source"], function)


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
    return ModelError(f"{what} raised {_one_line(exc)}{advice}")


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
    keras = _keras()
    try:
        return keras.saving.load_model(path, safe_mode=True)
    except Exception as exc:  # whatever Keras's layers raise means a wrong file
        raise ModelError(f"Keras can't load {path.name}: {_one_line(exc)}") from exc


def _to_json(model: Any) -> str:
    """The model's JSON, checked as every worker checks it."""
    try:
        text = str(model.to_json())
        config = json.loads(text)
        if carry_vocabularies(model, config):
            text = json.dumps(config)
    except Exception as exc:  # a custom part that can't be written
        raise ModelError(
            f"The model can't be written as JSON, so it can't be sent: {_one_line(exc)}"
        ) from exc
    check_model_json(text, _trusted())
    return text


def _from_json(text: str) -> Any:
    keras = _keras()
    try:
        return keras.saving.deserialize_keras_object(check_model_json(text, _trusted()), safe_mode=True)
    except Exception as exc:  # see _load
        raise ModelError(f"Keras can't rebuild the model from its JSON: {_one_line(exc)}") from exc


def _check_copy(model: Any, copy: Any) -> None:
    """What the workers build must have the same weights in the same order."""
    ours, theirs = ([tuple(weight.shape) for weight in each.weights] for each in (model, copy))
    if ours != theirs:
        raise ModelError(
            f"The model changes when it is rebuilt from its JSON: {len(ours)} and {len(theirs)} weights."
        )


def _take_weights(model: Any, path: Path) -> None:
    values = _values(_load(path))
    shapes, received = [value.shape for value in _values(model)], [value.shape for value in values]
    if shapes != received:
        raise ModelError(
            f"The weights of {path.name} don't fit the task's model. Expected {shapes}, received {received}."
        )
    _set_weights(model, values)


def _values(model: Any) -> list[Array]:
    return [weight.numpy() for weight in model.weights]


def _set_weights(model: Any, values: list[Array]) -> None:
    for weight, value in zip(model.weights, values, strict=True):
        weight.assign(value)
    renew_adapted(model)


class _Keeper:
    """Keeps the built model, for only its weights change from round to round."""

    def __init__(self) -> None:
        self._text = ""
        self._model: Any = None

    def save(self, request: Request) -> dict[str, Any]:
        """Write a model with its card, and curves.png beside the newest, each aside and then in place."""
        from coordinator.folder.checkpoint import read_checkpoint

        checkpoint = read_checkpoint(Path(request["checkpoint"]))
        path, card = Path(request["model"]), ModelCard.from_json(request["card"])
        if is_arrays(checkpoint.model_json):
            _put_in_place(
                lambda aside: write_arrays(aside, checkpoint.model_json, _weights(checkpoint), card), path
            )
        else:
            model = self._with_weights(checkpoint)
            _put_in_place(lambda aside: _write_keras(aside, model, card), path)
        if request["is_held"]:
            Path(request["checkpoint"]).unlink(missing_ok=True)
            return {}
        draw_curves([flat(row) for row in checkpoint.history], path.with_name("curves.png"))
        return {}

    def check(self, request: Request) -> dict[str, Any]:
        """Try a checkpoint's model on made-up examples; what the committed model can't answer either says nothing."""
        from coordinator.folder.checkpoint import CHECKPOINT_FILE, read_checkpoint

        path = Path(request["checkpoint"])
        candidate = read_checkpoint(path)
        wrong = self._unanswered(candidate, request["inputs"])
        if wrong.any() and path.with_name(CHECKPOINT_FILE).exists():
            wrong &= ~self._unanswered(read_checkpoint(path.with_name(CHECKPOINT_FILE)), request["inputs"])
        reason = f"its model answers NaN or infinity to {wrong.sum()} of {len(wrong)} examples"
        return {"reason": reason if wrong.any() else None}

    def _unanswered(self, state: "Checkpoint", inputs: dict[str, Any] | None) -> NDArray[np.bool_]:
        model = self._with_weights(state)
        if state.is_general and state.needs is not None:
            return unanswered_in_general(model, state.needs)
        return unanswered(model, made_up_examples(state.input_shape, inputs))

    def work_out(self, request: Request) -> dict[str, Any]:
        """The results of compiled metrics from the sums that they keep."""
        return {"metrics": work_out(self._built(request["model_json"]), request["states"])}

    def _with_weights(self, checkpoint: "Checkpoint") -> Any:
        model = self._built(checkpoint.model_json)
        apply_kinds(model, checkpoint.layout)
        _set_weights(model, _weights(checkpoint))
        return model

    def _built(self, text: str) -> Any:
        if text != self._text:
            self._model, self._text = _from_json(text), text
        return self._model


def _draw_workers(request: Request) -> dict[str, Any]:
    """Each worker's own curves: many lines take seconds, so this is asked for when a run ends."""
    from coordinator.folder.checkpoint import read_checkpoint

    draw_workers(flat_workers(read_checkpoint(Path(request["checkpoint"])).history), Path(request["picture"]))
    return {}


def _weights(checkpoint: "Checkpoint") -> list[Array]:
    return unflatten(checkpoint.layout, checkpoint.vector, checkpoint.integers)


def _write_keras(path: Path, model: Any, card: ModelCard) -> None:
    model.save(path)
    write_card(path, card)


def _put_in_place(write: Callable[[Path], None], path: Path) -> None:
    """Save aside, fsync, rename: whoever opens the file finds a whole model, whenever the power goes."""
    aside = path.with_name(f".aside-{path.name}")  # Keras and numpy want the suffix as it is
    try:
        write(aside)
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except OSError as exc:
        raise ModelError(f"Can't save {path}: {_one_line(exc)}") from exc


def _one_line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:400]}"


_KEEPER = _Keeper()
_OPERATIONS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "warm": _warm,
    "build": _build,
    "save": _KEEPER.save,
    "check": _KEEPER.check,
    "work-out": _KEEPER.work_out,
    "draw-workers": _draw_workers,
}

if __name__ == "__main__":
    main()
