"""Sites whose values are of another scale are found before they spoil the model."""

import pytest

from broker.model.likeness import common_inputs, is_other_scale, scale_difference, shape_difference
from broker.wire.tensors import InputFacts

BYTES = InputFacts(shape=(28, 28), dtype="uint8", low=0, high=255)
UNIT = InputFacts(shape=(28, 28), dtype="float32", low=0, high=1)


def facts(low: float, high: float, dtype: str = "float32") -> InputFacts:
    return InputFacts(shape=(28, 28), dtype=dtype, low=low, high=high)


@pytest.mark.parametrize(
    ("site", "run"),
    [
        (UNIT, BYTES),
        (BYTES, UNIT),
        (facts(0, 1, "bool"), BYTES),
        (facts(0, 4095, "uint16"), BYTES),
        (facts(0, 65535, "uint16"), BYTES),
    ],
)
def test_images_of_another_scale_are_of_another_run(site: InputFacts, run: InputFacts) -> None:
    """One from 0 to 1 beside one from 0 to 255 took a model from 0.90 to 0.54."""
    assert is_other_scale(site, run, (28, 28, 1))
    assert "its values lie from" in str(scale_difference(site, run))


@pytest.mark.parametrize(
    ("site", "run"),
    [
        (BYTES, BYTES),
        (facts(0, 20, "uint8"), BYTES),
        (facts(0, 0.9), UNIT),
        (facts(0, 255), BYTES),
        (facts(0, 250, "int64"), BYTES),
        (facts(-0.01, 1), UNIT),
        (facts(0, 0), UNIT),
    ],
)
def test_the_same_scale_is_no_news(site: InputFacts, run: InputFacts) -> None:
    """Dark images, another dtype, a sampling artefact below zero, an empty site."""
    assert scale_difference(site, run) is None
    assert not is_other_scale(site, run, (28, 28, 1))


def test_columns_of_another_scale_and_signed_images_are_worth_a_word() -> None:
    """Features may well differ between hospitals, and -1..1 beside 0..1 is near enough to train: said, not refused."""
    wide, narrow = facts(0, 9000), facts(0, 100)
    assert scale_difference(wide, narrow) is not None
    assert not is_other_scale(wide, narrow, (30,))
    assert scale_difference(facts(-1, 1), UNIT) is not None
    assert not is_other_scale(facts(-1, 1), UNIT, (28, 28, 1))


def test_most_sites_decide_what_the_run_is_like() -> None:
    """With the range of all that agree."""
    sites = {"a": UNIT, "b": facts(0, 255, "uint8"), "c": facts(3, 200, "uint8")}
    assert common_inputs(sites) == facts(0, 255, "uint8")
    assert common_inputs({}) is None


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((28, 28), True), ((28, 28, 1), True), (None, True), ((28, 28, 3), False), ((784,), False)],
)
def test_a_shape_fits_up_to_a_single_channel(shape: tuple[int, ...] | None, fits: bool) -> None:
    """Images in files take any shape."""
    site = InputFacts(shape=shape, dtype="uint8", low=0, high=255)
    assert (shape_difference(site, (28, 28, 1)) is None) == fits
