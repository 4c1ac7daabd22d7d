"""A trainer of one's own takes a round start's arrays by name, and whatever it does wrong is told with its name."""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from broker.errors import DataError, ModelError, UsageError, WarrenError
from broker.model.arrays import arrays_text
from broker.model.card import read_card
from broker.wire.messages import Joined, RoundStart
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import FLOAT32, TensorSpec, Vector
from coordinator.learning.membership import Roster
from coordinator.play.admission import Admission
from tests.unit.test_checkpoint import STATE
from worker.cli import main
from worker.learning.results import TrainingProgress
from worker.rounds import own_trainer
from worker.rounds.own_site import OwnSite, open_trainer
from worker.rounds.own_trainer import OwnTraining
from worker.rounds.participant import Participant, Trained
from worker.rounds.site_rules import SiteRules
from worker.site.global_models import GlobalModels
from worker.trainer import Evaluated, FitSettings, Fitted, Weights

LAYOUT = (
    TensorSpec(dtype="float32", shape=(2, 2), kind="trainable"),
    TensorSpec(dtype="int64", shape=(), kind="integer"),
    TensorSpec(dtype="float32", shape=(2,), kind="trainable"),
)
START = RoundStart(
    run_id="r", round_number=4, attempt=1, mode="train", task="mine:arrays", classes=(),
    model=arrays_text(["kernel", "steps", "bias"]), layout=LAYOUT, integers=(np.array(7),),
    settings=TrainingSettings(epochs=2, batch_size=5, learning_rate=0.5, seed=3), scale_exponent=30,
    part_bytes=65536, digest="", last_round=9, deadline_seconds=60.0,
)  # fmt: skip
GLOBAL = np.arange(6, dtype=FLOAT32)

Fit = Callable[[Weights, FitSettings], Any]


class Mine:
    """Adds one to every float, in place, or does what a test wants."""

    terms: tuple[str, ...] = ()

    def __init__(self, *, data: str | None = None, worker: str = "w") -> None:
        self.given = (data, worker)
        self.num_examples = 10
        self.seen: list[Any] = []
        self.fits: Fit = self.add_one

    def add_one(self, weights: Weights, settings: FitSettings) -> Fitted:
        self.seen.append(settings)
        weights["kernel"] += 1
        weights["bias"] += 1
        settings.report(1, {"loss": 2.0}, batch=1, batches=2)
        return Fitted(weights=weights, num_examples=8, metrics={"loss": 1.5})

    def fit(self, weights: Weights, settings: FitSettings) -> Fitted:
        fitted: Fitted = self.fits(weights, settings)
        return fitted

    def evaluate(self, weights: Weights) -> Evaluated | None:
        return Evaluated(num_examples=4, metrics={"loss": float(weights["kernel"].sum())})


def answered(
    mine: Any,
    start: RoundStart = START,
    *,
    stop: threading.Event | None = None,
    weights: Vector = GLOBAL,
    told: list[TrainingProgress] | None = None,
    keeps: GlobalModels | None = None,
    **participant: Any,
) -> Trained | None:
    report = [].append if told is None else told.append
    site = Participant(name="w", data=OwnSite.of(mine, "mine:Mine"), **participant)
    return OwnTraining(keeps=keeps).answer(site, start, weights, stop or threading.Event(), report)


def test_the_difference_of_the_named_arrays_travels() -> None:
    """Floats in the layout's order; the integers stay the global model's, and metrics go by their names."""
    mine, told = Mine(), list[TrainingProgress]()
    trained = answered(mine, told=told)
    assert trained is not None
    assert trained.vector is not None
    assert trained.vector.tolist() == [1.0] * 6
    measured = trained.measured
    assert (measured.num_examples, measured.metrics) == (8, {"loss": 1.5})
    assert (measured.num_test_examples, measured.global_metrics) == (4, {"loss": 6.0})
    settings = mine.seen[0]
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (2, 5, 0.5)
    assert settings.round_number == 4
    assert [(each.epoch, each.epochs, each.batch, each.batches) for each in told] == [(1, 2, 1, 2)]


def test_what_a_trainer_changes_in_place_is_its_own() -> None:
    """Else the difference would be zero, and the next logical worker would begin elsewhere."""
    weights = GLOBAL.copy()
    trained = answered(Mine(), weights=weights)
    assert trained is not None
    assert np.array_equal(weights, GLOBAL)


def test_of_float64_the_difference_is_rounded_and_not_the_weights() -> None:
    """1 + 2^-30 is 1 in float32; the step of 2^-30 is not 0."""
    mine = Mine()
    mine.fits = lambda weights, _: Fitted(
        weights={name: np.asarray(its, np.float64) + 2.0**-30 for name, its in weights.items()},
        num_examples=1,
    )
    trained = answered(mine)
    assert trained is not None
    assert trained.vector is not None
    assert trained.vector.tolist() == [2.0**-30] * 6


def test_where_local_values_are_asked_for_they_travel_as_exactly_as_they_are() -> None:
    """float64 as float64, unless float32 has all of it: then it takes half the room, and the round start's memory."""
    start = replace(START, settings=replace(START.settings, precision="local64"))
    mine = Mine()
    for added, dtype in ((2.0**-30, np.float64), (1.0, np.float32)):
        mine.fits = lambda weights, _, added=added: Fitted(
            weights={name: np.asarray(its, np.float64) + added for name, its in weights.items()},
            num_examples=1,
        )
        trained = answered(mine, start)
        assert trained is not None
        assert trained.vector is not None
        assert trained.vector.dtype == dtype
        assert trained.vector.tolist() == [its + added for its in GLOBAL[:6].tolist()]


def test_the_seed_is_another_one_in_each_round_and_the_same_after_a_restart() -> None:
    """A restarted worker is to compute what the first one would have."""
    mine = Mine()
    for start in (START, START, replace(START, round_number=5)):
        answered(mine, start)
    first, again, later = (settings.seed for settings in mine.seen)
    assert first == again != later


def test_an_evaluator_trains_nothing_and_a_trainer_without_test_examples_measures_nothing() -> None:
    """Either half of an answer may be missing."""
    measured = answered(Mine(), evaluate_only=True)
    assert measured is not None
    assert measured.vector is None
    assert measured.measured.num_test_examples == 4
    mine: Any = Mine()
    mine.evaluate = lambda _weights: None
    trained = answered(mine)
    assert trained is not None
    assert (trained.measured.num_test_examples, trained.measured.global_metrics) == (0, {})


def test_the_rules_of_the_site_hold() -> None:
    """--least-examples before and after the training, --share for what leaves."""
    with pytest.raises(DataError, match="--least-examples"):
        answered(Mine(), rules=SiteRules(least_examples=11))
    with pytest.raises(DataError, match="--least-examples"):
        answered(Mine(), rules=SiteRules(least_examples=9))  # it has ten, and trained on eight
    with pytest.raises(DataError, match="--least-steps"):
        answered(Mine(), rules=SiteRules(least_steps=5))
    trained = answered(Mine(), rules=SiteRules(share="weights"))
    assert trained is not None
    assert (trained.measured.metrics, trained.measured.global_metrics) == ({}, {})


def test_a_term_that_a_trainer_does_not_know_is_declined() -> None:
    """FedProx without its term would be FedAvg under another name; one that knows it is told the number."""
    start = replace(START, settings=replace(START.settings, terms={"prox_mu": 0.25}))
    with pytest.raises(ModelError, match=r"mine:Mine.*'prox_mu'"):
        answered(Mine(), start)
    mine = Mine()
    mine.terms = ("prox_mu",)
    answered(mine, start)
    assert mine.seen[0].terms == {"prox_mu": 0.25}


def test_what_is_trained_after_the_end_of_its_round_counts_for_nothing() -> None:
    """The trainer looks at `stop`, and may return anything then."""
    stop, mine = threading.Event(), Mine()

    def stopped(_weights: Weights, settings: FitSettings) -> Any:
        assert not settings.stop.is_set()
        stop.set()
        assert settings.stop.is_set()

    mine.fits = stopped
    assert answered(mine, stop=stop) is None


def fitted(**more: Any) -> Fit:
    def fit(weights: Weights, _settings: FitSettings) -> Any:
        return Fitted(**({"weights": weights, "num_examples": 5} | more))

    return fit


def raising(_weights: Weights, _settings: FitSettings) -> Any:
    raise ValueError("the coil is off\nand more")


def without_bias(weights: Weights, _settings: FitSettings) -> Any:
    return Fitted(weights={"kernel": weights["kernel"], "steps": 0}, num_examples=5)


def with_bias(bias: Any) -> Fit:
    return lambda weights, _: Fitted(weights=weights | {"bias": bias}, num_examples=5)


WRONG: dict[str, tuple[Fit, str]] = {
    "it raises": (raising, "mine:Mine.fit failed. ValueError: the coil is off"),
    "nothing": (lambda _weights, _settings: None, "Expected a Fitted from mine:Mine.fit, got None"),
    "no Fitted": (lambda weights, _settings: (weights, 5), "Expected a Fitted from mine:Mine.fit"),
    "too many examples": (fitted(num_examples=11), "trained on 11 examples"),
    "no examples": (fitted(num_examples=0), "trained on 0 examples"),
    "examples that are no number": (fitted(num_examples="5"), "Expected a Fitted"),
    "an array is missing": (without_bias, "Expected the arrays kernel, steps, bias"),
    "another shape": (with_bias(np.zeros(3)), "'bias' of the shape (3,)"),
    "NaN": (with_bias(np.array([0, np.nan])), "NaN or infinity in 'bias'"),
    "beyond float32": (with_bias(np.array([0, 1e300])), "more than float32 holds"),
    "no array": (with_bias("often"), "'bias' as what can't become an array"),
    "a metric that is NaN": (fitted(metrics={"loss": float("nan")}), "The metric loss of mine:Mine is nan"),
    "a metric that is no number": (fitted(metrics={"loss": "low"}), "Expected metrics of mine:Mine"),
    "a metric without a name": (fitted(metrics={"=1+1": 2.0}), "Expected metrics of mine:Mine"),
    "metrics that are none": (fitted(metrics=3), "Expected metrics of mine:Mine"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_whatever_a_trainer_does_wrong_is_told_with_its_name(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker declines, and goes on; a traceback stays in its log."""
    mine = Mine()
    mine.fits, said = WRONG[case]
    with caplog.at_level(logging.ERROR), pytest.raises(WarrenError) as caught:
        answered(mine)
    assert said in str(caught.value)
    assert ("Traceback" in caplog.text) == (case == "it raises")


def test_a_training_that_says_nothing_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it any more; until it ends, its trainer is in use, and the next round is declined."""
    monkeypatch.setattr(own_trainer, "STEP_SECONDS", 0.05)
    let_go, mine = threading.Event(), Mine()
    mine.fits = lambda *_: let_go.wait(20)
    site = Participant(name="w", data=OwnSite.of(mine, "mine:Mine"))
    training = OwnTraining()
    for said in ("mine:Mine.fit, without a word of its settings.report, took more", "Start the worker anew"):
        with pytest.raises(ModelError, match=said):
            training.answer(site, START, GLOBAL, threading.Event(), lambda _progress: None)
    assert training.has_left_behind
    let_go.set()


def test_a_keras_model_is_declined() -> None:
    """Admission sees to it; a coordinator of an older Warren does not know of trainers."""
    with pytest.raises(ModelError, match="the run's model is Keras's"):
        answered(Mine(), replace(START, model='{"class_name": "Sequential"}'))


@pytest.mark.parametrize(
    "layout",
    [LAYOUT[:2], (*LAYOUT[:2], TensorSpec(dtype="float32", shape=(2,), kind="frozen"))],
    ids=["an array too few", "a frozen one"],
)
def test_a_layout_that_no_task_of_arrays_has_is_declined(layout: tuple[TensorSpec, ...]) -> None:
    """It came over the wire: names and kinds must fit each other before anything is trained."""
    weights = GLOBAL[: sum(spec.size for spec in layout if spec.is_float)]
    with pytest.raises(ModelError, match="Expected"):
        answered(Mine(), replace(START, layout=layout), weights=weights)


def test_a_trainer_is_made_with_what_the_command_line_says() -> None:
    """CLASS(data=..., worker=...)."""
    site = open_trainer("tests.unit.test_own_trainer:Mine", data="ward-7", worker="hospital-1")
    assert (site.trainer.given, site.num_train_examples) == (("ward-7", "hospital-1"), 10)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ("no colon", UsageError, "MODULE:CLASS"),
        ("nowhere_at_all:Trainer", UsageError, "no module 'nowhere_at_all'"),
        ("tests.unit.test_own_trainer:Theirs", UsageError, "no class 'Theirs'"),
        ("own_broken:Trainer", DataError, "Importing own_broken failed. KeyError"),
        ("own_needy:Trainer", DataError, "No module named 'a_framework'"),
        ("own_raising:Trainer", DataError, "failed. RuntimeError: no data here"),
        ("own_raising:Lazy", DataError, "own_raising:Lazy has no method 'evaluate'"),
        ("own_raising:Vague", DataError, "num_examples of own_raising:Vague"),
    ],
)
def test_a_trainer_that_can_not_be_made_ends_the_worker_with_a_sentence(
    spec: str, kind: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it joins; found in the current folder, as data functions are."""
    (tmp_path / "own_broken.py").write_text("{}['key']\n")
    (tmp_path / "own_needy.py").write_text("import a_framework\n")
    (tmp_path / "own_raising.py").write_text(
        "class Trainer:\n    def __init__(self, data, worker): raise RuntimeError('no data here')\n"
        "class Lazy:\n    def __init__(self, data, worker): pass\n    def fit(self, w, s): pass\n"
        "class Vague(Lazy):\n    num_examples = 'many'\n    def evaluate(self, w): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        open_trainer(spec, data=None, worker="w")
    assert said in str(caught.value)


def joined(worker: str, *, has_trainer: bool) -> Joined:
    return Joined(
        worker=worker, classes=() if has_trainer else ("no", "yes"), num_examples=5, examples_per_class=(),
        has_trainer=has_trainer,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "said"),
    [(START.model, "--trainer MODULE:CLASS"), ('{"class_name": "Sequential"}', "without --trainer")],
)
def test_who_has_the_other_kind_is_told_so_before_a_round_opens(model: str, said: str) -> None:
    """Keras or arrays: the pair must fit, and the reason says what to do."""
    is_arrays = model == START.model
    roster = Roster()
    state = replace(STATE, task="mine:task", model_json=model, classes=(), num_classes=0 if is_arrays else 2)
    admission = Admission(roster, "mine:task")
    fits = roster.join(joined("fits", has_trainer=is_arrays))
    other = roster.join(joined("other", has_trainer=not is_arrays))
    assert admission.consider(fits, state) is None
    reason = admission.consider(other, state)
    assert reason is not None
    assert said in reason
    assert admission.trainers == ["fits"]


def saved(folder: Path) -> str:
    np.savez(folder / "model.npz", kernel=np.ones((2, 2), FLOAT32), bias=np.zeros(2, FLOAT32))
    return str(folder / "model.npz")


def test_a_trainer_measures_the_model_of_a_run(tmp_path: Path) -> None:
    """`worker evaluate` gives it the arrays by name, as a round does; what is wrong is one line."""
    mine = f"{__name__}:Mine"
    told = CliRunner().invoke(main, ["evaluate", saved(tmp_path), "--trainer", mine, "--json"])
    assert json.loads(told.stdout) == {"num_examples": 4, "loss": 4.0}
    assert "loss               4.0000" in CliRunner().invoke(
        main, ["evaluate", saved(tmp_path), "--trainer", mine]
    ).stdout  # fmt: skip
    np.savez(tmp_path / "other.npz", coef=np.ones(2))
    (tmp_path / "text.npz").write_text("none")
    for name, said in (
        ("other.npz", "Mine.evaluate failed. KeyError: 'kernel'"),
        ("text.npz", "Can't read"),
        ("model.keras", "Expected the model.npz of a run of named arrays"),
    ):
        refused = CliRunner().invoke(main, ["evaluate", str(tmp_path / name), "--trainer", mine])
        assert refused.exit_code == 5
        assert said in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "MODEL", "--data", "d"],
        ["predict", "MODEL", "MODEL"],
        ["train-alone", "MODEL", "--data", "d"],
    ],
)
def test_named_arrays_are_no_keras_model_and_it_is_said_what_measures_them(
    words: list[str], tmp_path: Path
) -> None:
    """Before TensorFlow is loaded."""
    path = saved(tmp_path)
    refused = CliRunner().invoke(main, [path if word == "MODEL" else word for word in words])
    assert refused.exit_code == 5
    assert "holds named arrays, for a trainer of your own. Try worker evaluate" in refused.stderr


def test_the_global_arrays_are_kept_as_they_came_also_where_the_round_is_declined(tmp_path: Path) -> None:
    """By their names, with a card that says of which round they are; what the trainer makes of them is not there."""
    with pytest.raises(DataError, match="--least-examples"):
        answered(Mine(), keeps=GlobalModels(tmp_path, 20), rules=SiteRules(least_examples=11))
    answered(Mine(), replace(START, round_number=5), keeps=GlobalModels(tmp_path, 20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r-round-3.npz", "r-round-4.npz"]
    kept = np.load(tmp_path / "r-round-4.npz")
    assert {name: kept[name].tolist() for name in kept} == {
        "kernel": [[0, 1], [2, 3]],
        "steps": 7,
        "bias": [4, 5],
    }
    card = read_card(tmp_path / "r-round-4.npz")
    assert card is not None
    assert (card.task, card.run_id, card.round_number) == ("mine:arrays", "r", 4)
