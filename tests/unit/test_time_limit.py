"""Work that may never end: waited for as long as it gets on, and then left behind."""

import threading
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from broker.errors import ModelError
from tests.brokers import wait_until
from worker.rounds import time_limit
from worker.rounds.time_limit import MAX_LEFT_BEHIND, TimeLimit


@pytest.fixture
def end() -> Iterator[threading.Event]:
    """What all work here waits for; set at last, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def test_what_ends_in_time_gives_its_result() -> None:
    """Or raises what it raised, in the thread that waits."""
    limit = TimeLimit(threading.Event())
    assert limit.keep("Adding", 5, lambda _: 1 + 1) == 2
    with pytest.raises(ZeroDivisionError):
        limit.keep("Dividing", 5, lambda _: 1 // 0)
    assert limit.num_left_behind == 0


def test_one_thread_does_one_thing_after_the_other(end: threading.Event) -> None:
    """To start one takes longer than a small step; one that was left behind does nothing any more."""
    limit = TimeLimit(threading.Event())
    first, second = (limit.keep("A step", 5, lambda _: threading.current_thread()) for _ in range(2))
    assert first is second
    with pytest.raises(ModelError):
        limit.keep("A step", 0.1, lambda _: end.wait(60))
    third = limit.keep("A step", 5, lambda _: threading.current_thread())
    assert third is not None
    assert third is not first
    limit.close()
    end.set()
    wait_until(lambda: not (first is not None and first.is_alive()) and not third.is_alive(), 5)


def test_what_takes_too_long_is_given_up_with_its_name_and_limit(end: threading.Event) -> None:
    """Whoever waits is free again, though the work goes on; it counts until it ends."""
    limit = TimeLimit(threading.Event())
    with pytest.raises(ModelError, match=r"^Building took more than 0.2 s here, and was given up\.$"):
        limit.keep("Building", 0.2, lambda _: end.wait(60))
    assert limit.num_left_behind == 1
    end.set()
    wait_until(lambda: limit.num_left_behind == 0, 5)


def test_what_gets_on_is_given_time_anew(end: threading.Event) -> None:
    """An hour of batches is no endless batch."""

    def steps(gets_on: Callable[[], None]) -> int:
        for number in count():
            gets_on()
            if end.wait(0.1) or number == 10:
                return number
        raise AssertionError

    assert TimeLimit(threading.Event()).keep("A step", 0.6, steps) == 10


def test_the_end_of_the_process_waits_for_no_model(
    end: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that ends in a moment is waited for; one that doesn't is left, and no error."""
    monkeypatch.setattr(time_limit, "ENDING_SECONDS", 0.3)
    ending = threading.Event()
    ending.set()
    limit = TimeLimit(ending)
    assert limit.keep("A step", 60, lambda _: "done") == "done"
    assert limit.keep("A step", 60, lambda _: end.wait(60)) is None


def test_only_so_many_are_left_behind(end: threading.Event) -> None:
    """Each takes a machine's time and memory: the next one isn't begun."""
    limit = TimeLimit(threading.Event())
    for _ in range(MAX_LEFT_BEHIND):
        with pytest.raises(ModelError, match="given up"):
            limit.keep("A step", 0.1, lambda _: end.wait(60))
    with pytest.raises(ModelError, match="Start the worker anew"):
        limit.keep("A step", 5, lambda _: None)
