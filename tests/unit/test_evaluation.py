"""The measures of a model, on numbers that can be checked by hand, and the card that a model carries."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import DataError, ModelError
from broker.model.card import MEMBER, ModelCard, read_card, write_card
from broker.model.head import Head
from worker.cli import main
from worker.data.data_set import Examples
from worker.learning.evaluation import (
    auc_of,
    check_classes,
    evaluate,
    format_evaluation,
)
from worker.learning.inference import cross_entropy

CLASSES = ("NORMAL", "PNEUMONIA")
CARD = ModelCard(
    task="chest-xray",
    classes=CLASSES,
    run_id="r1",
    round_number=5,
    saved_at="2026-01-31T12:00:00+00:00",
    num_examples=5232,
    shape=(224, 224, 1),
    metrics={"accuracy": 0.9},
)


class AnswersAsTold:
    """A classifier that gives back its input as probabilities, and their cross-entropy as its loss."""

    def __init__(self, num_classes: int = 2) -> None:
        self.head = Head(reading="probabilities", num_outputs=num_classes)

    def measure(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, dict[str, float]]:
        return x, cross_entropy(x, y), {"top_2": 0.5}


# AUC


@pytest.mark.parametrize(
    ("truth", "scores", "area"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], 1.0),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], 0.0),
        ([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], 0.75),
        ([0, 1], [0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9], 0.875),
        ([1, 1], [0.1, 0.2], None),
    ],
)
def test_auc_counts_pairs_in_the_right_order(
    truth: list[int], scores: list[float], area: float | None
) -> None:
    """Of all (positive, negative) pairs the share in the right order; ties count half."""
    assert auc_of(np.array(truth) == 1, np.array(scores)) == area


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_auc_is_the_mean_over_all_pairs(pairs: list[tuple[bool, int]]) -> None:
    """The rank formula gives what counting every pair gives."""
    truth, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)
    area = auc_of(truth, scores)
    counted = [(up > down) + 0.5 * (up == down) for up in scores[truth] for down in scores[~truth]]
    assert area is None if not counted else area == pytest.approx(np.mean(counted))


# Evaluation


def test_the_measures_of_six_examples() -> None:
    """3 of 4 NORMAL and 1 of 2 PNEUMONIA right: accuracy 4/6, balanced (3/4 + 1/2) / 2."""
    positive = np.array([0.1, 0.2, 0.3, 0.9, 0.8, 0.4])
    x = np.stack([1 - positive, positive], axis=1)
    result = evaluate(AnswersAsTold(), Examples(x=x, y=np.array([0, 0, 0, 0, 1, 1])), CLASSES)
    assert result.confusion == ((3, 1), (1, 1))
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.balanced_accuracy == pytest.approx(0.625)
    assert result.auc == pytest.approx(6 / 8)
    assert result.num_examples == 6
    assert result.loss == pytest.approx(-np.log([0.9, 0.8, 0.7, 0.1, 0.8, 0.4]).mean())
    table = format_evaluation(result, CLASSES)
    assert "balanced accuracy  0.6250" in table
    assert table.splitlines()[-2].split() == ["NORMAL", "3", "1"]


def test_more_classes_have_no_auc_and_absent_ones_do_not_count() -> None:
    """Class 2 has no example: balanced accuracy is the mean over the other two."""
    x = np.eye(3)[[0, 1, 1]]
    result = evaluate(AnswersAsTold(3), Examples(x=x, y=np.array([0, 0, 1])), ("a", "b", "c"))
    assert result.auc is None
    assert result.balanced_accuracy == 0.75
    assert result.confusion == ((1, 1, 0), (0, 1, 0), (0, 0, 0))


def test_nothing_to_evaluate_on_is_refused() -> None:
    """An accuracy of no examples is an error, not NaN."""
    with pytest.raises(DataError, match="no example"):
        evaluate(AnswersAsTold(), Examples(x=np.empty((0, 2)), y=np.empty(0, np.int64)), CLASSES)


def test_classes_must_be_the_models_in_its_order() -> None:
    """The same names in the same order, however their accents are encoded; a model without names takes any."""
    check_classes(CLASSES, CLASSES)
    check_classes(None, ("a", "b"))
    check_classes(
        ("Pneumoni\u0301a", "b"), ("Pneumon\u00eda", "b")
    )  # a model trained where names are written NFD
    with pytest.raises(
        DataError, match=r"expected \['NORMAL', 'PNEUMONIA'\], found \['PNEUMONIA', 'NORMAL'\]"
    ):
        check_classes(CLASSES, CLASSES[::-1])


# The card


def write_model(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    return path


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """A model has none before, and afterwards the very one."""
    path = write_model(tmp_path / "m.keras")
    assert read_card(path) is None
    write_card(path, CARD)
    assert read_card(path) == CARD


def test_a_card_leaves_out_what_json_cannot_say() -> None:
    """A diverged loss is NaN; the card is still valid JSON."""
    card = replace(CARD, metrics={"loss": float("nan"), "accuracy": 0.5})
    assert ModelCard.from_json(card.to_json()).metrics == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"round_number": 5', '"round_number": -5'),
        ('"round_number": 5', '"round_number": true'),
        ('"round_number": 5', '"round_number": 5, "extra": 1'),
        ('"run_id": "r1",', ""),
        ('"PNEUMONIA"', '"NORMAL"'),
        ('"PNEUMONIA"', "3"),
        ('"accuracy": 0.9', '"accuracy": "0.9"'),
        ("224", "0"),
        ("{", "["),
    ],
)
def test_a_wrong_card_is_refused(old: str, new: str) -> None:
    """Missing, extra and mistyped fields, and text that isn't JSON."""
    text = CARD.to_json()
    assert old in text
    with pytest.raises(ModelError, match="card"):
        ModelCard.from_json(text.replace(old, new))


def test_only_a_fresh_model_gets_a_card(tmp_path: Path) -> None:
    """A second card would leave two in the file; another zip file is no model."""
    path = write_model(tmp_path / "m.keras")
    write_card(path, CARD)
    with pytest.raises(ModelError, match="freshly saved"):
        write_card(path, CARD)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr(MEMBER, "{}")
    with pytest.raises(ModelError, match="freshly saved"):
        write_card(tmp_path / "other.zip", CARD)


# The command line, as far as it goes without Keras


@pytest.mark.parametrize("content", [None, b"text", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_file_that_is_no_model_ends_in_one_line(tmp_path: Path, content: bytes | None, name: str) -> None:
    """Missing, text, a cut zip file, another format: exit code 5 and what was expected."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for arguments in (["evaluate", str(path), "--data", "x"], ["predict", str(path), "x.png"]):
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 5
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert "Expected a model saved by Keras as FILE.keras." in result.stderr


@pytest.mark.parametrize("config", ["[]", "not json", '{"class_name": "Lambda"}'])
def test_a_model_with_another_description_is_refused_before_keras_sees_it(
    tmp_path: Path, config: str
) -> None:
    """No JSON object, no JSON, or a part that isn't allowed: exit code 5 and one line."""
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", config)
    result = CliRunner().invoke(main, ["predict", str(tmp_path / "m.keras"), "x.png"], catch_exceptions=False)
    assert result.exit_code == 5
    assert result.stderr.count("\n") == 1
