"""Which models can be trained by name, and with which settings; needs no TensorFlow."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unicodedata import category

from broker.errors import UsageError
from broker.wire.settings import ClassWeight
from coordinator.files import is_file

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_MOST_CHARACTERS = 4096  # a path's own limit
_UNREADABLE = frozenset({"Cc", "Cs"})  # control characters, and halves of characters


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDefaults:
    """The settings that a task is trained with unless the command line says otherwise.

    Attributes:
        learning_rate: None keeps the compiled model's own.
        learning_rate_decay: Each round's learning rate is the former one's times this.
        examples_per_class: Random training examples of each class in a round; None takes all.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float | None = None
    learning_rate_decay: float = 1.0
    class_weight: ClassWeight = "none"
    examples_per_class: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be learned: where its model comes from, and its settings.

    Attributes:
        name: As the person wrote it.
        kind: "builder" when source is MODULE:FUNCTION, "file" when it is a .keras file.
        source: What to call, or the file's absolute path.
        num_classes: What its model tells apart; None when that is known only once it is built.
    """

    name: str
    kind: Literal["builder", "file"]
    source: str
    defaults: TaskDefaults
    num_classes: int | None = None

    @property
    def is_surely_keras(self) -> bool:
        """Whether it is known, before a function is called, that its model is Keras's and not named arrays."""
        return self.kind == "file" or self.name in BUILT_IN


def _built_in(name: str, builder: str, num_classes: int, defaults: TaskDefaults) -> Task:
    source = f"coordinator.keras.task_models:{builder}"
    return Task(name=name, kind="builder", source=source, defaults=defaults, num_classes=num_classes)


#: The tasks that have a name.
BUILT_IN: dict[str, Task] = {
    task.name: task
    for task in (
        _built_in(
            "chest-xray",
            "chest_xray",
            2,
            TaskDefaults(
                batch_size=16, learning_rate=0.0015, learning_rate_decay=0.8, class_weight="balanced"
            ),
        ),
        _built_in(
            "chest-xray-lab",
            "chest_xray_lab",
            2,
            TaskDefaults(epochs=1, batch_size=2, learning_rate=0.0001, examples_per_class=100),
        ),
        _built_in("mnist", "mnist", 10, TaskDefaults(epochs=1, batch_size=32, learning_rate=0.1)),
    )
}


def check_text(what: str, text: str) -> None:
    """Refuse what no file, no message and no line of the log can hold.

    Raises:
        UsageError: It is too long, or holds control characters or halves of characters.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(f"Expected at most {_MOST_CHARACTERS} characters for {what}, got {len(text)}.")
    if any(category(character) in _UNREADABLE for character in text):
        raise UsageError(f"Expected readable text for {what}, got {text[:60]!r}.")


def resolve(task: str) -> Task:
    """Find the task that a person means.

    Args:
        task: A built-in name, MODULE:FUNCTION, or a FILE.keras.

    Raises:
        UsageError: It is none of these, or the file isn't there.
    """
    check_text("the task", task)
    if task in BUILT_IN:
        return BUILT_IN[task]
    if task.endswith(".keras"):
        return _of_file(task)
    if _FUNCTION.fullmatch(task):
        return Task(name=task, kind="builder", source=task, defaults=TaskDefaults())
    raise UsageError(
        f"There is no task {task!r}. Expected one of {', '.join(BUILT_IN)}, MODULE:FUNCTION that returns a "
        "compiled Keras model or named arrays, or a compiled FILE.keras."
    )


def _of_file(task: str) -> Task:
    path = Path(task)
    if not is_file(path):
        raise UsageError(
            f"There is no model file {task!r}. Try the path of a compiled model saved by Keras 3."
        )
    return Task(name=task, kind="file", source=str(path.resolve()), defaults=TaskDefaults())
