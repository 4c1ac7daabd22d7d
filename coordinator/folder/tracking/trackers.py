"""How each tracker is told the figures of a run; each is imported only where it is asked for."""

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from broker.errors import WarrenError
from broker.wire.plain_json import read_json
from coordinator.files import write_atomically
from coordinator.folder.run_json import RUN_FILE, current_settings

Figures = Mapping[str, float]  #: of one round, by the name of the column

_EVENTS = "events.out.tfevents."
_EXPERIMENT = "warren"
_MLFLOW_FILE = "mlflow.json"
_MOST_CHARACTERS = 500  # of one of MLflow's parameters


class Tracker(Protocol):
    """Told each figure of each round once by one process."""

    def tell(self, round_number: int, figures: Figures) -> None:
        """Take what is new of a round."""

    def end(self, outcome: str) -> None:
        """The run has ended: "FINISHED" or "FAILED"; or "", its coordinator goes on with it later."""


class TensorBoard:
    """Writes an event file into RUN/tensorboard, from the first round on.

    A process that starts anew writes all rounds again, and removes the file of the former: nothing is there twice.
    """

    def __init__(self, run: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        for former in folder.glob(f"{_EVENTS}*"):
            former.unlink()
        name = f"{_EVENTS}{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._stream = (folder / name).open("wb")
        self._writer = RecordWriter(self._stream)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def tell(self, round_number: int, figures: Figures) -> None:
        """Add the figures as scalars, the round as their step."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        summary = self._summary(value=values)
        self._write(self._event(wall_time=time.time(), step=round_number, summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._stream.flush()

    def end(self, _outcome: str) -> None:
        """Close the file."""
        self._stream.close()


class MLflow:
    """Logs to one of MLflow's runs, at the server or database that MLFLOW_TRACKING_URI names, or MLflow's default.

    Which run that is stands in RUN/mlflow.json, so that a process that starts anew goes on with it; what is there
    already is not logged again.
    """

    def __init__(self, run: Path) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._client, self._metric = MlflowClient(), Metric
        self._run_id = _known_run(run) or self._begin(run)
        self._known = {
            (each.key, each.step)
            for key in self._client.get_run(self._run_id).data.metrics
            for each in self._client.get_metric_history(self._run_id, key)
        }

    def _begin(self, run: Path) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        begun: str = self._client.create_run(number, run_name=run.resolve().name).info.run_id
        settings = current_settings(read_json((run / RUN_FILE).read_bytes()))
        params = [Param(key, str(value)[:_MOST_CHARACTERS]) for key, value in settings.items()]
        self._client.log_batch(begun, params=params)
        write_atomically(run / _MLFLOW_FILE, [json.dumps({"run_id": begun}).encode() + b"\n"])
        return begun

    def tell(self, round_number: int, figures: Figures) -> None:
        """Log the figures as metrics, the round as their step."""
        now = int(time.time() * 1000)
        metrics = [
            self._metric(name, value, now, round_number)
            for name, value in figures.items()
            if (name, round_number) not in self._known
        ]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, outcome: str) -> None:
        """Say how the run ended; one that goes on later stays as running as it is."""
        if outcome:
            self._client.set_terminated(self._run_id, outcome)


def _known_run(run: Path) -> str | None:
    path = run / _MLFLOW_FILE
    if not path.is_file():
        return None
    content = read_json(path.read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("run_id"), str):
        raise WarrenError(f"{path} is not ours. Remove it, and MLflow gets a new run.")
    return str(content["run_id"])


TRACKERS: dict[str, type[TensorBoard] | type[MLflow]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
