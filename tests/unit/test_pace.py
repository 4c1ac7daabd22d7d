"""How many gradient steps are taken in one call."""

import pytest

from worker.learning.ways import pace
from worker.learning.ways.pace import Pace


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(pace.time, "perf_counter", lambda: self.now)

    def call(self, kept: Pace, seconds_a_step: float) -> int:
        """One call; how many steps it took."""
        steps = kept.steps
        with kept.kept():
            self.now += steps * seconds_a_step
        return steps


def test_calls_of_quick_steps_take_more_of_them_and_never_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop is looked at between calls: none lasts longer than twice what counts as short, or one step."""
    clock, kept = Clock(monkeypatch), Pace(1)
    assert [clock.call(kept, 0.004) for _ in range(6)] == [1, 2, 4, 8, 16, 16]
    assert [clock.call(Pace(1), 0.3) for _ in range(3)] == [1, 1, 1]


def test_steps_that_become_slow_are_fewer_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """But never fewer than the model was compiled with."""
    clock, kept = Clock(monkeypatch), Pace(4)
    taken = [clock.call(kept, 0.001) for _ in range(4)] + [clock.call(kept, 0.1) for _ in range(5)]
    assert taken == [4, 8, 16, 32, 64, 32, 16, 8, 4]


def test_a_call_has_a_most_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick they are: progress is told of."""
    clock, kept = Clock(monkeypatch), Pace(1)
    assert max(clock.call(kept, 0.0) for _ in range(20)) == 256
