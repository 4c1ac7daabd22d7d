"""What is kept out of the import of TensorFlow, tried on a stand-in for it: it takes seconds in every process."""

import sys
from types import ModuleType

import pytest

from broker.model import trust
from worker import tensorflow
from worker.tensorflow import load_keras


def can_import(name: str) -> bool:
    """Whether a library could be imported at this moment, as far as nobody forbids it."""
    return sys.modules.get(name, ...) is not None


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What could not be imported while the stand-in for Keras was."""
    found: set[str] = set()

    def import_all() -> None:
        monkeypatch.setitem(sys.modules, "keras", ModuleType("keras"))
        found.update(name for name in trust._UNUSED if not can_import(name))

    for name in ("keras", "IPython", "jax", "matplotlib", "sklearn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(tensorflow, "_import_all", import_all)
    return found


def test_what_keras_takes_only_because_it_is_there_is_not_imported_with_it(refused: set[str]) -> None:
    """A process that needs scikit-learn or JAX imports them itself, afterwards."""
    load_keras()
    assert refused == {"IPython", "jax", "matplotlib", "sklearn"}
    assert all(map(can_import, refused))


def test_what_a_person_has_imported_stays(refused: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras finds it as it is."""
    mine = ModuleType("jax")
    monkeypatch.setitem(sys.modules, "jax", mine)
    load_keras()
    assert refused == {"IPython", "matplotlib", "sklearn"}
    assert sys.modules["jax"] is mine


def test_in_a_notebook_nothing_is_kept_out(refused: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What its owner does with Keras besides is not known."""
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    load_keras()
    assert refused == set()


def test_once_keras_is_there_nothing_is_kept_out(refused: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be importing what it draws curves with; it would find that it is forbidden, or lose it."""
    monkeypatch.setitem(sys.modules, "keras", ModuleType("keras"))
    with trust.without_unused():
        refused.update(name for name in trust._UNUSED if not can_import(name))
    assert refused == set()
