"""How outputs become probabilities: the numbers by hand, and that no row depends on another."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from broker.errors import ModelError
from broker.model.head import Head, Reading, reading_of
from broker.model.loss import encode_labels, loss_name, takes_class_numbers, takes_logits

OF_SEVERAL: tuple[Reading, ...] = ("shares", "logits", "binary logits", "nearest")
OF_ONE: tuple[Reading, ...] = ("probability", "logit")


def read(reading: Reading, *rows: list[float]) -> list[list[float]]:
    head = Head(reading=reading, num_outputs=len(rows[0]))
    return head.probabilities(np.array(rows)).tolist()  # type: ignore[no-any-return]


def logits_loss(name: str) -> Any:
    """An object as Keras's loss classes, told that it gets logits."""
    return type(name, (), {"get_config": lambda _self: {"from_logits": True}})()


# The numbers


def test_a_softmax_is_taken_as_it_is() -> None:
    """To the bit, a single precision one too, whose sum is not quite 1."""
    row = np.float32([0.1, 0.2, 0.7]).tolist()
    assert read("probabilities", row) == [row]


def test_one_sigmoid_is_the_probability_of_class_1() -> None:
    """p becomes (1 − p, p)."""
    assert read("probability", [0.25], [1.0]) == [[0.75, 0.25], [0, 1]]


def test_a_small_logit_is_no_probability() -> None:
    """0.0108 is 0.5027 of class 1, alone and beside a large one: 1 / (1 + e^-0.0108)."""
    assert read("logit", [0.0108])[0] == pytest.approx([1 - 0.5026999738, 0.5026999738])
    assert read("logit", [0.0108], [7.0], [-900.0])[0] == read("logit", [0.0108])[0]
    assert read("logit", [-900.0], [900.0]) == [[1, 0], [0, 1]]


def test_logits_get_a_softmax() -> None:
    """Of log 3 and 0, three to one; values that look like probabilities get it too."""
    assert read("logits", [np.log(3), 0])[0] == pytest.approx([0.75, 0.25])
    assert read("logits", [0.25, 0.75])[0] == pytest.approx(
        [1 / (1 + np.exp(0.5)), 1 - 1 / (1 + np.exp(0.5))]
    )
    assert read("logits", [9e9, -9e9])[0] == [1, 0]


def test_sigmoids_are_shares_of_their_sum() -> None:
    """[2e-9, 1] is all but certain, whatever its neighbours; a row of nothing but 0 is undecided."""
    alone = read("shares", [2e-9, 1.0])
    assert alone[0] == pytest.approx([2e-9, 1], rel=1e-6)
    among = read("shares", [2e-9, 1.0], [0.3, 0.9], [0.0, 0.0])
    assert among == [alone[0], pytest.approx([0.25, 0.75]), [0.5, 0.5]]
    assert read("shares", [-3.0, 0.2, 0.6])[0] == pytest.approx([0, 0.25, 0.75])


def test_binary_logits_are_shares_of_their_sigmoids() -> None:
    """Of sigmoids 0.3 and 0.9; two that are far below 0 still have a ratio, here e^2."""
    logits = [np.log(0.3 / 0.7), np.log(9)]
    assert read("binary logits", logits)[0] == pytest.approx([0.25, 0.75])
    far = read("binary logits", [-800.0, -802.0])[0]
    assert far == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))])


def test_outputs_near_one_hot_rows_become_the_nearest_distribution() -> None:
    """A distribution stays; 0.2 too much is taken from both alike; what would be negative is 0."""
    assert read("nearest", [0.3, 0.7])[0] == pytest.approx([0.3, 0.7])
    assert read("nearest", [1.1, 1.3])[0] == pytest.approx([0.4, 0.6])
    assert read("nearest", [-0.2, -0.1])[0] == pytest.approx([0.45, 0.55])
    assert read("nearest", [0.1, 1.2, -0.5])[0] == pytest.approx([0, 1, 0])
    assert read("nearest", [0.5, 0.6, -0.1])[0] == pytest.approx([0.45, 0.55, 0])
    assert read("probability", [1.2], [-0.1]) == [[0, 1], [1, 0]]


@pytest.mark.parametrize("outputs", [np.zeros((4, 3)), np.zeros((4, 2, 2)), np.array([[np.nan, 1.0]])])
def test_outputs_that_do_not_fit_are_refused(outputs: np.ndarray) -> None:
    """Another width, another rank, no number."""
    with pytest.raises(ModelError):
        Head(reading="logits", num_outputs=2).probabilities(outputs)


# What holds for any outputs

_NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-9, 9, width=32)
_ROWS = st.tuples(st.integers(1, 40), st.integers(2, 12)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=_NUMBERS)
)


@given(_ROWS, st.sampled_from(OF_SEVERAL))
def test_a_row_sums_to_1_and_its_largest_is_the_outputs_largest(rows: np.ndarray, reading: Reading) -> None:
    """Also where rounding would make two alike; where all are nothing, the first wins in both."""
    found = Head(reading=reading, num_outputs=rows.shape[1]).probabilities(rows)
    assert found.sum(axis=1) == pytest.approx(np.ones(len(rows)))
    assert (found >= 0).all()
    assert (found.argmax(axis=1) == rows.argmax(axis=1)).all()


@given(_ROWS, st.sampled_from((*OF_SEVERAL, *OF_ONE, "probabilities")))
def test_a_row_alone_gives_the_bits_that_it_gives_among_others(rows: np.ndarray, reading: Reading) -> None:
    """In any company and at any place."""
    given_rows = rows[:, :1] if reading in OF_ONE else rows
    head = Head(reading=reading, num_outputs=given_rows.shape[1])
    together = head.probabilities(given_rows)
    backwards = head.probabilities(given_rows[::-1])[::-1]
    alone = np.concatenate([head.probabilities(row[np.newaxis]) for row in given_rows])
    assert together.tobytes() == backwards.tobytes() == alone.tobytes()


# The decision


@pytest.mark.parametrize(
    ("activation", "loss", "several", "one"),
    [
        ("softmax", "categorical_crossentropy", "probabilities", "probability"),
        ("softmax", None, "probabilities", "probability"),
        ("softmax", logits_loss("CategoricalCrossentropy"), "probabilities", "probability"),
        ("sigmoid", "binary_crossentropy", "shares", "probability"),
        ("sigmoid", logits_loss("BinaryCrossentropy"), "shares", "probability"),
        ("hard_sigmoid", "mse", "shares", "probability"),
        ("log_softmax", "kl_divergence", "logits", "probability"),
        ("linear", logits_loss("SparseCategoricalCrossentropy"), "logits", "logit"),
        ("linear", logits_loss("BinaryCrossentropy"), "binary logits", "logit"),
        ("linear", logits_loss("BinaryFocalCrossentropy"), "binary logits", "logit"),
        ("linear", None, "logits", "logit"),
        ("linear", "mse", "nearest", "probability"),
        ("tanh", "squared_hinge", "logits", "logit"),
        ("relu", "categorical_crossentropy", "shares", "probability"),
        ("unknown", "BinaryCrossentropy", "shares", "probability"),
        ("unknown", "poisson", "shares", "probability"),
        ("unknown", None, "logits", "logit"),
    ],
)
def test_the_activation_decides_and_where_it_cannot_the_loss(
    activation: str, loss: object, several: Reading, one: Reading
) -> None:
    """The table of the module, a row a case."""
    assert reading_of(activation, loss, 3) == reading_of(activation, loss, 2) == several
    assert reading_of(activation, loss, 1) == one


def test_a_loss_is_known_in_every_form_that_keras_takes() -> None:
    """By name, short name, class name, object, and as a list or a dict of one."""
    loss = logits_loss("BinaryCrossentropy")
    for form in ("bce", "BCE", "binary_crossentropy", "BinaryCrossentropy", loss, [loss], {"out": ["bce"]}):
        assert loss_name(form) == "binarycrossentropy"
    assert loss_name(None) == loss_name(["mse", "mae"]) == loss_name([]) == ""
    assert takes_logits({"out": loss})
    assert not takes_logits("bce")
    assert not takes_logits(SimpleNamespace(get_config=lambda: {"from_logits": False}))


def test_labels_take_the_form_that_the_loss_wants() -> None:
    """Numbers for a sparse loss, a column for one output, else one-hot; a list of one loss likewise."""
    y = np.array([1, 0])
    assert encode_labels("sparse_categorical_crossentropy", y, 2).tolist() == [1, 0]
    assert encode_labels(["sparse_categorical_crossentropy"], y, 2).tolist() == [1, 0]
    assert encode_labels("binary_crossentropy", y, 1).tolist() == [[1], [0]]
    assert encode_labels({"out": "mse"}, y, 2).tolist() == [[0, 1], [1, 0]]
    assert takes_class_numbers("categorical_generalized_cross_entropy")
