"""What a survey of the sites' examples has found, as a file that people read and `--normalize` takes."""

from pathlib import Path

from broker.errors import DataError, ProtocolError, UsageError
from broker.wire.fields import from_plain, to_plain
from broker.wire.plain_json import json_text, read_json
from coordinator.files import write_atomically
from coordinator.learning.statistics import Statistics


def check_out(path: Path) -> None:
    """Refuse a file that can't be, before the sites are asked.

    Raises:
        UsageError: It has another suffix, or its folder isn't there.
    """
    if path.suffix != ".json" or not path.parent.is_dir():
        raise UsageError(f"Expected a FILE.json in a folder that is there, got {str(path)!r}.")


def read_shape(text: str | None) -> tuple[int, ...]:
    """The shape of an example as a person writes it; nothing is any.

    Raises:
        UsageError: It is none.
    """
    try:
        shape = tuple(map(int, text.split(","))) if text else ()
    except ValueError:
        shape = (0,)
    if any(size < 1 for size in shape):
        raise UsageError(f"Expected a --shape as 28,28,1, got {text!r}.")
    return shape


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write them whole, or not at all.

    Raises:
        CheckpointError: There is no space left, or no permission.
    """
    write_atomically(path, [json_text(to_plain(statistics), indent=2).encode() + b"\n"])


def read_statistics(path: Path) -> Statistics:
    """Read what `write_statistics` wrote.

    Raises:
        UsageError: There is no such file.
        DataError: It is something else.
    """
    try:
        found = from_plain(Statistics, read_json(path.read_bytes()), "statistics")
    except FileNotFoundError as exc:
        raise UsageError(
            f"There is no file {str(path)!r}. `coordinator statistics --out FILE` makes one."
        ) from exc
    except (OSError, ProtocolError) as exc:
        raise DataError(f"{str(path)!r} is not what `coordinator statistics` writes. {exc}") from exc
    assert isinstance(found, Statistics)  # noqa: S101 - from_plain returns an instance of its first argument
    if any(feature.variance < 0 for feature in found.features) or not found.features:
        raise DataError(
            f"{str(path)!r} is not what `coordinator statistics` writes: a variance below 0, or none."
        )
    return found
