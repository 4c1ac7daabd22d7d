"""When a site takes no rounds: hours of its own, over midnight, too, and a pause that a person sets and takes back."""

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.errors import UsageError
from worker.cli import main
from worker.site.resting import Hours, PauseSwitch, Resting, parse_hours


def at(hour: int, minute: int = 0) -> time.struct_time:
    """That time of some day in winter."""
    return time.struct_time((2026, 1, 5, hour, minute, 0, 0, 5, 0))


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("20-6", Hours(20 * 60, 6 * 60)),
        ("8-24", Hours(8 * 60, 24 * 60)),
        ("20:30-6:15", Hours(20 * 60 + 30, 6 * 60 + 15)),
        (" 0-1 ", Hours(0, 60)),
    ],
)
def test_hours_are_read_as_a_person_writes_them(text: str, hours: Hours) -> None:
    """Whole hours, or with minutes."""
    assert parse_hours(text) == hours


@pytest.mark.parametrize(
    "text", ["", "20", "20-", "25-6", "24-6", "6-6", "8-25", "8:60-9", "8-9-10", "eight-nine", "-8-9"]
)
def test_what_is_no_time_of_the_day_is_refused(text: str) -> None:
    """Also hours that would never, or always, be; and nothing is guessed."""
    with pytest.raises(UsageError, match="--hours"):
        parse_hours(text)


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("20-6", [(20, 0), (23, 59), (0, 0), (5, 59)], [(6, 0), (12, 0), (19, 59)]),
        ("8-16", [(8, 0), (15, 59)], [(16, 0), (0, 0), (7, 59)]),
        ("8-24", [(8, 0), (23, 59)], [(0, 0), (7, 59)]),
    ],
)
def test_a_time_is_within_hours_or_not(
    hours: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]
) -> None:
    """From the first minute, up to and without the last; over midnight where they end earlier than they begin."""
    its = parse_hours(hours)
    assert [its.outside(at(*each)) for each in inside] == [""] * len(inside)
    assert all(its.outside(at(*each)) for each in outside)


def test_who_comes_outside_is_told_when_it_would_be_taken() -> None:
    """A coordinator elsewhere can make something of it: the zone stands there, too."""
    reason = Resting(hours=parse_hours("20-6"), clock=lambda: at(12)).reason
    assert reason.startswith("outside its hours, 20:00 to 06:00 (UTC")
    assert reason.endswith("it takes rounds again at 20:00")
    assert len(reason) <= 80  # or `coordinator status` cuts it off


def test_a_pause_survives_whoever_set_it_and_is_another_workers_no_more_than_its_name(tmp_path: Path) -> None:
    """It is a file: a worker that is started anew finds it, and one of another name does not."""
    PauseSwitch(tmp_path, "w").set()
    PauseSwitch(tmp_path, "w").set()
    assert Resting(PauseSwitch(tmp_path, "w")).reason == "paused by its operator"
    assert Resting(PauseSwitch(tmp_path, "w-2")).reason == ""
    PauseSwitch(tmp_path, "w").clear()
    PauseSwitch(tmp_path, "w").clear()
    assert Resting(PauseSwitch(tmp_path, "w")).reason == ""


def test_a_person_pauses_and_resumes_by_the_command_line(tmp_path: Path) -> None:
    """In the folder that the worker was given, by option or environment; a name that is none is refused."""
    state = {"WARREN_WORKER_STATE": str(tmp_path)}
    paused = CliRunner().invoke(main, ["pause", "--name", "w"], env=state)
    assert paused.exit_code == 0, paused.output
    assert "worker resume --name w" in paused.output
    assert "Nothing of a worker w is in" in paused.output  # a slip would pause nobody
    assert PauseSwitch(tmp_path, "w").is_on
    assert CliRunner().invoke(main, ["resume", "--name", "w", "--state", str(tmp_path)]).exit_code == 0
    assert not PauseSwitch(tmp_path, "w").is_on
    assert CliRunner().invoke(main, ["pause", "--name", "../w"], env=state).exit_code == 2


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    """The worker's --state may be another user's."""
    (tmp_path / "file").write_text("")
    paused = CliRunner().invoke(main, ["pause", "--name", "w", "--state", str(tmp_path / "file" / "state")])
    assert (paused.exit_code, paused.output.count("\n")) == (2, 1)
    assert "--state" in paused.output
