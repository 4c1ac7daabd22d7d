"""run.json: what a folder's run is, with every setting and version; a command line that asks for another is refused.

The first record stays as it was written. Going on with other settings (more rounds, another learning rate) adds to
`continued` what changed, from which round on.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from broker.errors import CheckpointError, ProtocolError, UsageError
from broker.wire.fields import to_plain
from broker.wire.plain_json import json_text, read_json
from coordinator.files import write_atomically
from coordinator.options import RunOptions

RUN_FILE = "run.json"

_PACKAGES = ("warren", "tensorflow", "keras", "numpy", "pika")

Settings = dict[str, Any]  #: by name, as they stand in the file: earlier versions wrote fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """What changed when a folder's run went on.

    Attributes:
        after_round: How many rounds were closed then.
        changed: [before, after] by the setting's name.
    """

    at: str
    after_round: int
    changed: dict[str, list[Any]]


def keep_identity(options: RunOptions, *, closed_rounds: int) -> int:
    """Write run.json, or hold the options against the one that is there and note what has changed.

    Args:
        options: Of the run.
        closed_rounds: How many of its rounds are closed.

    Returns:
        After which round more rounds were asked for the last time; 0 if they never were.

    Raises:
        UsageError: The folder holds another task, strategy or seed.
        CheckpointError: run.json can't be read or written.
    """
    path = options.out / RUN_FILE
    now = datetime.now(UTC).isoformat(timespec="seconds")
    settings = {**to_plain(options.everything), "versions": _versions()}
    if not path.exists():
        _write(options, {**settings, "started_at": now})
        return 0
    first = _read(options)
    _compare(options, first)
    changed = _changes(current_settings(first), settings)
    records = list(first.get("continued", ()))
    if changed:
        records.append(to_plain(Continuation(at=now, after_round=closed_rounds, changed=changed)))
        _write(options, {**first, "continued": records})
    return max((int(each["after_round"]) for each in records if _asks_for_more(each["changed"])), default=0)


def current_settings(first: Mapping[str, Any]) -> Settings:
    """The settings that count now: the first ones, and what was changed since."""
    settings = dict(first)
    for record in settings.pop("continued", ()):
        settings |= {name: after for name, (_, after) in record["changed"].items()}
    return settings


def _asks_for_more(changed: Mapping[str, Any]) -> bool:
    before, after = changed.get("rounds", (0, 0))
    return bool(after > before)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What differs, by name: [before, now]."""
    return {
        name: [before.get(name), value] for name, value in now.items() if before.get(name) != _plain(value)
    }


def _plain(value: object) -> object:
    return read_json(json_text(value))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write(options: RunOptions, content: Settings) -> None:
    write_atomically(options.out / RUN_FILE, [json_text(content, indent=2).encode() + b"\n"])


def _read(options: RunOptions) -> Settings:
    path = options.out / RUN_FILE
    try:
        content = read_json(path.read_bytes())
    except (OSError, ProtocolError) as exc:
        raise CheckpointError(f"Can't read {path}: {exc}. Restore it, or choose another --out.") from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not ours. Restore it, or choose another --out.")
    return content


def _compare(options: RunOptions, content: Settings) -> None:
    for name, asked in options.identity.items():
        if (content.get(name) or None) != (asked or None):  # earlier versions did not write what wasn't used
            raise UsageError(
                f"{options.out} holds a run with {name} {content.get(name)!r}, not {asked!r}. "
                f"Choose another --out, or ask for the same {name}."
            )
