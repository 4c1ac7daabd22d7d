"""What takes the longer the more workers there are: it has its turn, and never more than a fifth of the time."""

import pytest

from coordinator.presence.seldom import Seldom


class Clock:
    """Seconds, as they are set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("is_last", "due_after"), [(True, 13.0), (False, 8.0)])
def test_it_is_due_again_after_four_times_as_long_and_its_pause(*, is_last: bool, due_after: float) -> None:
    """What took two seconds waits for eight, and for five more if nothing of it is left to do."""
    clock = Clock()
    seldom = Seldom(5.0, clock)
    assert seldom.is_due
    with seldom.doing(is_last=is_last):
        clock.now += 2.0
    clock.now += due_after - 0.1
    assert not seldom.is_due
    clock.now += 0.1
    assert seldom.is_due


def test_what_took_no_time_is_due_again_at_once_and_can_be_put_off() -> None:
    """With three workers everything is looked at each time."""
    clock = Clock()
    seldom = Seldom(0.0, clock)
    with seldom.doing():
        pass
    assert seldom.is_due
    paused = Seldom(5.0, clock)
    paused.put_off()
    assert not paused.is_due


def test_what_fails_has_taken_its_time_too() -> None:
    """An error on the way is no reason to try it again without a pause."""
    clock = Clock()
    seldom = Seldom(0.0, clock)

    def failing() -> None:
        with seldom.doing():
            clock.now += 1.0
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        failing()
    assert not seldom.is_due
