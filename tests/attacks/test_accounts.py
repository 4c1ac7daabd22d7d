"""What an invited account can do to the broker, and so to everybody else on it: nothing, within its limits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from broker.hosting import accounts, policies
from broker.hosting.management import Management
from broker.link.access import Access
from broker.link.address import vhost_of
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Delivery, coordinator_queue, dead_queue
from broker.link.validator import Validator, may_send_to_coordinator
from broker.wire.messages import Joined, Left, SwarmJoined, encode
from broker.wire.names import COORDINATOR, EXCHANGE
from broker.wire.swarms import swarm_words
from tests.attacks.conftest import Invite
from tests.brokers import wait_until

MEGABYTE = 2**20


@contextmanager
def connected(amqp_url: str) -> Iterator[pika.BlockingConnection]:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    try:
        yield connection
    finally:
        with suppress(pika.exceptions.AMQPError):  # the broker has closed it, and nobody has looked since
            connection.close()


@contextmanager
def channel_to(amqp_url: str) -> Iterator[Channel]:
    with connected(amqp_url) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def refused(amqp_url: str, action: Callable[[Channel], object], *, code: int = 403) -> None:
    with channel_to(amqp_url) as channel:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refusal:
            action(channel)
        assert refusal.value.reply_code == code


def publish(channel: Channel, key: str, body: bytes, user: str | None = None) -> None:
    channel.basic_publish(EXCHANGE, key, body, pika.BasicProperties(user_id=user), mandatory=True)


def filled(channel: Channel, key: str, size: int, most: int) -> int:
    """Publish until the broker takes no more; how many bytes it took."""
    for number in range(most):
        try:
            publish(channel, key, bytes(size))
        except pika.exceptions.NackError:
            return number * size
    return most * size


def counted(management: Management, virtual: str) -> int:
    """How many messages wait in a virtual host, as RabbitMQ counts them from time to time."""
    return sum(queue.get("messages") or 0 for queue in management.queues(virtual))


def read(channel: Channel, queue: str, number: int) -> list[int]:
    """Take so many messages out of a queue, as a reader that stays: a quorum queue with one lets nobody get them one by
    one. How long each was."""
    channel.basic_qos(prefetch_count=1)
    sizes: list[int] = []
    for method, _, body in channel.consume(queue, inactivity_timeout=20):
        assert method is not None, f"{queue} gave {len(sizes)} of {number}"
        sizes.append(len(body))
        if len(sizes) == number:
            channel.cancel()  # before the acknowledgement, so that no more is on its way
        channel.basic_ack(method.delivery_tag)
    return sizes


def waiting_in(channel: Channel, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.message_count)


@pytest.mark.parametrize("queue", ["worker.evil", "upload.evil", "worker.evil.1", "mine"])
@pytest.mark.parametrize(
    "traits",
    [
        {"arguments": {"x-dead-letter-exchange": EXCHANGE, "x-dead-letter-routing-key": "workers", "x-message-ttl": 0}},
        {"arguments": {"x-max-length": 5}},
        {"arguments": {"x-queue-type": "stream"}},
        {"exclusive": True},
        {"auto_delete": True},
        {},
    ],
    ids=str,
)  # fmt: skip
def test_the_enemy_s_queues_are_not_what_it_would_have_them(
    invite: Invite, queue: str, traits: dict[str, object]
) -> None:
    """The enemy holds an account. It declares its own queues, before its first start or after it has deleted them: with
    dead letters to everybody (the coordinator's own *Refused* would come to all, as the coordinator's), with a length,
    as a stream, exclusively, so that the coordinator's use of them ends the coordinator. It may make and delete none.
    """
    url = invite("evil")
    refused(url, lambda channel: channel.queue_delete("worker.evil"))
    refused(url, lambda channel: channel.queue_declare(queue, **{"durable": True, **traits}))


def test_the_enemy_keeps_nobody_from_its_queues(vhost: str, invite: Invite) -> None:
    """The enemy holds an account. It reads its queue exclusively, or before all others, so that the coordinator's
    question who reads there, or its purge, is answered with an error. Exclusively it can't: a classic queue refuses
    that, a quorum queue takes no notice of the word, and lets others read, too. Whatever it does, who has all rights
    sees, empties and deletes both queues."""
    url = invite("evil")
    refused(url, lambda channel: channel.basic_consume("upload.evil", print))
    with channel_to(url) as alone, channel_to(url) as enemy, channel_to(vhost) as admin:
        with suppress(pika.exceptions.ChannelClosedByBroker):
            alone.basic_consume("worker.evil", print, exclusive=True)
        admin.basic_cancel(admin.basic_consume("worker.evil", print))
        enemy.basic_consume("worker.evil", print, arguments={"x-priority": 100})
        for queue in ("worker.evil", "upload.evil"):
            admin.queue_declare(queue, passive=True)
            admin.queue_purge(queue)
            admin.queue_delete(queue)


def test_the_enemy_fills_its_own_queues_and_no_disk(vhost: str, invite: Invite) -> None:
    """The enemy holds an account. It publishes parts that it never announces, and pings to itself, to fill the disk, so
    that nobody can publish anything. Its upload queue takes what its limit says, in bytes and in number; the queue that
    it reads drops the oldest. Another worker's upload is taken all the while."""
    enemy_url, honest_url = invite("evil", upload_bytes=MEGABYTE), invite("honest")
    with channel_to(enemy_url) as enemy, channel_to(honest_url) as honest, channel_to(vhost) as admin:
        assert filled(enemy, "upload.evil", 100_000, 100) <= MEGABYTE + 100_000  # a quorum queue: one more
        publish(honest, "upload.honest", bytes(4 * MEGABYTE))
        for _ in range(30):
            publish(enemy, "worker.evil", bytes(100_000))
        assert waiting_in(admin, "worker.evil") * 100_000 <= MEGABYTE
        admin.queue_purge("upload.evil")
        properties = pika.BasicProperties()
        with pytest.raises(pika.exceptions.NackError):
            for _ in range(2 * policies.MOST_WAITING):
                enemy.basic_publish(EXCHANGE, "upload.evil", b"x", properties)
        assert waiting_in(admin, "upload.evil") - policies.MOST_WAITING in (0, 1)  # a quorum queue: one more
        publish(honest, "upload.honest", bytes(4 * MEGABYTE))


def test_the_enemy_fills_what_all_write_to_up_to_a_bound(vhost: str, invite: Invite) -> None:
    """The enemy holds an account. While no coordinator reads it floods the coordinator's queue, and `dead`, to fill the
    disk. The one takes no more at its bound, and takes all again as soon as a fifth of it is free; nothing that it took
    is lost. The other drops its oldest."""
    invite(COORDINATOR)
    enemy_url, honest_url = invite("evil"), invite("honest")
    body = 16 * MEGABYTE
    with channel_to(vhost) as admin, channel_to(enemy_url) as enemy, channel_to(honest_url) as honest:
        for each in (coordinator_queue(), dead_queue()):
            admin.queue_declare(each.name, durable=True, arguments=each.arguments)
            admin.queue_bind(each.name, EXCHANGE, each.name)
        publish(honest, COORDINATOR, b"first")
        taken = filled(enemy, COORDINATOR, body, 50)
        assert taken <= 512 * MEGABYTE
        sizes = [len(b"first"), *[body] * (taken // body), len(b"second")]
        assert read(admin, COORDINATOR, 8) == sizes[:8]
        publish(honest, COORDINATOR, b"second")
        assert read(admin, COORDINATOR, len(sizes) - 8) == sizes[8:]
        filled(enemy, "dead", body, 10)
        assert waiting_in(admin, "dead") * body <= 64 * MEGABYTE


def test_the_enemy_has_few_connections_and_channels(invite: Invite) -> None:
    """The enemy holds an account. It opens four hundred connections, and two thousand channels on one, to take the
    broker's memory and its ports. It has as many as a worker needs that comes back; another's are not counted with its
    own."""
    enemy_url, honest_url = invite("evil"), invite("honest")
    with ExitStack() as held:
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            for _ in range(400):
                held.enter_context(connected(enemy_url))
        assert len(held._exit_callbacks) == 10
        held.enter_context(connected(honest_url))
    with connected(enemy_url) as connection, pytest.raises(pika.exceptions.AMQPError):
        channels = [connection.channel() for _ in range(100)]
        assert len(channels) < 100, "none was refused"


def test_a_revoked_enemy_leaves_nothing(vhost: str, invite: Invite, management: Management) -> None:
    """The enemy held an account, filled its queues, and stays connected when it is revoked, to go on or to leave a full
    disk behind. Its connections are closed, its queues are gone with what is in them, and so are its limits; nobody can
    log in, and whose name only begins alike keeps everything."""
    url = invite("evil", swarm=2)
    other_url = invite("evil-2", upload_bytes=100 * MEGABYTE)  # so it has limits of its own, too
    virtual = vhost_of(vhost)
    with connected(url) as enemy, channel_to(other_url) as other:
        channel = enemy.channel()
        channel.confirm_delivery()
        filled(channel, "upload.evil", 100_000, 10)
        wait_until(lambda: counted(management, virtual) == 10, 20, what="the count of a quorum queue")
        publish(other, "upload.evil-2", b"x")
        revoked = accounts.revoke(management, "evil")
        assert (revoked.removed.queues, revoked.removed.messages) == (2, 10)
        with pytest.raises(pika.exceptions.AMQPError):
            enemy.process_data_events(time_limit=10)
            enemy.channel()
        assert waiting_in(other, "upload.evil-2") == 1
    with pytest.raises(pika.exceptions.AMQPError):
        pika.BlockingConnection(pika.URLParameters(url))
    assert {queue["name"] for queue in management.queues(virtual)} == {"worker.evil-2", "upload.evil-2"}
    badges = [policy["name"] for policy in management.api.get("policies", virtual)]
    assert not any("evil " in badge or badge.endswith("evil") for badge in badges)
    assert any(badge.endswith("evil-2") for badge in badges)


def test_the_enemy_is_no_swarm(invite: Invite, vhost: str) -> None:
    """The enemy holds an account, and speaks as evil.1, evil.2 and evil.3, to be a quorum by itself. It was invited as
    one worker: its messages in other names are rejected by the account that the broker vouches for. So are a swarm's
    beyond its number, and a word for all of another swarm, or for some whom its own has not."""
    coordinator_url = invite(COORDINATOR)
    enemy_url, swarm_url = invite("evil"), invite("lab", swarm=2)
    link = RabbitLink(LinkSettings(access=Access(amqp_url=coordinator_url), name="coordinator"))
    link.open()
    try:
        link.declare([coordinator_queue(), dead_queue()])
        with channel_to(enemy_url) as enemy, channel_to(swarm_url) as swarm:
            for worker in ("evil.1", "evil.2", "evil", "lab.1-2", "lab.1"):
                publish(enemy, COORDINATOR, encode(Left(worker=worker)), "evil")
            for worker in ("lab.2", "lab.3", "lab", "lab.02", "evil", "lab.1"):
                publish(swarm, COORDINATOR, encode(Left(worker=worker)), "lab.1-2")
            for account, channel in (("evil", enemy), ("lab.1-2", swarm)):
                for reader, number in (("evil", 1), ("lab", 2), ("lab", 3), ("lab.2", 2), ("lab.3", 1)):
                    publish(channel, COORDINATOR, encode(swarm_of(reader, number)), account)
        validator = Validator(link, may_send_to_coordinator)
        link.consume([COORDINATOR], prefetch=0)
        heard = [validator.open(delivery) for delivery in deliveries(link, 21)]
        assert [message.worker for message in heard if isinstance(message, Left)] == [
            "evil",
            "lab.2",
            "lab.1",
        ]
        joined = [(each.worker, each.most) for each in heard if isinstance(each, SwarmJoined)]
        assert joined == [("lab", 2), ("lab.2", 2)]
        assert validator.num_dead == 16
    finally:
        link.close()


def swarm_of(reader: str, number: int) -> SwarmJoined:
    """One worker of a swarm, as its process says it."""
    joined = Joined(worker=f"x.{number}", classes=("a", "b"), num_examples=1, examples_per_class=())
    (word,) = swarm_words(reader, [joined])
    return word


def deliveries(link: RabbitLink, count: int) -> list[Delivery]:
    found: list[Delivery] = []

    def has_all() -> bool:
        received = link.receive(0.2)
        if isinstance(received, Delivery):
            found.append(received)
        return len(found) == count

    wait_until(has_all, 20)
    return found
