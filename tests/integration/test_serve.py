"""A coordinator that serves, as a process on a real RabbitMQ: launched by page, command and message; restarted."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker
from broker.link.address import vhost_of
from broker.link.validator import may_answer
from tests.brokers import wait_until
from tests.servings import TASK, Lab


@pytest.fixture
def lab(tmp_path: Path, vhost: str) -> Iterator[Lab]:
    with Lab(tmp_path, vhost) as lab:
        yield lab


def is_over(state: dict[str, Any]) -> bool:
    return state["run"] is None and state["last_run"] is not None


def publish(broker: PrivateBroker, vhost: str, body: object) -> None:
    """Publish as a person does at the management page: plain JSON with the user_id filled in."""
    message = {
        "properties": {"user_id": broker.user, "content_type": "application/json"},
        "routing_key": "coordinator",
        "payload": json.dumps(body),
        "payload_encoding": "string",
    }
    management = Management(broker.management_url)
    answer = management.api.post("exchanges", vhost_of(vhost), "federation", "publish", body=message)
    assert answer == {"routed": True}


def dead_reasons(broker: PrivateBroker, vhost: str) -> list[str]:
    """The reasons of all that is in `dead`; it stays there."""
    wanted = {"count": 50, "ackmode": "ack_requeue_true", "encoding": "auto"}
    management = Management(broker.management_url)
    found: Any = management.api.post("queues", vhost_of(vhost), "dead", "get", body=wanted)
    return [each["properties"]["headers"]["reason"] for each in found]


def test_one_coordinator_plays_many_runs_however_they_are_launched(
    lab: Lab, broker: PrivateBroker, vhost: str
) -> None:
    """By HTTP, by command and by JSON; each goes on from the last model; a launch in between is refused."""
    serving = lab.serve()
    code, said = lab.run("launch", "mnist", "--deadline-seconds", "1", "--retries", "0")
    assert code == 0, said
    lab.wait_for(is_over, 120, "a run without workers to fail")
    assert lab.get("/api/state")["last_run"]["reason"].startswith("Only 0 of 2 workers joined")

    for number in range(2):
        lab.worker(f"site-{number}")
    lab.wait_for(lambda state: len(state["workers"]) == 2, 60, "two workers")
    refused, answer = lab.post("/api/launch", {"task": TASK, "options": {"quorum": 3}})
    assert refused == 400
    assert "3" in answer["error"]
    taken, answer = lab.post("/api/launch", {"task": TASK, "options": {"rounds": 2}})
    assert taken == 202, answer
    code, said = lab.run("launch", TASK)
    assert code == 2
    assert "under way" in said
    lab.wait_for(lambda state: is_over(state) and state["last_run"]["outcome"] == "done", 60, "the first run")

    code, said = lab.run("launch", TASK, "--rounds", "1")
    assert code == 0, said
    second = said.split()[0]
    lab.wait_for(lambda state: is_over(state) and state["last_run"]["id"] == second, 60, "the second run")
    first_row = lab.get(f"/api/runs/{second}")["history"][0]
    before = lab.get(f"/api/runs/{answer['run']}")["history"][-1]
    assert first_row["val_loss"] == pytest.approx(before["val_loss"], rel=1e-3)

    publish(broker, vhost, {"type": "launch", "version": 1, "task": TASK, "options": {"rounds": "1"}})
    lab.wait_for(lambda state: is_over(state) and state["last_run"]["id"] > second, 60, "the third run")
    publish(broker, vhost, {"type": "launch", "version": 1, "task": "no-such-task", "options": {}})
    wait_until(
        lambda: any("no-such-task" in each for each in dead_reasons(broker, vhost)), 10, what="the reason"
    )
    assert [run["task"] for run in lab.get("/api/runs")["runs"]] == [TASK, TASK, TASK, "mnist"]
    metrics = lab.metrics()
    assert metrics["warren_closed_rounds_total"] == 4
    assert [metrics[f'warren_runs_total{{outcome="{name}"}}'] for name in ("done", "failed")] == [3, 1]
    for number in range(2):
        worker = f'{{worker="site-{number}"}}'
        assert metrics[f"warren_worker_present{worker}"] == 1
        assert metrics[f"warren_worker_training_seconds{worker}"] > 0
        assert metrics[f"warren_worker_update_bytes_total{worker}"] > 0
    assert serving.terminate() == 0


def test_a_killed_coordinator_goes_on_with_its_run_and_a_run_can_be_stopped(lab: Lab) -> None:
    """The open run is found on disk; after `stop` it ends with the round under way."""
    serving = lab.serve()
    lab.worker("site-1")
    lab.wait_for(lambda state: len(state["workers"]) == 1, 60, "a worker")
    taken, answer = lab.post("/api/launch", {"task": TASK, "options": {"rounds": 500, "epochs": 3}})
    assert taken == 202, answer
    lab.wait_for(lambda state: state["run"] and state["run"]["closed_rounds"] >= 2, 60, "two rounds")
    serving.kill()
    again = lab.serve()
    again.says("is unfinished: it goes on")
    lab.wait_for(lambda state: state["run"] and state["run"]["closed_rounds"] >= 3, 60, "another round")
    wait_until(
        lambda: lab.metrics()["warren_closed_rounds_total"] >= 1, 10, what="a round that this process closed"
    )
    code, said = lab.run("status")
    assert code == 0
    assert answer["run"] in said
    assert lab.post("/api/stop", {"now": False}) == (202, {"run": answer["run"]})
    state = lab.wait_for(is_over, 30, "the end")
    assert state["last_run"]["outcome"] == "stopped"
    run = lab.get(f"/api/runs/{answer['run']}")
    assert [row["round"] for row in run["history"]] == list(range(run["closed_rounds"] + 1))
    assert 1 <= lab.metrics()["warren_closed_rounds_total"] <= run["closed_rounds"] - 2
    assert again.terminate() == 0


def test_without_a_coordinator_the_question_says_so(lab: Lab) -> None:
    """And is not found by the coordinator that starts tomorrow."""
    for command in (["status"], ["launch", "mnist"]):
        code, said = lab.run(*command)
        assert code == 3
        assert "No coordinator works" in said
        assert len(said.strip().splitlines()) == 1


def test_a_port_in_use_is_one_line(lab: Lab) -> None:
    """Exit code 2, and what to try."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = lab.run("serve", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "in use" in said
    assert len(said.strip().splitlines()) == 1


def test_only_the_coordinators_account_answers() -> None:
    """A worker can't pretend to be the coordinator that was asked."""
    from broker.wire.messages import LaunchAnswered, Left

    assert may_answer(LaunchAnswered(run="a", reason=None), "coordinator")
    assert not may_answer(LaunchAnswered(run="a", reason=None), "hospital-1")
    assert not may_answer(Left(worker="a"), "coordinator")
