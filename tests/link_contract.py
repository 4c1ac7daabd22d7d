"""What every Link must do; run on the in-memory one (unit) and on RabbitMQ (integration)."""

import time
from collections.abc import Callable

import pytest

from broker.errors import DeclareRefused, Unroutable
from broker.link.seam import (
    Connection,
    Delivery,
    Link,
    Outgoing,
    Queue,
    coordinator_queue,
    dead_queue,
    upload_queue,
    worker_queue,
)

MakeLink = Callable[[], Link]


def message(key: str, body: bytes = b"x", **more: object) -> Outgoing:
    return Outgoing(key=key, body=body, message_type="test", **more)  # type: ignore[arg-type]


def next_delivery(link: Link, seconds: float = 5) -> Delivery:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        received = link.receive(0.1)
        if isinstance(received, Delivery):
            return received
    raise AssertionError("nothing was delivered")


def is_quiet(link: Link, seconds: float = 0.3) -> bool:
    return not isinstance(link.receive(seconds), Delivery)


def fetched(link: Link, queue: str, seconds: float = 5) -> Delivery:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for delivery in link.fetch(queue):
            return delivery
    raise AssertionError("nothing to fetch")


class LinkContract:
    """The contract; a subclass gives `make_link`, which connects to one and the same broker each time."""

    def test_a_published_message_is_delivered_with_the_senders_account(self, make_link: MakeLink) -> None:
        """The reader sees the body, the type and the broker's word on who sent it."""
        reader, sender = make_link(), make_link()
        reader.declare([coordinator_queue()])
        reader.consume(["coordinator"], prefetch=10)
        sender.publish([message("coordinator", b"hello")])
        delivery = next_delivery(reader)
        assert (delivery.body, delivery.message_type, delivery.user_id, delivery.queue) == (
            b"hello", "test", sender.account, "coordinator",
        )  # fmt: skip

    def test_an_unroutable_message_is_an_error_and_the_others_of_the_batch_arrive(
        self, make_link: MakeLink
    ) -> None:
        """A mandatory message that reaches no queue is told; it does not hold back the rest."""
        link = make_link()
        link.declare([coordinator_queue()])
        with pytest.raises(Unroutable):
            link.publish([message("worker.nobody"), message("coordinator", b"after")])
        link.consume(["coordinator"], prefetch=10)
        assert next_delivery(link).body == b"after"

    def test_a_message_nobody_must_get_may_reach_no_queue(self, make_link: MakeLink) -> None:
        """A message that isn't mandatory is dropped without a word when no queue takes it."""
        link = make_link()
        link.declare([coordinator_queue()])
        link.publish([message("workers", is_mandatory=False)])

    def test_bcc_reaches_every_named_queue_once_and_is_not_seen(self, make_link: MakeLink) -> None:
        """One publish serves many readers, and none learns who else got it."""
        link = make_link()
        link.declare([worker_queue("a"), worker_queue("b"), worker_queue("c")])
        link.publish([message("worker.a", b"round", bcc=("worker.b",))])
        link.consume(["worker.a", "worker.b", "worker.c"], prefetch=10)
        received = [next_delivery(link), next_delivery(link)]
        assert {each.queue for each in received} == {"worker.a", "worker.b"}
        assert all("BCC" not in each.headers and "CC" not in each.headers for each in received)
        assert is_quiet(link)

    def test_every_worker_queue_hears_the_roll_call(self, make_link: MakeLink) -> None:
        """A worker queue is bound to the key of all workers as well as to its own."""
        link = make_link()
        link.declare([worker_queue("a"), worker_queue("b")])
        link.publish([message("workers", is_transient=True, is_mandatory=False)])
        link.consume(["worker.a", "worker.b"], prefetch=10)
        assert {next_delivery(link).queue, next_delivery(link).queue} == {"worker.a", "worker.b"}

    def test_prefetch_bounds_what_is_unacknowledged(self, make_link: MakeLink) -> None:
        """The third message comes only after one of the first two was acknowledged."""
        link = make_link()
        link.declare([upload_queue("a")])
        link.consume(["upload.a"], prefetch=2)
        link.publish([message("upload.a", body) for body in (b"1", b"2", b"3")])
        first, second = next_delivery(link), next_delivery(link)
        assert [first.body, second.body] == [b"1", b"2"]
        assert is_quiet(link)
        link.ack([first])
        assert next_delivery(link).body == b"3"

    def test_prefetch_zero_means_any_number(self, make_link: MakeLink) -> None:
        """A worker takes all parts of a model before it acknowledges the first."""
        link = make_link()
        link.declare([worker_queue("a")])
        link.consume(["worker.a"], prefetch=0)
        link.publish([message("worker.a", str(number).encode()) for number in range(300)])
        assert [next_delivery(link).body for _ in range(300)] == [str(n).encode() for n in range(300)]

    def test_what_is_not_acknowledged_comes_again_to_the_next_reader(self, make_link: MakeLink) -> None:
        """Closing gives everything unacknowledged back, in order; what was acknowledged is gone."""
        first, second = make_link(), make_link()
        first.declare([coordinator_queue()])
        first.publish([message("coordinator", body) for body in (b"1", b"2", b"3")])
        first.consume(["coordinator"], prefetch=10)
        deliveries = [next_delivery(first) for _ in range(3)]
        first.ack([deliveries[0]])
        first.close()
        second.declare([coordinator_queue()])
        second.consume(["coordinator"], prefetch=10)
        assert [next_delivery(second).body, next_delivery(second).body] == [b"2", b"3"]
        assert is_quiet(second)

    def test_only_one_of_two_readers_of_a_single_active_queue_receives(self, make_link: MakeLink) -> None:
        """The second reader waits behind the first and takes over when it leaves."""
        first, second = make_link(), make_link()
        first.declare([coordinator_queue()])
        first.consume(["coordinator"], prefetch=10)
        second.consume(["coordinator"], prefetch=10)
        first.publish([message("coordinator", b"1")])
        first.ack([next_delivery(first)])
        assert is_quiet(second)
        first.close()
        second.publish([message("coordinator", b"2")])
        assert next_delivery(second).body == b"2"

    def test_cancelled_queues_deliver_no_more_until_they_are_consumed_again(
        self, make_link: MakeLink
    ) -> None:
        """After cancel the messages stay in the queues, and the others go on."""
        link = make_link()
        link.declare([worker_queue("a"), worker_queue("b"), worker_queue("c")])
        link.consume(["worker.a", "worker.b", "worker.c"], prefetch=10)
        link.cancel(["worker.a", "worker.b"])
        assert [link.consumers(f"worker.{name}") for name in "abc"] == [0, 0, 1]
        link.publish([message("worker.a"), message("worker.b"), message("worker.c")])
        assert next_delivery(link).queue == "worker.c"
        assert is_quiet(link)
        link.consume(["worker.b"], prefetch=10)
        assert next_delivery(link).queue == "worker.b"

    def test_a_posted_message_is_known_to_be_taken_without_being_waited_for(
        self, make_link: MakeLink
    ) -> None:
        """Its future is done once the broker has it, and fails where no queue takes it."""
        link = make_link()
        link.declare([coordinator_queue()])
        assert link.post(message("coordinator", b"hello")).result(5) is None
        assert isinstance(link.post(message("worker.nobody")).exception(5), Unroutable)
        link.consume(["coordinator"], prefetch=10)
        assert next_delivery(link).body == b"hello"

    def test_a_link_takes_messages_until_it_is_closed(self, make_link: MakeLink) -> None:
        """Nothing hinders it, and no time is lost."""
        link = make_link()
        link.declare([coordinator_queue()])
        link.publish([message("coordinator")])
        assert link.takes_messages
        before = link.seconds_still()
        link.close()
        assert not link.takes_messages
        assert before == pytest.approx(link.seconds_still(), abs=0.5)

    def test_a_queue_with_other_arguments_is_told_by_name(self, make_link: MakeLink) -> None:
        """Made by hand or by another version: an error that says which; the link goes on."""
        link, other = make_link(), make_link()
        other.declare([Queue(name="dead", keys=("dead",))])
        with pytest.raises(DeclareRefused, match="The queue 'dead' exists with other arguments"):
            link.declare([coordinator_queue(), dead_queue(), upload_queue("a")])
        other.delete(["dead"])
        link.declare([coordinator_queue(), dead_queue(), upload_queue("a")])
        link.publish([message("upload.a", b"1")])
        assert fetched(link, "upload.a").body == b"1"

    def test_a_queue_that_is_kept_is_taken_as_it_is_by_who_would_have_it_expire(
        self, make_link: MakeLink
    ) -> None:
        """An older Warren made it, or an invitation: whoever reads it goes on with it and what is in it, and no other
        argument may differ. One that expires is not what was asked for where it must be kept."""
        link, other = make_link(), make_link()
        other.declare([upload_queue("a", is_kept=True), upload_queue("b")])
        other.publish([message("upload.a", b"kept")])
        link.declare([upload_queue("b"), upload_queue("a"), upload_queue("c")])
        assert fetched(link, "upload.a").body == b"kept"
        link.publish([message("upload.c", b"made")])
        with pytest.raises(DeclareRefused, match=r"'upload\.b' exists with other arguments"):
            link.declare([upload_queue("b", is_kept=True)])

    def test_fetch_takes_messages_in_order_and_none_when_empty(self, make_link: MakeLink) -> None:
        """The parts of an update are taken out one by one, in order."""
        link = make_link()
        link.declare([upload_queue("a")])
        assert list(link.fetch("upload.a", most=5)) == []
        link.publish([message("upload.a", body) for body in (b"1", b"2", b"3")])
        first = fetched(link, "upload.a")
        others = list(link.fetch("upload.a", most=5))
        assert [each.body for each in (first, *others)] == [b"1", b"2", b"3"]
        assert list(link.fetch("upload.a")) == []
        link.ack([first, *others])

    def test_no_more_is_fetched_than_asked_for(self, make_link: MakeLink) -> None:
        """What stays in the queue is another reader's."""
        first, second = make_link(), make_link()
        first.declare([upload_queue("a")])
        first.publish([message("upload.a", body) for body in (b"1", b"2", b"3")])
        assert [each.body for each in first.fetch("upload.a", most=2)] == [b"1", b"2"]
        assert [each.body for each in second.fetch("upload.a", most=2)] == [b"3"]

    def test_a_fetched_message_is_held_until_it_is_acknowledged(self, make_link: MakeLink) -> None:
        """A coordinator that dies after the fetch leaves the part to the next one."""
        first, second = make_link(), make_link()
        first.declare([upload_queue("a")])
        first.publish([message("upload.a", b"1")])
        fetched(first, "upload.a")
        assert list(second.fetch("upload.a")) == []
        first.close()
        assert fetched(second, "upload.a").body == b"1"

    def test_a_dead_letter_is_a_short_copy_with_its_reason(self, make_link: MakeLink) -> None:
        """What can't be accepted goes to `dead`, 64 KiB at most, and out of its own queue."""
        link = make_link()
        link.declare([coordinator_queue(), dead_queue()])
        link.consume(["coordinator"], prefetch=10)
        link.publish([message("coordinator", bytes(100_000))])
        delivery = next_delivery(link)
        link.copy_to_dead(delivery, "wrong shape")
        link.ack([delivery])
        dead = fetched(link, "dead")
        assert len(dead.body) == 64 * 1024
        assert dead.headers["reason"] == "wrong shape"
        assert dead.headers["queue"] == "coordinator"

    def test_the_number_of_readers_is_known_and_a_missing_queue_too(self, make_link: MakeLink) -> None:
        """Present means: its queue has a reader."""
        link, other = make_link(), make_link()
        assert link.consumers("worker.a") is None
        link.declare([worker_queue("a")])
        assert link.consumers("worker.a") == 0
        other.consume(["worker.a"], prefetch=1)
        assert link.consumers("worker.a") == 1

    def test_what_waits_in_a_queue_is_counted_and_what_somebody_holds_is_not(
        self, make_link: MakeLink
    ) -> None:
        """So it is seen how fast an upload comes, without taking anything out."""
        link = make_link()
        assert link.waiting("upload.a") is None
        link.declare([upload_queue("a")])
        assert link.waiting("upload.a") == 0
        link.publish([message("upload.a"), message("upload.a")])
        assert link.waiting("upload.a") == 2
        (held,) = link.fetch("upload.a")
        assert link.waiting("upload.a") == 1
        link.ack([held])

    def test_of_many_queues_those_that_nobody_reads_are_known_at_once(self, make_link: MakeLink) -> None:
        """Missing ones in between, at the beginning and at the end are among them; the link goes on."""
        link, other = make_link(), make_link()
        names = [f"worker.{number}" for number in range(30)]
        assert link.unread([]) == []
        assert link.unread(names) == names
        missing, unread = {0, 7, 8, 29}, {3, 9, 28}
        link.declare([worker_queue(str(number)) for number in range(30) if number not in missing])
        read = [f"worker.{number}" for number in range(30) if number not in missing | unread]
        other.consume(read, prefetch=1)
        assert link.unread(names) == [f"worker.{number}" for number in sorted(missing | unread)]
        link.publish([message("worker.1")])

    def test_purge_and_delete_forgive_a_missing_queue(self, make_link: MakeLink) -> None:
        """Neither closes the link when there is no such queue; with one, both do their work."""
        link = make_link()
        link.purge("upload.nobody")
        link.delete(["upload.nobody"])
        link.declare([upload_queue("a")])
        link.publish([message("upload.a")])
        link.purge("upload.a")
        assert list(link.fetch("upload.a")) == []
        link.delete(["upload.a"])
        assert link.consumers("upload.a") is None

    def test_queues_that_are_received_from_are_deleted_without_a_break(self, make_link: MakeLink) -> None:
        """A swarm deletes what it reads; the connection stays, and so does what else is read."""
        link = make_link()
        names = [str(number) for number in range(50)]
        link.declare([coordinator_queue(), *map(worker_queue, names), *map(upload_queue, names)])
        link.consume(["coordinator", *(f"worker.{name}" for name in names)], prefetch=2)
        link.publish([message(f"worker.{name}") for name in names])
        for _ in names:
            next_delivery(link)
        link.delete([f"{kind}.{name}" for name in names for kind in ("worker", "upload")])
        assert {link.consumers(f"{kind}.{name}") for name in names for kind in ("worker", "upload")} == {None}
        link.publish([message("coordinator", b"after")])
        received = link.receive(5)
        assert isinstance(received, Delivery)  # neither LOST nor RESTORED
        assert received.body == b"after"

    def test_a_full_queue_drops_its_oldest(self, make_link: MakeLink) -> None:
        """The queue `dead` is bounded: a flood of rubbish does not fill the broker's disk."""
        link = make_link()
        link.declare([Queue(name="small", keys=("small",), max_length=2)])
        link.publish([message("small", body) for body in (b"1", b"2", b"3")])
        assert [fetched(link, "small").body, fetched(link, "small").body] == [b"2", b"3"]

    def test_a_tag_from_before_a_lost_connection_is_void(
        self, make_link: MakeLink, drop: Callable[[Link], None]
    ) -> None:
        """RoundKey messages come again after a reconnect, and acknowledging by the old tag changes nothing."""
        link = make_link()
        link.declare([coordinator_queue()])
        link.consume(["coordinator"], prefetch=10)
        link.publish([message("coordinator", b"1")])
        before = next_delivery(link)
        drop(link)
        events = [link.receive(20), link.receive(20)]
        assert events == [Connection.LOST, Connection.RESTORED]
        after = next_delivery(link)
        link.ack([before])
        link.close()
        assert after.body == b"1"
        assert after.tag != before.tag
        other = make_link()
        other.consume(
            ["coordinator"], prefetch=1
        )  # a quorum queue with one active reader gives nothing to a fetch
        assert next_delivery(other).body == b"1"
