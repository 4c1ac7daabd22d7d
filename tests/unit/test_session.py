"""The coordinator's place at the broker: who is there, and when time counts; over the in-memory link."""

import threading
import time

import pytest

from broker.errors import DeclareRefused
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import coordinator_queue, outgoing, worker_queue
from broker.link.standstill import Standstill
from broker.wire.messages import Joined, Left, Message, SwarmLeft
from coordinator.play.run_view import describe_workers
from coordinator.presence.clock import ConnectedClock
from coordinator.presence.session import Session


def joined(worker: str) -> Joined:
    return Joined(
        worker=worker, classes=("A", "B"), num_examples=2, examples_per_class=(1, 1), num_test_examples=0,
        evaluate_only=False, task=None, held=None, token="t",
    )  # fmt: skip


class Place:
    """A session, and workers that talk to it."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.link = MemoryLink(self.broker, "coordinator")
        self.link.declare([coordinator_queue()])
        self.session = Session(self.link, stop=threading.Event())

    def say(self, message: Message) -> None:
        self.link.publish([outgoing(message, "coordinator")])

    def worker(self, name: str) -> MemoryLink:
        """A worker that reads its queue."""
        link = MemoryLink(self.broker, name)
        link.declare([worker_queue(name)])
        link.consume([f"worker.{name}"], prefetch=1)
        return link

    def begin(self) -> None:
        self.session.begin()
        while not self.session.is_ready:
            self.session.forget(self.session.next_event(0.01))
        self.take_all()

    def take_all(self) -> None:
        while not self.link._events.empty():
            self.session.forget(self.session.next_event(0))

    @property
    def present(self) -> list[str]:
        return sorted(each.worker for each in self.session.roster.members.values() if each.is_present)


@pytest.fixture
def place() -> Place:
    return Place()


def test_who_left_before_the_coordinator_came_is_not_there(place: Place) -> None:
    """Its two words wait in the queue, in their order."""
    place.worker("a")
    for word in (joined("a"), joined("b"), Left(worker="b")):
        place.say(word)
    place.begin()
    assert place.present == ["a"]


def test_who_left_for_good_is_shown_no_longer_until_it_joins_again(place: Place) -> None:
    """Whoever runs the broker has removed its queues; of a swarm that is all its workers."""
    place.begin()
    shown = lambda: [each.name for each in describe_workers(place.session.roster.members.values(), {}, None)]  # noqa: E731
    for word in (joined("a"), joined("b"), Left(worker="a"), Left(worker="b", for_good=True)):
        place.say(word)
    place.take_all()
    assert (place.present, shown()) == ([], ["a"])
    place.say(SwarmLeft(worker="a", for_good=True))
    place.say(Left(worker="never-heard-of", for_good=True))
    place.take_all()
    assert shown() == []
    place.say(joined("b"))
    place.take_all()
    assert (place.present, shown()) == (["b"], ["b"])


def test_thousands_are_asked_less_often_who_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one answers each time: ten thousand every half minute are a load of their own."""
    place.begin()
    calls: list[int] = []
    monkeypatch.setattr(place.session, "call_roll", lambda: calls.append(1))

    def is_called_after(seconds: float) -> bool:
        calls.clear()
        place.session.roll_called_at = time.monotonic() - seconds
        place.session.call_roll_if_due()
        return bool(calls)

    assert is_called_after(35.0)
    for number in range(3000):
        place.session.roster.join(joined(f"w{number}"))
    assert not is_called_after(35.0)
    assert is_called_after(65.0)


def test_who_is_known_by_a_waiting_word_alone_is_looked_for_once(place: Place) -> None:
    """One was killed an hour ago: nobody reads its queue. One has no queue any more. The third is there."""
    place.worker("a")
    place.worker("b").close()
    for name in ("a", "b", "c"):
        place.say(joined(name))
    place.begin()
    assert place.present == ["a", "b", "c"]
    place.session.look_for_unseen()
    assert place.present == ["a"]
    place.link.unread = None  # type: ignore[assignment,method-assign]  # nobody is asked for again
    place.session.look_for_unseen()
    assert place.present == ["a"]


def test_after_an_outage_everybody_is_looked_for_again(place: Place) -> None:
    """Who was there before may have been killed meanwhile."""
    worker = place.worker("a")
    place.say(joined("a"))
    place.begin()
    place.session.look_for_unseen()
    worker.close()
    place.link.drop()
    place.take_all()
    place.session.look_for_unseen()
    assert place.present == []


def test_a_broker_that_takes_no_messages_says_nothing_about_who_is_there(place: Place) -> None:
    """Without a majority it may answer that a queue has no reader."""
    place.say(joined("a"))
    place.begin()
    place.link.block()
    assert place.session.look_for_absent(["a"]) == []
    place.link.unblock()
    assert place.session.look_for_absent(["a"]) == ["a"]


def test_a_worker_whose_queue_can_not_be_used_is_not_the_coordinators_end(place: Place) -> None:
    """Somebody else holds it exclusively, or made it otherwise: told, and gone on."""
    with place.session.until_link_is_back():
        raise DeclareRefused("The queue is somebody else's.")


def test_time_counts_only_with_the_claim_and_a_broker_that_takes_messages(place: Place) -> None:
    """Another coordinator reads the queue, then it does not; an alarm begins, and ends: of each 10 s of this, those
    in between count."""
    now = 0.0

    def seconds_counted() -> float:
        nonlocal now
        place.session.next_event(0)
        begun = clock.now()
        now += 10
        return clock.now() - begun

    place.link._standstill = Standstill(lambda: now)
    clock = place.session.clock = ConnectedClock(place.link.seconds_still, lambda: now)
    other = MemoryLink(place.broker, "coordinator")
    other.consume(["coordinator"], prefetch=0)
    place.link.consume(["coordinator"], prefetch=0)
    place.session.single_reader.begin(0)
    assert seconds_counted() == 0
    other.close()
    place.take_all()
    assert place.session.single_reader.is_confirmed
    assert seconds_counted() == 10
    place.link.block()
    assert seconds_counted() == 0
    place.link.unblock()
    assert seconds_counted() == 10


def test_the_broker_is_tried_while_nothing_else_is_sent(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ping every two seconds, one at a time: with one unconfirmed, no more is sent."""
    place.begin()
    sent: list[str] = []
    post = place.link.post

    def noted(message: object) -> object:
        sent.append(message.key)  # type: ignore[attr-defined]
        return post(message)  # type: ignore[arg-type]

    monkeypatch.setattr(place.link, "post", noted)
    for _ in range(3):
        place.session._probed_at = float("-inf")
        place.session.next_event(0)
    assert sent == ["coordinator"] * 3
    place.link.block()
    for _ in range(3):
        place.session._probed_at = float("-inf")
        place.session.next_event(0)
    assert sent == ["coordinator"] * 4
