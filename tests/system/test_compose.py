"""deploy/compose.yaml is a whole system: as plain processes here, and in containers where there are any."""

import csv
import os
import re
import secrets
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.hosting.container import running_engine
from broker.hosting.management import Management
from broker.hosting.private import free_ports
from broker.hosting.probe import Answer, ask
from broker.link.invitation import read_invitation
from tests.brokers import need_rabbitmq, wait_until
from tests.composed import FILE, Composed

_ROUND_SECONDS = 180


def rows_of(runs: Path) -> list[dict[str, str]]:
    """The rounds in which somebody trained; before the first, the model is measured."""
    histories = list(runs.glob("*/history.csv"))
    rows = [row for path in histories for row in csv.DictReader(path.read_text().splitlines())]
    return [row for row in rows if row["accepted"]]


def test_the_demo_s_command_lines_make_a_federation_that_trains(tmp_path: Path) -> None:
    """In the file's own order three hospitals train and one measures; nobody is guest, and no password is in a list."""
    need_rabbitmq()
    with Composed(tmp_path) as composed:
        for name in composed.services:
            composed.up(name)
        assert composed.broker is not None
        assert sorted(Management(composed.broker.management_url).users()) == [
            "administrator", "coordinator", "hospital-1", "hospital-2", "hospital-3", "test-set",
        ]  # fmt: skip
        guest = f"amqp://guest:guest@localhost:{composed.broker_port}/%2F"
        assert ask(guest, seconds=5) is Answer.REFUSED
        listed = subprocess.run(
            ["ps", "-A", "-ww", "-o", "command="], capture_output=True, text=True, check=True
        )
        invitation = read_invitation(composed.volume("accounts") / "hospital-1.toml")
        assert str(urlsplit(invitation.amqp_url).password) not in listed.stdout
        assert composed.processes["launch"].wait(60) == 0, composed.said("launch")
        runs = composed.volume("runs")
        wait_until(lambda: bool(rows_of(runs)), _ROUND_SECONDS, what="a closed round")
        row = rows_of(runs)[0]
        answered = set(re.findall(r"[a-z0-9-]+", row["accepted"]))
        assert answered <= {"hospital-1", "hospital-2", "hospital-3", "test-set"}, row
        assert len(answered - {"test-set"}) >= 2, row  # the quorum
        for name, process in composed.processes.items():
            assert process.poll() in (None, 0), composed.said(name)


@pytest.mark.soak
def test_the_demo_runs_in_containers(tmp_path: Path) -> None:
    """`docker compose --profile demo up`, where an engine runs: the same in containers, from the built image.

    A project of its own, on ports of its own: what else runs here of this file stays as it is.
    """
    engine = running_engine()
    if engine is None:
        pytest.skip("no container engine runs here: the demo was not run in containers")
    page, management = free_ports(2)
    ports = {"WARREN_PAGE_PORT": str(page), "WARREN_MANAGEMENT_PORT": str(management)}
    project = f"warren-test-{secrets.token_hex(4)}"
    compose = [engine, "compose", "--project-name", project, "--file", str(FILE), "--profile", "demo"]

    def run(*words: str, seconds: float = 60, check: bool = True) -> str:
        command = [*compose, *words]
        env = {**os.environ, **ports}
        return subprocess.run(
            command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=seconds, check=check
        ).stdout

    def inside(service: str, script: str) -> str:
        return run("exec", "-T", service, "sh", "-c", script, check=False)

    try:
        run("up", "--detach", "--build", seconds=1800)
        wait_until(lambda: " is done." in run("logs", "--no-color", "coordinator"), 600, what="the run's end")
        assert inside("coordinator", "ls /runs/*/model.keras")
        history = inside("coordinator", "cat /runs/*/history.csv")
        rows = [row for row in csv.DictReader(history.splitlines()) if row["accepted"]]
        assert len(rows) == 3, history
        for row in rows:
            assert len(set(row["accepted"].split()) - {"test-set"}) >= 2, row  # the quorum
        assert any("test-set" in row["accepted"] for row in rows), history  # it measures
        measured = inside("coordinator", "grep ,test-set, /runs/*/workers.csv").splitlines()
        assert measured, history
        for line in measured:
            assert ",test-set,," in line, line  # it trained on nothing
        sites = ("hospital-1", "hospital-2", "hospital-3", "test-set")
        for service in ("coordinator", *sites):
            assert inside(service, "id -u").strip() == "1000", service
            assert inside(service, "grep ' / ' /proc/mounts | cut -d' ' -f4").startswith("ro,"), service
        for service in sites:
            audited = inside(service, "cat /home/warren/.local/state/warren/workers/*/audit.jsonl")
            assert "update-sent" in audited, service
    finally:
        run("down", "--volumes", seconds=180, check=False)
