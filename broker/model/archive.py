"""The one reader of `.keras` archives, within limits and checked before Keras sees any; and of what .npz ones say."""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from broker.errors import ModelError
from broker.model.allowlist import MAX_JSON_BYTES, check_model_json
from broker.model.arrays import NPZ
from broker.model.trust import NOTHING, Trusted

CONFIG = "config.json"  #: in it Keras describes the model

_LONGEST_COMMENT = 65535  # of a zip archive
_EXPECTED = "Expected a model saved by Keras as FILE.keras."
#: Whatever a damaged, encrypted or foreign archive makes zipfile raise.
_FAULTS = (
    OSError, ValueError, KeyError, EOFError, RuntimeError, OverflowError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, zipfile.LargeZipFile,
)  # fmt: skip


def read_config(path: Path, trusted: Trusted = NOTHING) -> dict[str, Any]:
    """The model's description, found to hold nothing but allowed parts.

    Args:
        path: A file that is there.
        trusted: Registered names of parts that may occur besides.

    Raises:
        ModelError: It is damaged, not a Keras file, or holds what isn't built into Keras.
    """
    text = read_text(path, CONFIG, MAX_JSON_BYTES)
    if text is None:
        raise ModelError(f"{str(path)!r} is not a Keras model: it has no {CONFIG}. {_EXPECTED}")
    return check_model_json(text, trusted)


def read_text(path: Path, member: str, most: int) -> str | None:
    """A text in the archive; None if there is no such member.

    Args:
        path: The archive.
        member: The text's name in it.
        most: As many bytes are allowed.

    Raises:
        ModelError: The archive can't be read, or the text is longer.
    """
    with _opened(path, "r") as archive:
        if member not in archive.namelist():
            return None
        size = archive.getinfo(member).file_size  # zipfile reads no further than this
        if size > most:
            raise ModelError(f"{member} in {str(path)!r} has {size} bytes; {most} are allowed.")
        return archive.read(member).decode()


def add_text(path: Path, member: str, text: str) -> None:
    """Add a text to a freshly saved model.

    Raises:
        ModelError: The file isn't a Keras model, or has such a text already.
    """
    with _opened(path, "a") as archive:
        if CONFIG not in archive.namelist() or member in archive.namelist():
            raise ModelError(f"{str(path)!r} is not a freshly saved Keras model, so it gets no {member}.")
        archive.writestr(member, text)


def read_comment(path: Path) -> str | None:
    """What is said of an .npz archive as a whole; None if nothing is.

    Raises:
        ModelError: The archive can't be read.
    """
    with _opened(path, "r") as archive:
        return archive.comment.decode() or None


def set_comment(path: Path, text: str) -> None:
    """Say something of an .npz archive as a whole: whoever loads its arrays finds no more than these.

    Raises:
        ModelError: It can't be written, or the text is longer than an archive takes.
    """
    comment = text.encode()
    if len(comment) > _LONGEST_COMMENT:
        raise ModelError(f"{str(path)!r} takes {_LONGEST_COMMENT} bytes of comment, not {len(comment)}.")
    with _opened(path, "a") as archive:
        archive.comment = comment


@contextmanager
def _opened(path: Path, mode: Literal["r", "a"]) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path, mode) as archive:
            yield archive
    except _FAULTS as exc:
        words = " ".join(str(exc).split())[:300] or type(exc).__name__
        if path.suffix == NPZ:
            raise ModelError(f"{str(path)!r} can't be read as a model of arrays: {words}.") from exc
        raise ModelError(f"{str(path)!r} can't be read as a Keras model: {words}. {_EXPECTED}") from exc
