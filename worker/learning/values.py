"""A saved model on rows: measured on what it needs, and asked for its answers, by name."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import DataError, ModelError
from broker.model.needs import inputs_struct, outputs_struct, packed, unpacked
from broker.wire.settings import InputSpec, Needs
from worker.learning.inference import Inference
from worker.learning.saved_model import LoadedModel
from worker.learning.ways.general import OfAnything, as_tensors
from worker.learning.ways.way import EVALUATION_BATCH
from worker.tables.fitted import Flat, Rows
from worker.tables.rows import read_rows

_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measures:
    """Measured on one set of examples.

    Attributes:
        num_examples: How many were measured.
        metrics: The loss, and the model's compiled metrics, as `model.evaluate` gives them.
    """

    num_examples: int
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {"num_examples": self.num_examples, **self.metrics}


def measure(model: Any, needs: Needs, rows: Rows | None) -> Measures:
    """Measure a compiled model.

    Args:
        model: The Keras model.
        needs: Of the model.
        rows: The examples; None if there are none.

    Raises:
        DataError: There is no example.
        ModelError: The model isn't compiled, or answers NaN.
    """
    if rows is None or not len(rows):
        raise DataError("There is no example to evaluate on. Bring a test part.")
    if not getattr(model, "compiled", False):
        raise ModelError("The model has no loss. Try model.compile(...) before saving it.")
    found = OfAnything(model, needs).measure(rows, threading.Event(), lambda: None)
    return Measures(num_examples=len(rows), metrics=found.metrics if found else {})


def format_measures(measures: Measures) -> str:
    """The measures, for a person."""
    shown = {"examples": str(measures.num_examples)}
    shown |= {name.replace("_", " "): f"{value:.4f}" for name, value in measures.metrics.items()}
    longest = max(18, *map(len, shown))
    return "\n".join(f"{name:<{longest}} {value}" for name, value in shown.items())


def predict_rows(loaded: LoadedModel, path: Path) -> Iterator[dict[str, Any]]:
    """What a model says of each row of a file, by name, in the file's order.

    Args:
        loaded: The model; of a classifier it is class, probability and all probabilities.
        path: An .npz or a .csv.

    Raises:
        DataError: The file can't be read, or doesn't fit.
        ModelError: The model answers NaN.
    """
    if loaded.needs is None:
        spec = InputSpec(name=str(loaded.model.inputs[0].name), shape=loaded.shape, dtype="float32")
        (x,) = read_rows(path, [spec])
        for row in Inference(loaded.model).probabilities(x):
            best = int(row.argmax())
            named = {name: float(value) for name, value in zip(loaded.classes, row, strict=True)}
            yield {"class": loaded.classes[best], "probability": float(row[best]), "probabilities": named}
        return
    yield from _answers(loaded.model, loaded.needs, read_rows(path, loaded.needs.inputs))


def _answers(model: Any, needs: Needs, flat: Flat) -> Iterator[dict[str, Any]]:
    names = [target.name for target in needs.targets]
    for begin in range(0, len(flat[0]), EVALUATION_BATCH):
        arrays = [array[begin : begin + EVALUATION_BATCH] for array in flat]
        answers = model(packed(inputs_struct(model), as_tensors(needs.inputs, arrays)), training=False)
        every = [np.asarray(each, np.float64) for each in unpacked(outputs_struct(model), answers)]
        if not all(np.isfinite(each).all() for each in every):
            raise ModelError(
                "The model answers with NaN or infinity. Its training went wrong; use an earlier one."
            )
        for row in zip(*every, strict=True):
            yield {name: _plain(value) for name, value in zip(names, row, strict=True)}


def _plain(value: Any) -> Any:
    """A number, or nested lists of them; one alone in a list is itself."""
    return float(value.ravel()[0]) if value.size == 1 else value.tolist()


def format_answer(answer: dict[str, Any]) -> str:
    """One row's answer, for a person."""
    if "class" in answer and "probabilities" in answer:
        return f"{answer['class']}  {answer['probability']:.4f}"
    return "  ".join(f"{name} {_shown(value)}" for name, value in answer.items())


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    numbers = np.ravel(value)
    more = " …" if len(numbers) > _SHOWN else ""
    return f"[{' '.join(f'{number:.4g}' for number in numbers[:_SHOWN])}{more}]"
