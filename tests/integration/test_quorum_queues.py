"""On quorum queues, as a cluster has them: nothing is deleted because it was delivered often."""

from collections.abc import Iterator

import pytest

from broker.hosting.management import Management
from broker.hosting.policies import Need, limit_account, make_room, set_policies
from broker.hosting.private import PrivateBroker
from broker.link import attempts
from broker.link.access import Access
from broker.link.address import vhost_of
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Connection, coordinator_queue, upload_queue, worker_queue
from coordinator.play.open_round.unacknowledged import MOST_RETURNS, Unacknowledged
from tests.brokers import fresh_vhost, wait_until
from tests.link_contract import message, next_delivery

#: More than RabbitMQ 4 lets a quorum queue deliver a message without a policy: 20.
MANY = 25


@pytest.fixture
def quorum_vhost(broker: PrivateBroker) -> Iterator[str]:
    with fresh_vhost(broker, "quorum") as amqp_url:
        yield amqp_url


@pytest.fixture
def classic_vhost(broker: PrivateBroker) -> Iterator[str]:
    with fresh_vhost(broker, "classic") as amqp_url:
        yield amqp_url


@pytest.fixture
def link(quorum_vhost: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RabbitLink]:
    """A coordinator that reconnects without a pause."""
    monkeypatch.setattr(attempts, "_LONGEST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(attempts, "_FIRST_DELAY_SECONDS", 0.05)
    link = RabbitLink(LinkSettings(access=Access(amqp_url=quorum_vhost), name="coordinator"))
    link.open()
    yield link
    link.close()


def types_of(management: Management, amqp_url: str) -> dict[str, str]:
    return {each["name"]: each["type"] for each in management.queues(vhost_of(amqp_url))}


@pytest.mark.parametrize("is_invited", [False, True])
def test_what_is_announced_survives_more_reconnects_than_a_quorum_queue_counts(
    quorum_vhost: str, management: Management, link: RabbitLink, is_invited: bool
) -> None:
    """Its worker is gone, and the coordinator loses its connection, or is killed, 25 times before it can save: the word
    and the parts are there the next time. RabbitMQ 4 deletes both at the 21st time, unless a policy says otherwise;
    an invited account's queues have another policy, which a run sizes. Who holds them is told how often they came, and
    saves them before that, whatever the policy."""
    vhost = vhost_of(quorum_vhost)
    set_policies(management, vhost)
    if is_invited:
        limit_account(management, vhost, "w", most_bytes=None)
        make_room(management, vhost, {"w": Need(start_bytes=10**8, update_bytes=10**8, parts=25)})
    link.declare([coordinator_queue(), upload_queue("w"), worker_queue("w")])
    assert set(types_of(management, quorum_vhost).values()) == {"quorum"}
    wait_until(lambda: all(each.get("policy") for each in management.queues(vhost)), 20)
    link.publish([message("coordinator", b"announced"), message("upload.w", b"part")])
    link.consume(["coordinator"], prefetch=0)
    for time in range(MANY):
        announced = next_delivery(link, 20)
        assert announced.body == b"announced", f"gone at the {time + 1}. time"
        (part,) = link.fetch("upload.w")
        assert part.body == b"part", f"gone at the {time + 1}. time"
        for each in (announced, part):
            unacknowledged = Unacknowledged(link)
            unacknowledged.hold(each)
            assert unacknowledged.is_due is (time >= MOST_RETURNS), each
        link._consuming.connection.calls.send(lambda _future: link._consuming.connection.restart("a test"))
        assert link.receive(20) is Connection.LOST
        assert link.receive(20) is Connection.RESTORED
    link.ack([next_delivery(link, 20)])


def test_classic_queues_get_their_whole_policy(classic_vhost: str, management: Management) -> None:
    """RabbitMQ 4 applies nothing of a policy to a classic queue if one word of it is about quorum queues."""
    name = vhost_of(classic_vhost)
    set_policies(management, name)
    management.api.put(
        "queues",
        name,
        "coordinator",
        body={"durable": True, "arguments": {"x-queue-type": "classic"}},
    )
    wait_until(lambda: bool(management.queues(name)[0].get("policy")), 20)
