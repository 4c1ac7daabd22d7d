"""The audit log: a line for each thing that happened, which nobody can forge, and no power cut merge with another."""

import hashlib
import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from broker.audit import OFF, AuditLog, named, sha256_aside
from broker.errors import UsageError


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "audit.jsonl"


def test_a_line_tells_when_and_what(path: Path) -> None:
    """UTC with milliseconds, the event, and what is known: what isn't is left out. Nobody else may read it."""
    AuditLog(path).note("joined", worker="hospital-1", account=None, number=1)
    (line,) = lines_of(path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"event": "joined", "worker": "hospital-1", "number": 1}
    assert path.stat().st_mode & 0o777 == 0o600


def test_nobodys_text_begins_a_line_or_fills_the_disk(path: Path) -> None:
    """What came over the wire is escaped and cut: line breaks of any script, quotes, halves of a character."""
    evil = 'x"}\n{"event": "revoked"}\r\u2028\x85\x00\ud800'
    AuditLog(path).note("refused", worker=evil, reason="y" * 100_000)
    assert path.read_bytes().count(b"\n") == 1
    (line,) = lines_of(path)
    assert line["worker"] == evil
    assert len(line["reason"]) == 500


def test_a_torn_line_stays_alone(path: Path) -> None:
    """A power cut leaves half a line: the next one does not merge with it, and those before and after are whole."""
    AuditLog(path).note("first")
    path.write_bytes(path.read_bytes() + b'{"time": "2026-11-26T1')
    AuditLog(path).note("second")
    AuditLog(path).note("third")
    whole, torn, *others = path.read_text().splitlines()
    assert json.loads(whole)["event"] == "first"
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(torn)
    assert [json.loads(line)["event"] for line in others] == ["second", "third"]


def test_held_lines_are_written_with_the_next_flush(path: Path) -> None:
    """A round's lines go out together, in their order, and what is still being worked out is waited for."""
    log = AuditLog(path)
    log.hold("update-accepted", sha256=sha256_aside(b"x" * 1_000_000))
    assert not path.exists()
    log.flush(is_synced=True)
    log.note("round-closed")
    assert [line["event"] for line in lines_of(path)] == ["update-accepted", "round-closed"]
    assert lines_of(path)[0]["sha256"] == hashlib.sha256(b"x" * 1_000_000).hexdigest()


def test_many_threads_and_processes_append_whole_lines(path: Path) -> None:
    """The page's threads, the loop, and `broker invite` twice at once: each line is one write at the end."""
    logs = [AuditLog(path), AuditLog(path)]

    def note(number: int) -> None:
        for _ in range(50):
            logs[number % 2].note("downloaded", number=number)

    threads = [threading.Thread(target=note, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines_of(path)) == 300


def test_a_log_that_can_not_be_written_ends_nothing_and_loses_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once; what happened meanwhile is written when it can be. Who asks for that file is told at once."""
    path.parent.write_text("in the way")
    log = AuditLog(path)
    with pytest.raises(UsageError, match="Can't write the audit log"):
        log.check()
    with caplog.at_level(logging.ERROR):
        log.note("first")
        log.note("second")
    assert len(caplog.records) == 1
    path.parent.unlink()
    log.note("third")
    assert [line["event"] for line in lines_of(path)] == ["first", "second", "third"]


def test_a_renamed_file_is_begun_anew(path: Path) -> None:
    """As logrotate does: no signal is needed, and no line is lost."""
    log = AuditLog(path)
    log.note("first")
    path.rename(path.with_suffix(".1"))
    log.note("second")
    assert [line["event"] for line in lines_of(path)] == ["second"]


def test_without_a_file_nothing_is_kept() -> None:
    """Nor is anything worked out for it."""
    OFF.note("joined")
    OFF.check()
    assert not OFF.is_kept


def test_too_many_workers_are_a_number() -> None:
    """A line of ten thousand names would be read by nobody."""
    assert named(["a", "b"]) == ["a", "b"]
    assert named(f"s.{number}" for number in range(10_000)) == 10_000
