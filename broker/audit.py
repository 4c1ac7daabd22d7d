"""The audit log: what happened, when and by whom, for whoever asks a year later; one JSON object a line.

Lines are appended and never changed. One that a power cut tore stays alone: the next one begins on a line of its own.
What others sent is escaped, so that nobody begins a line over the wire. The file may be renamed at any time, as
logrotate does: the next line begins a new one.
"""

import fcntl
import hashlib
import logging
import os
import pwd
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from broker.errors import UsageError
from broker.wire.fields import Binary
from broker.wire.plain_json import json_text

logger = logging.getLogger(__name__)

AUDIT_FILE = "audit.jsonl"

_MOST_TEXT = 500
_MOST_NAMES = 250
_MOST_HELD = 100_000  #: lines that could not be written yet
_SMALL_BYTES = 64 * 1024
_MODE = 0o600


class AuditLog:
    """A file that lines are appended to, from any thread.

    That it can't be written is said in the log, and ends nothing; its lines are kept, and tried again with the next.

    Args:
        path: The file; None keeps no log.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held: list[Mapping[str, object]] = []
        self._is_failing = False

    @property
    def is_kept(self) -> bool:
        """Whether there is one: what is costly to find out need not be found out for none."""
        return self._path is not None

    def check(self) -> None:
        """See that it can be written.

        Raises:
            UsageError: It can't.
        """
        try:
            self._append(b"")
        except OSError as exc:
            raise UsageError(f"Can't write the audit log {self._path}: {exc.strerror or exc}.") from exc

    def note(self, event: str, **fields: object) -> None:
        """Append a line at once."""
        self.hold(event, **fields)
        self.flush()

    def hold(self, event: str, **fields: object) -> None:
        """Append a line with the next flush: with what it tells of, or before it.

        Args:
            event: What happened.
            fields: What else there is to say; None is left out, long texts are cut, and a function that is still at
                work on its value is waited for when the line is written.
        """
        if self._path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {name: value for name, value in fields.items() if value is not None}
        with self._lock:
            self._held.append({"time": now, "event": event, **told})

    def flush(self, *, is_synced: bool = False) -> None:
        """Write what is held.

        Args:
            is_synced: Wait until it will survive a power cut: something is decided that rests on it.
        """
        with self._lock:
            if not self._held:
                return
            try:
                self._append("".join(map(_text_of, self._held)).encode(), is_synced=is_synced)
            except OSError as exc:
                self._note_failure(exc)
            else:
                self._held.clear()
                self._is_failing = False

    def _append(self, data: bytes, *, is_synced: bool = False) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # a line that another process is writing is not torn
            left = memoryview(b"\n" + data if data and _is_torn(descriptor) else data)
            while left:
                left = left[os.write(descriptor, left) :]
            if is_synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _note_failure(self, exc: OSError) -> None:
        if not self._is_failing:
            logger.error("Can't write the audit log %s: %s. Tried again.", self._path, exc.strerror or exc)
        self._is_failing = True
        num_lost = len(self._held) - _MOST_HELD
        if num_lost > 0:
            logger.error("The audit log lost its %d oldest lines that could not be written.", num_lost)
            del self._held[:num_lost]


OFF = AuditLog(None)  #: where nobody wants one


def _is_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _text_of(line: Mapping[str, object]) -> str:
    return json_text({name: _told(value) for name, value in line.items()}) + "\n"


def _told(value: object) -> object:
    if callable(value):
        value = value()
    return value[:_MOST_TEXT] if isinstance(value, str) else value


def named(workers: Iterable[str]) -> list[str] | int:
    """Workers as a line tells them: by name, or only how many where they are too many."""
    names = list(workers)
    return names if len(names) <= _MOST_NAMES else len(names)


def user() -> str:
    """Who runs this process, as the machine calls them."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())  # in a container


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_aside(data: Binary) -> Callable[[], str]:
    """Begin to work out SHA-256 in another thread, which holds nobody up; what is returned waits for it.

    Args:
        data: Nobody may change it until then.
    """
    digest = hashlib.sha256()
    if len(data) <= _SMALL_BYTES:
        digest.update(data)
        return digest.hexdigest
    thread = threading.Thread(target=digest.update, args=(data,), name="sha256", daemon=True)
    thread.start()

    def wait() -> str:
        thread.join()
        return digest.hexdigest()

    return wait
