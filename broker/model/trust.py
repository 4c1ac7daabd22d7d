"""What comes in with Keras: parts of one's own, registered by modules that this machine's operator trusts by name."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from broker.errors import UsageError

_CURRENT = ""  # in sys.path: where this process works at that moment

#: Registered names, as "my_parts>Gate", of which objects may be built; by default there are none.
Trusted = frozenset[str]
NOTHING: Trusted = frozenset()

#: For Keras's galleries, its editor of files, TensorFlow's converter for phones, Keras's classes for scikit-learn.
_UNUSED = ("matplotlib", "IPython", "jax", "sklearn")


@contextmanager
def without_unused() -> Iterator[None]:
    """Keep Keras and TensorFlow from importing what they take only because it is installed: nearly half of the time.

    What is loaded already stays, and in a notebook all is as its owner has it. Once Keras is there nothing is kept from
    anybody: another thread may import what it draws with.
    """
    is_open = not {"IPython", "keras"}.isdisjoint(sys.modules)
    names = [] if is_open else [name for name in _UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: the documented way to refuse an import
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def trust(modules: Sequence[str]) -> Trusted:
    """Import modules, and tell the names that they registered with `keras.saving.register_keras_serializable`.

    What they import in turn is not trusted with them. Keras has been loaded by now.

    Args:
        modules: Installed here, or in the current folder.

    Raises:
        UsageError: One isn't there, fails, or registers nothing.
    """
    return NOTHING.union(*map(_names_of, modules))


def _names_of(module: str) -> Trusted:
    _import(module)
    import keras

    found = keras.saving.get_custom_objects().items()
    names = frozenset(name for name, each in found if ">" in name and _is_in(module, each))
    if not names:
        raise UsageError(
            f"The trusted module {module!r} registers nothing. Expected classes or functions with "
            "@keras.saving.register_keras_serializable(package=...), defined in it."
        )
    return names


def _is_in(module: str, part: object) -> bool:
    home = str(getattr(part, "__module__", ""))
    return home == module or home.startswith(f"{module}.")


def _import(module: str) -> None:
    is_added = _CURRENT not in sys.path
    if is_added:
        sys.path.append(_CURRENT)  # last: a person's json.py there stands in for nobody else's
    try:
        importlib.import_module(module)
    except Exception as exc:  # a person's own code may raise anything
        words = " ".join(str(exc).split())[:300]
        raise UsageError(
            f"Can't import the trusted module {module!r}. {type(exc).__name__}: {words} Expected one that is "
            "installed here or lies in the current folder."
        ) from exc
    finally:
        if is_added and _CURRENT in sys.path:
            sys.path.remove(_CURRENT)
