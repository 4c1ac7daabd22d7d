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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
Normalization = dict[str, list[float]]  #: "means" and "variances", one of each feature
_TRUSTED_MODULES: list[str] = []


def main() -> None:
    """Serve requests until stdin ends."""
    _TRUSTED_MODULES.extend(sys.argv[1:])
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
    """What the modules register that the child process was started with; nothing where this is done in process."""
    return trust(_TRUSTED_MODULES)


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
    given = given_by(request["kind"], request["source"], request["seed"])
    answer, weights = describe(given, request["initial_model"], request["normalization"], request["private"])
    np.savez(request["weights_path"], *weights)
    return answer


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
    copy = _from_json(text)
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
    _set_weights(model, former)
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
        _keras().utils.set_random_seed(seed)
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
    _keras().utils.set_random_seed(seed)
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


def _set_weights(model: Any, values: list[Array]) -> None:
    for weight, value in zip(model.weights, values, strict=True):
        weight.assign(value)
    renew_adapted(model)


class Keeper:
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
            model = self.with_weights(checkpoint)
            _put_in_place(lambda aside: _write_keras(aside, model, card), path)
        if request["is_held"]:
            Path(request["checkpoint"]).unlink(missing_ok=True)
            return {}
        draw_curves([flat(row) for row in checkpoint.history], path.with_name("curves.png"))
        return {}

    def check(self, request: Request) -> dict[str, Any]:
        """Try a checkpoint's model on made-up examples."""
        from coordinator.folder.checkpoint import CHECKPOINT_FILE, read_checkpoint

        path = Path(request["checkpoint"])
        committed = path.with_name(CHECKPOINT_FILE)
        former = partial(read_checkpoint, committed) if committed.exists() else None
        return {"reason": self.reason_against(read_checkpoint(path), former, request["inputs"])}

    def reason_against(
        self,
        candidate: "Checkpoint",
        former: "Callable[[], Checkpoint] | None",
        inputs: Mapping[str, Any] | None,
    ) -> str | None:
        """Why a model must not be committed; what the committed one can't answer either says nothing.

        Args:
            candidate: Its state.
            former: Gives the committed state, if there is one.
            inputs: What the workers' examples are like, as `InputFacts` by field.
        """
        wrong = self._unanswered(candidate, inputs)
        if wrong.any() and former is not None:
            wrong &= ~self._unanswered(former(), inputs)
        reason = f"its model answers NaN or infinity to {wrong.sum()} of {len(wrong)} examples"
        return reason if wrong.any() else None

    def _unanswered(self, state: "Checkpoint", inputs: Mapping[str, Any] | None) -> NDArray[np.bool_]:
        model = self.with_weights(state)
        if state.is_general and state.needs is not None:
            return unanswered_in_general(model, state.needs)
        return unanswered(model, made_up_examples(state.input_shape, inputs))

    def work_out(self, request: Request) -> dict[str, Any]:
        """The results of compiled metrics from the sums that they keep."""
        return {"metrics": self.results_of(request["model_json"], request["states"])}

    def results_of(self, model_json: str, states: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """The results of a model's compiled metrics; see `trial.work_out`."""
        return work_out(self._built(model_json), states)

    def with_weights(self, checkpoint: "Checkpoint") -> Any:
        """The model of a committed state, compiled; the same object every time, for only its weights change."""
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


_KEEPER = Keeper()
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
