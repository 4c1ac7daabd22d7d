"""The measure of all others: a run that nobody disturbs."""

import pytest

from tests.faults.conftest import MakeStage
from tests.faults.stage import LARGE, MANY_PARTS, SIZE, SMALL_PARTS, Stage


def test_an_undisturbed_run_ends_with_the_bits_that_arithmetic_says(stage: Stage) -> None:
    """Nothing breaks. The other tests compare with plain arithmetic; this proves that it is what a run computes."""
    actors = [*stage.workers(), stage.coordinator()]
    assert [actor.ended() for actor in actors] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits()
    stage.assert_nobody_trained_twice()


@pytest.mark.parametrize("size", [LARGE, MANY_PARTS])
def test_a_model_in_parts_ends_with_the_same_bits(vhost: str, make_stage: MakeStage, size: int) -> None:
    """Nothing breaks; the weights travel in 3 parts of 4 MB, or in 25 parts of 64 KiB."""
    stage = make_stage(vhost, size=size, patches=SMALL_PARTS if size == MANY_PARTS else None)
    actors = [*stage.workers(), stage.coordinator()]
    assert [actor.ended() for actor in actors] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits()
    assert size > SIZE
