"""A claim to a queue, with time passed in."""

import logging

import pytest

from broker.errors import NameInUse
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import coordinator_queue
from broker.link.single_reader import SingleReader
from broker.wire.messages import Ping, decode


class Waiting:
    """A claim to a queue, checked ten times a second; nobody gives a ping back unless told to."""

    def __init__(self, *, wait_seconds: float | None = 50) -> None:
        self.broker = MemoryBroker()
        self.link = MemoryLink(self.broker)
        self.link.declare([coordinator_queue()])
        self.single_reader = SingleReader(self.link, "coordinator", wait_seconds=wait_seconds)
        self.now = 0.0

    def begin(self) -> None:
        self.single_reader.begin(self.now)

    def wait(self, seconds: float, *, is_idle: bool = True) -> None:
        for _ in range(round(10 * seconds)):
            self.now += 0.1
            self.single_reader.check(self.now, is_idle=is_idle)

    def assert_in_use_after(self, seconds: float) -> None:
        begun = self.now
        with pytest.raises(NameInUse):
            self.wait(2 * seconds)
        assert seconds - 0.5 <= self.now - begun <= seconds + 6


@pytest.fixture
def waiting() -> Waiting:
    waiting = Waiting()
    waiting.begin()
    return waiting


def test_another_reader_is_waited_for_and_then_told(waiting: Waiting) -> None:
    """As long as a half-open predecessor may live; then the name is in use."""
    waiting.assert_in_use_after(50)


def test_a_standby_waits_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """It says once what it waits for."""
    caplog.set_level(logging.INFO)
    waiting = Waiting(wait_seconds=None)
    waiting.begin()
    waiting.wait(3600)
    assert [each.getMessage() for each in caplog.records] == [
        "Another process reads the queue 'coordinator'; waiting for its end."
    ]


def test_who_gets_its_own_ping_back_is_the_reader(waiting: Waiting) -> None:
    """Then nothing more is sent, and nothing is judged."""
    waiting.wait(5)
    (delivery, *_) = waiting.link.fetch("coordinator", 100)
    ping = decode(delivery.body)
    assert isinstance(ping, Ping)
    assert not waiting.single_reader.hear(Ping(token="somebody's"))
    assert waiting.single_reader.hear(ping)
    waiting.wait(100)
    assert waiting.single_reader.is_confirmed


def test_time_without_the_broker_does_not_count(waiting: Waiting) -> None:
    """A broker that is away for long is no other reader: the wait begins anew with the connection."""
    waiting.wait(45)
    waiting.single_reader.pause()
    waiting.wait(1000)
    waiting.begin()
    waiting.wait(45)
    waiting.assert_in_use_after(5)


def test_an_alarm_does_not_count_however_long(waiting: Waiting) -> None:
    """Nothing that is published is taken for 61 s, as by a broker short of memory: the ping can't come back, and that
    says nothing. When the alarm is over the wait begins anew."""
    waiting.wait(30)
    waiting.link.block()
    waiting.wait(61)
    waiting.link.unblock()
    waiting.wait(45)
    waiting.assert_in_use_after(5)


def test_an_alarm_that_blocks_from_the_first_ping_does_not_count() -> None:
    """Both sides were cut off during the alarm, and claim again before it is over."""
    waiting = Waiting()
    waiting.link.block()
    waiting.begin()
    waiting.wait(61)
    waiting.link.unblock()
    waiting.wait(45)
    waiting.assert_in_use_after(5)


def test_a_process_that_was_held_up_is_not_judged_by_the_time_it_missed(waiting: Waiting) -> None:
    """A laptop that slept for an hour has had one ping on its way, not 3,600."""
    waiting.wait(30)
    waiting.now += 3600
    waiting.wait(10)
    waiting.assert_in_use_after(10)


def test_a_ping_that_reaches_no_queue_does_not_count(waiting: Waiting) -> None:
    """Somebody deleted the queue: no other process reads it."""
    waiting.wait(45)
    waiting.link.delete(["coordinator"])
    waiting.wait(100)


def test_nothing_is_judged_while_something_waits_to_be_read(waiting: Waiting) -> None:
    """The ping, or the news of a lost connection, may be among it; the ping is still repeated."""
    before = waiting.broker.depth("coordinator")
    waiting.wait(1000, is_idle=False)
    assert waiting.broker.depth("coordinator") - before > 900
    waiting.assert_in_use_after(50)
