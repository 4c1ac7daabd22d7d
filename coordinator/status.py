"""What is told of workers and runs: made once, written as JSON in one place, and read back in one."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.errors import ProtocolError
from broker.wire.fields import from_plain, to_plain
from broker.wire.plain_json import json_text, read_json
from coordinator.folder.history import Row, row_in


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressStatus:
    """How far a worker's training is.

    Attributes:
        share: Of all batches of all epochs.
        metrics: So far; None where it is no number.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    share: float
    metrics: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker.

    Attributes:
        last_seen: Seconds since 1970.
        state: In one word.
        detail: What is to be said about that.
        release: The Warren that it runs; empty where it does not say so.
    """

    name: str
    is_present: bool
    task: str | None
    evaluate_only: bool
    num_examples: int
    num_test_examples: int
    examples_per_class: dict[str, int]
    last_seen: float | None
    state: str
    detail: str | None
    progress: ProgressStatus | None
    release: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsStatus:
    """How the workers train."""

    epochs: int
    batch_size: int
    learning_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStatus:
    """The open round, in numbers of workers.

    Attributes:
        attempt: From 1.
        update_bytes: What the accepted updates weighed on the wire.
    """

    attempt: int
    invited: int
    accepted: int
    rejected: int
    quorum: int
    deadline_seconds: float
    update_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BestStatus:
    """The round whose model is the best so far.

    Attributes:
        measure: By which it is, as history.csv names it.
    """

    round: int
    measure: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateStatus:
    """What stays at the workers.

    Attributes:
        patterns: Of the weights that do.
        num_weights: How many these are; 0 before the model is built.
        num_sites: Workers present that train in the run: each keeps its own.
    """

    patterns: tuple[str, ...]
    num_weights: int
    num_sites: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """The run under way, without its history.

    Attributes:
        id: The name of its folder.
        last_round: Told flat, each measure under a name of its own.
        history_stamp: Another one when the history is another.
        stop_when: What must go on becoming better, if anything must.
        patience: Rounds for which it may not.
        private: Weights that stay at the workers, if any do.
    """

    id: str
    task: str
    phase: str
    round: int
    closed_rounds: int
    rounds: int
    workers_wanted: int
    workers_present: int
    quorum: int
    is_stopping: bool
    strategy: str
    settings: SettingsStatus
    open_round: RoundStatus | None
    last_round: Row | None
    history_stamp: str
    best: BestStatus | None = None
    stop_when: str | None = None
    patience: int | None = None
    private: PrivateStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatus:
    """The broker, as the page shows it.

    Attributes:
        address: Without its password.
        management: The address of RabbitMQ's own page.
    """

    address: str
    management: str
    is_connected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """How a run ended, and why if it failed, or ended before its last round."""

    id: str
    task: str
    outcome: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """A task that can be launched.

    Attributes:
        num_able: How many present workers can train it, and take rounds.
        last_model: The run whose model a launch goes on from.
    """

    name: str
    num_able: int
    epochs: int
    batch_size: int
    learning_rate: float | None
    last_model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What goes on at a coordinator that plays one run.

    Attributes:
        release: The Warren that it runs; empty of one that does not say so.
    """

    workers: tuple[WorkerStatus, ...]
    run: RunStatus | None
    release: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStatus(Status):
    """What goes on at a coordinator that stays.

    Attributes:
        is_ready: It is the one coordinator, and takes launches.
        num_dead: Messages copied to `dead` since its start.
        runs_stamp: Another one when a run's files have changed.
    """

    broker: BrokerStatus
    is_ready: bool
    last_run: EndedRun | None
    num_dead: int
    runs_stamp: int
    tasks: tuple[TaskStatus, ...]


def plain_status(status: Status) -> dict[str, Any]:
    """A status as it is told: maps, lists, numbers and texts."""
    plain: dict[str, Any] = to_plain(status)
    if status.run is not None and status.run.last_round is not None:
        plain["run"]["last_round"] = status.run.last_round.flat
    return plain


def status_json(status: Status) -> str:
    """A status as JSON."""
    return json_text(plain_status(status))


def read_status(text: str) -> Status:
    """Read what another process told; what only a later version tells is left out.

    Raises:
        ProtocolError: It is no status.
    """
    told = read_json(text)
    if not isinstance(told, dict):
        raise ProtocolError(f"Expected a status, got {type(told).__name__}.")
    kind = ServingStatus if "broker" in told else Status
    status: Status = from_plain(kind, _with_nested_row(_known(kind, told)), "status")
    return status


def _with_nested_row(told: dict[str, Any]) -> dict[str, Any]:
    run = told.get("run")
    if not (isinstance(run, dict) and isinstance(run.get("last_round"), dict)):
        return told
    return {**told, "run": {**run, "last_round": row_in(run["last_round"]).plain}}


def _known(kind: type, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that this version knows."""
    hints = typing.get_type_hints(kind)
    return {name: _known_value(hints[name], value) for name, value in told.items() if name in hints}


def _known_value(hint: Any, value: Any) -> Any:
    kinds = [each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each)]
    kind = next((each for each in kinds if isinstance(each, type) and each is not Row), None)
    if kind is None:
        return value
    if isinstance(value, list):
        return [_known_value(kind, each) for each in value]
    return _known(kind, value) if isinstance(value, dict) else value
