"""The state in the words of Prometheus, read when it asks."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from coordinator.folder.history import Row
from coordinator.learning.measure_names import CENTRAL, TEST, best_known_first
from coordinator.status import RoundStatus, RunStatus, ServingStatus


class _StateCollector(Collector):
    """Turns one state into metrics."""

    def __init__(self, status: ServingStatus | None, *, is_connected: bool) -> None:
        self._status = status
        self._is_connected = is_connected

    def collect(self) -> Iterator[Metric]:
        """Every metric that is known now."""
        status = self._status
        yield _gauge("broker_connected", "Whether the broker can be reached.", float(self._is_connected))
        dead = "Messages copied to the queue dead since the start."
        yield CounterMetricFamily("warren_dead_messages", dead, value=status.num_dead if status else 0)
        yield self._workers()
        run = status.run if status else None
        yield _gauge("run_active", "Whether a run is under way.", float(run is not None))
        if run is not None:
            yield from _of_run(run)

    def _workers(self) -> Metric:
        family = GaugeMetricFamily(
            "warren_workers", "Workers that joined, by what they do.", labels=["state"]
        )
        workers = self._status.workers if self._status else ()
        for name, number in sorted(Counter(worker.state for worker in workers).items()):
            family.add_metric([name], number)
        return family


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


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"warren_{name}", text, value=value)


def metrics_text(status: ServingStatus | None, *, is_connected: bool) -> tuple[bytes, str]:
    """The metrics of a state, and their content type.

    Args:
        status: What goes on; None before the coordinator's loop has begun.
        is_connected: Whether the broker can be reached now.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StateCollector(status, is_connected=is_connected))
    return generate_latest(registry), CONTENT_TYPE_LATEST
