"""Dataclasses to plain values and back: typed, no field too many, and none too few but those that have a default.

So that a new field is no flag day, one with a default may be missing; and on the wire one that has its default's value
is left out, for a reader that is older does not know it. What a default means never changes within a version.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Literal

import numpy as np

from broker.errors import ProtocolError
from broker.wire.tensors import Array, as_dtype

_MAX_TEXT = 16 * 1024 * 1024
_MAX_COUNT = 2**53
_MAX_NAMES = 5
_MAX_NAME = 60

#: As the last field of a message it isn't copied on its way: the codec gives back a view of the body.
Binary = bytes | memoryview

_PLAIN = frozenset({type(None), bool, int, float, str, bytes, memoryview})
_Reader = Callable[[Any, str], Any]


def to_plain(value: Any, *, without_defaults: bool = False) -> Any:
    """A dataclass, or what may stand in one, as maps, lists, numbers, texts and bytes.

    Args:
        value: What is to travel or to be kept.
        without_defaults: Leave out fields that have their default's value.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple:
        return [to_plain(item, without_defaults=without_defaults) for item in value]
    if kind is dict:
        return {name: to_plain(each, without_defaults=without_defaults) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return [value.dtype.name, list(value.shape), value.astype(value.dtype.newbyteorder("<")).tobytes()]
    if isinstance(value, Enum):
        return value.value
    return _fields_of(value, kind, without_defaults) if dataclasses.is_dataclass(kind) else value


def _fields_of(value: Any, kind: type, without_defaults: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, field in _form(kind).items():
        each = getattr(value, name)
        if not (without_defaults and field.is_default(each)):
            plain[name] = each if type(each) in _PLAIN else to_plain(each, without_defaults=without_defaults)
    return plain


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """One field of a dataclass, worked out once: a round of a thousand workers reads and writes some 30,000."""

    read: _Reader
    default: Any  #: of what a factory makes, one to compare with; MISSING without any

    @property
    def may_be_missing(self) -> bool:
        return self.default is not dataclasses.MISSING

    def is_default(self, value: object) -> bool:
        default = self.default
        return default is value or (type(default) is type(value) and bool(default == value))


@functools.cache
def _form(kind: type) -> dict[str, _Field]:
    hints = typing.get_type_hints(kind)
    return {
        field.name: _Field(
            read=_reader(hints[field.name]),
            default=field.default
            if field.default_factory is dataclasses.MISSING
            else field.default_factory(),
        )
        for field in dataclasses.fields(kind)
    }


def from_plain(kind: type, value: object, where: str) -> Any:
    """Build a dataclass from a map of its fields; one that has a default may be missing.

    Raises:
        ProtocolError: A field is missing, unknown, mistyped, or out of bounds.
    """
    form = _form(kind)
    if not isinstance(value, dict):
        raise ProtocolError(f"{where}: expected a map of fields, got {type(value).__name__}.")
    if not value.keys() <= form.keys():
        raise ProtocolError(
            f"{where}: this version of Warren knows no {_listed(value.keys() - form.keys())}. "
            "Upgrade the older side."
        )
    missing = [name for name, field in form.items() if name not in value and not field.may_be_missing]
    if missing:
        raise ProtocolError(f"{where}: expected the fields {sorted(form)}; missing are {_listed(missing)}.")
    return kind(**{name: form[name].read(each, f"{where}.{name}") for name, each in value.items()})


def _listed(names: Iterable[object]) -> str:
    """Some names in words; whoever sent them may have sent many, and long ones."""
    shown = sorted(repr(name)[:_MAX_NAME] for name in names)
    return ", ".join(shown[:_MAX_NAMES]) + (", …" if len(shown) > _MAX_NAMES else "")


def _reader(hint: Any) -> _Reader:
    """What checks one value against its annotation; the few forms that ours use."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint == Binary:
        return _binary
    if origin is types.UnionType:
        return _optional(_reader(args[0]))
    if origin is Literal:
        return functools.partial(_one_of, args)
    if origin is tuple:
        return functools.partial(_tuple, _reader(args[0]))
    if origin is dict:
        return functools.partial(_map, _reader(args[1]))
    if origin is np.ndarray:
        return _array
    if isinstance(hint, type) and issubclass(hint, Enum):
        return functools.partial(_member, hint)
    if dataclasses.is_dataclass(hint):
        return functools.partial(from_plain, typing.cast(type, hint))
    return functools.partial(_scalar, hint)


def _optional(read: _Reader) -> _Reader:
    return lambda value, where: None if value is None else read(value, where)


def _binary(value: Any, where: str) -> Any:
    return value if type(value) is memoryview else _scalar(bytes, value, where)


def _member(kind: type[Enum], value: Any, where: str) -> Enum:
    member: Enum = _one_of(tuple(kind), next((each for each in kind if each.value == value), None), where)
    return member


def _one_of(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        raise ProtocolError(f"{where}: expected one of {choices}.")
    return value


def _tuple(read: _Reader, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ProtocolError(f"{where}: expected a list, got {type(value).__name__}.")
    return tuple(read(each, where) for each in value)


def _map(read: _Reader, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ProtocolError(f"{where}: expected a map of names.")
    return {key: read(each, where) for key, each in value.items()}


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
