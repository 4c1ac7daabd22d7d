"""pika's errors become ours in one place, and none is forgotten."""

import inspect
import socket
import ssl

import pika.exceptions
import pytest
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorSocketConnectError,
)

from broker.errors import (
    BrokerError,
    BrokerUnreachable,
    LinkLost,
    LoginRefused,
    PublishRefused,
    Unroutable,
    WarrenError,
)
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


def attempts(*causes: BaseException) -> Exception:
    """What pika raises after it has tried each address of a host."""
    inside = [AMQPConnectorSocketConnectError(cause) for cause in causes]
    return pika.exceptions.AMQPConnectionError(AMQPConnectionWorkflowFailed(inside))


def untrusted(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError("no")
    error.verify_code, error.verify_message = code, "because"
    return error


def no_tls() -> ssl.SSLError:
    error = ssl.SSLError(1, "no")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


REFUSED = ConnectionRefusedError("refused")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (attempts(REFUSED, REFUSED), LinkLost, "Nothing listens at localhost:5672"),
        (attempts(socket.gaierror(-2, "unknown")), LinkLost, "'localhost' can't be resolved"),
        (attempts(REFUSED, untrusted(19)), BrokerUnreachable, "is not trusted (because)"),
        (attempts(untrusted(62)), BrokerUnreachable, "is for another name"),
        (attempts(untrusted(10)), BrokerUnreachable, "clock"),
        (attempts(REFUSED, no_tls()), BrokerUnreachable, "does not speak TLS"),
        (attempts(ssl.SSLEOFError(8, "eof")), LinkLost, "hung up in the middle of TLS"),
        (pika.exceptions.ProbableAccessDeniedError("530"), LoginRefused, "no virtual host '/'"),
        (
            pika.exceptions.ProbableAuthenticationError("403"),
            LoginRefused,
            "refused the user or the password",
        ),
    ],
)
def test_each_cause_has_its_own_words(error: Exception, kind: type[BrokerError], said: str) -> None:
    """One message each, of whatever address of the host tells most; what time does not mend is not tried again."""
    ours = translate(error, URL)
    assert (type(ours), said in str(ours), "secret" in str(ours)) == (kind, True, False)


@pytest.mark.parametrize("url", ["http://localhost", "localhost:5672", "amqp://", "amqp://host:notaport/"])
def test_an_address_that_cannot_be_understood_is_a_usage_error(url: str) -> None:
    """It is told before anything is tried, without the password."""
    with pytest.raises(WarrenError) as caught:
        LinkSettings(access=Access(amqp_url=url), name="test").parameters("publish")
    assert caught.value.exit_code == 2
    assert not isinstance(caught.value, BrokerError)
