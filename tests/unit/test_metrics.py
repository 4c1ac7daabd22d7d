"""What /metrics tells, of how many workers at most, and that alerts and dashboard watch what is told."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from broker.link.validity import Validity
from coordinator.folder.history import Row, WorkerRow
from coordinator.page.prometheus import Watched, metrics_text
from coordinator.page.tally import MOST_WORKERS, OTHERS, Tallied, Tally
from coordinator.presence.session import Sighting
from tests.unit.test_status import member, serving, view

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
CLOSED = [
    Row(round=0),
    Row(
        round=1, update_bytes=300, late=("c",), rejected={"d": "not finite"},
        workers={"a": WorkerRow(num_examples=5, seconds=2.5), "b": WorkerRow(num_examples=5, seconds=1.0),
                 "t": WorkerRow(num_test_examples=9)},
    ),
]  # fmt: skip


def tally_of(*rows: Row) -> Tally:
    tally = Tally(lambda: 1000.0)
    tally.begin(is_resumed=False)
    tally.look(rows)
    return tally


def text_of(watched: Watched) -> str:
    return metrics_text(watched)[0].decode()


@pytest.fixture
def full() -> str:
    """Of a coordinator in the middle of a run, with everything that it ever tells."""
    status = serving(
        [member("a"), member("c", is_present=False)], {"a": Sighting(at=12.5)}, view(), num_dead=3
    )
    tally = tally_of(*CLOSED)
    tally.end("failed")
    return text_of(
        Watched(
            status=status, is_connected=True, takes_messages=False, tallied=tally.told, disk=(25, 100),
            certificates=[Validity(whose="broker", subject="fl", expires_at=at, days_left=1) for at in (2e9, 3e9)],
        )
    )  # fmt: skip


def test_metrics_follow_the_state(full: str) -> None:
    """What Prometheus reads is what the page shows."""
    for line in (
        "warren_broker_connected 1.0", "warren_broker_takes_messages 0.0", "warren_ready 1.0",
        "warren_dead_messages_total 3.0", 'warren_workers{state="invited"} 1.0', "warren_run_closed_rounds 1.0",
        'warren_model{measure="loss"} 0.5', 'warren_worker_present{worker="a"} 1.0',
        'warren_worker_present{worker="c"} 0.0', 'warren_worker_last_seen_timestamp_seconds{worker="a"} 12.5',
        "warren_runs_disk_free_bytes 25.0", "warren_runs_disk_size_bytes 100.0", "warren_round_attempt 1.0",
        'warren_certificate_expiry_timestamp_seconds{certificate="broker"} 2e+09',
    ):  # fmt: skip
        assert f"\n{line}\n" in full, line


def test_what_was_counted_is_told(full: str) -> None:
    """Who trained and how long, half of the round's bytes each, who was late and rejected; how the run ended."""
    for line in (
        "warren_closed_rounds_total 1.0", "warren_late_rounds_total 1.0",
        "warren_last_round_closed_timestamp_seconds 1000.0", 'warren_runs_total{outcome="failed"} 1.0',
        'warren_runs_total{outcome="done"} 0.0', 'warren_worker_training_seconds{worker="a"} 2.5',
        'warren_worker_update_bytes_total{worker="b"} 150.0', 'warren_worker_rejected_updates_total{worker="d"} 1.0',
        'warren_worker_late_rounds_total{worker="c"} 1.0',
    ):  # fmt: skip
        assert f"\n{line}\n" in full, line
    assert 'warren_worker_training_seconds{worker="t"}' not in full


def test_before_the_loop_has_begun_there_are_metrics_too() -> None:
    """Nothing is missing that an alert compares, and failed runs count from 0."""
    text = text_of(Watched(status=None, is_connected=False, takes_messages=False, tallied=Tallied()))
    for line in ("warren_ready 0.0", "warren_run_active 0.0", 'warren_runs_total{outcome="failed"} 0.0'):
        assert f"\n{line}\n" in text


def test_a_round_is_counted_once() -> None:
    """However often the loop looks, and although its last row is measured later."""
    tally = tally_of(*CLOSED)
    tally.look(CLOSED)
    tally.look([*CLOSED, Row(round=2)])
    assert tally.told.rounds == 2
    tally.begin(is_resumed=False)
    tally.look(CLOSED)
    assert (tally.told.rounds, tally.told.update_bytes["a"]) == (3, 300)


def test_what_a_former_process_counted_is_not_counted_again() -> None:
    """Prometheus adds up over restarts."""
    tally = Tally()
    tally.begin(is_resumed=True)
    tally.look(())  # its checkpoint is not read yet
    tally.look(CLOSED)
    assert tally.told.rounds == 0
    tally.look([*CLOSED, Row(round=2)])
    assert tally.told.rounds == 1


def test_however_many_workers_there_are_the_series_are_few() -> None:
    """The first so many have their own, all others one together; present ones are told in numbers."""
    names = [f"site-{number}" for number in range(MOST_WORKERS + 50)]
    tally = tally_of(Row(round=0), Row(round=1, late=tuple(names), rejected=dict.fromkeys(names, "x")))
    assert len(tally.told.late) == len(tally.told.rejected) == MOST_WORKERS + 1
    assert tally.told.late[OTHERS] == 50
    status = serving([member(name) for name in names], {}, None)
    text = text_of(Watched(status=status, is_connected=True, takes_messages=True, tallied=tally.told))
    assert len(re.findall(r"^warren_worker_present", text, re.MULTILINE)) == MOST_WORKERS
    assert f'warren_workers{{state="idle"}} {float(len(names))}' in text


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bwarren_[a-z_]+[a-z]\b", text))


@pytest.mark.parametrize("file", ["alerts.yaml", "alerts_test.yaml", "grafana.json"])
def test_every_metric_that_is_watched_is_told(file: str, full: str) -> None:
    """An alert on a name that nothing has would never be raised."""
    told = {
        line.partition("{")[0].partition(" ")[0] for line in full.splitlines() if not line.startswith("#")
    }
    named = names_in((MONITORING / file).read_text(encoding="utf-8"))
    assert named
    assert named <= told


def test_every_metric_has_a_place_on_the_dashboard(full: str) -> None:
    """All that is told is shown, but for what a panel says already."""
    told = {
        line.partition("{")[0].partition(" ")[0] for line in full.splitlines() if not line.startswith("#")
    }
    shown = names_in((MONITORING / "grafana.json").read_text(encoding="utf-8"))
    assert told - shown == {"warren_run_active", "warren_round_update_bytes"}


def test_the_dashboard_can_be_read() -> None:
    """JSON, panels beside each other, a query in each, and a datasource that the person chooses."""
    dashboard = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["targets"]
        assert all(each["expr"] for each in panel["targets"])
        assert panel["datasource"]["uid"] == "${datasource}"
    assert max(x for x, _ in taken) < 24


@pytest.mark.parametrize(
    "arguments", [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"],
                  ["check", "config", "--syntax-only", "prometheus.yaml"], ["check", "metrics"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)  # fmt: skip
def test_promtool_finds_no_fault(arguments: list[str], full: str) -> None:
    """The rules can be read, and raise what they should; the metrics are as Prometheus likes them."""
    if shutil.which("promtool") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "promtool must be installed (Debian: apt install prometheus)"
        )
    found = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, input=full, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout + found.stderr
