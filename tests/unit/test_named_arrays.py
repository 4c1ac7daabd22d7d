"""Models of named arrays: what a task may return, how it is told of, and its file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import ModelError, UsageError
from broker.model.arrays import array_names, arrays_text, is_arrays
from broker.model.card import ModelCard, read_card
from broker.wire.settings import TrainingSettings
from coordinator.keras.arrays import (
    layout_of_arrays,
    read_arrays,
    refuse_keras_settings,
    started_from,
    write_arrays,
)

CARD = ModelCard(
    task="mine:arrays", classes=(), run_id="r", round_number=3, saved_at="now", num_examples=9, shape=(),
    metrics={"loss": 0.5}, training={"epochs": 1},
)  # fmt: skip


def test_the_names_travel_in_the_place_of_a_keras_model() -> None:
    """Their order is the layout's; a Keras model's JSON is told from them by its beginning."""
    text = arrays_text(["b", "a/kernel", "0.weight"])
    assert is_arrays(text)
    assert array_names(text) == ("b", "a/kernel", "0.weight")
    assert not is_arrays('{"class_name": "Sequential"}')


@pytest.mark.parametrize(
    "names", [[], ["a", "a"], ["file"], ["allow_pickle"], ["../a"], [""], ["a b"], ["é"], ["a" * 201]]
)
def test_names_that_no_npz_file_can_hold_are_refused(names: list[str]) -> None:
    """Before anything is trained, and not when the model is to be saved."""
    with pytest.raises(ModelError):
        arrays_text(names)


@pytest.mark.parametrize(
    "text", ['{"arrays": 3}', '{"arrays": [1]}', '{"arrays": ["a", "a"]}', '{"arrays": [', '{"arrays": []}']
)
def test_a_text_that_holds_no_names_is_refused(text: str) -> None:
    """It came over the wire."""
    with pytest.raises(ModelError):
        array_names(text)


def test_floats_become_float32_and_integers_stay() -> None:
    """What is trained has one type on the wire; what is counted is not averaged."""
    given = {"a": np.ones((2, 3)), "b": np.float16(1), "n": np.int64(7), "mask": np.array([True])}
    arrays = read_arrays(given)
    assert {name: (each.dtype.name, each.shape) for name, each in arrays.items()} == {
        "a": ("float32", (2, 3)), "b": ("float32", ()), "n": ("int64", ()), "mask": ("bool", (1,)),
    }  # fmt: skip
    assert [spec.kind for spec in layout_of_arrays(arrays)] == [
        "trainable",
        "trainable",
        "integer",
        "integer",
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.ones(2, complex), "complex128"),
        (np.array(["a"]), "str"),
        (np.array([None]), "object"),
        ([[1.0], [1.0, 2.0]], "can't become an array"),
        (np.array([np.nan]), "NaN"),
        (np.array([1e300]), "float32 can't hold"),
    ],
)
def test_another_array_is_refused_by_its_name(value: Any, said: str) -> None:
    """And its type said, for a person to mend."""
    with pytest.raises(ModelError, match=said) as caught:
        read_arrays({"weights/odd": value})
    assert "weights/odd" in str(caught.value)


def test_a_task_without_anything_to_train_is_refused() -> None:
    """Integers alone, or no values at all."""
    for given in ({"n": np.arange(3)}, {"a": np.empty((0, 3))}):
        with pytest.raises(ModelError, match="floats to train"):
            read_arrays(given)


def test_the_file_gives_the_arrays_by_name_and_nothing_else(tmp_path: Path) -> None:
    """`dict(np.load(...))` is what a trainer takes; the card is there all the same."""
    path = tmp_path / "model.npz"
    values = {"b": np.float32([1, 2]), "n": np.array(3)}
    write_arrays(path, arrays_text(values), list(values.values()), CARD)
    loaded = dict(np.load(path))
    assert list(loaded) == ["b", "n"]
    assert loaded["b"].tolist() == [1, 2]
    assert read_card(path) == CARD


def test_a_run_starts_from_the_file_of_another(tmp_path: Path) -> None:
    """The same names and shapes in any order; anything else is told side by side."""
    own = read_arrays({"a": np.zeros(2), "b": np.zeros(3)})
    np.savez(tmp_path / "old.npz", b=np.ones(3), a=np.ones(2))
    found = started_from(own, tmp_path / "old.npz")
    assert list(found) == ["a", "b"]
    assert found["a"].tolist() == [1, 1]
    np.savez(tmp_path / "other.npz", a=np.ones(2), b=np.ones(4))
    with pytest.raises(ModelError, match=r"b float32 \(3,\).*b float32 \(4,\)"):
        started_from(own, tmp_path / "other.npz")
    with pytest.raises(ModelError, match=r"model\.npz"):
        started_from(own, tmp_path / "model.keras")
    with pytest.raises(UsageError):
        started_from(own, tmp_path / "nowhere.npz")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "old.npz").read_bytes()[:100])
    with pytest.raises(ModelError, match=r"torn\.npz"):
        started_from(own, tmp_path / "torn.npz")


def test_what_keras_alone_does_is_not_asked_of_a_trainer() -> None:
    """Class weights in silence would be another training than the one that was asked for."""
    plain = TrainingSettings(epochs=1, batch_size=1, seed=0)
    weighed = TrainingSettings(epochs=1, batch_size=1, seed=0, class_weight="balanced")
    refuse_keras_settings(arrays_text(["a"]), plain)
    refuse_keras_settings("{}", weighed)
    with pytest.raises(UsageError, match="--class-weight"):
        refuse_keras_settings(arrays_text(["a"]), weighed)
