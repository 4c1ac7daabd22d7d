"""An invitation: all that a site needs to reach the broker, in one small file that is handed over."""

import stat
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from broker.errors import UsageError
from broker.link.access import Access, reason_of, write_private

_TABLE = "broker"
_FIELDS = {each.name for each in fields(Access)} - {"others"}  #: several addresses are one list, with commas
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_invitation(path: Path) -> Access:
    """What `broker invite NAME --invitation FILE` wrote.

    Raises:
        UsageError: There is no such file, or it is none.
    """
    try:
        given = _given_in(path.read_text())
    except (OSError, ValueError) as exc:
        raise UsageError(f"The invitation {path} can't be read: {reason_of(exc)}") from exc
    if given is None:
        others = ", ".join(sorted(_FIELDS - {"amqp_url"}))
        raise UsageError(
            f"{path} is no invitation. Expected what `broker invite NAME --invitation FILE` writes: a table "
            f"[{_TABLE}] with amqp_url and, if need be, {others}."
        )
    return Access(**given)


def _given_in(text: str) -> dict[str, Any] | None:
    table = tomllib.loads(text).get(_TABLE)
    if not isinstance(table, dict) or not {"amqp_url"} <= table.keys() <= _FIELDS:
        return None
    return table if all(isinstance(value, str) for value in table.values()) else None


def write_invitation(path: Path, access: Access) -> None:
    """Write the file to hand over; only its owner can read it.

    Raises:
        UsageError: The file can't be written, or is there already.
    """
    names = [each.name for each in fields(Access) if each.name in _FIELDS]
    given = {name: getattr(access, name) for name in names} | {"amqp_url": ",".join(access.amqp_urls)}
    lines = [f"{name} = {_quoted(value)}" for name, value in given.items() if value is not None]
    text = "\n".join(
        [
            "# An invitation to a federation. It holds a password: hand it over on a safe way, and keep it secret.",
            f"[{_TABLE}]",
            *lines,
            "",
        ]
    )
    write_private(path, text)


def _quoted(text: str) -> str:
    if "\n" in text:
        return f'"""\n{text}"""'  # PEM has nothing that TOML would read
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def check_is_new(path: Path) -> None:
    """Judge where an invitation shall go, before an account is made for it.

    Raises:
        UsageError: Something is there, or there is no such folder.
    """
    if path.exists() or not path.parent.is_dir():
        raise UsageError(
            f"An invitation is written to a new file in a folder that is there. Received {path}."
        )


def is_open_to_others(path: Path) -> bool:
    """Whether others on this machine may read a file that holds a password."""
    return bool(path.stat().st_mode & _OTHERS)
