"""A saved model that is no classifier: measured on what it needs, and asked for its answers, by name."""

import threading
from dataclasses import dataclass
from typing import Any

from broker.errors import DataError, ModelError
from broker.wire.needs import Needs
from worker.learning.ways.general import OfAnything
from worker.tables.fitted import Rows


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
