"""JSON that every reader takes: NaN and infinity are null in it, and what comes in is read within limits."""

import json
import math
from typing import Any

from broker.errors import ProtocolError


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Plain values as JSON; a number that JSON doesn't have is null.

    Args:
        value: Maps, lists, numbers, texts, bool and None.
        indent: For a file that people read.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def read_json(text: str | bytes) -> Any:
    """Read what somebody else wrote; NaN and infinity, which aren't JSON, are None.

    Raises:
        ProtocolError: It isn't JSON, or is nested too deep.
    """
    try:
        return json.loads(text, parse_constant=lambda _name: None)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"Expected JSON. {exc}") from exc
