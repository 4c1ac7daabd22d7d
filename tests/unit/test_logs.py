"""What is kept out of the story on stderr, and what is not."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.logs import (
    LogFormat,
    _text_formatter,
    _TextFormatter,
    configure,
    format_in_use,
    is_chatter,
    printable,
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", True),
        ("I0000 00:00:1751970000.123456    4242 port.cc:153] oneDNN custom operations are on.", True),
        ("E0000 00:00:1751970000.123456    4242 cuda_executor.cc:1228] INTERNAL: no device", True),
        ("2026-11-25 00:17:29.123456: I tensorflow/core/platform/cpu_feature_guard.cc:210] AVX2", True),
        ("2026-11-25 00:17:29 INFO Round 1 of 5: hospital-1 invited.", False),
        ("Traceback (most recent call last):", False),
        ("I think so", False),
        ("", False),
    ],
)
def test_tensorflows_chatter_is_told_from_all_else(line: str, expected: bool) -> None:
    """Its four forms, as TensorFlow 2.21 writes them; a story's line, a traceback and a person's words go through."""
    assert is_chatter(line) is expected


def test_nobody_elses_text_begins_a_line() -> None:
    """What a worker or a file calls itself is shown as it is, but can't forge a line or move a terminal's cursor."""
    assert printable("Pneumonía") == "Pneumonía"
    assert printable("x\n12:00:00 All is well") == "x\\n12:00:00 All is well"
    assert printable("\x1b[2J\u202eevil") == "\\x1b[2J\\u202eevil"
    record = logging.LogRecord("n", logging.INFO, "p", 1, "%s joined.", ("x\ny",), None)
    assert _TextFormatter().format(record).endswith("x\\ny joined.")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_process_behind_this_one_can_write_as_this_one_does(log_format: LogFormat) -> None:
    """Both write to the same stderr: a log of JSON is of nothing but JSON."""
    root = logging.getLogger()
    former, level = root.handlers[:], root.level
    try:
        configure(log_format=log_format)
        assert format_in_use() == log_format
    finally:
        root.handlers[:], root.level = former, level


def a_warning() -> logging.LogRecord:
    return logging.LogRecord("n", logging.WARNING, "p", 1, "late", (), None)


def test_a_file_gets_dates_and_the_journal_levels_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a file a month later wants to know the day; journald notes the time itself, and reads the level off the
    line. A service whose stderr goes to a file is no journal's, whatever its environment says."""
    with (tmp_path / "log").open("w") as stream:
        assert len(_text_formatter(stream).format(a_warning())) == len("2026-11-26 14:30:00 WARNING late")
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert _text_formatter(stream).format(a_warning()) == "<4>WARNING late"
        monkeypatch.setenv("JOURNAL_STREAM", "1:2")
        assert _text_formatter(stream).format(a_warning()).startswith("20")


def test_a_json_log_has_nothing_but_json_on_stderr() -> None:
    """What C++, a child process and a traceback write there become lines of the log; chatter is left out, and nothing
    that was said last is lost."""
    script = """
import logging, os, subprocess
from broker import logs
logs.configure(log_format="json")
logs.take_over_stderr()
os.write(2, b"2026-11-25 00:17:29.123456: I tensorflow/core/platform/cpu_feature_guard.cc:210] AVX2\\n")
os.write(2, b"malloc(): corrupted \\xff\\n")
subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)
logging.getLogger("x").info("the story")
raise ValueError("the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    said = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert {"malloc(): corrupted \ufffd", "from a child", "the story", "ValueError: the end"} <= set(said)
    assert not any("AVX2" in line for line in said)
    assert done.returncode == 1
