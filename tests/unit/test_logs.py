"""What is kept out of the story on stderr, and what is not."""

import logging

import pytest

from broker.logs import LogFormat, _TextFormatter, configure, format_in_use, is_chatter, printable


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
