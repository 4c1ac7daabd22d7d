"""A coordinator that stays, over the in-memory link: whatever becomes of one run, the next one is taken."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ModelError, UsageError
from broker.link.memory import MemoryBroker, MemoryLink
from broker.logs import LogContext
from broker.wire.messages import Launch
from coordinator.files import write_atomically
from coordinator.folder.run_index import LaunchRecord, RunIndex, read_launch, write_launch
from coordinator.page import scheduler as module
from coordinator.page.scheduler import Scheduler
from coordinator.status import BrokerStatus, ServingStatus
from tests.brokers import wait_until


class NoModels:
    """Stands for the child process, which no run here gets to."""

    def close(self) -> None:
        """There is nothing to end."""


class Serving:
    """A scheduler that serves in a thread of its own; its runs do what the test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.play: Callable[[], Any] = lambda: None
        self.stop = threading.Event()
        self.error: Exception | None = None
        monkeypatch.setattr(module, "ModelProcess", NoModels)
        monkeypatch.setattr(module, "Run", lambda *_, **__: self)
        link = MemoryLink(MemoryBroker(), "coordinator")
        at = BrokerStatus(address="amqp://h", management="http://h")
        self.scheduler = Scheduler(link, RunIndex(folder), at, stop=self.stop, log=LogContext())
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        try:
            self.scheduler.serve()
        except Exception as exc:  # noqa: BLE001 - kept for the test
            self.error = exc

    def begin(self) -> None:
        self._thread.start()
        wait_until(lambda: self.status is not None or self.error is not None, 10, what="its first state")

    @property
    def status(self) -> ServingStatus | None:
        return self.scheduler.latest.snapshot.status

    @property
    def ended(self) -> str | None:
        """The run that ended last."""
        return self.status.last_run.id if self.status and self.status.last_run else None

    def view(self) -> None:
        """There is nothing to see of such a run."""

    def end(self) -> None:
        self.stop.set()
        self._thread.join(10)


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    made = Serving(tmp_path, monkeypatch)
    yield made
    made.end()


def failing(exc: Exception) -> Callable[[], Any]:
    def play() -> Any:
        raise exc

    return play


def launched(serving: Serving) -> str:
    """Launch by message, as without workers; the run's name, once it is over."""
    taken = serving.scheduler._on_launch(Launch(task="mnist"))
    assert taken.reason is None
    wait_until(lambda: serving.ended == taken.run or serving.error is not None, 10, what="the end of the run")
    assert serving.error is None
    return taken.run


@pytest.mark.parametrize(
    "exc",
    [ZeroDivisionError("float division"), RecursionError(), MemoryError(), KeyError("x"), OSError(28, "full"),
     UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), ModelError("not compiled")],
)  # fmt: skip
def test_whatever_ends_a_run_ends_that_run_alone(
    serving: Serving, tmp_path: Path, exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It is failed, in launch.json, on the page and in the log, a bug with its traceback; the next one is played."""
    serving.begin()
    serving.play = failing(exc)
    first = launched(serving)
    record = read_launch(tmp_path / first)
    assert record.outcome == "failed"
    assert record.reason
    is_bug = not isinstance(exc, ModelError)
    assert (type(exc).__name__ in record.reason) == is_bug
    assert any(each.exc_info is not None for each in caplog.records) == is_bug
    assert f"The run {first} failed: {record.reason}" in caplog.text
    assert serving.status
    assert serving.status.last_run
    assert serving.status.last_run.reason == record.reason
    assert launched(serving) != first
    assert serving.scheduler.tally.told.runs == {"done": 0, "stopped": 0, "failed": 2}


def test_a_launch_that_meets_a_bug_is_refused_wherever_it_came_from(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is answered, the page's thread gets the error, and the loop goes on."""
    serving.begin()
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_options", lambda _options: 1 // 0)
        assert "ZeroDivisionError" in str(serving.scheduler._on_launch(Launch(task="mnist")).reason)
        with pytest.raises(ZeroDivisionError):
            serving.scheduler.launch("mnist", {})
    with pytest.raises(UsageError, match="no run under way"):
        serving.scheduler.stop_run(now=True)
    assert serving.error is None


def test_a_run_that_can_not_be_prepared_is_over_when_the_coordinator_starts(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is a bug: else every start would end with it."""
    folder = tmp_path / "mnist-1"
    write_launch(folder, LaunchRecord(task="mnist", options={}, launched_at="2026-11-25"))
    monkeypatch.setattr(module, "read_options", lambda _options: 1 // 0)
    serving.begin()
    wait_until(lambda: serving.ended == "mnist-1", 10, what="its end")
    assert read_launch(folder).outcome == "failed"


def test_a_full_disk_does_not_end_the_coordinator(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That the run is over can't be written down: that is told, and it is unfinished at the next start."""
    serving.begin()
    real = write_launch

    def full(folder: Path, record: LaunchRecord) -> None:
        if record.outcome is not None:
            write_atomically(folder / "no" / "such" / "folder", [])
        real(folder, record)

    monkeypatch.setattr(module, "write_launch", full)
    first = launched(serving)
    assert "could not be written down" in caplog.text
    assert read_launch(tmp_path / first).outcome is None
    monkeypatch.setattr(module, "write_launch", real)
    assert launched(serving) != first
