"""What deploy/what-leaves.md says, and what messages have: the fields that a worker sends, by their dotted names."""

import ast
import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from broker.wire import messages, statistics
from broker.wire.messages import Joined, Message
from worker.rounds.site_rules import SHARES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "deploy" / "what-leaves.md").read_text(encoding="utf-8")
ENVELOPE = ("type", "version")
#: Where messages of a worker are made.
SENDING = (*sorted((ROOT / "worker").rglob("*.py")), *sorted((ROOT / "broker/link").rglob("*.py")),
           ROOT / "broker/wire/swarms.py")  # fmt: skip


def rows(heading: str | None = None) -> Iterator[tuple[list[str], list[str]]]:
    """The fields of each row of the page's tables, and its other cells."""
    part = PAGE if heading is None else PAGE.partition(f"## {heading}")[2]
    for line in part.splitlines():
        first, *others = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| `"):
            yield re.findall(r"`([^`]+)`", first), others


def listed() -> dict[str, str]:
    """Each field of a message on the page, and the level from which it travels."""
    return {field: others[1] for fields, others in rows() for field in fields if "." in field}


def allowed(share: str) -> set[str]:
    """The fields that may travel at a level."""
    levels = SHARES[: SHARES.index(share) + 1]  # type: ignore[arg-type]
    return {field for field, level in listed().items() if level in levels}


def kinds() -> dict[str, type[Message]]:
    """All messages by the names of their classes."""
    every = {**vars(messages), **vars(statistics)}.values()
    return {
        each.__name__: each
        for each in every
        if isinstance(each, type) and issubclass(each, Message) and each is not Message
    }


def sent_by_workers() -> set[type[Message]]:
    """The messages that are made where workers' are."""
    known = kinds()
    called = {
        ast.unparse(node.func).rsplit(".", 1)[-1]
        for path in SENDING
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    return {known[name] for name in called & known.keys()}


def fields_of(kind: type, name: str) -> Iterator[str]:
    """The dotted names of a message's fields, down to those that are no dataclasses; a swarm's `joined` is one."""
    for field, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        inner = next((each for each in _kinds_in(hint) if each is not Joined), None)
        if inner is None:
            yield f"{name}.{field}"
        else:
            yield from fields_of(inner, f"{name}.{field}")


def _kinds_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    elif typing.get_origin(hint) in (tuple, types.UnionType, typing.Union):
        for each in typing.get_args(hint):
            yield from _kinds_in(each)


def fields_in(body: dict[str, Any]) -> set[str]:
    """The dotted names of the fields that say something in a body; one without a default travels empty."""
    told = [key for key in body.keys() - ENVELOPE if body[key] not in ([], {}, "", None)]
    return {name for key in told for name in _names(body[key], f"{body['type']}.{key}")}


def _names(value: Any, name: str) -> set[str]:
    inner = {field.rpartition(".")[0] for field in listed()}
    if name not in inner:
        return {name}
    parts = value if isinstance(value, list) else [value]
    return {each for part in parts for key in part for each in _names(part[key], f"{name}.{key}")}
