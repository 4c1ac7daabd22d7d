"""The story of a process on stderr: one line an event, with run, round and worker on each."""

import json
import logging
import re
import sys
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]

# What TensorFlow's C++ side says about CPU features and missing GPUs, whatever the log level.
_CHATTER = re.compile(r"WARNING: All log messages before absl|[IWE]\d{4} \d\d:|\d{4}-\d\d-\d\d .*: [IWE] ")
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
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        context = " ".join(f"{name}={value}" for name, value in getattr(record, "context", {}).items())
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{line}" + (f"  [{context}]" if context else "")


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
    stream.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
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


def is_chatter(line: str) -> bool:
    """Whether TensorFlow wrote this line of stderr, and it says nothing to anybody."""
    return _CHATTER.match(line) is not None
