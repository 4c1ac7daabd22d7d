"""What an invited account may do at the broker, and what it may not: the broker says who sent a message."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker
from broker.hosting.probe import vhost_of
from broker.wire.names import COORDINATOR, EXCHANGE
from tests.brokers import wait_until


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
def invited(vhost: str, broker: PrivateBroker, management: Management) -> Iterator[Callable[[str], str]]:
    """Invites by name; the accounts, which belong to no virtual host, are deleted at the end."""
    names = []

    def invite(name: str) -> str:
        names.append(name)
        answer = run("invite", name, amqp_url=vhost, broker=broker)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

    yield invite
    for name in names:
        management.delete_user(name)


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


def declare_own(channel: Channel, name: str) -> None:
    """What a worker's link does when it connects."""
    for queue, keys in (
        (f"worker.{name}", (f"worker.{name}", "workers")),
        (f"upload.{name}", (f"upload.{name}",)),
    ):
        channel.queue_declare(queue, durable=True, arguments={"x-single-active-consumer": True})
        for key in keys:
            channel.queue_bind(queue, EXCHANGE, key)


def publish(channel: Channel, key: str, *, user: str | None = None) -> None:
    channel.basic_publish(EXCHANGE, key, b"x", pika.BasicProperties(user_id=user), mandatory=True)


def refused(amqp_url: str, action: Callable[[Channel], object], *, code: int = 403) -> None:
    """The broker closes the channel with this code."""
    with channel_to(amqp_url) as channel:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refusal:
            action(channel)
        assert refusal.value.reply_code == code


@pytest.fixture
def name() -> str:
    return f"site-{secrets.token_hex(3)}"


def test_a_worker_can_do_its_work(vhost: str, invited: Callable[[str], str], name: str) -> None:
    """Declare and bind its queues, publish under its keys, read and empty what is its own."""
    url = invited(name)
    with channel_to(vhost) as admin, channel_to(url) as worker:
        admin.queue_declare(COORDINATOR, durable=True)
        admin.queue_bind(COORDINATOR, EXCHANGE, COORDINATOR)
        worker.exchange_declare(EXCHANGE, passive=True)
        for own in (name, f"{name}.1", f"{name}.999"):
            declare_own(worker, own)
            for key in (COORDINATOR, f"upload.{own}", f"worker.{own}"):
                publish(worker, key, user=name)
            assert worker.basic_get(f"worker.{own}", auto_ack=True)[2] == b"x"
            assert worker.queue_purge(f"upload.{own}").method.message_count == 1
            worker.queue_delete(f"worker.{own}")
        assert admin.basic_get(COORDINATOR, auto_ack=True)[1].user_id == name


def test_a_worker_hears_the_roll_call(vhost: str, invited: Callable[[str], str], name: str) -> None:
    """What is published to the key `workers` reaches its queue."""
    with channel_to(vhost) as admin, channel_to(invited(name)) as worker:
        declare_own(worker, name)
        publish(admin, "workers")
        assert worker.basic_get(f"worker.{name}", auto_ack=True)[2] == b"x"


def test_a_worker_can_leave_a_copy_in_dead(vhost: str, invited: Callable[[str], str], name: str) -> None:
    """What it could not accept it puts aside for a person; it cannot read there."""
    url = invited(name)
    with channel_to(vhost) as admin, channel_to(url) as worker:
        admin.queue_declare("dead", durable=True)
        admin.queue_bind("dead", EXCHANGE, "dead")
        publish(worker, "dead", user=name)
    refused(url, lambda channel: channel.basic_get("dead"))


def test_a_worker_can_do_nothing_else(vhost: str, invited: Callable[[str], str], name: str) -> None:
    """Not read, feed, empty, or declare what is another's; not listen in; not pretend to be another."""
    url = invited(name)
    other = f"{name}x"  # a name that only begins like its own
    with channel_to(vhost) as admin:
        declare_own(admin, other)
        admin.queue_declare(COORDINATOR, durable=True)
        admin.queue_bind(COORDINATOR, EXCHANGE, COORDINATOR)
    with channel_to(url) as worker:
        declare_own(worker, name)
    refused(url, lambda channel: channel.basic_get(f"worker.{other}"))
    refused(url, lambda channel: channel.basic_get(f"upload.{other}"))
    refused(url, lambda channel: channel.basic_get(COORDINATOR))
    refused(url, lambda channel: channel.queue_purge(f"upload.{other}"))
    refused(url, lambda channel: channel.queue_delete(f"worker.{other}"))
    refused(url, lambda channel: channel.queue_declare(f"worker.{name}.x", durable=True))
    refused(url, lambda channel: channel.queue_declare("mine", durable=True))
    refused(url, lambda channel: channel.exchange_declare(EXCHANGE, "topic", durable=True))
    for key in ("#", "worker.*", COORDINATOR, f"worker.{other}", f"upload.{other}"):
        refused(url, lambda channel, key=key: channel.queue_bind(f"worker.{name}", EXCHANGE, key))
    for key in (f"worker.{other}", f"upload.{other}", "workers"):
        refused(url, lambda channel, key=key: publish(channel, key))
    refused(url, lambda channel: channel.basic_publish("", COORDINATOR, b"x"))
    refused(url, lambda channel: publish(channel, COORDINATOR, user=COORDINATOR), code=406)


def test_the_coordinator_has_all_rights_in_its_virtual_host(
    vhost: str, invited: Callable[[str], str]
) -> None:
    """`invite coordinator` is the one reserved name that gets an account."""
    with channel_to(invited(COORDINATOR)) as channel:
        channel.exchange_declare(EXCHANGE, "topic", durable=True)
        channel.queue_declare(COORDINATOR, durable=True)
        declare_own(channel, "anyone")
        publish(channel, "worker.anyone", user=COORDINATOR)


def test_an_invited_name_is_not_invited_again(
    vhost: str, broker: PrivateBroker, invited: Callable[[str], str], name: str
) -> None:
    """A second invitation would lock the first worker out, so it is refused."""
    invited(name)
    again = run("invite", name, amqp_url=vhost, broker=broker)
    assert again.returncode == 2
    assert f"broker revoke {name}" in again.stderr
    assert run("invite", "guest", amqp_url=vhost, broker=broker).returncode == 2


def test_an_impossible_name_is_refused(vhost: str, broker: PrivateBroker) -> None:
    """Names become part of patterns and queue names."""
    answer = run("invite", "Hospital 1", amqp_url=vhost, broker=broker)
    assert answer.returncode == 2
    assert "hospital-1" in answer.stderr


def test_revoke_ends_account_and_connections(
    vhost: str, broker: PrivateBroker, invited: Callable[[str], str], name: str, management: Management
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
