"""A model of named arrays, which a trainer of the site's own trains: how it is told of in a Keras model's place."""

import json
import re
from collections.abc import Iterable
from functools import lru_cache

from broker.errors import ModelError

NPZ = ".npz"  #: the suffix of such a model's file; a Keras model's is .keras

_BEGINNING = '{"arrays": '
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")
_TAKEN = frozenset({"file", "allow_pickle"})  # by numpy.savez, for what it is told besides


def arrays_text(names: Iterable[str]) -> str:
    """What stands in the place of a Keras model's JSON.

    Args:
        names: In the order of the layout.

    Raises:
        ModelError: There is none, one is given twice, or can't be a name in an .npz file.
    """
    every = list(names)
    check_names(every)
    return json.dumps({"arrays": every})


def is_arrays(model: str) -> bool:
    """Whether a model's text tells of named arrays, and not of a Keras model."""
    return model.startswith(_BEGINNING)


@lru_cache(maxsize=8)
def array_names(model: str) -> tuple[str, ...]:
    """The names in a text that tells of arrays, in the order of the layout.

    Raises:
        ModelError: It isn't one.
    """
    try:
        told = json.loads(model)
    except (ValueError, RecursionError) as exc:
        raise ModelError("Expected the names of a model's arrays, got no JSON.") from exc
    names = told.get("arrays") if isinstance(told, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"Expected the names of a model's arrays, got {model[:100]!r}.")
    check_names(names)
    return tuple(names)


def check_names(names: list[str]) -> None:
    """Refuse names that can't all stand in one .npz file.

    Raises:
        ModelError: As `arrays_text` says.
    """
    for name in names:
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise ModelError(
                f"An array can't be called {name[:60]!r}. Expected letters, digits and _./- (and "
                f"neither of {', '.join(sorted(_TAKEN))})."
            )
    if not names or len(set(names)) < len(names):
        raise ModelError("Expected one array or more, each of another name.")
