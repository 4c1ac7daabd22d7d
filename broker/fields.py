"""Dataclasses to plain values and back: typed, no field too many, and none too few but those that have a default.

So that a new field is no flag day, one with a default may be missing; and on the wire one that has its default's value
is left out, for a reader that is older does not know it. What a default means never changes within a version.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal

import numpy as np

from broker.errors import ProtocolError
from broker.tensors import Array, as_dtype

_MAX_TEXT = 16 * 1024 * 1024
_MAX_COUNT = 2**53
_MAX_NAMES = 5
_MAX_NAME = 60

#: As the last field of a message it isn't copied on its way: the codec gives back a view of the body.
Binary = bytes | memoryview


def to_plain(value: Any, *, without_defaults: bool = False) -> Any:
    """A dataclass, or what may stand in one, as maps, lists, numbers, texts and bytes.

    Args:
        value: What is to travel or to be kept.
        without_defaults: Leave out fields that have their default's value.
    """
    plain = functools.partial(to_plain, without_defaults=without_defaults)
    if isinstance(value, np.ndarray):
        return [value.dtype.name, list(value.shape), value.astype(value.dtype.newbyteorder("<")).tobytes()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        defaults = _defaults(type(value)) if without_defaults else {}
        fields = ((name, getattr(value, name)) for name in _hints(type(value)))
        return {name: plain(each) for name, each in fields if not _is_default(defaults, name, each)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return value.value if isinstance(value, Enum) else value


def _is_default(defaults: dict[str, Any], name: str, value: object) -> bool:
    return name in defaults and type(defaults[name]) is type(value) and bool(defaults[name] == value)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def _defaults(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass's fields; of what a factory makes, one to compare with."""
    fields = [field for field in dataclasses.fields(kind) if field.init]
    made = {
        field.name: field.default_factory()
        for field in fields
        if field.default_factory is not dataclasses.MISSING
    }
    return made | {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def from_plain(kind: type, value: object, where: str) -> Any:
    """Build a dataclass from a map of its fields; one that has a default may be missing.

    Raises:
        ProtocolError: A field is missing, unknown, mistyped, or out of bounds.
    """
    hints = _hints(kind)
    if not isinstance(value, dict):
        raise ProtocolError(f"{where}: expected a map of fields, got {type(value).__name__}.")
    if not value.keys() <= hints.keys():
        raise ProtocolError(
            f"{where}: this version of Warren knows no {_listed(value.keys() - hints.keys())}. "
            "Upgrade the older side."
        )
    if missing := hints.keys() - value.keys() - _defaults(kind).keys():
        raise ProtocolError(f"{where}: expected the fields {sorted(hints)}; missing are {_listed(missing)}.")
    return kind(
        **{
            name: _typed(hint, value[name], f"{where}.{name}")
            for name, hint in hints.items()
            if name in value
        }
    )


def _listed(names: Iterable[object]) -> str:
    """Some names in words; whoever sent them may have sent many, and long ones."""
    shown = sorted(repr(name)[:_MAX_NAME] for name in names)
    return ", ".join(shown[:_MAX_NAMES]) + (", …" if len(shown) > _MAX_NAMES else "")


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Check one value against its annotation; the few forms that ours use."""
    if hint == Binary:
        return value if type(value) is memoryview else _scalar(bytes, value, where)
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return None if value is None else _typed(typing.get_args(hint)[0], value, where)
    if origin is Literal:
        return _one_of(typing.get_args(hint), value, where)
    if origin is tuple:
        return _tuple(typing.get_args(hint)[0], value, where)
    if origin is dict:
        return _map(typing.get_args(hint)[1], value, where)
    if origin is np.ndarray:
        return _array(value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _one_of(tuple(hint), next((each for each in hint if each.value == value), None), where)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, where)
    return _scalar(hint, value, where)


def _one_of(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        raise ProtocolError(f"{where}: expected one of {choices}.")
    return value


def _tuple(item: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ProtocolError(f"{where}: expected a list, got {type(value).__name__}.")
    return tuple(_typed(item, each, where) for each in value)


def _map(item: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ProtocolError(f"{where}: expected a map of names.")
    return {key: _typed(item, each, where) for key, each in value.items()}


def _array(value: Any, where: str) -> Array:
    """Rebuild a small array from its [dtype, shape, bytes] form; it is read-only."""
    try:
        dtype, shape, data = value
        array: Array = np.frombuffer(data, as_dtype(dtype).newbyteorder("<")).reshape(shape)
    except (TypeError, ValueError) as exc:
        raise ProtocolError(f"{where}: expected [dtype, shape, bytes] of an array. {exc}") from exc
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    """An int may stand for a float, a bool for neither; numbers and texts are bounded."""
    if hint is bytes and type(value) is memoryview:
        value = bytes(value)
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < _MAX_COUNT else math.inf
    if type(value) is not hint:
        raise ProtocolError(f"{where}: expected {hint.__name__}, got {type(value).__name__}.")
    if hint is int:
        require(-_MAX_COUNT <= value <= _MAX_COUNT, f"{where} within 2^53", value)
    if hint is str:
        require(len(value) <= _MAX_TEXT, f"{where} of at most {_MAX_TEXT} characters", len(value))
    return value


def require(holds: bool, expected: str, received: object) -> None:
    """Raise a ProtocolError unless something holds."""
    if not holds:
        raise ProtocolError(f"Expected {expected}, got {received!r}.")
