"""Options of a launch as texts: read as the command line reads them, written so that they are read back."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.errors import CheckpointError, UsageError
from coordinator.folder.run_index import LaunchRecord, RunIndex, read_launch, write_launch
from coordinator.keras.form import compiled_rate, refuse_decay
from coordinator.options import RunOptions
from coordinator.starting.launching import as_texts, make_options, option_names, read_options
from coordinator.tasks import Task, TaskDefaults, resolve

OWN = Task(name="my:model", kind="builder", source="my:model", defaults=TaskDefaults())
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def test_what_is_left_out_has_the_command_lines_default() -> None:
    """A launch of {} is `coordinator run` with no options."""
    read = read_options({})
    assert (read["rounds"], read["workers"], read["quorum"], read["strategy"]) == (5, 2, None, "fedavg")
    assert read["from_scratch"] is False


def test_names_and_values_are_those_of_the_command_line() -> None:
    """Dashes or underscores; flags are true or false; several KEY=VALUE are separated by commas."""
    read = read_options(
        {
            "rounds": "7",
            "deadline_seconds": "90",
            "--from-scratch": "true",
            "deterministic": "false",
            "strategy": "fedavgm",
            "strategy-option": "momentum=0.5, learning_rate=2",
        }
    )
    assert (read["rounds"], read["deadline_seconds"], read["from_scratch"]) == (7, 90.0, True)
    assert read["deterministic"] is False
    assert read["strategy_options"] == {"momentum": "0.5", "learning_rate": "2"}


@pytest.mark.parametrize(
    "options",
    [{"out": "/tmp"}, {"rounds": "many"}, {"rounds": "0"}, {"deterministic": "perhaps"}, {"help": ""}],
)
def test_what_the_command_line_refuses_is_refused(options: dict[str, str]) -> None:
    """An unknown option or an impossible value is an error that can be read, and never ends the process."""
    with pytest.raises(UsageError):
        read_options(options)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("mnist", {"initial-model": "\0"}), ("mnist", {"initial-model": "x" * 5000}),
        ("mnist", {"initial-model": "\ud800"}), ("mnist", {"initial-model": "x" * 4000}),
        ("mnist", {"workers": str(10**309)}), ("mnist", {"workers": str(10**20)}), ("mnist", {"seed": str(2**32)}),
        ("mnist", {"batch-size": str(2**53)}), ("mnist", {"deadline-seconds": "1e300"}),
        ("mnist", {"grace-seconds": "nan"}), ("mnist", {"grace-seconds": "inf"}), ("mnist", {"fraction": "nan"}),
        ("mnist", {"learning-rate": "1e-320"}), ("mnist", {"learning-rate": "1e300"}),
        ("mnist", {"strategy": "fedprox", "strategy-option": "mu=1e300"}), ("mnist", {"x" * 9999: "1"}),
        ("\0.keras", {}), ("x" * 5000 + ".keras", {}), ("x" * 4000 + ".keras", {}), ("\ud800", {}), ("a\n:b", {}),
    ],
)  # fmt: skip
def test_what_can_not_be_meant_is_a_usage_error_of_one_line(
    tmp_path: Path, task: str, options: dict[str, str]
) -> None:
    """No path that no file has, no number that nothing on the way holds, no character that nobody can read."""
    with pytest.raises(UsageError) as raised:
        asked = read_options(options)
        asked.pop("from_scratch")
        make_options(task, tmp_path / "run", asked)
    assert len(str(raised.value)) < 5000
    assert str(raised.value).isprintable()


def test_the_greatest_seed_is_numpys(tmp_path: Path) -> None:
    """2^32 - 1; Keras takes no other."""
    asked = read_options({"seed": str(2**32 - 1)})
    asked.pop("from_scratch")
    assert make_options("mnist", tmp_path, asked).seed == 2**32 - 1


def test_options_written_as_texts_are_read_back() -> None:
    """launch.json and a message hold what the person asked for."""
    asked = read_options(
        {"rounds": "3", "strategy": "fedavgm", "strategy-option": "momentum=0.5", "seed": "4"}
    )
    assert read_options(as_texts(asked)) == asked
    assert set(as_texts(asked)) <= set(option_names())


def test_a_contradiction_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A quorum above the number of workers can never be reached."""
    asked = read_options({"workers": "2", "quorum": "3"})
    asked.pop("from_scratch")
    with pytest.raises(UsageError, match="quorum"):
        make_options("mnist", tmp_path / "run", asked)


# The folder of runs


def record(**changes: str) -> LaunchRecord:
    return LaunchRecord(**{"task": "mnist", "options": {}, "launched_at": "2026-11-25T12:00:00", **changes})  # type: ignore[arg-type]


def save_run(place: Path, task: str, rounds: int, launched_at: str, outcome: str | None = "done") -> None:
    write_launch(place, record(task=task, launched_at=launched_at, outcome=outcome))  # type: ignore[arg-type]
    identity = f'{{"task": "{task}", "strategy": "fedavg", "rounds": 5, "started_at": "{launched_at}"}}'
    (place / "run.json").write_text(identity)
    (place / "history.csv").write_text(f"round,val_accuracy\n0,0.5\n{rounds},0.75\n")
    (place / "model.keras").write_bytes(b"model")


def test_runs_are_named_after_their_task_and_day(tmp_path: Path) -> None:
    """TASK-DATE-N, whatever a task's name holds."""
    run_index = RunIndex(tmp_path)
    assert run_index.folder_for("mnist", NOON).name == "mnist-20261125-1"
    (tmp_path / "mnist-20261125-1").mkdir()
    assert run_index.folder_for("mnist", NOON).name == "mnist-20261125-2"
    assert run_index.folder_for("my.models:build", NOON).name == "my.models-build-20261125-1"
    assert run_index.folder_for("../../etc/x.keras", NOON).name == "x-20261125-1"
    assert run_index.folder_for("../..", NOON).parent == tmp_path


def test_no_name_is_given_twice(tmp_path: Path) -> None:
    """Also after a folder is deleted, the newest too, and by a process that knows nothing of it."""
    for number in (1, 2, 3):
        folder = RunIndex(tmp_path).folder_for("mnist", NOON)
        assert folder.name == f"mnist-20261125-{number}"
        RunIndex(tmp_path).claim(folder)
        write_launch(folder, record())
        shutil.rmtree(folder)
    older = tmp_path / "mnist-20261126-7"  # of a version that noted nothing
    older.mkdir()
    assert RunIndex(tmp_path).folder_for("mnist", NOON + timedelta(days=1)).name == "mnist-20261126-8"


def test_a_task_goes_on_from_the_newest_run_that_closed_a_round(tmp_path: Path) -> None:
    """A run that never closed a round has nothing to go on from."""
    run_index = RunIndex(tmp_path)
    save_run(tmp_path / "a", "mnist", 5, "2026-11-24")
    save_run(tmp_path / "b", "mnist", 3, "2026-11-25")
    save_run(tmp_path / "c", "mnist", 0, "2026-11-26")
    save_run(tmp_path / "d", "other", 5, "2026-11-27")
    assert run_index.last_model("mnist") == tmp_path / "b" / "model.keras"
    assert run_index.last_model("chest-xray") is None
    assert [each.id for each in run_index.summaries()] == ["d", "c", "b", "a"]
    assert run_index.summaries()[0].measures == {"accuracy": 0.75}


def test_the_run_without_an_outcome_is_the_unfinished_one(tmp_path: Path) -> None:
    """After a restart it goes on."""
    run_index = RunIndex(tmp_path)
    save_run(tmp_path / "a", "mnist", 5, "2026-11-24")
    assert run_index.unfinished() is None
    save_run(tmp_path / "b", "mnist", 2, "2026-11-25", outcome=None)
    found = run_index.unfinished()
    assert found is not None
    assert found[0] == tmp_path / "b"


@pytest.mark.parametrize("name", ["..", "a/../b", "", ".lock", "missing"])
def test_only_a_run_is_found(tmp_path: Path, name: str) -> None:
    """No name from an address leads out of the folder."""
    save_run(tmp_path / "a", "mnist", 5, "2026-11-24")
    assert RunIndex(tmp_path).find(name) is None
    assert RunIndex(tmp_path).find("a") == tmp_path / "a"


def test_a_foreign_launch_file_is_named(tmp_path: Path) -> None:
    """What can't be read is said, with its path."""
    (tmp_path / "launch.json").write_text('{"other": 1}')
    with pytest.raises(CheckpointError, match=r"launch\.json"):
        read_launch(tmp_path)


def test_a_run_that_a_person_broke_is_left_out(tmp_path: Path) -> None:
    """One bad folder does not hide the others."""
    save_run(tmp_path / "a", "mnist", 5, "2026-11-24")
    save_run(tmp_path / "b", "mnist", 5, "2026-11-25")
    (tmp_path / "b" / "run.json").write_text("no json")
    assert [each.id for each in RunIndex(tmp_path).summaries()] == ["a"]


@pytest.mark.parametrize(
    "options",
    [
        {"learning-rate-decay": "0"}, {"learning-rate-decay": "1.1"}, {"learning-rate-decay": "nan"},
        {"stop-when": ""}, {"stop-when": "min:"}, {"patience": "0"}, {"keep-every": "0"},
    ],
)  # fmt: skip
def test_an_experiments_life_is_checked_before_it_begins(tmp_path: Path, options: dict[str, str]) -> None:
    """Whoever launches hears at once what can't be."""
    with pytest.raises(UsageError):
        asked = read_options(options)
        asked.pop("from_scratch")
        make_options("mnist", tmp_path, asked)


def test_an_experiments_life_is_launched_as_it_is_run(tmp_path: Path) -> None:
    """By message and page as on the command line."""
    asked = read_options(
        {"stop-when": "val_auc", "patience": "3", "keep-every": "10", "learning-rate-decay": "0.5"}
    )
    assert read_options(as_texts(asked)) == asked
    asked.pop("from_scratch")
    made = make_options("mnist", tmp_path, asked)
    assert (made.stop_when, made.patience, made.keep_every) == ("val_auc", 3, 10)
    assert [made.settings(number).learning_rate for number in (1, 2, 3)] == [0.1, 0.05, 0.025]
    assert made.training["learning_rate_decay"] == 0.5, "the card tells the baseline"


def test_the_rate_that_a_model_was_compiled_with_decays_where_no_other_is_given(tmp_path: Path) -> None:
    """And stays float32's: it never becomes 0, which no worker takes."""
    made = RunOptions(task=OWN, out=tmp_path, learning_rate_decay=0.5)
    assert made.settings(1, compiled_rate=0.01).learning_rate == 0.01
    assert made.settings(3, compiled_rate=0.01).learning_rate == 0.0025
    assert made.settings(9999, compiled_rate=0.01).learning_rate == 2.0**-126
    assert RunOptions(task=OWN, out=tmp_path).settings(3, compiled_rate=0.01).learning_rate is None


def test_a_task_that_decays_by_itself_can_be_told_not_to(tmp_path: Path) -> None:
    """1 is no decay; chest-xray's own is 0.8."""
    own = RunOptions(task=resolve("chest-xray"), out=tmp_path)
    assert own.settings(2).learning_rate == pytest.approx(0.0012)
    assert replace(own, learning_rate_decay=1.0).settings(2).learning_rate == 0.0015


def compiled(learning_rate: object) -> str:
    return json.dumps({"compile_config": {"optimizer": {"config": {"learning_rate": learning_rate}}}})


def test_a_schedule_can_not_decay_once_more() -> None:
    """Nor a rate that is not known; one that is given can."""
    refuse_decay(compiled(0.01), None, 0.5)
    refuse_decay(compiled({"class_name": "CosineDecay"}), None, 1.0)
    refuse_decay("{}", 0.1, 0.5)
    with pytest.raises(UsageError, match="a schedule already"):
        refuse_decay(compiled({"class_name": "CosineDecay"}), None, 0.5)
    with pytest.raises(UsageError, match="not known"):
        refuse_decay("{}", None, 0.5)
    assert compiled_rate(compiled(0.01)) == 0.01
