"""What the fault tests patch must be there, and be read there: else they would wait for nothing, or without end."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from tests.faults.actors import POINTS, Break, BreakPoint, patch

FOLDERS = [Path(__file__).parents[1] / name for name in ("attacks", "faults")]
_PLACE = re.compile(r"(?:broker|coordinator|worker)\.[a-z_.]+:[A-Za-z_]+")


def places() -> set[str]:
    """Every "module:name" that a fault test or an attack patches."""
    found: set[str] = set()
    for path in (path for folder in FOLDERS for path in folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and _PLACE.fullmatch(node.value)
            ):
                found.add(node.value)
    return found


def test_the_patched_constants_are_found() -> None:
    """The search below looks at something."""
    assert {
        "coordinator.presence.session:WAIT_SECONDS",
        "coordinator.play.open_round.guests:_PRESENCE_SECONDS",
    } <= places()


@pytest.mark.parametrize("place", sorted(places()))
def test_a_patched_constant_is_read_where_it_is_patched(place: str) -> None:
    """One that has moved, or is imported there for nothing, would be patched in vain."""
    module_name, name = place.split(":")
    module = importlib.import_module(module_name)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    reads = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    assert any(isinstance(node.ctx, ast.Load) for node in reads)


def test_a_patch_of_what_is_not_there_fails() -> None:
    """Loudly, in the actor that was to have it."""
    with pytest.raises(AttributeError, match="_NO_SUCH_SECONDS"):
        patch(importlib.import_module("coordinator.play.run"), "_NO_SUCH_SECONDS", 1.0)


def test_a_patch_sets_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is read from then on."""
    actors: Any = importlib.import_module("tests.faults.actors")
    monkeypatch.setattr(actors, "LARGEST_WEIGHT", actors.LARGEST_WEIGHT)  # so that it is as before afterwards
    patch(actors, "LARGEST_WEIGHT", 0.25)
    assert actors.LARGEST_WEIGHT == 0.25


@pytest.mark.parametrize("point", POINTS)
def test_every_break_point_is_a_function_that_is_there(point: str) -> None:
    """One that was renamed would never be reached."""
    module_name, path = POINTS[point]
    owner: Any = importlib.import_module(module_name)
    for name in path.split("."):
        owner = getattr(owner, name)
    assert callable(owner)


def test_a_break_point_that_is_not_there_fails_when_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when a test has waited for it."""
    monkeypatch.setitem(POINTS, "gone", ("coordinator.play.run", "Run._no_such_function"))
    link: Any = None
    with pytest.raises(AttributeError):
        BreakPoint(Break(point="gone"), link).install()
