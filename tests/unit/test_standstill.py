"""Time in which no messages are taken, and the clock that leaves it out, with time passed in."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from broker.link.rabbitmq.confirms import Confirms
from broker.link.standstill import Standstill, Told
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


def test_whatever_befalls_two_connections_is_told_in_one_line_each_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first cause is told, and the end of the last one, in the words of the first."""
    caplog.set_level("INFO")
    told = Told()
    told.end("connection")
    assert told.begin("connection", "Lost.", "Connected again.")
    assert not told.begin("unconfirmed", "Not confirmed.", "Takes messages again.")
    told.end("connection")
    assert told.is_on
    told.end("unconfirmed")
    told.end("unconfirmed")
    assert caplog.messages == ["Lost.", "Connected again."]
    assert told.begin("unconfirmed", "Not confirmed.", "Takes messages again.")
    told.end("unconfirmed")
    assert caplog.messages[2:] == ["Not confirmed.", "Takes messages again."]


def test_the_oldest_message_under_way_tells_whether_those_before_an_outage_are_settled() -> None:
    """A broker may confirm what is new, and never what it was sent while it had no majority."""
    confirms = Confirms()
    assert confirms.oldest == 1
    for number in range(3):
        confirms.add(str(number), Future())
    confirms.settle(_ack(2))
    confirms.settle(_ack(3))
    assert (confirms.oldest, confirms.next_tag) == (1, 4)
    confirms.settle(_ack(1))
    assert confirms.oldest == 4


def test_refusals_count_from_the_first_of_a_row(monkeypatch: pytest.MonkeyPatch, times: Times) -> None:
    """One alone says nothing, nor does one an hour after another."""
    monkeypatch.setattr("broker.link.rabbitmq.confirms.time.monotonic", times.read)
    confirms = Confirms()
    for number, (now, seconds) in enumerate(((100, 0), (107, 7), (120, 20), (3720, 0), (3721, 1)), start=1):
        times.now = now
        confirms.add(str(number), Future())
        confirms.settle(_ack(number, "Basic.Nack"))
        assert confirms.seconds_refused == seconds


def _ack(tag: int, name: str = "Basic.Ack") -> SimpleNamespace:
    return SimpleNamespace(method=SimpleNamespace(NAME=name, delivery_tag=tag, multiple=False))
