"""The state in the words of Prometheus, read when it asks; deploy/monitoring has alerts and a dashboard of these."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from broker.link.validity import Validity
from coordinator.folder.history import Row
from coordinator.learning.measure_names import CENTRAL, TEST, best_known_first
from coordinator.page.tally import MOST_WORKERS, Tallied
from coordinator.status import RoundStatus, RunStatus, ServingStatus, WorkerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is told of.

    Attributes:
        status: What goes on; None before the coordinator's loop has begun.
        is_connected: Whether the broker can be reached now.
        takes_messages: Whether it takes messages now: not while it is away, nor during an alarm.
        tallied: What happened since the process started.
        disk: Free and all bytes of the disk that the runs are on; None: that can't be told.
        certificates: How long those of the broker's connection are valid; none of one without TLS.
    """

    status: ServingStatus | None
    is_connected: bool
    takes_messages: bool
    tallied: Tallied
    disk: tuple[int, int] | None = None
    certificates: Sequence[Validity] = ()


class _StateCollector(Collector):
    """Turns one state into metrics."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        """Every metric that is known now."""
        watched, status = self._watched, self._watched.status
        yield _gauge("broker_connected", "Whether the broker can be reached.", watched.is_connected)
        yield _gauge(
            "broker_takes_messages",
            "Whether the broker takes messages: not while away, nor during an alarm.",
            watched.takes_messages,
        )
        yield _gauge("ready", "Whether launches are taken.", status is not None and status.is_ready)
        dead = "Messages copied to the queue dead since the start."
        yield CounterMetricFamily("warren_dead_messages", dead, value=status.num_dead if status else 0)
        if watched.disk is not None:
            yield _gauge("runs_disk_free_bytes", "Free on the disk that the runs are on.", watched.disk[0])
            yield _gauge("runs_disk_size_bytes", "Size of the disk that the runs are on.", watched.disk[1])
        text = "When a certificate of the broker's connection expires; of several nodes' the first."
        latest_first = sorted(watched.certificates, key=lambda each: -each.expires_at)
        ends: dict[str, float] = {each.whose: each.expires_at for each in latest_first}
        yield _labelled("certificate_expiry_timestamp_seconds", text, "certificate", ends)
        yield from _of_workers(status.workers if status else ())
        yield from _of_tally(watched.tallied)
        run = status.run if status else None
        yield _gauge("run_active", "Whether a run is under way.", run is not None)
        if run is not None:
            yield from _of_run(run)


def _of_workers(workers: tuple[WorkerStatus, ...]) -> Iterator[Metric]:
    """All in numbers, and the first so many by name."""
    states = Counter(worker.state for worker in workers)
    yield _labelled("workers", "Workers that joined, by what they do.", "state", dict(sorted(states.items())))
    named = workers[:MOST_WORKERS]
    present = {worker.name: worker.is_present for worker in named}
    yield _labelled("worker_present", "Whether a worker is there.", "worker", present)
    seen = {worker.name: worker.last_seen for worker in named if worker.last_seen is not None}
    yield _labelled("worker_last_seen_timestamp_seconds", "When a worker was heard last.", "worker", seen)


def _of_tally(tallied: Tallied) -> Iterator[Metric]:
    yield CounterMetricFamily("warren_closed_rounds", "Rounds closed since the start.", value=tallied.rounds)
    yield CounterMetricFamily(
        "warren_late_rounds", "Those that closed without somebody invited.", value=tallied.late_rounds
    )
    if tallied.closed_at is not None:
        text = "When a round closed last."
        yield _gauge("last_round_closed_timestamp_seconds", text, round(tallied.closed_at, 3))
    yield _counted("runs", "Runs ended since the start, by outcome.", "outcome", tallied.runs)
    text = "How long a worker trained in its last round."
    yield _labelled("worker_training_seconds", text, "worker", tallied.seconds)
    for name, text, figures in (
        ("worker_update_bytes", "What a worker's accepted updates weighed.", tallied.update_bytes),
        ("worker_rejected_updates", "Updates rejected, and rounds declined.", tallied.rejected),
        ("worker_late_rounds", "Rounds that closed without the worker.", tallied.late),
    ):
        yield _counted(name, text, "worker", figures)


def _of_run(run: RunStatus) -> Iterator[Metric]:
    yield _gauge("run_rounds", "Rounds asked for.", run.rounds)
    yield _gauge("run_closed_rounds", "Rounds closed.", run.closed_rounds)
    yield from _of_open_round(run.open_round)
    last = run.last_round or Row(round=0)
    yield _gauge("round_seconds", "How long the last closed round took.", last.seconds)
    yield _gauge("round_update_bytes", "What its updates weighed on the wire.", last.update_bytes)
    family = GaugeMetricFamily(
        "warren_model", "What was measured in the last closed round.", labels=["measure"]
    )
    for prefix, figures in (("", last.metrics), (TEST, last.test), (CENTRAL, last.central)):
        for name in best_known_first(figures):
            family.add_metric([f"{prefix}{name}"], figures[name])
    yield family


def _of_open_round(opened: RoundStatus | None) -> Iterator[Metric]:
    for name, text, number in (
        ("invited", "Workers invited to the open round.", opened.invited if opened else 0),
        ("accepted", "Updates accepted in it.", opened.accepted if opened else 0),
        ("rejected", "Updates rejected in it.", opened.rejected if opened else 0),
        ("quorum", "Updates that may close it.", opened.quorum if opened else 0),
    ):
        yield _gauge(f"round_{name}", text, number)
    yield _gauge("round_attempt", "Which attempt at the open round this is.", opened.attempt if opened else 0)
    deadline = opened.deadline_seconds if opened else 0
    yield _gauge("round_deadline_seconds", "How long the open round waits at most.", deadline)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"warren_{name}", text, value=float(value))


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"warren_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family


def _counted(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"warren_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def metrics_text(watched: Watched) -> tuple[bytes, str]:
    """The metrics of a state, and their content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StateCollector(watched))
    return generate_latest(registry), CONTENT_TYPE_LATEST
