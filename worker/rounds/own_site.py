"""A site with a trainer of its own: the object made from MODULE:CLASS, and what is told of it like a data set."""

import importlib
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker.errors import DataError, UsageError
from broker.wire.limits import MOST_EXAMPLES
from broker.wire.settings import Held
from broker.wire.tensors import InputFacts
from worker.rounds.failures import told
from worker.trainer import OwnTrainer

logger = logging.getLogger(__name__)

_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_CURRENT = ""  # in sys.path: where this process works at that moment


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSite:
    """A trainer, and as much of a data set as joining needs: nothing is known of its examples but how many they are.

    Attributes:
        trainer: The object.
        called: It is, in errors: MODULE:CLASS.
    """

    trainer: OwnTrainer
    called: str
    num_train_examples: int
    num_test_examples: int = 0
    classes: tuple[str, ...] = ()
    examples_per_class: dict[str, int] = field(default_factory=dict)
    inputs: InputFacts | None = None
    holds: tuple[Held, ...] = ()

    @classmethod
    def of(cls, trainer: Any, called: str) -> "OwnSite":
        """Look at an object that is to train.

        Raises:
            DataError: It lacks what a trainer must have.
        """
        for name in ("fit", "evaluate"):
            if not callable(getattr(trainer, name, None)):
                raise DataError(
                    f"{called} has no method {name!r}. worker/trainer.py says what a trainer offers."
                )
        number: Any = getattr(trainer, "num_examples", None)
        if (
            isinstance(number, bool)
            or not hasattr(number, "__index__")
            or not 0 <= int(number) < MOST_EXAMPLES
        ):
            raise DataError(
                f"Expected in num_examples of {called} how many examples it has to train on, got {number!r:.60}."
            )
        return cls(trainer=trainer, called=called, num_train_examples=int(number))


def open_trainer(spec: str, *, data: Any, worker: str) -> OwnSite:
    """Make a trainer of one's own, from a module that is importable from the current folder.

    Args:
        spec: MODULE:CLASS, as `--trainer` takes it.
        data: As `--data` says.
        worker: Its name.

    Raises:
        UsageError: It is no MODULE:CLASS, or there is no such module or class.
        DataError: The module or the class raised, or it makes no trainer.
    """
    return make_trainer(_find(spec), spec, data=data, worker=worker)


def make_trainer(make: Callable[..., Any], called: str, *, data: Any, worker: str) -> OwnSite:
    """Make a trainer with a class or a function, as `make(data=..., worker=...)`.

    Raises:
        DataError: It raised, or it makes no trainer.
    """
    try:
        trainer = make(data=data, worker=worker)
    except Exception as exc:  # a person's own code may raise anything
        raise _failed(f"{called}(data=..., worker=...)", exc) from exc
    return OwnSite.of(trainer, called)


def _find(spec: str) -> Any:
    if not _CLASS.fullmatch(spec):
        raise UsageError(f"Expected MODULE:CLASS as the trainer, got {spec[:100]!r}.")
    if _CURRENT not in sys.path:  # last: a person's random.py here stands in for nobody else's
        sys.path.append(_CURRENT)
    module_name, name = spec.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise _failed(f"Importing {module_name}", exc) from exc
        raise UsageError(
            f"There is no module {exc.name!r} for the trainer {spec}. Try from its folder, or set PYTHONPATH."
        ) from exc
    except Exception as exc:
        raise _failed(f"Importing {module_name}", exc) from exc
    make = getattr(module, name, None)
    if not callable(make):
        file = getattr(module, "__file__", None)
        raise UsageError(f"The module {module_name} ({file}) has no class {name!r}. Expected MODULE:CLASS.")
    return make


def _failed(what: str, exc: Exception) -> DataError:
    logger.error("%s failed.", what, exc_info=exc)
    return DataError(f"{what} failed. {told(exc)}")
