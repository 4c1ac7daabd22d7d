"""The units of systemd in deploy/systemd: systemd understands them, and their command lines are ones that there are."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

import broker.cli
import coordinator.cli
import worker.cli
from broker.hosting.commands.certs import PORT
from broker.hosting.private import MAIN_PID

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
GROUPS = {"broker": broker.cli.main, "coordinator": coordinator.cli.main, "worker": worker.cli.main}


def units() -> list[Path]:
    return sorted(UNITS.glob("*.service"))


def settings_of(unit: Path) -> dict[str, str]:
    lines = (line for line in unit.read_text().splitlines() if "=" in line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def commands_in(unit: Path) -> list[str]:
    return [value for name, value in settings_of(unit).items() if name in ("ExecStart", "ExecStop")]


def problems_of(text: str, folder: Path, name: str) -> str:
    """What systemd-analyze says of a unit, with a program in the place of ours that is there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    file = folder / name
    file.write_text(re.sub(r"=/opt/warren/bin/\w+", "=/bin/true", text))
    asked = str(file).replace("@.", "@hospital-1.")
    done = subprocess.run(["systemd-analyze", "verify", asked], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


@pytest.mark.parametrize("unit", units(), ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    """No name that it doesn't know, no value that it can't read."""
    assert problems_of(unit.read_text(), tmp_path, unit.name) == ""


def test_systemd_finds_what_is_wrong(tmp_path: Path) -> None:
    """The rule above looks at something."""
    text = (UNITS / "warren-coordinator.service").read_text()
    assert "KilMode" in problems_of(text.replace("KillMode", "KilMode"), tmp_path, "slip.service")


@pytest.mark.parametrize("unit", units(), ids=lambda path: path.name)
def test_a_units_command_line_is_one_that_there_is(unit: Path) -> None:
    """Program, subcommand and every option."""
    for line in commands_in(unit):
        program, subcommand, *words = line.split()
        command = GROUPS[Path(program).name].commands[subcommand]
        known = {
            name for option in command.params if isinstance(option, click.Option) for name in option.opts
        }
        assert {word for word in words if word.startswith("--")} <= known, line


def test_no_secret_stands_on_a_command_line_and_nobody_else_reads_what_is_written() -> None:
    """Logins come as credentials that systemd hands over; whatever the services write is theirs alone."""
    for unit in units():
        assert settings_of(unit)["UMask"] == "0077"
        assert settings_of(unit)["User"] == "warren"
        for line in commands_in(unit):
            assert not re.search(r"--(token|amqp-url|password)", line)


def test_an_interrupted_coordinator_is_no_failure_and_a_worker_needs_no_such_rule() -> None:
    """128 + 15 is a coordinator's exit code after SIGTERM in mid-run (tests/faults), a worker's is 0; systemd itself
    would take the first for a failure."""
    assert settings_of(UNITS / "warren-coordinator.service")["SuccessExitStatus"] == "143"
    assert "SuccessExitStatus" not in settings_of(UNITS / "warren-worker@.service")


def test_a_broker_that_ends_is_started_again() -> None:
    """systemd watches the process whose end is RabbitMQ's, by the file that `broker up` leaves; and the usual limit of
    1,024 open files does not keep workers out."""
    settings = settings_of(UNITS / "warren-broker.service")
    assert (settings["Type"], settings["Restart"]) == ("forking", "always")
    assert settings["PIDFile"] == f"/var/lib/warren/.local/state/warren/{PORT}/{MAIN_PID}"
    assert settings["StateDirectory"] == "warren"
    assert int(settings["LimitNOFILE"]) > 10_000
