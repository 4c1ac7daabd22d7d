"""What leaves a site, and which rounds it declines, by its operator's own word."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from broker.wire.messages import RoundStart
from broker.wire.settings import TrainingSettings
from tests.unit.test_messages import EXAMPLES
from worker.api import WorkResult, run
from worker.cli import main
from worker.data.data_set import Dataset
from worker.rounds.site_rules import SiteRules
from worker.rounds.uploading import Measured

SETTINGS = TrainingSettings(epochs=2, batch_size=4, seed=0)
START = replace(
    next(message for message in EXAMPLES if isinstance(message, RoundStart)), participants=3, quorum=2
)  # of the task mnist
MEASURED = Measured(
    num_examples=10, metrics={"loss": 1.0}, states={"auc": np.zeros(2)}, global_metrics={"loss": 2.0},
    global_states={"auc": np.zeros(2)}, counts=None, num_test_examples=5, seconds=1.0,
)  # fmt: skip


class TenOfTwoClasses:
    """As much of a data set as a word about it needs."""

    examples_per_class = {"NORMAL": 4, "PNEUMONIA": 6}  # noqa: RUF012 - read only
    num_test_examples = 5


def data() -> Dataset:
    told: object = TenOfTwoClasses()
    return told  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("rules", "num_examples", "refusal"),
    [
        (SiteRules(), 1, None),
        (SiteRules(least_examples=10), 10, None),
        (SiteRules(least_examples=10), 9, "would train on 9 examples"),
        (SiteRules(least_steps=6), 9, None),  # 3 batches twice
        (SiteRules(least_steps=7), 9, "would take 6 steps"),
    ],
)
def test_a_round_below_the_operators_floor_is_refused(
    rules: SiteRules, num_examples: int, refusal: str | None
) -> None:
    """An update of few examples or steps tells much about them; the floor is the site's, not the coordinator's."""
    told = rules.refusal(SETTINGS, num_examples)
    assert told is None if refusal is None else refusal in (told or "")


def test_with_weights_alone_no_figure_leaves() -> None:
    """The update's weight in the mean is all that is told besides."""
    rules = SiteRules(share="weights")
    bare = replace(MEASURED, metrics={}, states={}, global_metrics={}, global_states={}, num_test_examples=0)
    assert rules.of(MEASURED) == bare
    assert rules.progress({"loss": 1.0}) == {}
    assert (rules.examples_per_class(data()), rules.num_test_examples(data())) == ((), 0)


def test_how_many_examples_of_each_class_is_told_on_request_alone() -> None:
    """How many of its patients are ill is a site's own affair."""
    assert SiteRules().examples_per_class(data()) == ()
    assert SiteRules().of(MEASURED) is MEASURED
    assert SiteRules(share="counts").examples_per_class(data()) == (4, 6)


@pytest.mark.parametrize(
    ("rules", "start", "refusal"),
    [
        (SiteRules(), replace(START, participants=0, quorum=0), None),  # a coordinator that doesn't tell
        (SiteRules(allow_tasks=("chest-*", "mnist")), START, None),
        (
            SiteRules(allow_tasks=("MNIST", "mnis")),
            START,
            "allows the tasks MNIST, mnis (--allow-task), and not 'mnist'",
        ),
        (SiteRules(least_participants=2), START, None),
        (SiteRules(least_participants=3), START, "may rest on 2 of 3 workers' updates"),
        (
            SiteRules(least_participants=2),
            replace(START, participants=1, quorum=1),
            "may rest on 1 of 1 workers'",
        ),
        (
            SiteRules(least_participants=2),
            replace(START, participants=0, quorum=0),
            "may rest on 0 of 0 workers'",
        ),
    ],
)
def test_a_round_outside_the_rules_is_refused(
    rules: SiteRules, start: RoundStart, refusal: str | None
) -> None:
    """Which task, and how many take part at the least: the quorum counts, for who else is invited may not answer."""
    told = rules.refusal_of(start, trains=True)
    assert told is None if refusal is None else refusal in (told or "")


def test_who_only_measures_is_no_participant() -> None:
    """No model rests on what it says; the task is its operator's affair still."""
    rules = SiteRules(least_participants=9, allow_tasks=("other",))
    assert replace(rules, allow_tasks=()).refusal_of(START, trains=False) is None
    assert rules.refusal_of(START, trains=False) is not None


def test_every_rule_is_an_option_an_environment_variable_and_an_argument(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A site's unit file or container has them in its environment; `worker.run` takes them from Python."""
    told: dict[str, Any] = {}

    def note(name: str, _data: str | None, **options: Any) -> WorkResult:
        told.update(options)
        return WorkResult(name=name, history=[])

    monkeypatch.setattr("worker.cli.run", note)
    rules: dict[str, tuple[str, object]] = {
        "allow_tasks": ("mnist chest-*", ("mnist", "chest-*")), "least_participants": ("3", 3),
        "hours": ("20-6", "20-6"), "threads": ("2", 2), "max_memory": ("4G", 2**32),
        "keep_models": (str(tmp_path), tmp_path), "keep_last": ("5", 5),
        "least_examples": ("9", 9), "least_steps": ("8", 8), "share": ("counts", "counts"),
    }  # fmt: skip
    environment = {
        f"WARREN_WORKER_{rule.upper()}".replace("TASKS", "TASK"): text for rule, (text, _) in rules.items()
    }
    ran = CliRunner().invoke(main, ["run", "--name", "w", "--data", "x.npz"], env=environment)
    assert ran.exit_code == 0, ran.output
    assert {rule: told[rule] for rule in rules} == {rule: value for rule, (_, value) in rules.items()}
    assert rules.keys() <= inspect.signature(run).parameters.keys()
