"""What the coordinator holds until a checkpoint covers it."""

from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Delivery, Outgoing, upload_queue
from coordinator.play.open_round.unacknowledged import (
    LONGEST_SECONDS,
    MOST_HELD,
    MOST_RETURNS,
    Unacknowledged,
)


def delivery(number: int = 0, **headers: object) -> Delivery:
    return Delivery(
        queue="coordinator", body=b"", message_type=None, content_type=None, user_id=None, headers=headers,
        tag=(0, number),
    )  # fmt: skip


def test_answers_count_and_their_parts_do_not() -> None:
    """Eight updates of 100 MB have 200 parts: no reason to write the partial sum in every round."""
    unacknowledged = Unacknowledged(MemoryLink(MemoryBroker()), read_clock=lambda: 0.0)
    for _ in range(MOST_HELD - 1):
        unacknowledged.hold(delivery(), [delivery() for _ in range(25)])
    assert not unacknowledged.is_due
    unacknowledged.hold(delivery())
    assert unacknowledged.is_due


def test_nothing_is_held_for_longer_than_a_while() -> None:
    """RabbitMQ's delivery timeout never comes near."""
    now = [100.0]
    unacknowledged = Unacknowledged(MemoryLink(MemoryBroker()), read_clock=lambda: now[0])
    now[0] += LONGEST_SECONDS
    assert not unacknowledged.is_due
    unacknowledged.hold(delivery())
    assert not unacknowledged.is_due
    now[0] += LONGEST_SECONDS
    assert unacknowledged.is_due


def test_what_a_quorum_queue_gave_often_is_saved_at_once() -> None:
    """RabbitMQ 4 deletes what it gave 20 times: a coordinator that never lives for long would lose it."""
    unacknowledged = Unacknowledged(MemoryLink(MemoryBroker()), read_clock=lambda: 0.0)
    unacknowledged.hold(delivery(**{"x-delivery-count": MOST_RETURNS - 1}), [delivery(), delivery()])
    assert not unacknowledged.is_due
    unacknowledged.hold(delivery(), [delivery(), delivery(**{"x-delivery-count": MOST_RETURNS})])
    assert unacknowledged.is_due
    unacknowledged.release()
    unacknowledged.hold(delivery(**{"x-delivery-count": "a sender's own"}))
    assert not unacknowledged.is_due


def test_what_is_released_is_acknowledged_and_counts_no_more() -> None:
    """The broker forgets it: the next reader finds nothing."""
    broker = MemoryBroker()
    first, second = MemoryLink(broker), MemoryLink(broker)
    first.declare([upload_queue("a")])
    first.publish([Outgoing(key="upload.a", body=b"1", message_type="test") for _ in range(3)])
    unacknowledged = Unacknowledged(first, read_clock=lambda: 0.0)
    answer, *parts = first.fetch("upload.a", most=2)
    unacknowledged.hold(answer, parts)
    unacknowledged.release()
    (kept,) = first.fetch("upload.a")
    unacknowledged.hold(kept)
    first.close()
    assert len(list(second.fetch("upload.a", most=3))) == 1
