"""run.json: what a folder's run is, with every setting and version; a command line that asks for another is refused.

The first record stays as it was written. Going on with other settings (more rounds, another learning rate) adds to
`continued` what changed, from which round on.
"""

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from broker.errors import CheckpointError, UsageError
from coordinator.files import write_atomically
from coordinator.options import RunOptions

RUN_FILE = "run.json"

_PACKAGES = ("warren", "tensorflow", "keras", "numpy", "pika")

Record = dict[str, Any]


def keep_identity(options: RunOptions, *, closed_rounds: int) -> None:
    """Write run.json, or hold the options against the one that is there and note what has changed.

    Args:
        options: Of the run.
        closed_rounds: How many of its rounds are closed.

    Raises:
        UsageError: The folder holds another task, strategy or seed.
        CheckpointError: run.json can't be read or written.
    """
    path = options.out / RUN_FILE
    now = datetime.now(UTC).isoformat(timespec="seconds")
    settings = {**options.everything, "versions": _versions()}
    if not path.exists():
        _write(options, {**settings, "started_at": now})
        return
    first = _read(options)
    _compare(options, first)
    changed = _changes(current_settings(first), settings)
    if changed:
        record = {"at": now, "after_round": closed_rounds, "changed": changed}
        _write(options, {**first, "continued": [*first.get("continued", ()), record]})


def current_settings(first: Mapping[str, Any]) -> Record:
    """The settings that count now: the first ones, and what was changed since."""
    settings = dict(first)
    for record in settings.pop("continued", ()):
        settings |= {name: after for name, (_, after) in record["changed"].items()}
    return settings


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What differs, by name: [before, now]."""
    return {
        name: [before.get(name), value] for name, value in now.items() if before.get(name) != _plain(value)
    }


def _plain(value: object) -> object:
    return json.loads(json.dumps(value))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write(options: RunOptions, content: Record) -> None:
    write_atomically(options.out / RUN_FILE, [json.dumps(content, indent=2).encode() + b"\n"])


def _read(options: RunOptions) -> Record:
    path = options.out / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"Can't read {path}: {exc}. Restore it, or choose another --out.") from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not ours. Restore it, or choose another --out.")
    return content


def _compare(options: RunOptions, content: Record) -> None:
    for name, asked in options.identity.items():
        if content.get(name) != asked:
            raise UsageError(
                f"{options.out} holds a run with {name} {content.get(name)!r}, not {asked!r}. "
                f"Choose another --out, or ask for the same {name}."
            )
