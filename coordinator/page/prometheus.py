"""The state in the words of Prometheus, read when it asks."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from coordinator.folder.history import CENTRAL, TEST, names_of_measures


class _StateCollector(Collector):
    """Turns one state into metrics."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Every metric that is known now."""
        state = self._state
        is_connected = state.get("broker", {}).get("is_connected")
        yield _gauge("broker_connected", "Whether the broker can be reached.", float(bool(is_connected)))
        dead = "Messages copied to the queue dead since the start."
        yield CounterMetricFamily("warren_dead_messages", dead, value=state.get("num_dead", 0))
        yield self._workers()
        run = state.get("run")
        yield _gauge("run_active", "Whether a run is under way.", float(run is not None))
        if run is not None:
            yield from _of_run(run)

    def _workers(self) -> Metric:
        family = GaugeMetricFamily(
            "warren_workers", "Workers that joined, by what they do.", labels=["state"]
        )
        for name, number in sorted(
            Counter(worker["state"] for worker in self._state.get("workers", ())).items()
        ):
            family.add_metric([name], number)
        return family


def _of_run(run: Mapping[str, Any]) -> Iterator[Metric]:
    yield _gauge("run_rounds", "Rounds asked for.", run["rounds"])
    yield _gauge("run_closed_rounds", "Rounds closed.", run["closed_rounds"])
    opened = run["open_round"] or {}
    for name, text in (
        ("invited", "Workers invited to the open round."),
        ("accepted", "Updates accepted in it."),
        ("rejected", "Updates rejected in it."),
        ("quorum", "Updates that may close it."),
    ):
        yield _gauge(f"round_{name}", text, opened.get(name, 0))
    last = run["last_round"] or {}
    yield _gauge("round_seconds", "How long the last closed round took.", last.get("seconds", 0.0))
    yield _gauge("round_update_bytes", "What its updates weighed on the wire.", last.get("update_bytes", 0))
    family = GaugeMetricFamily(
        "warren_model", "What was measured in the last closed round.", labels=["measure"]
    )
    for name in names_of_measures([last]):
        for key in (name, f"{TEST}{name}", f"{CENTRAL}{name}"):
            if key in last:
                family.add_metric([key], last[key])
    yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"warren_{name}", text, value=value)


def metrics_text(state: Mapping[str, Any]) -> tuple[bytes, str]:
    """The metrics of a state, and their content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StateCollector(state))
    return generate_latest(registry), CONTENT_TYPE_LATEST
