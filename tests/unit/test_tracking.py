"""What a run reaches is told to trackers once, whoever is killed; a tracker that fails costs the run nothing."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from broker.errors import Interrupted, UsageError
from coordinator.folder.history import Row, write_history
from coordinator.folder.run_json import keep_identity
from coordinator.folder.tracking import kinds
from coordinator.folder.tracking.follower import Follower
from coordinator.folder.tracking.process import tracked
from coordinator.folder.tracking.trackers import MLflow, TensorBoard
from coordinator.options import RunOptions
from coordinator.starting.launching import as_texts, read_options
from coordinator.tasks import resolve

MEASURED = Row(round=1, seconds=2.0, metrics={"loss": 0.5}, test={"auc": 0.75}, accepted=("w1",))
NEW = Row(round=2, seconds=2.0, metrics={"loss": 0.25})


class Notes:
    """In the place of a tracker; fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.outcome: str | None = None
        self._failures = failures

    def tell(self, round_number: int, figures: Mapping[str, float]) -> None:
        if self._failures:
            self._failures -= 1
            raise ConnectionError("the server\nis away")
        self.told.append((round_number, dict(figures)))

    def end(self, outcome: str) -> None:
        self.outcome = outcome


def cells(*rows: Row) -> list[dict[str, int | float | str]]:
    return [
        {name: value for name, value in row.flat.items() if not isinstance(value, tuple | dict)}
        for row in rows
    ]


def test_each_figure_is_told_once_also_those_that_come_a_round_later(tmp_path: Path) -> None:
    """How good a round's model is, is known with the next."""
    notes = Notes()
    follower = Follower("notes", tmp_path, lambda _run: notes)
    follower.look([])
    follower.look(cells(Row(round=1, seconds=2.0, metrics={"loss": 0.5})))
    follower.look(cells(MEASURED))
    follower.look(cells(MEASURED))
    follower.end("FINISHED")
    first, second = notes.told
    assert first[1]["loss"] == 0.5
    assert second == (1, {"val_auc": 0.75})
    assert notes.outcome == "FINISHED"


def test_a_tracker_that_fails_is_told_later_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that is away is no reason to lose figures, nor to fill the log."""
    notes = Notes(failures=2)
    follower = Follower("notes", tmp_path, lambda _run: notes)
    for _ in range(3):
        follower.look(cells(MEASURED))
    assert [number for number, _ in notes.told] == [1]
    assert capsys.readouterr().out == "notes can't be told: ConnectionError: the server is away\n"


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the start, not after a night of training."""
    monkeypatch.setattr(kinds, "find_spec", lambda _name: None)
    kinds.refuse_missing([])
    with pytest.raises(UsageError, match="pip install mlflow"):
        kinds.refuse_missing(["mlflow"])


def test_trackers_are_launched_as_they_are_run() -> None:
    """Several are separated by commas in a message."""
    asked = read_options({"track": "tensorboard,mlflow"})
    assert asked["track"] == ("tensorboard", "mlflow")
    assert read_options(as_texts(asked)) == asked


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What the event files hold: records of a length, its checksum, an event, and its checksum."""
    from tensorboard.compat.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in (run / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            end = 12 + int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12:end]), data[end + 4 :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_reads_what_was_written_and_nothing_twice(tmp_path: Path) -> None:
    """A process that starts anew after a kill writes everything once again, in the place of the former."""
    for rows in ([MEASURED], [MEASURED, NEW]):
        follower = Follower("tensorboard", tmp_path, TensorBoard)
        follower.look(cells(*rows))
        follower.end("")
    found = scalars(tmp_path)
    assert found["val_auc"] == [(1, 0.75)]
    assert found["loss"] == [(1, 0.5), (2, 0.25)]


def test_a_run_is_followed_by_a_process_until_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is written at the very end is told, too; a run that was interrupted ends it likewise."""
    with tracked(tmp_path, ["tensorboard"]):
        write_history(tmp_path, [Row(round=0), MEASURED])
    assert scalars(tmp_path)["val_auc"] == [(1, 0.75)]
    with pytest.raises(Interrupted), tracked(tmp_path, ["tensorboard"]):
        raise Interrupted("stopped")
    assert caplog.text == ""


@pytest.mark.filterwarnings("default")  # its own libraries deprecate each other
def test_mlflow_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts anew finds the run, and logs nothing that is there."""
    pytest.importorskip("mlflow", reason="MLflow and what it needs are 850 MB")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow.tracking import MlflowClient

    keep_identity(RunOptions(task=resolve("mnist"), out=tmp_path), closed_rounds=0)
    for rows in ([MEASURED], [MEASURED, NEW]):
        follower = Follower("mlflow", tmp_path, MLflow)
        follower.look(cells(*rows))
    follower.end("FINISHED")
    client = MlflowClient()
    (experiment,) = [each for each in client.search_experiments() if each.name == "warren"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params["task"]) == ("FINISHED", "mnist")
    assert [each.step for each in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert [each.step for each in client.get_metric_history(run.info.run_id, "val_auc")] == [1]
