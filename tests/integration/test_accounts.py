"""What an invited account may do at the broker, and what it may not: the broker says who sent a message."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from broker.audit import AUDIT_FILE, user
from broker.errors import LoginRefused, UsageError
from broker.hosting import accounts, queues
from broker.hosting.management import Management, Rights
from broker.hosting.private import PrivateBroker
from broker.hosting.probe import login_of
from broker.link.access import Access
from broker.link.address import vhost_of
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import upload_queue, worker_queue
from broker.link.validator import may_send_to_coordinator
from broker.wire.messages import Left, Message, SwarmLeft, decode
from broker.wire.names import COORDINATOR, EXCHANGE
from tests.brokers import wait_until

Invite = Callable[..., str]


def run(*arguments: str, amqp_url: str, broker: PrivateBroker) -> subprocess.CompletedProcess[str]:
    """One call of the command `broker` against the session's broker."""
    return subprocess.run(
        [sys.executable, "-m", "broker", *arguments, "--management-url", broker.management_url],
        env={**os.environ, "AMQP_URL": amqp_url, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def invited(vhost: str, broker: PrivateBroker, management: Management) -> Iterator[Invite]:
    """Invites by name; the accounts, which belong to no virtual host, are deleted at the end."""
    names = []

    def invite(name: str, *options: str) -> str:
        answer = run("invite", name, *options, amqp_url=vhost, broker=broker)
        assert answer.returncode == 0, answer.stderr
        names.append(name)
        return answer.stdout.strip()

    yield invite
    for name in names:
        with suppress(UsageError):  # the test has done it
            accounts.revoke(management, name)


@contextmanager
def channel_to(amqp_url: str) -> Iterator[Channel]:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        if connection.is_open:
            connection.close()


def look_for_own(channel: Channel, worker: str) -> None:
    """What a worker's link does when it connects, once it has seen that it may make nothing."""
    for queue in (f"worker.{worker}", f"upload.{worker}"):
        channel.queue_declare(queue, passive=True)


def declare(channel: Channel, name: str) -> None:
    """Make a queue as somebody with all rights, bound to its own name."""
    channel.queue_declare(name, durable=True, arguments={"x-single-active-consumer": True})
    channel.queue_bind(name, EXCHANGE, name)


def publish(channel: Channel, key: str, *, user: str | None = None) -> None:
    channel.basic_publish(EXCHANGE, key, b"x", pika.BasicProperties(user_id=user), mandatory=True)


def taken(channel: Channel, queue: str) -> tuple[pika.BasicProperties, bytes]:
    """One message, taken by a reader that stays: from a quorum queue with a single one nobody else gets any."""
    for method, properties, body in channel.consume(queue, inactivity_timeout=10):
        assert method is not None, f"nothing in {queue}"
        channel.basic_ack(method.delivery_tag)
        channel.cancel()
        return properties, body
    raise AssertionError(f"{queue} is gone")


def refused(amqp_url: str, action: Callable[[Channel], object], *, codes: tuple[int, ...] = (403,)) -> None:
    """The broker closes the channel with one of these codes."""
    with channel_to(amqp_url) as channel:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refusal:
            action(channel)
        assert refusal.value.reply_code in codes


@pytest.fixture
def name() -> str:
    return f"site-{secrets.token_hex(3)}"


def test_a_worker_can_do_its_work(vhost: str, invited: Invite, name: str) -> None:
    """Find its queues, publish under its keys, read and empty the one that it reads."""
    url = invited(name)
    with channel_to(vhost) as admin, channel_to(url) as worker:
        declare(admin, COORDINATOR)
        worker.exchange_declare(EXCHANGE, passive=True)
        look_for_own(worker, name)
        for key in (COORDINATOR, f"upload.{name}", f"worker.{name}"):
            publish(worker, key, user=name)
        assert taken(worker, f"worker.{name}")[1] == b"x"
        assert worker.queue_purge(f"worker.{name}").method.message_count == 0
        assert taken(admin, f"upload.{name}")[0].user_id == name
        assert taken(admin, COORDINATOR)[0].user_id == name


@pytest.mark.parametrize(("parts", "suffixes"), [("1", [""]), ("2", [".1", ".2"])])
def test_a_swarm_has_the_queues_that_it_was_invited_with(
    vhost: str, invited: Invite, name: str, parts: str, suffixes: list[str]
) -> None:
    """Two for all of its workers, or for each of the processes that share them, and no more; the account's name
    says for how many it may speak."""
    url = invited(name, "--swarm", "3", "--parts", parts)
    assert urlsplit(url).username == f"{name}.1-3"
    with channel_to(vhost) as admin, channel_to(url) as worker:
        for each in (f"{name}{suffix}" for suffix in suffixes):
            look_for_own(worker, each)
            publish(worker, f"worker.{each}", user=f"{name}.1-3")
            publish(worker, f"upload.{each}", user=f"{name}.1-3")
            assert taken(worker, f"worker.{each}")[1] == b"x"
            assert taken(admin, f"upload.{each}")[1] == b"x"
    refused(url, lambda channel: look_for_own(channel, f"{name}.3"), codes=(404,))
    refused(url, lambda channel: channel.queue_declare(f"worker.{name}.4", durable=True))
    refused(url, lambda channel: publish(channel, f"upload.{name}x"))


def test_a_worker_hears_the_roll_call(vhost: str, invited: Invite, name: str) -> None:
    """What is published to the key `workers` reaches its queue."""
    with channel_to(vhost) as admin, channel_to(invited(name)) as worker:
        publish(admin, "workers")
        assert taken(worker, f"worker.{name}")[1] == b"x"


def test_a_worker_can_leave_a_copy_in_dead(vhost: str, invited: Invite, name: str) -> None:
    """What it could not accept it puts aside for a person; it cannot read there."""
    url = invited(name)
    with channel_to(vhost) as admin, channel_to(url) as worker:
        admin.queue_declare("dead", durable=True)
        admin.queue_bind("dead", EXCHANGE, "dead")
        publish(worker, "dead", user=name)
    refused(url, lambda channel: channel.basic_get("dead"))


def test_a_worker_can_do_nothing_else(vhost: str, invited: Invite, name: str) -> None:
    """Not read, feed, empty, or declare what is another's; not listen in; not pretend to be another."""
    url = invited(name)
    other = f"{name}x"  # a name that only begins like its own
    with channel_to(vhost) as admin:
        for queue in (f"worker.{other}", f"upload.{other}", COORDINATOR):
            declare(admin, queue)
    refused(url, lambda channel: channel.basic_get(f"worker.{other}"))
    refused(url, lambda channel: channel.basic_get(f"upload.{other}"))
    refused(url, lambda channel: channel.basic_get(COORDINATOR))
    refused(url, lambda channel: channel.basic_get(f"upload.{name}"))
    refused(url, lambda channel: channel.queue_purge(f"upload.{name}"))
    refused(url, lambda channel: channel.queue_delete(f"worker.{name}"))
    refused(url, lambda channel: channel.queue_unbind(f"worker.{name}", EXCHANGE, "workers"))
    refused(url, lambda channel: channel.queue_purge(f"upload.{other}"))
    refused(url, lambda channel: channel.queue_delete(f"worker.{other}"))
    refused(url, lambda channel: channel.queue_declare(f"worker.{name}.1", durable=True))
    refused(url, lambda channel: channel.queue_declare("mine", durable=True))
    refused(url, lambda channel: channel.exchange_declare(EXCHANGE, "topic", durable=True))
    for key in ("#", "worker.*", COORDINATOR, f"worker.{other}", f"upload.{other}", f"worker.{name}"):
        refused(url, lambda channel, key=key: channel.queue_bind(f"worker.{name}", EXCHANGE, key))
    for key in (f"worker.{other}", f"upload.{other}", "workers"):
        refused(url, lambda channel, key=key: publish(channel, key))
    refused(url, lambda channel: channel.basic_publish("", COORDINATOR, b"x"))
    refused(url, lambda channel: publish(channel, COORDINATOR, user=COORDINATOR), codes=(406,))


def test_the_coordinator_has_all_rights_in_its_virtual_host(vhost: str, invited: Invite) -> None:
    """`invite coordinator` is the one reserved name that gets an account."""
    with channel_to(invited(COORDINATOR)) as channel:
        channel.exchange_declare(EXCHANGE, "topic", durable=True)
        channel.queue_declare(COORDINATOR, durable=True)
        declare(channel, "worker.anyone")
        publish(channel, "worker.anyone", user=COORDINATOR)


def test_an_invited_name_is_not_invited_again(
    vhost: str, broker: PrivateBroker, invited: Invite, name: str
) -> None:
    """A second invitation would lock the first worker out, so it is refused."""
    invited(name)
    again = run("invite", name, amqp_url=vhost, broker=broker)
    assert again.returncode == 2
    assert f"broker revoke {name}" in again.stderr
    assert run("invite", "guest", amqp_url=vhost, broker=broker).returncode == 2


def test_who_was_invited_and_revoked_stands_in_the_audit_log(
    vhost: str, broker: PrivateBroker, invited: Invite, name: str, tmp_path: Path
) -> None:
    """In the home's, with the account and who did it; never its password, and nothing of what was refused."""
    password = urlsplit(invited(name, "--home", str(tmp_path))).password
    for words in (("invite",), ("revoke",), ("revoke",)):
        run(*words, name, "--home", str(tmp_path), amqp_url=vhost, broker=broker)
    text = (tmp_path / AUDIT_FILE).read_text()
    assert [
        (line["event"], line["account"], line["user"]) for line in map(json.loads, text.splitlines())
    ] == [
        ("invited", name, user()),
        ("revoked", name, user()),
    ]
    assert password
    assert password not in text


def limits_on(management: Management, vhost: str, queue: str) -> dict[str, object]:
    """The policy of a queue; RabbitMQ tells it some seconds later."""

    def look() -> dict[str, object]:
        found = management.api.get("queues", vhost, queue)
        return dict(found.get("effective_policy_definition") or {})

    wait_until(lambda: bool(look()), 20)
    return look()


def test_again_keeps_the_password_and_mends_the_rest(
    vhost: str, broker: PrivateBroker, invited: Invite, name: str, management: Management
) -> None:
    """An account of an older version, a queue that somebody deleted, one that the worker made as it liked: all is as if
    it had been invited now, and nothing new need be handed over. What was right stays, with what is in it."""
    url = invited(name)
    virtual = vhost_of(vhost)
    with channel_to(vhost) as admin:
        publish(admin, f"upload.{name}")
        admin.queue_delete(f"worker.{name}")
        admin.queue_declare(f"worker.{name}", durable=True, arguments={"x-dead-letter-exchange": EXCHANGE})
        management.set_permissions(virtual, name, Rights(configure=".*", write=".*", read=".*"))
        answer = run("invite", name, "--again", "--upload-limit", "5M", amqp_url=vhost, broker=broker)
        assert answer.returncode == 0, answer.stderr
        assert "made anew" in answer.stderr
        assert admin.queue_declare(f"upload.{name}", passive=True).method.message_count == 1
    with channel_to(url) as worker:
        look_for_own(worker, name)
    refused(url, lambda channel: channel.queue_declare("mine", durable=True))
    found = management.api.get("queues", virtual, f"worker.{name}")
    # Where the virtual host says of which type queues are, RabbitMQ writes that down as an argument.
    assert {**found["arguments"], "x-queue-type": found["type"]} == {
        "x-single-active-consumer": True,
        "x-queue-type": found["type"],
    }
    assert limits_on(management, virtual, f"worker.{name}")["max-length-bytes"] == 5 * 2**20


def test_the_coordinator_may_set_policies_and_administer_nothing(
    vhost: str, broker: PrivateBroker, invited: Invite, management: Management
) -> None:
    """It sizes by the model what may wait of each worker. An account of an older Warren has no say there, and gets it
    again with the same password; no other account has it."""
    url = invited(COORDINATOR)
    virtual, (user, password) = vhost_of(vhost), login_of(url)
    management.put_user(user, password)  # as it was made before
    page = Management(f"http://{user}:{password}@localhost:{broker.management_port}")
    with pytest.raises(LoginRefused):
        page.api.get("policies", virtual)
    again = run("invite", COORDINATOR, "--again", amqp_url=vhost, broker=broker)
    assert again.returncode == 0, again.stderr
    page.put_policy(virtual, "x", pattern="^upload", definition={"max-length": 5})
    assert "x" in [policy["name"] for policy in page.api.get("policies", virtual)]
    for forbidden in (page.users, lambda: page.put_user("evil", "x", tags="administrator")):
        with pytest.raises(LoginRefused):
            forbidden()
    with channel_to(url) as coordinator:
        coordinator.queue_declare(COORDINATOR, durable=True)
    worker_user, worker_password = login_of(invited("site-1"))
    with pytest.raises(LoginRefused):
        Management(f"http://{worker_user}:{worker_password}@localhost:{broker.management_port}").overview()


def test_again_is_for_accounts_that_invite_made(vhost: str, broker: PrivateBroker, name: str) -> None:
    """An administrator's rights are not cut down by a slip, and there is nothing to mend of who was never invited."""
    assert run("invite", "guest", "--again", amqp_url=vhost, broker=broker).returncode == 2
    assert run("invite", name, "--again", amqp_url=vhost, broker=broker).returncode == 2
    assert run("status", amqp_url=vhost, broker=broker).returncode == 0


def test_an_invited_worker_s_queues_never_expire_and_others_do(
    vhost: str, invited: Invite, name: str, management: Management
) -> None:
    """It could not make them again when it comes back after a summer; a laptop's makes its own."""
    invited(name)
    link = RabbitLink(LinkSettings(access=Access(amqp_url=vhost), name="worker"))
    link.open()
    link.declare([worker_queue(f"{name}x"), upload_queue(f"{name}x")])
    link.close()
    virtual = vhost_of(vhost)
    for queue in ("worker", "upload"):
        own, other = (f"{queue}.{each}" for each in (name, f"{name}x"))
        assert management.api.get("queues", virtual, other)["arguments"]["x-expires"] == 14 * 24 * 3600 * 1000
        assert "x-expires" not in management.api.get("queues", virtual, own)["arguments"]
        for limits in (limits_on(management, virtual, own), limits_on(management, virtual, other)):
            assert "expires" not in limits
            assert limits["max-length-bytes"] == 2**30


def test_who_administers_the_broker_is_not_revoked(
    vhost: str, broker: PrivateBroker, management: Management
) -> None:
    """Nobody could get in any more to mend it: not by its own account's name, which a slip is enough for."""
    user, _ = login_of(vhost)
    told = run("revoke", user, amqp_url=vhost, broker=broker)
    assert (told.returncode, told.stdout) == (2, "")
    assert "administers this broker" in told.stderr
    assert management.tags(user) == ("administrator",)
    assert management.is_ready()


def test_a_slip_at_an_invitation_makes_no_account(
    vhost: str, broker: PrivateBroker, management: Management, name: str
) -> None:
    """It would be there with a password that nobody has seen; or with the queues of a swarm that it is not."""
    for slip in (["--host", "https://fl.example.org"], ["--host", "bad host"], ["--parts", "3"]):
        told = run("invite", name, *slip, amqp_url=vhost, broker=broker)
        assert (told.returncode, told.stderr.count("\n")) == (2, 1), told.stderr
    assert name not in management.users()


def test_an_impossible_name_is_refused(vhost: str, broker: PrivateBroker) -> None:
    """Names become part of patterns and queue names."""
    answer = run("invite", "Hospital 1", amqp_url=vhost, broker=broker)
    assert answer.returncode == 2
    assert "hospital-1" in answer.stderr


def test_revoke_ends_account_and_connections(
    vhost: str, broker: PrivateBroker, invited: Invite, name: str, management: Management
) -> None:
    """Whoever is revoked is out at once, and cannot come back; a second revoke says that there is nobody."""
    url = invited(name)
    connection = pika.BlockingConnection(pika.URLParameters(url))
    wait_until(lambda: any(each["user"] == name for each in management.connections(vhost_of(vhost))), 10)
    answer = run("revoke", name, amqp_url=vhost, broker=broker)
    assert answer.returncode == 0, answer.stderr
    with pytest.raises(pika.exceptions.AMQPError):
        connection.process_data_events(time_limit=10)
        connection.channel()
    with pytest.raises(pika.exceptions.AMQPError):
        pika.BlockingConnection(pika.URLParameters(url))
    assert run("revoke", name, amqp_url=vhost, broker=broker).returncode == 2


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ((), Left(worker="lab-7", for_good=True)),
        (("--swarm", "3"), SwarmLeft(worker="lab-7", for_good=True)),
    ],
)
def test_the_coordinator_hears_at_once_that_a_revoked_worker_left(
    vhost: str, broker: PrivateBroker, invited: Invite, options: tuple[str, ...], left: Message
) -> None:
    """It waits for it no longer, and status shows it as gone: its account says its last word."""
    invited("lab-7", *options)
    with channel_to(vhost) as channel:
        declare(channel, COORDINATOR)
        assert run("revoke", "lab-7", amqp_url=vhost, broker=broker).returncode == 0
        properties, body = taken(channel, COORDINATOR)
    assert decode(body) == left
    assert may_send_to_coordinator(left, properties.user_id)


def test_queues_that_a_worker_without_an_account_left_are_deleted(vhost: str, broker: PrivateBroker) -> None:
    """Who never was invited can be removed, too; of others nothing goes."""
    with channel_to(vhost) as channel:
        for name in ("worker.old", "upload.old", "worker.older"):
            channel.queue_declare(name, durable=True)
        answer = run("revoke", "old", amqp_url=vhost, broker=broker)
        assert answer.returncode == 0, answer.stderr
        assert "2 queues deleted" in answer.stdout
        channel.queue_declare("worker.older", passive=True)
    assert run("revoke", "old", amqp_url=vhost, broker=broker).returncode == 2


def test_a_worker_that_left_for_good_is_forgotten_and_the_coordinator_hears_of_it(
    vhost: str, broker: PrivateBroker
) -> None:
    """Its queues go, of others nothing does; the word is one that a coordinator on the same account takes."""
    with channel_to(vhost) as channel:
        channel.exchange_declare(EXCHANGE, "topic", durable=True)
        declare(channel, COORDINATOR)
        for name in ("worker.old", "upload.old", "worker.older"):
            channel.queue_declare(name, durable=True)
        answer = run("forget", "old", amqp_url=vhost, broker=broker)
        assert answer.returncode == 0, answer.stderr
        assert "old is forgotten; 2 queues deleted" in answer.stdout
        channel.queue_declare("worker.older", passive=True)
        properties, body = taken(channel, COORDINATOR)
    assert decode(body) == SwarmLeft(worker="old", for_good=True)
    assert properties.user_id == login_of(vhost)[0]
    assert run("forget", "old", amqp_url=vhost, broker=broker).returncode == 2


def test_whose_queues_nobody_has_used_for_long_is_forgotten_and_nobody_else(
    vhost: str, broker: PrivateBroker, invited: Invite, name: str, management: Management
) -> None:
    """One that is there stays, and so do an invited one, and all of a swarm of which one process is there."""
    invited(name)
    with channel_to(vhost) as channel:
        channel.exchange_declare(EXCHANGE, "topic", durable=True)
        declare(channel, COORDINATOR)
        for queue in ("worker.gone", "upload.gone", "worker.here", "worker.some.1", "worker.some.2"):
            channel.queue_declare(queue, durable=True)
        for queue in ("worker.here", "worker.some.2"):
            channel.basic_consume(queue, lambda *_: None)

        def is_told() -> bool:
            return bool(queues.unused(management, vhost_of(vhost), timedelta(0)))

        if management.api.get("queues", vhost_of(vhost), "worker.gone")["type"] == "quorum":
            assert not is_told()
            return
        wait_until(is_told, 20)
        wait_until(lambda: queues.are_read(management, vhost_of(vhost), "some"), 20)
        early = run("forget", "--unused-days", "1", amqp_url=vhost, broker=broker)
        assert (early.returncode, "There is nobody" in early.stdout) == (0, True)
        answer = run("forget", "--unused-days", "0", amqp_url=vhost, broker=broker)
        assert (answer.returncode, "gone is forgotten; 2 queues" in answer.stdout) == (0, True), answer.stderr
        left = {queue["name"] for queue in management.queues(vhost_of(vhost))}
    assert left == {
        COORDINATOR,
        "worker.here",
        "worker.some.1",
        "worker.some.2",
        f"worker.{name}",
        f"upload.{name}",
    }


def test_a_worker_that_is_there_and_one_that_was_invited_are_not_forgotten(
    vhost: str, broker: PrivateBroker, invited: Invite, name: str, management: Management
) -> None:
    """The one is at work; the other may be away for a year, and could not make its queues again."""
    invited(name)
    refused = run("forget", name, amqp_url=vhost, broker=broker)
    assert (refused.returncode, f"broker revoke {name}" in refused.stderr) == (2, True)
    with channel_to(vhost) as channel:
        channel.queue_declare("worker.here", durable=True)
        channel.basic_consume("worker.here", lambda *_: None)
        if management.api.get("queues", vhost_of(vhost), "worker.here")["type"] == "quorum":
            # At a classic queue RabbitMQ looks once more; of this one it tells after some seconds.
            wait_until(lambda: queues.are_read(management, vhost_of(vhost), "here"), 20)
        refused = run("forget", "here", amqp_url=vhost, broker=broker)
        channel.queue_declare("worker.here", passive=True)
    assert (refused.returncode, "somebody reads its queue" in refused.stderr) == (2, True)


def test_the_queues_of_thousands_of_names_are_asked_for_page_by_page(
    vhost: str, management: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once the management API gives no answer in time; in pages it tells of each queue, once."""
    monkeypatch.setattr("broker.hosting.management._PAGE_SIZE", 2)
    assert management.queues(vhost_of(vhost)) == []
    with channel_to(vhost) as channel:
        for number in range(5):
            channel.queue_declare(f"worker.w{number}", durable=True)
        found = management.queues(vhost_of(vhost))
    assert [queue["name"] for queue in found] == [f"worker.w{number}" for number in range(5)]
    assert found[0]["type"] in ("classic", "quorum")


def test_status_names_queues_and_connections(vhost: str, broker: PrivateBroker) -> None:
    """A person sees who is connected by name, and what waits where."""
    parameters = pika.URLParameters(vhost)
    parameters.client_properties = {"connection_name": "worker hospital-1"}
    connection = pika.BlockingConnection(parameters)
    try:
        connection.channel().queue_declare("worker.hospital-1", durable=True)
        wait_until(lambda: "worker hospital-1" in run("status", amqp_url=vhost, broker=broker).stdout, 20)
        shown = run("status", amqp_url=vhost, broker=broker).stdout
    finally:
        connection.close()
    assert "worker.hospital-1" in shown
    assert "RabbitMQ" in shown.splitlines()[0]
