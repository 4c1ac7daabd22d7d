"""The story of a process on stderr: one line an event, with run, round and worker on each."""

import atexit
import fcntl
import json
import logging
import os
import re
import sys
import threading
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]

logger = logging.getLogger(__name__)

# What TensorFlow's C++ side says about CPU features and missing GPUs, whatever the log level.
_CHATTER = re.compile(r"WARNING: All log messages before absl|[IWE]\d{4} \d\d:|\d{4}-\d\d-\d\d .*: [IWE] ")
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
}  #: journald's, from syslog
_LAST_SECONDS = 1.0
_PIPE_BYTES = 1 << 20
_CHATTY = ("pika", "tensorflow", "absl", "h5py", "matplotlib", "PIL", "waitress")


def printable(text: str) -> str:
    """A text without what would move a terminal's cursor or begin a line of its own: somebody else may have sent it."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class LogContext(logging.Filter):
    """What this process is busy with; put on every line.

    The object is made once by `configure` and handed down; whoever moves on calls `update`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fields: dict[str, str | int] = {}

    def update(self, **fields: str | int | None) -> None:
        """Set fields such as run, round and worker; None removes one."""
        merged = {**self._fields, **fields}
        self._fields = {name: value for name, value in merged.items() if value is not None}

    def filter(self, record: logging.LogRecord) -> bool:
        """Hang the fields on the record; never drops one."""
        record.context = self._fields
        return True


class _TextFormatter(logging.Formatter):
    """One line of text an event.

    Args:
        times: How the time is written; empty leaves it out.
        has_priority: Begin as journald reads an event's level.
    """

    def __init__(self, times: str = "%H:%M:%S", *, has_priority: bool = False) -> None:
        super().__init__()
        self._times = times
        self._has_priority = has_priority

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        context = " ".join(f"{name}={value}" for name, value in getattr(record, "context", {}).items())
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        begin = f"{self.formatTime(record, self._times)} " if self._times else ""
        if self._has_priority:
            begin = f"<{_PRIORITIES.get(record.levelno, 6)}>{begin}"
        return f"{begin}{level}{line}" + (f"  [{context}]" if context else "")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "context", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _AboveBars(logging.StreamHandler[TextIO]):
    """Writes above the bars that live at the foot of a terminal, instead of into them."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if tqdm is None:  # not imported: there is no bar
            super().emit(record)
            return
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def configure(*, verbose: bool = False, log_format: LogFormat = "text") -> LogContext:
    """Send this process's story to stderr and keep the libraries' chatter out of it."""
    context = LogContext()
    stream = _AboveBars(sys.stderr)
    stream.addFilter(context)
    stream.setFormatter(_JsonFormatter() if log_format == "json" else _text_formatter(sys.stderr))
    root = logging.getLogger()
    root.handlers[:] = [stream]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "pika" else logging.ERROR)
    return context


def format_in_use() -> LogFormat:
    """How this process's story is written: a process behind it writes to the same stderr."""
    handlers = logging.getLogger().handlers
    return "json" if any(isinstance(each.formatter, _JsonFormatter) for each in handlers) else "text"


def _text_formatter(stream: TextIO) -> _TextFormatter:
    """Of a person at a terminal, who knows what day it is; of journald, which notes the time; or of a file."""
    if _is_journal(stream):
        return _TextFormatter("", has_priority=True)
    return _TextFormatter("%H:%M:%S" if stream.isatty() else "%Y-%m-%d %H:%M:%S")


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream leads to systemd's journal, and not elsewhere from within a service."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def take_over_stderr() -> None:
    """Have whatever else this process writes to stderr told as lines of the log: nothing but the log is there.

    TensorFlow's C++ side, a child process and a traceback write there without asking; chatter is left out.
    """
    ours = os.fdopen(
        os.dup(sys.stderr.fileno()), "w", buffering=1, encoding="utf-8", errors="backslashreplace"
    )
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _AboveBars):
            handler.setStream(ours)
    heard, said = os.pipe()
    fcntl.fcntl(said, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # who writes may hold Python's lock, and must not wait
    os.dup2(said, sys.stderr.fileno())
    os.close(said)
    thread = threading.Thread(target=_tell_lines, args=(heard,), name="stderr", daemon=True)
    thread.start()
    atexit.register(_give_back, ours, thread)


def _tell_lines(heard: int) -> None:
    with os.fdopen(heard, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip() and not is_chatter(line):
                logger.warning("%s", line.rstrip())


def _give_back(ours: TextIO, thread: threading.Thread) -> None:
    """At the end: what is still on its way is told."""
    sys.stderr.flush()
    os.dup2(ours.fileno(), sys.stderr.fileno())
    thread.join(_LAST_SECONDS)


def is_chatter(line: str) -> bool:
    """Whether TensorFlow wrote this line of stderr, and it says nothing to anybody."""
    return _CHATTER.match(line) is not None
