"""When a run has become no better for too long, and which round was the best: from its history alone."""

from pathlib import Path

import pytest

from broker.errors import UsageError
from broker.wire.plain_json import json_text, read_json
from coordinator.folder.history import Row, history_text, row_in
from coordinator.folder.run_index import read_rows
from coordinator.folder.standing import Watch, standing_of
from coordinator.learning.stopping import Best, Target, best_of, given_up_on, is_lower_better, target_in

AUC = Target(measure="val_auc", is_lower_better=False)
LOSS = Target(measure="val_loss", is_lower_better=True)


def numbered(*values: float) -> list[tuple[int, float]]:
    return list(enumerate(values, start=1))


def rows(*losses: float, **more: float) -> list[Row]:
    """Round 0, which was measured too, and one row a loss of the global model."""
    measured = [Row(round=number, test={"loss": value}) for number, value in enumerate(losses, start=1)]
    return [Row(round=0, test={"loss": 0.01} | more), *measured]


@pytest.mark.parametrize(
    "name",
    [
        "loss", "val_loss", "central_loss", "val_mae", "mse", "val_root_mean_squared_error", "head_mae",
        "val_categorical_crossentropy", "false_negatives", "kl_divergence", "val_huber_loss", "log_cosh",
    ],
)  # fmt: skip
def test_losses_and_errors_are_better_when_lower(name: str) -> None:
    """By a word of the name, wherever it was measured and at whichever output."""
    assert is_lower_better(name)


@pytest.mark.parametrize(
    "name", ["accuracy", "val_auc", "central_balanced_accuracy", "r2_score", "val_precision", "lossless"]
)
def test_anything_else_is_better_when_higher(name: str) -> None:
    """Also a name that only begins like a loss."""
    assert not is_lower_better(name)


def test_a_person_may_say_which_way_is_better() -> None:
    """min: and max: go before what the name would mean."""
    assert target_in("val_auc") == AUC
    assert target_in("min:val_auc") == Target(measure="val_auc", is_lower_better=True)
    assert target_in("max:val_loss") == Target(measure="val_loss", is_lower_better=False)


@pytest.mark.parametrize("text", ["", "min:", "val auc", " "])
def test_what_is_no_name_is_refused(text: str) -> None:
    """Before anything begins."""
    with pytest.raises(UsageError, match="--stop-when"):
        target_in(text)


def test_patience_counts_rounds_that_are_no_better_than_the_best() -> None:
    """An equal value is no better; a better one begins the count anew."""
    assert given_up_on(numbered(0.5, 0.6, 0.6, 0.55), AUC, 3) is None
    assert given_up_on(numbered(0.5, 0.6, 0.6, 0.55, 0.59), AUC, 3) == Best(round=2, value=0.6)
    assert given_up_on(numbered(0.5, 0.6, 0.6, 0.55, 0.7, 0.1, 0.1), AUC, 3) is None


def test_what_comes_after_changes_no_decision() -> None:
    """The model that was trained when patience ran out is measured after it, and may even be the best: a coordinator
    that starts again then must not go on."""
    assert given_up_on(numbered(3.0, 4.0, 4.0, 1.0), LOSS, 2) == Best(round=1, value=3.0)


def test_rounds_that_tell_nothing_do_not_count() -> None:
    """Patience is so many rounds that were measured."""
    assert given_up_on([(1, 1.0), (5, 2.0)], LOSS, 2) is None


def test_more_rounds_give_as_much_patience_again() -> None:
    """Whoever asks for more rounds wants more, and still the best of all rounds is what must be surpassed."""
    values = numbered(1.0, 2.0, 2.0)
    assert given_up_on(values, LOSS, 2) is not None
    assert given_up_on(values, LOSS, 2, since=3) is None
    assert given_up_on([*values, (4, 2.0)], LOSS, 2, since=3) is None
    assert given_up_on([*values, (4, 2.0), (5, 1.5)], LOSS, 2, since=3) == Best(round=1, value=1.0)


def test_the_best_of_equals_is_the_first() -> None:
    """And of no values there is none."""
    assert best_of(numbered(0.5, 0.6, 0.6), AUC) == Best(round=2, value=0.6)
    assert best_of([], AUC) is None


def test_without_a_wish_the_loss_of_the_global_model_says_which_is_best() -> None:
    """At the workers that train, else on the central test set; the initial model is no round's."""
    assert standing_of(rows(0.5, 0.3, 0.4), Watch()).best == Best(round=2, value=0.3)
    central = [Row(round=0), Row(round=1, central={"loss": 0.5}), Row(round=2, central={"loss": 0.6})]
    standing = standing_of(central, Watch())
    assert (standing.measure, standing.best) == ("central_loss", Best(round=1, value=0.5))
    assert standing_of([Row(round=0), Row(round=1)], Watch()).best is None


def test_a_round_is_judged_by_its_number_alone() -> None:
    """NaN is no value: neither the best nor one that counts."""
    standing = standing_of(rows(float("nan"), 0.5), Watch(target=LOSS, patience=1))
    assert (standing.best, standing.enough) == (Best(round=2, value=0.5), None)


def test_why_it_is_enough_is_said_with_the_best_round() -> None:
    """A person reads it in the log, in history.csv and on the page."""
    standing = standing_of(rows(0.5, 0.6, 0.7), Watch(target=LOSS, patience=2))
    assert standing.enough == "val_loss has not become better for 2 rounds: the best is 0.5000, of round 1"


def test_a_measure_that_no_round_tells_ends_nothing_and_the_others_are_named() -> None:
    """A slip in a name is told after the first round; it costs no run."""
    watch = Watch(target=target_in("val_aux"), patience=1)
    standing = standing_of(rows(0.5, 0.6, 0.7, auc=0.5), watch)
    assert standing.unknown == ("val_loss", "val_auc")
    assert standing.enough is None
    assert standing.best == Best(round=1, value=0.5)
    assert standing_of(rows(), watch).unknown == (), "before the first round nothing is known"


def test_the_reason_has_a_column_only_where_there_is_one() -> None:
    """history.csv stays as it was for everybody else, and the row comes back from what is told of it."""
    ended = Row(round=2, stopped="val_loss has not become better for 2 rounds")
    assert "stopped" not in history_text([Row(round=1)])
    assert history_text([Row(round=1), ended]).splitlines()[0].endswith("rejected,stopped,closed_at")
    assert row_in(read_json(json_text(ended.flat))).stopped == ended.stopped


def test_a_history_with_a_reason_is_read_back(tmp_path: Path) -> None:
    """The page reads it from the file."""
    path = tmp_path / "history.csv"
    path.write_text(history_text([Row(round=1), Row(round=2, stopped="enough, says val_loss")]))
    assert [row.get("stopped") for row in read_rows(path)] == [None, "enough, says val_loss"]
