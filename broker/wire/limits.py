"""How much one message may say: what a worker tells lands in logs, in files and in every later checkpoint."""

import re
from collections.abc import Collection

from broker.wire.fields import require

MOST_MEASURES = 64  #: metrics of one kind in one message
MOST_CLASSES = 10_000
MOST_NAMES = 1000
MOST_WORD_BYTES = 512 * 1024  #: of a message to the coordinator: it holds some 256 of them at once
MOST_EXAMPLES = 2**40
_LONGEST_NAME = 200
_MEASURE = re.compile(r"\w[\w .,:/()%+-]{0,99}")  #: nothing that a spreadsheet would take for a formula


def require_short(**texts: str | None) -> None:
    """Raise a ProtocolError unless these names and ids are short, and can be printed."""
    for name, text in texts.items():
        require(text is None or _is_short(text), f"a short {name}", (text or "")[:_LONGEST_NAME])


def _is_short(text: str) -> bool:
    return len(text) <= _LONGEST_NAME and text.isprintable()


def require_names(names: tuple[str, ...]) -> None:
    """Raise a ProtocolError unless these are short names, and not too many."""
    require(len(names) <= MOST_NAMES, f"at most {MOST_NAMES} names", len(names))
    for name in names:
        require(_is_short(name), "names that can be printed", name[:_LONGEST_NAME])


def require_amount(name: str, amount: int) -> None:
    """Raise a ProtocolError unless so many examples can be."""
    require(0 <= amount < MOST_EXAMPLES, f"a number of {name}", amount)


def require_classes(classes: tuple[str, ...], examples_per_class: tuple[int, ...]) -> None:
    """Raise a ProtocolError unless these are class names, with a count for each or with none at all."""
    require(len(classes) <= MOST_CLASSES, f"at most {MOST_CLASSES} classes", len(classes))
    for name in classes:
        require(_is_short(name), "class names that can be printed", name[:_LONGEST_NAME])
    require(len(examples_per_class) in (0, len(classes)), "a count for each class", len(examples_per_class))
    for amount in examples_per_class:
        require_amount("examples of a class", amount)


def require_measures(names: Collection[str]) -> None:
    """Raise a ProtocolError unless these can name columns of a table, and are not too many."""
    require(len(names) <= MOST_MEASURES, f"at most {MOST_MEASURES} metrics", len(names))
    for name in names:
        require(_MEASURE.fullmatch(name) is not None, "a metric's name", name[:_LONGEST_NAME])
