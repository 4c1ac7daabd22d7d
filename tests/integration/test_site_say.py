"""A site's rules hold whatever a coordinator asks for, and stand where the coordinator's people look."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import wait_until
from tests.servings import Lab, Process
from worker.site.resting import PauseSwitch

SECONDS = 90
TASK = "waits:task"
#: Trains round N when there is a file `go-N`, so that a test can look at an open round.
_WAITS = """
import pathlib
import numpy as np
from worker.trainer import Fitted


def task():
    return {"w": np.zeros(2)}


class Trainer:
    num_examples = 10

    def __init__(self, *, data, worker):
        pass

    def fit(self, weights, settings):
        while not (pathlib.Path(f"go-{settings.round_number}").exists() or settings.stop.wait(0.1)):
            settings.report(1)
        return Fitted(weights={"w": weights["w"] + 1}, num_examples=10, metrics={"loss": 1.0})

    def evaluate(self, weights):
        return None
"""


@pytest.fixture
def lab(tmp_path: Path, vhost: str) -> Iterator[Lab]:
    (tmp_path / "waits.py").write_text(_WAITS)
    with Lab(tmp_path, vhost) as lab:
        yield lab


def worker(lab: Lab, name: str, *rules: str) -> Process:
    return lab.start(
        "worker", "run", "--name", name, "--trainer", "waits:Trainer", "--once", "--state", "state", *rules
    )


def run(lab: Lab, *options: str) -> Process:
    return lab.start("coordinator", "run", TASK, "--out", "run", *options)


def told(lab: Lab) -> dict[str, tuple[str, str]]:
    """State and detail of each worker, as `coordinator status` tells them."""
    status = lab.start("coordinator", "status", "--json")
    assert status.ended(SECONDS) in (0, 3, 4)
    try:
        workers: list[dict[str, Any]] = json.loads(status.out.read_text())["workers"]
    except ValueError:
        return {}
    return {each["name"]: (each["state"], each["detail"] or "") for each in workers}


def test_one_site_refuses_by_its_rules_and_the_other_trains(lab: Lab) -> None:
    """Three sites, a quorum of one: the first allows other tasks alone, the second is paused by a person before it
    starts. Both stay, and status and history name each with its reason, while the third trains. Resumed while a round
    is open, the paused one takes part in it."""
    switch = PauseSwitch(lab.folder / "state", "paused")
    switch.set()
    sites = [
        worker(lab, "other", "--allow-task", "chest-*"), worker(lab, "paused"),
        worker(lab, "takes-part", "--allow-task", "waits:*", "--threads", "1"),
    ]  # fmt: skip
    sites[1].says("Takes no rounds: paused by its operator", SECONDS)
    coordinator = run(lab, "--workers", "2", "--quorum", "1", "--rounds", "2", "--grace-seconds", "60")
    coordinator.says("other can't answer", SECONDS)
    coordinator.says("paused takes no rounds for now: paused by its operator", SECONDS)
    seen = told(lab)
    assert seen["other"][0] == "declined"
    assert "allows the tasks chest-* (--allow-task), and not 'waits:task'" in seen["other"][1]
    assert seen["paused"] == ("paused", "paused by its operator")
    (lab.folder / "go-1").touch()
    coordinator.says("Round 2 of 2", SECONDS)
    switch.clear()
    coordinator.says("Round 2 is sent to paused", SECONDS)
    (lab.folder / "go-2").touch()
    assert coordinator.ended(SECONDS) == 0, coordinator.said
    assert [each.ended(SECONDS) for each in sites] == [0, 0, 0], [each.said for each in sites]
    *_, first, second = csv.DictReader((lab.folder / "run" / "history.csv").read_text().splitlines())
    assert "paused: paused by its operator" in first["rejected"]
    assert "--allow-task" in first["rejected"]
    assert "--allow-task" in second["rejected"]
    assert "paused" not in second["rejected"]
    assert set(second["accepted"].split()) == {"paused", "takes-part"}


def test_a_round_for_one_hospital_alone_is_refused_by_the_hospital(lab: Lab) -> None:
    """With --workers 1 --quorum 1 its own weights would be the global model. It declines, says why, and stays."""
    hospital = worker(lab, "hospital", "--least-participants", "2")
    coordinator = run(lab, "--workers", "1", "--quorum", "1", "--rounds", "1", "--retries", "0")
    assert coordinator.ended(SECONDS) == 4, coordinator.said
    reason = "may rest on 1 of 1 workers' updates; this site's operator allows no fewer than 2"
    assert reason in coordinator.said
    wait_until(lambda: reason in hospital.said, SECONDS, what="the reason in the site's own log")
    assert hospital.ended(SECONDS) == 0  # its one run is over
