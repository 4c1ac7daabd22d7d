"""Task names and their settings."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from broker.errors import UsageError
from coordinator.tasks import BUILT_IN, TaskDefaults, resolve


def test_the_lab_keeps_the_labs_settings() -> None:
    """chest-xray-lab: 1 epoch, batch size 2, learning rate 0.0001, 100 images of each class."""
    assert resolve("chest-xray-lab").defaults == TaskDefaults(
        epochs=1, batch_size=2, learning_rate=0.0001, class_weight="none", examples_per_class=100
    )


def test_every_built_in_task_names_its_builder() -> None:
    """A built-in name leads to a function of coordinator.keras.task_models."""
    source = find_spec("coordinator.keras.task_models")
    assert source is not None
    assert source.origin is not None
    tree = ast.parse(Path(source.origin).read_text(encoding="utf-8"))
    builders = {each.name for each in tree.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"}
    sources = {resolve(name).source for name in BUILT_IN}
    assert sources == {f"coordinator.keras.task_models:{builder}" for builder in builders}


@pytest.mark.parametrize("name", ["mine:build", "a.b_c:d2", "coordinator.keras.task_models:mnist"])
def test_a_function_is_a_task(name: str) -> None:
    """MODULE:FUNCTION is taken as written, with the model's own learning rate, 1 epoch and batches of 32."""
    task = resolve(name)
    assert (task.name, task.kind, task.source) == (name, "builder", name)
    assert task.defaults == TaskDefaults(epochs=1, batch_size=32, learning_rate=None, class_weight="none")


def test_a_model_file_is_a_task(tmp_path: Path) -> None:
    """FILE.keras is known by its absolute path, so that the child process finds it."""
    file = tmp_path / "mine.keras"
    file.touch()
    task = resolve(str(file))
    assert (task.kind, task.source) == ("file", str(file.resolve()))


@pytest.mark.parametrize(
    "name", ["", "chest", "MNIST", "a:b:c", "a-b:c", "mod.:f", "no/such.keras", "../x:y"]
)
def test_an_unknown_task_is_a_usage_error(name: str) -> None:
    """What is no task is refused with exit code 2, before anything is built."""
    with pytest.raises(UsageError):
        resolve(name)


def test_the_message_lists_what_there_is() -> None:
    """Who mistypes a task is told the names and the other forms."""
    with pytest.raises(UsageError) as refused:
        resolve("chest-xrays")
    for expected in ("chest-xrays", *BUILT_IN, "MODULE:FUNCTION", "FILE.keras"):
        assert expected in str(refused.value)
