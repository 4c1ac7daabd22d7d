"""pika's errors become ours in one place, and none is forgotten."""

import inspect

import pika.exceptions
import pytest

from broker.errors import BrokerError, LinkLost, LoginRefused, PublishRefused, Unroutable, WarrenError
from broker.link.access import Access
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.rabbitmq.translation import translate

URL = "amqp://guest:secret@localhost:5672/%2F"
PLACES = {
    "AuthenticationError": LoginRefused, "ProbableAuthenticationError": LoginRefused,
    "ProbableAccessDeniedError": LoginRefused, "UnroutableError": Unroutable, "NackError": PublishRefused,
    "ChannelClosedByBroker": PublishRefused,
}  # fmt: skip


def kinds() -> list[type[Exception]]:
    return [
        kind
        for kind in vars(pika.exceptions).values()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == "pika.exceptions"
    ]


def make(kind: type[Exception]) -> Exception:
    if issubclass(kind, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        return kind(320, "going away")
    if issubclass(kind, pika.exceptions.UnroutableError | pika.exceptions.NackError):
        return kind([])
    return kind("reason")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_pika_error_has_its_place(kind: type[Exception]) -> None:
    """Foreign errors are mapped once; a new one in pika can't slip through as a traceback."""
    ours = translate(make(kind), URL)
    assert type(ours) is PLACES.get(kind.__name__, LinkLost)
    assert "secret" not in str(ours)


def test_a_socket_error_is_a_lost_link() -> None:
    """Connection refused, name not found, timed out."""
    assert isinstance(translate(ConnectionRefusedError("refused"), URL), LinkLost)


@pytest.mark.parametrize("url", ["http://localhost", "localhost:5672", "amqp://", "amqp://host:notaport/"])
def test_an_address_that_cannot_be_understood_is_a_usage_error(url: str) -> None:
    """It is told before anything is tried, without the password."""
    with pytest.raises(WarrenError) as caught:
        LinkSettings(access=Access(amqp_url=url), name="test").parameters("publish")
    assert caught.value.exit_code == 2
    assert not isinstance(caught.value, BrokerError)
