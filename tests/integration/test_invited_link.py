"""The link of an invited worker, whose account may make no queue: it finds those made for it, or tells what lacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

import pika
import pytest

from broker.errors import DeclareRefused, LoginRefused
from broker.hosting import accounts
from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker
from broker.link.access import Access
from broker.link.address import vhost_of
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Connection, Delivery, Queue, upload_queue, worker_queue
from tests.brokers import fresh_vhost, wait_until
from tests.link_contract import message, next_delivery


@contextmanager
def invited(management: Management, vhost: str, name: str, *, swarm: int | None = None) -> Iterator[str]:
    """The address that `broker invite` prints; the account is revoked at the end."""
    login = accounts.invite(management, vhost_of(vhost), name, swarm=swarm)
    parts = urlsplit(vhost)
    user = f"{login.user}:{quote(login.password or '', safe='')}"
    try:
        yield parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}").geturl()
    finally:
        accounts.revoke(management, name)


@contextmanager
def link_to(amqp_url: str) -> Iterator[RabbitLink]:
    link = RabbitLink(LinkSettings(access=Access(amqp_url=amqp_url), name="test"))
    link.open()
    try:
        yield link
    finally:
        link.close()


@pytest.fixture(params=["classic", "quorum"])
def queue_type(request: pytest.FixtureRequest) -> str:
    """Of the queues of `typed_vhost`."""
    return str(request.param)


@pytest.fixture
def typed_vhost(queue_type: str, broker: PrivateBroker) -> Iterator[str]:
    """A virtual host whose queues are of this type, unless somebody asks for another."""
    with fresh_vhost(broker, queue_type) as amqp_url:
        yield amqp_url


def test_an_invited_worker_finds_its_queues_and_finds_them_again(
    typed_vhost: str, management: Management
) -> None:
    """It declares as every worker does; what it may not make it looks for. So after a reconnect."""
    queues = [worker_queue("site"), upload_queue("site")]
    with invited(management, typed_vhost, "site") as url, link_to(url) as link:
        link.declare(queues)
        link.consume(["worker.site"], prefetch=0)
        link.publish([message("worker.site", b"one"), message("upload.site", b"part")])
        assert next_delivery(link).body == b"one"
        seen = []

        def is_back() -> bool:
            received = link.receive(0.2)
            seen.append(received)
            return received is Connection.RESTORED

        wait_until(lambda: management.close_connections(user="site") == 2, 20)
        wait_until(is_back, 20)
        wait_until(lambda: link.is_connected, 20)
        assert Connection.LOST in seen
        assert next_delivery(link).body == b"one"  # it was never acknowledged
        link.declare(queues)
        link.publish([message("worker.site", b"two")])
        assert next_delivery(link).body == b"two"


def test_the_queues_are_of_the_virtual_hosts_type(
    typed_vhost: str, queue_type: str, management: Management
) -> None:
    """A cluster's are quorum queues: neither the admin side names a type nor a laptop that declares them, too."""
    with invited(management, typed_vhost, "site"), link_to(typed_vhost) as laptop:
        laptop.declare([worker_queue("site"), upload_queue("site"), worker_queue("laptop")])
        found = {queue["name"]: queue["type"] for queue in management.queues(vhost_of(typed_vhost))}
        assert found == dict.fromkeys(("worker.site", "upload.site", "worker.laptop"), queue_type)


def test_a_swarm_finds_its_queues(vhost: str, management: Management) -> None:
    """It may make none, like any other worker; a name that only begins like its own is somebody else's."""
    with invited(management, vhost, "lab", swarm=3) as url, link_to(url) as link:
        link.declare([worker_queue("lab"), upload_queue("lab")])
        link.consume(["worker.lab"], prefetch=0)
        link.publish([message("worker.lab")])
        assert next_delivery(link).queue == "worker.lab"
        with pytest.raises(LoginRefused, match=r"'lab\.1-3' may not use the queue 'worker\.lab\.4'"):
            link.declare([worker_queue("lab.4")])


def test_another_name_than_the_accounts_is_told_at_once(vhost: str, management: Management) -> None:
    """A worker with another's login, or with a slip in its name, is not left to wait for rounds."""
    with invited(management, vhost, "site") as url, invited(management, vhost, "other"), link_to(url) as link:
        with pytest.raises(LoginRefused, match=r"'site' may not use the queue 'worker\.other'.*--name"):
            link.declare([worker_queue("other"), upload_queue("other")])
        link.declare([worker_queue("site")])


def test_a_queue_that_is_gone_is_told_and_found_once_it_is_there_again(
    vhost: str, management: Management
) -> None:
    """An administrator deletes it by a slip: the worker can't make it, says what to type, and goes on after that."""
    with invited(management, vhost, "site") as url:
        with pika.BlockingConnection(pika.URLParameters(vhost)) as admin:
            admin.channel().queue_delete("upload.site")
        with link_to(url) as link:
            with pytest.raises(DeclareRefused, match="`broker invite site --again`"):
                link.declare([worker_queue("site"), upload_queue("site")])
            accounts.invite(management, vhost_of(vhost), "site", again=True)
            link.declare([worker_queue("site"), upload_queue("site")])
            link.consume(["worker.site"], prefetch=0)
            link.publish([message("worker.site")])
            assert isinstance(next_delivery(link), Delivery)


def test_who_reads_a_queue_that_is_made_anew_hears_of_it(typed_vhost: str, management: Management) -> None:
    """Somebody made the queue otherwise and reads it: the link is lost, and is not left to listen to nothing."""
    with link_to(typed_vhost) as link:
        link.declare([Queue(name="worker.site", keys=("worker.site",), max_length=7)])
        link.consume(["worker.site"], prefetch=0)
        virtual = vhost_of(typed_vhost)
        wait_until(
            lambda: any(each["channel_details"] for each in management.api.get("consumers", virtual)), 20
        )
        with invited(management, typed_vhost, "site"):
            assert link.receive(10) is Connection.LOST
