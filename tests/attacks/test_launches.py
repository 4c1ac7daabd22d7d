"""Launches that can't be meant: each is refused with a line, or its run fails alone; the server goes on."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from broker.hosting.private import PrivateBroker
from coordinator.folder.run_index import LaunchRecord, read_launch, write_launch
from tests.brokers import wait_until
from tests.integration.test_serve import dead_reasons, publish
from tests.servings import TASK, Lab

LONG = "x" * 5000
OPTIONS: list[dict[str, Any]] = [
    {"initial-model": "\0"}, {"initial-model": LONG}, {"initial-model": "\ud800"}, {"initial-model": ""},
    {"initial-model": "/"}, {"initial-model": "a\nb"}, {"workers": 10**309}, {"workers": 10**30},
    {"workers": True}, {"workers": -1}, {"workers": 1.5}, {"workers": ""}, {"workers": "9" * 5000},
    {"seed": 5_000_000_000}, {"seed": -1}, {"rounds": 10**20}, {"epochs": 10**20}, {"batch-size": 2**63},
    {"examples-per-class": 2**63}, {"quorum": 0}, {"retries": 10**400}, {"deadline-seconds": 1e300},
    {"deadline-seconds": "nan"}, {"grace-seconds": "inf"}, {"grace-seconds": "nan"}, {"fraction": "nan"},
    {"learning-rate": "nan"}, {"learning-rate": 1e300}, {"learning-rate": "1e-320"},
    {"strategy": "\ud800"}, {"strategy": "fedavgm", "strategy-option": "momentum=1e400"},
    {"strategy": "fedprox", "strategy-option": "mu=1e300"}, {"\0": "1"}, {LONG: "1"}, {"": ""}, {"--": "1"},
    {"from-scratch": "\u0130"}, {"from-scratch": 2},
]  # fmt: skip
TASKS = [
    "\0",
    "\ud800",
    "",
    LONG,
    f"{LONG}.keras",
    "\0.keras",
    ".keras",
    "..",
    "a\n:b",
    "\x1b[2Jx:y",
    f"{LONG}:f",
]
BODIES = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"task": NaN}', b'{"task": "mnist", "options": {"rounds": NaN}}',
    b'{"task": "mnist", "options": {"learning-rate": 1e999}}', b"[" * 30_000, b'{"task":' * 7_000,
    b'{"task": "mnist", "options": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    b'{"task": "mnist", "options": {"workers": ' + b"9" * 20_000 + b"}}",
]  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path, vhost: str) -> Iterator[Lab]:
    with Lab(tmp_path, vhost) as lab:
        yield lab


def post(lab: Lab, body: bytes) -> tuple[int, str]:
    """Send bytes as they are; the status, and what was said."""
    request = urllib.request.Request(f"{lab.address}/api/launch", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as exc:
        with exc:
            return exc.code, str(json.load(exc)["error"])


def ready(lab: Lab) -> None:
    lab.wait_for(lambda state: state["is_ready"], 30, "a coordinator that takes launches")


def test_a_launch_that_can_not_be_meant_is_refused_with_a_line(lab: Lab) -> None:
    """The enemy reaches the page on this machine (or has its token), sends any JSON, and wants the server to end.

    Paths that no file has, halves of characters, numbers of three hundred digits, NaN, JSON 30,000 deep: 400 with a
    line that a person can read, no run, no traceback; what is right is taken as before.
    """
    serving = lab.serve()
    ready(lab)
    wanted = [{"task": "mnist", "options": {"workers": 2, **options}} for options in OPTIONS]
    wanted += [{"task": task, "options": {"workers": 2}} for task in TASKS]
    for body in [*BODIES, *(json.dumps(each).encode() for each in wanted)]:
        code, said = post(lab, body)
        assert code == 400, (body[:80], said)
        assert 0 < len(said) < 600, (body[:80], said)
        assert said.isprintable(), said
    assert lab.get("/api/runs")["runs"] == []
    assert "Traceback" not in serving.said
    assert serving.is_running
    code, said = lab.run(
        "launch", "mnist", "--deadline-seconds", "1", "--retries", "0", "--seed", str(2**32 - 1)
    )
    assert code == 0, said
    lab.wait_for(lambda state: state["last_run"] is not None, 60, "the run without workers to fail")
    assert serving.terminate() == 0


def test_a_launch_by_message_is_refused_as_well(lab: Lab, broker: PrivateBroker, vhost: str) -> None:
    """The enemy has the coordinator's account at the broker, publishes launches, and wants the coordinator to end.

    It finds them in `dead`, each with a reason of one line.
    """
    serving = lab.serve()
    ready(lab)
    launches = [
        {"task": "mnist", "options": {name: str(each) for name, each in options.items()}}
        for options in OPTIONS
    ]
    launches += [{"task": task, "options": {}} for task in TASKS]
    for launch in launches:
        publish(broker, vhost, {"type": "launch", "version": 1, **launch})
    wait_until(lambda: len(dead_reasons(broker, vhost)) >= len(launches), 30, what="all reasons")
    assert all(reason and reason.isprintable() for reason in dead_reasons(broker, vhost))
    code, said = lab.run("status")
    assert code == 0
    assert "No run is under way" in said
    assert lab.run("launch", "mnist", "--seed", "5000000000")[0] == 2
    assert lab.run("launch", "a\nb")[0] == 2
    assert "Traceback" not in serving.said
    assert serving.terminate() == 0


def test_a_task_that_ends_the_child_ends_its_run_alone(lab: Lab) -> None:
    """The enemy may launch, names any function of Python's own, and wants the coordinator to end with it.

    The run fails, says why on the page and in launch.json, and the next launch is taken.
    """
    serving = lab.serve()
    ready(lab)
    for task in ("os:abort", "sys:exit", "json:loads"):
        code, said = lab.run("launch", task, "--deadline-seconds", "1", "--retries", "0")
        assert code == 0, said
        run = said.split()[0]
        state = lab.wait_for(
            lambda state, run=run: state["run"] is None and (state["last_run"] or {}).get("id") == run,
            90,
            "its end",
        )
        assert (state["last_run"]["outcome"], bool(state["last_run"]["reason"])) == ("failed", True)
        record = read_launch(lab.folder / "runs" / run)
        assert (record.outcome, record.reason) == ("failed", state["last_run"]["reason"])
    assert serving.terminate() == 0


@pytest.mark.parametrize(
    ("task", "options"),
    [("mnist", {"seed": "5000000000"}), ("mnist", {"initial-model": "\0"}), ("mnist", {"workers": str(10**309)}),
     ("\0.keras", {}), ("mnist", {"gone": "1"})],
)  # fmt: skip
def test_a_restart_does_not_die_of_a_run_that_was_taken_once(
    lab: Lab, task: str, options: dict[str, str]
) -> None:
    """An earlier version took this launch and died of it; the enemy wants every later start to die of it, too.

    The run is over as failed, with its reason, and the coordinator serves.
    """
    folder = lab.folder / "runs" / "bad-20261125-1"
    write_launch(folder, LaunchRecord(task=task, options=options, launched_at="2026-11-25T12:00:00+00:00"))
    serving = lab.serve()
    ready(lab)
    state = lab.wait_for(lambda state: state["last_run"] is not None, 30, "the run's end")
    assert (state["last_run"]["id"], state["last_run"]["outcome"]) == (folder.name, "failed")
    record = read_launch(folder)
    assert record.outcome == "failed"
    assert record.reason
    code, said = lab.run("launch", TASK, "--deadline-seconds", "1", "--retries", "0")
    assert code == 0, said
    assert serving.terminate() in (0, 128 + 15)
