"""The RabbitMQ link keeps the contract of every link, and is connected only when it takes messages again."""

import gc
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
import pytest

from broker.errors import BrokerUnreachable, DeclareRefused, LinkLost, LoginRefused, PublishRefused
from broker.hosting.management import Management, Rights
from broker.hosting.private import PrivateBroker, free_ports
from broker.link import attempts
from broker.link.access import Access
from broker.link.address import without_password
from broker.link.rabbitmq import connection, publishing
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import (
    Connection,
    Link,
    Queue,
    coordinator_queue,
    dead_queue,
    upload_queue,
    worker_queue,
)
from broker.wire import names
from tests.brokers import fresh_vhost, wait_until
from tests.faults.forwarder import Forwarder
from tests.link_contract import LinkContract, message, next_delivery

MakeRabbitLink = Callable[..., RabbitLink]


@contextmanager
def links_to(vhost: str) -> Iterator[MakeRabbitLink]:
    """Makes links to this virtual host (or another address), and closes them at the end."""
    links: list[RabbitLink] = []

    def make(amqp_url: str = vhost, **settings: Any) -> RabbitLink:
        its = LinkSettings(access=Access(amqp_url=amqp_url), name=f"test {len(links)}", **settings)
        link = RabbitLink(its)
        link.open()
        links.append(link)
        return link

    yield make
    for link in links:
        link.close()


def cut(link: Link) -> None:
    assert isinstance(link, RabbitLink)
    link._consuming.connection._connection._transport._sock.shutdown(socket.SHUT_RDWR)


class TestRabbitLink(LinkContract):
    """The contract, on a real broker."""

    @pytest.fixture
    def make_link(self, vhost: str) -> Iterator[Callable[[], Link]]:
        with links_to(vhost) as make:
            yield make

    @pytest.fixture
    def drop(self) -> Callable[[Link], None]:
        return cut


@pytest.fixture
def make_link(vhost: str) -> Iterator[MakeRabbitLink]:
    with links_to(vhost) as make:
        yield make


@pytest.fixture
def make_classic_link(broker: PrivateBroker) -> Iterator[MakeRabbitLink]:
    """Where queues are classic ones, whatever the other tests have: RabbitMQ 3.10 does not tell the reader of a quorum
    queue that it was deleted and is there again, and no version lets one be read exclusively."""
    with fresh_vhost(broker, "classic") as classic, links_to(classic) as make:
        yield make


@pytest.fixture
def channel(vhost: str) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    """A person at the broker, by other means."""
    with pika.BlockingConnection(pika.URLParameters(vhost)) as connection:
        yield connection.channel()


@pytest.fixture
def is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnects within half a second at most."""
    monkeypatch.setattr(attempts, "_LONGEST_DELAY_SECONDS", 0.5)


def others(name: str) -> Queue:
    """A queue as somebody else made it."""
    return Queue(name=name, keys=(name,), max_length=7)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "Not connected again" in each.getMessage()]


def came_back(link: RabbitLink, number: int) -> None:
    """Wait for so many more tries to connect."""
    goal = link._consuming.connection.generation + number
    wait_until(lambda: link._consuming.connection.generation >= goal, 20)


@pytest.mark.usefixtures("is_quick")
def test_a_refused_restore_is_no_connection_and_is_told_once(
    make_classic_link: MakeRabbitLink, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody deletes a queue and makes it with other arguments: the link says so once, however often it tries, and
    again when it is another queue. It calls itself connected when nothing is in the way any more."""
    link, other = make_classic_link(), make_classic_link()
    link.declare([coordinator_queue(), dead_queue()])
    link.consume(["coordinator"], prefetch=10)
    other.delete(["coordinator"])
    other.declare([others("coordinator")])
    came_back(link, 4)
    assert [each.split("exists")[0] for each in told(caplog)] == [
        "Not connected again, but trying until it works: The queue 'coordinator' "
    ]
    assert not link.is_connected
    assert not link.takes_messages
    other.delete(["coordinator", "dead"])
    other.declare([others("dead")])
    came_back(link, 4)
    assert ["'dead'" in each for each in told(caplog)] == [False, True]
    assert link.receive(1) is Connection.LOST
    assert link.receive(0.1) is None
    other.delete(["dead"])
    assert link.receive(20) is Connection.RESTORED
    assert link.takes_messages
    assert link.seconds_still() > 0.5
    other.publish([message("coordinator", b"after")])
    assert next_delivery(link).body == b"after"


@pytest.mark.usefixtures("is_quick")
def test_a_refused_reader_is_no_connection(
    make_classic_link: MakeRabbitLink,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody reads a queue exclusively while the link is away: it may declare it and not read it, says so once, and
    is connected once the other one is gone."""
    monkeypatch.setattr(attempts, "_FIRST_DELAY_SECONDS", 4.0)
    link = make_classic_link()
    link.declare([upload_queue("a")])
    link.consume(["upload.a"], prefetch=10)
    person = pika.BlockingConnection(pika.URLParameters(link._settings.access.amqp_url))
    channel = person.channel()
    cut(link)
    assert link.receive(5) is Connection.LOST
    # The broker takes a moment to see that its reader is gone.
    wait_until(lambda: channel.queue_declare("upload.a", passive=True).method.consumer_count == 0, 10)
    tag = channel.basic_consume("upload.a", lambda *_: None, exclusive=True)
    came_back(link, 3)
    assert len(told(caplog)) == 1
    assert "ACCESS_REFUSED" in told(caplog)[0]
    assert link.receive(0.1) is None
    channel.basic_cancel(tag)
    assert link.receive(20) is Connection.RESTORED
    person.close()


@pytest.mark.usefixtures("is_quick")
def test_a_login_that_is_refused_at_a_reconnect_is_told_once(
    vhost: str, management: Management, make_link: MakeRabbitLink, caplog: pytest.LogCaptureFixture
) -> None:
    """The account gets another password: who is cut off says why it does not come back."""
    parts = urlsplit(vhost)
    management.put_user("me", "first")
    try:
        rights = Rights(configure=".*", write=".*", read=".*")
        management.set_permissions(unquote(parts.path[1:]), "me", rights)
        link = make_link(parts._replace(netloc=f"me:first@{parts.hostname}:{parts.port}").geturl())
        management.put_user("me", "second")
        cut(link)
        assert link.receive(10) is Connection.LOST
        wait_until(lambda: link._consuming.connection.attempts.num_refused >= 5, 60)
        assert len(told(caplog)) == 1
        assert "refused the user or the password" in told(caplog)[0]
        management.put_user("me", "first")
        assert link.receive(30) is Connection.RESTORED
    finally:
        management.delete_user("me")


def test_what_is_asked_for_while_there_is_no_connection_is_there_with_the_next(
    make_link: MakeRabbitLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Declared and consumed in the gap: not lost."""
    link, other = make_link(), make_link()
    link.declare([coordinator_queue()])
    monkeypatch.setattr(attempts, "_FIRST_DELAY_SECONDS", 1.0)
    cut(link)
    assert link.receive(5) is Connection.LOST
    link.declare([worker_queue("a")])
    link.consume(["worker.a"], prefetch=1)
    assert link.receive(20) is Connection.RESTORED
    other.publish([message("worker.a", b"1")])
    assert next_delivery(link).body == b"1"


def test_what_is_asked_for_in_the_middle_of_a_restore_is_there_after_it(make_link: MakeRabbitLink) -> None:
    """Too late for the list of what is restored, too early for a connection: not lost either."""
    link, other = make_link(), make_link()
    restored = link._consuming._restored

    def asked_meanwhile(*arguments: object) -> None:
        link._declaring.declared["worker.a"] = worker_queue("a")
        link._consuming.consumed["worker.a"] = 1
        restored(*arguments)  # type: ignore[arg-type]

    link._consuming._restored = asked_meanwhile  # type: ignore[method-assign]
    cut(link)
    assert [link.receive(20), link.receive(20)] == [Connection.LOST, Connection.RESTORED]
    wait_until(lambda: other.consumers("worker.a") == 1, 10)


def test_many_queues_are_asked_about_at_once(vhost: str, make_link: MakeRabbitLink) -> None:
    """With 80 ms from here to the broker and back again, 120 queues take less than half of what they would in turn;
    also where some are missing, and each of these closes a channel."""
    link = make_link()
    queues = [f"worker.{number}" for number in range(120)]
    link.declare([worker_queue(str(number)) for number in range(120) if number % 20 != 7])
    link.consume([queues[3]], prefetch=1)
    with Forwarder(vhost) as forwarder:
        far = make_link(forwarder.amqp_url)
        forwarder.seconds_away = 0.04
        begun = time.monotonic()
        assert far.unread(queues) == queues[:3] + queues[4:]
        assert time.monotonic() - begun < 120 * 0.08 / 2
        forwarder.seconds_away = 0.0
        far.close()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_call_that_is_not_answered_costs_its_connection(
    vhost: str, make_link: MakeRabbitLink, monkeypatch: pytest.MonkeyPatch, is_frozen: bool
) -> None:
    """Whoever gives a delivery back by not acknowledging it waits for it to come again, and that takes another
    connection. A broker that answers nothing at all does not close it, either: the socket is closed from here."""
    monkeypatch.setattr(connection, "_CLOSE_SECONDS", 0.5)
    with Forwarder(vhost) as forwarder:
        link = make_link(forwarder.amqp_url)
        link.declare([coordinator_queue()])
        link.consume(["coordinator"], prefetch=10)
        link.publish([message("coordinator", b"1")])
        held = next_delivery(link)
        if is_frozen:
            forwarder.swallow()
        with pytest.raises(LinkLost, match=r"did not answer for 0\.5 s"):
            link._consuming.connection.calls.ask(lambda _future: None, 0.5)
        assert link.receive(10) is Connection.LOST
        forwarder.restore()
        assert link.receive(30) is Connection.RESTORED
        again = next_delivery(link)
        assert (again.body, again.tag[0]) == (held.body, held.tag[0] + 1)
        link.close()


def test_an_exchange_of_another_kind_is_told_by_name(
    make_link: MakeRabbitLink, channel: pika.adapters.blocking_connection.BlockingChannel
) -> None:
    """Bindings to it would route other than meant."""
    channel.exchange_declare(names.EXCHANGE, "direct", durable=True)
    link = make_link()
    with pytest.raises(DeclareRefused, match="The exchange 'federation' exists with other arguments"):
        link.declare([coordinator_queue()])
    channel.exchange_delete(names.EXCHANGE)
    link.declare([coordinator_queue()])


def test_a_message_that_nobody_confirms_stops_the_clock_from_its_start(
    vhost: str, make_link: MakeRabbitLink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker is silent, and no connection is lost yet: a message is unconfirmed for (here) half a second. The link
    no longer takes messages, says so in one line, and the time counts from when the message was sent."""
    monkeypatch.setattr(publishing, "_CONFIRM_SECONDS", 0.5)
    with Forwarder(vhost) as forwarder:
        link = make_link(forwarder.amqp_url)
        link.declare([coordinator_queue()])
        forwarder.swallow()
        before = link.seconds_still()
        posted = link.post(message("coordinator", b"1"))
        link.post(message("coordinator", b"2"))
        wait_until(lambda: not link.takes_messages, 5)
        assert link.seconds_still() - before >= 0.5
        assert link.is_connected
        assert not posted.done()
        assert sum("has not confirmed a message" in each.getMessage() for each in caplog.records) == 1
        forwarder.restore()
        wait_until(lambda: link.takes_messages, 20)
        assert posted.exception(5) is not None  # lost with its connection


def test_what_is_slow_once_more_right_after_a_standstill_is_not_told_again(
    make_link: MakeRabbitLink, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster has its majority back, and confirms; then one more queue elects its leader for some seconds."""
    caplog.set_level("INFO", logger="broker")
    link = make_link()
    publishing_side = link._publishing
    publishing_side._tell_slow(75.0)
    publishing_side._slow_told_at -= 75.0  # it was told when that began
    publishing_side._told.end("a message is unconfirmed")
    publishing_side._tell_slow(5.0)
    assert [each.message for each in caplog.records if each.name.startswith("broker")] == [
        "The broker has not confirmed a message for 75 s; waiting.",
        "The broker takes messages again.",
    ]
    publishing_side._told.ended_at -= 75.0
    publishing_side._tell_slow(5.0)
    assert "for 5 s; waiting." in caplog.messages[-1]


def test_a_connection_that_confirms_nothing_more_is_given_up(
    make_link: MakeRabbitLink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster that had lost its majority, and has it back, may never confirm what an old connection published (seen
    with three nodes of RabbitMQ 3.10). The link publishes on a new one, and receives as before."""
    monkeypatch.setattr(publishing, "_CONFIRM_SECONDS", 0.3)
    monkeypatch.setattr(publishing, "_CONFIRM_LIMIT_SECONDS", 1.0)
    link = make_link()
    link.declare([coordinator_queue()])
    link.consume(["coordinator"], prefetch=10)
    with monkeypatch.context() as patch:
        patch.setattr(link._publishing, "_on_confirm", lambda *_: None)  # the broker's confirms are lost
        assert isinstance(link.post(message("coordinator", b"1")).exception(10), LinkLost)
    wait_until(lambda: link.takes_messages, 10)
    link.publish([message("coordinator", b"2")])
    assert [next_delivery(link).body, next_delivery(link).body] == [b"1", b"2"]
    warnings = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert [each.partition(" for ")[0] for each in warnings] == ["The broker has not confirmed a message"]


def test_of_several_addresses_both_connections_leave_the_one_that_confirms_nothing(
    vhost: str, make_link: MakeRabbitLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node of RabbitMQ 4 that is cut off from the others keeps its clients: it confirms nothing, and hands out
    nothing either, which nobody could tell from a quiet hour."""
    monkeypatch.setattr(publishing, "_CONFIRM_SECONDS", 0.3)
    monkeypatch.setattr(publishing, "_CONFIRM_LIMIT_SECONDS", 1.0)
    other = urlsplit(vhost)._replace(netloc=f"guest:guest@127.0.0.1:{urlsplit(vhost).port}").geturl()
    link = make_link(f"{vhost},{other}")
    link.declare([coordinator_queue()])
    link.consume(["coordinator"], prefetch=0)
    sides = link._consuming.connection, link._publishing.connection
    left = {side.attempts.address for side in sides}
    assert len(left) == 1
    with monkeypatch.context() as patch:
        patch.setattr(link._publishing, "_on_confirm", lambda *_: None)  # the broker's confirms are lost
        assert isinstance(link.post(message("coordinator", b"1")).exception(10), LinkLost)
    wait_until(
        lambda: link.takes_messages and {side.attempts.address for side in sides} == {vhost, other} - left, 20
    )


@pytest.mark.parametrize("is_among_several", [False, True])
def test_where_messages_are_refused_another_connection_is_tried_at_one_of_several_addresses(
    vhost: str,
    make_link: MakeRabbitLink,
    channel: pika.adapters.blocking_connection.BlockingChannel,
    monkeypatch: pytest.MonkeyPatch,
    is_among_several: bool,
) -> None:
    """A channel of RabbitMQ 3 that asks a node that was cut off has every message refused, until that is back. Whoever
    knows another address begins anew, and not again for a minute: a queue that is full refuses, too."""
    monkeypatch.setattr(publishing, "_REFUSED_SECONDS", 0.2)
    other = urlsplit(vhost)._replace(netloc=f"guest:guest@127.0.0.1:{urlsplit(vhost).port}").geturl()
    link = make_link(f"{vhost},{other}" if is_among_several else vhost)
    link.declare([coordinator_queue()])
    channel.queue_declare("full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"}, durable=True)
    channel.queue_bind("full", names.EXCHANGE, "full")
    side = link._publishing

    def is_refused_for_long() -> bool:
        with suppress(LinkLost, PublishRefused):
            link.publish([message("full", b"x")])
        return side._confirms.seconds_refused >= 0.2

    for num_connections in (2, 2) if is_among_several else (1, 1):
        wait_until(is_refused_for_long, 20)
        wait_until(side.connection.ready.is_set, 20)
        wait_until(lambda number=num_connections: side.connection.generation == number, 20)  # type: ignore[misc]


def test_what_is_unconfirmed_is_doubted_when_the_other_connection_is_there_again(
    make_link: MakeRabbitLink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a cluster that had lost its majority one connection was lost, the other has confirmed nothing since: a node
    of RabbitMQ 4 keeps it. It isn't waited for a minute, but given up when the first one is there again. Both together
    are one line when it begins, and one when it is over."""
    caplog.set_level("INFO", logger="broker")
    monkeypatch.setattr(publishing, "_CONFIRM_SECONDS", 0.3)
    link = make_link()
    link.declare([coordinator_queue()])
    with monkeypatch.context() as patch:
        patch.setattr(link._publishing, "_on_confirm", lambda *_: None)  # the broker's confirms are lost
        posted = link.post(message("coordinator", b"1"))
        wait_until(lambda: not link.takes_messages, 10)
        consuming = link._consuming.connection
        consuming.calls.send(lambda _future: consuming.restart("a test"))
        assert isinstance(posted.exception(20), LinkLost)
    wait_until(lambda: link.takes_messages, 10)
    link.publish([message("coordinator", b"2")])
    wait_until(lambda: not link._standstill.told.is_on, 10)
    went, *came = (each.message for each in caplog.records if each.name.startswith("broker"))
    assert "has not confirmed a message" in went
    assert came == ["The broker takes messages again."]


def test_of_several_addresses_a_dead_one_is_passed_over(vhost: str, make_link: MakeRabbitLink) -> None:
    """Nothing listens at the one: the other is used, at once, by both connections."""
    (port,) = free_ports(1)
    dead = urlsplit(vhost)._replace(netloc=f"guest:guest@localhost:{port}").geturl()
    links = [make_link(f"{dead},{vhost}") for _ in range(3)]
    for link in links:
        link.declare([coordinator_queue()])
        link.publish([message("coordinator", b"x")])
        assert [each.connection.attempts.address for each in (link._consuming, link._publishing)] == [
            vhost
        ] * 2


def test_of_several_addresses_the_next_is_used_when_a_node_dies(
    vhost: str, make_link: MakeRabbitLink, caplog: pytest.LogCaptureFixture
) -> None:
    """It lost its node, and is at another one without a pause; what was received and not acknowledged comes again. The
    address that was lost is named."""
    with Forwarder(vhost) as first, Forwarder(vhost) as second:
        link = make_link(f"{first.amqp_url},{second.amqp_url}")
        link.declare([coordinator_queue()])
        link.consume(["coordinator"], prefetch=0)
        make_link().publish([message("coordinator", b"x")])
        assert next_delivery(link).body == b"x"
        its = {each.amqp_url: each for each in (first, second)}
        for _ in range(2):
            died = its[link._consuming.connection.attempts.address]
            other = next(each for each in its.values() if each is not died)
            other.restore()
            died.cut()
            assert link.receive(20) is Connection.LOST
            assert link.receive(20) is Connection.RESTORED
            delivery = next_delivery(link)
            assert delivery.body == b"x"
            for side in (link._consuming, link._publishing):
                wait_until(side.connection.ready.is_set, 20)
                assert side.connection.attempts.address == other.amqp_url
        for each in its:
            assert f"The connection to the broker at {without_password(each)} was lost" in caplog.text
        link.ack([delivery])


def test_of_several_addresses_a_silent_one_does_not_keep_a_link(
    vhost: str, make_link: MakeRabbitLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that hangs takes connections and says nothing, and one without a majority restores nothing: the patience
    with one address ends, and the next is tried."""
    monkeypatch.setattr(attempts, "_PATIENCE_SECONDS", 0.5)
    with Forwarder(vhost) as silent:
        silent.swallow()
        link = make_link(f"{silent.amqp_url},{vhost}")
        link.declare([coordinator_queue()])
        assert link.is_connected


def test_a_login_that_one_of_several_refuses_is_refused(vhost: str, make_link: MakeRabbitLink) -> None:
    """The nodes of a cluster know the same accounts: it is told at once, by its address, whatever the others are."""
    (port,) = free_ports(1)
    parts = urlsplit(vhost)._replace(netloc=f"guest:wrong@localhost:{urlsplit(vhost).port}")
    dead = parts._replace(netloc=f"guest:wrong@localhost:{port}").geturl()
    with pytest.raises(LoginRefused, match="refused the user or the password") as caught:
        make_link(f"{dead},{parts.geturl()}")
    assert str(urlsplit(vhost).port) in str(caught.value)


def test_where_none_of_several_answers_each_is_named(vhost: str, make_link: MakeRabbitLink) -> None:
    """Who reads it sees what is wrong at which address."""
    ports = free_ports(2)
    urls = [urlsplit(vhost)._replace(netloc=f"guest:guest@localhost:{port}").geturl() for port in ports]
    with pytest.raises(BrokerUnreachable) as caught:
        make_link(",".join(urls), connect_seconds=1.0)
    for port in ports:
        assert f"Nothing listens at localhost:{port} (connection refused)" in str(caught.value)


def test_a_link_that_is_given_up_while_it_connects_leaves_no_socket(
    vhost: str, make_link: MakeRabbitLink
) -> None:
    """What is there takes connections and says nothing: the socket that waits for it is closed with the link, and not
    left to whoever collects garbage."""
    with Forwarder(vhost) as silent:
        silent.swallow()
        with pytest.raises(BrokerUnreachable):
            make_link(silent.amqp_url, connect_seconds=0.2)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            gc.collect()
        assert [each for each in told if each.category is ResourceWarning] == []
