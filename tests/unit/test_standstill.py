"""Time in which no messages are taken, and the clock that leaves it out, with time passed in."""

import pytest

from broker.link.standstill import Standstill
from coordinator.presence.clock import ConnectedClock


class Times:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def read(self) -> float:
        return self.now


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def standstill(times: Times) -> Standstill:
    return Standstill(times.read)


def test_it_lasts_from_its_first_cause_to_the_end_of_its_last(times: Times, standstill: Standstill) -> None:
    """An alarm at 100, a lost connection from 103 to 110 in it, the alarm's end at 107: ten seconds, counted once."""
    standstill.begin("alarm")
    times.now = 103
    standstill.begin("outage")
    times.now = 107
    standstill.end("alarm")
    assert (standstill.is_on, standstill.seconds()) == (True, 7)
    times.now = 110
    standstill.end("outage")
    times.now = 150
    assert (standstill.is_on, standstill.seconds()) == (False, 10)


def test_one_that_is_noticed_late_counts_from_its_start(times: Times, standstill: Standstill) -> None:
    """Unconfirmed for five seconds: these count too, but none that an earlier standstill has counted."""
    times.now = 105
    standstill.begin("unconfirmed", seconds_ago=5)
    assert standstill.seconds() == 5
    times.now = 108
    standstill.end("unconfirmed")
    times.now = 110
    standstill.begin("unconfirmed", seconds_ago=5)
    assert standstill.seconds() == 8 + 2
    standstill.begin("alarm", seconds_ago=1)
    assert standstill.seconds() == 8 + 2


def test_the_same_cause_twice_is_one_and_an_unknown_end_is_none(times: Times, standstill: Standstill) -> None:
    """Whoever tells of a lost connection need not know what was told before."""
    standstill.end("outage")
    standstill.begin("outage")
    times.now = 102
    standstill.begin("outage")
    times.now = 104
    standstill.end("outage")
    standstill.end("outage")
    assert (standstill.is_on, standstill.seconds()) == (False, 4)


def test_the_clock_leaves_out_both_the_standstill_and_the_time_without_a_place(
    times: Times, standstill: Standstill
) -> None:
    """10 s, 20 s of alarm, 5 s, 30 s without the claim of which 10 s with an alarm, 5 s: twenty count."""
    clock = ConnectedClock(standstill.seconds, times.read)
    begun = clock.now()
    times.now = 110
    standstill.begin("alarm")
    times.now = 130
    assert clock.now() - begun == 10
    standstill.end("alarm")
    times.now = 135
    clock.lost()
    times.now = 145
    standstill.begin("alarm")
    times.now = 155
    standstill.end("alarm")
    times.now = 165
    clock.lost()
    assert clock.now() - begun == 15
    clock.restored()
    times.now = 170
    assert clock.now() - begun == 20
