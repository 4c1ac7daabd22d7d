"""pika's errors and deliveries become ours here, and nowhere else."""

import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import pika.exceptions

from broker.errors import BrokerError, BrokerUnreachable, LinkLost, LoginRefused, PublishRefused, Unroutable
from broker.link.address import host_and_port, not_trusted, vhost_of, without_password
from broker.link.seam import Delivery

_NOT_EQUIVALENT = 406  #: AMQP's PRECONDITION_FAILED
_NOT_FOUND = 404
_ACCESS_REFUSED = 403

_Cause = TypeVar("_Cause", bound=BaseException)


def translate(error: BaseException, amqp_url: str) -> BrokerError:
    """Turn an error of pika or of the socket into ours; every pika error has its place here.

    What time does not mend is BrokerUnreachable: nothing there is worth another try.
    """
    where = without_password(amqp_url)
    reason = str(error) or type(error).__name__
    if (unreachable := _unreachable(error, amqp_url)) is not None:
        return unreachable
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError):
        return LoginRefused(
            f"The broker at {where} refused the user or the password. Check --amqp-url or the invitation; an account "
            "may have been revoked, or its password changed."
        )
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        vhost = vhost_of(amqp_url)
        return LoginRefused(
            f"The broker at {where} has no virtual host {vhost!r}, or this account no right to it: {reason}"
        )
    if isinstance(error, pika.exceptions.UnroutableError):
        return Unroutable(f"No queue takes the message: {reason}")
    if isinstance(error, pika.exceptions.NackError):
        return PublishRefused(f"The broker refused a message: {reason}")
    if isinstance(error, pika.exceptions.ChannelClosedByBroker):
        return PublishRefused(f"The broker refused: {error.reply_code} {error.reply_text}")
    if isinstance(error, pika.exceptions.ConnectionClosedByBroker) and error.reply_code in (403, 530):
        return LoginRefused(
            f"The broker at {where} closed the connection: {error.reply_code} {error.reply_text}"
        )
    if isinstance(
        error, pika.exceptions.AMQPError | pika.exceptions.ChannelError | pika.exceptions.ReentrancyError
    ):
        return LinkLost(f"The connection to the broker at {where} was lost: {reason}")
    return LinkLost(f"The connection to the broker at {where} failed: {reason}")


def _unreachable(error: BaseException, amqp_url: str) -> BrokerError | None:
    """Why there was no connection at all, if that is what went wrong: the plainest cause, of whatever address."""
    where, (host, port) = without_password(amqp_url), host_and_port(amqp_url)
    causes = [*_causes(error)]
    if untrusted := _first(causes, ssl.SSLCertVerificationError):
        return BrokerUnreachable(not_trusted(where, untrusted))
    if _first(causes, ssl.SSLEOFError) or _first(causes, ssl.SSLZeroReturnError):
        return LinkLost(f"What answers at {host}:{port} hung up in the middle of TLS's greeting.")
    if foreign := _first(causes, ssl.SSLError):
        return BrokerUnreachable(
            f"What answers at {host}:{port} does not speak TLS as amqps:// does ({foreign.reason}). Expected the "
            "broker's port for TLS, usually 5671. Check the port in the address; amqp:// is without TLS."
        )
    if unknown := _first(causes, socket.gaierror):
        return LinkLost(
            f"The host name {host!r} can't be resolved ({unknown.strerror}). Check the address, and this machine's "
            "DNS."
        )
    if _first(causes, ConnectionRefusedError):
        return LinkLost(
            f"Nothing listens at {host}:{port} (connection refused). Start a broker with `broker up`, or check host "
            "and port in --amqp-url."
        )
    return None


def _first(causes: Sequence[BaseException], kind: type[_Cause]) -> _Cause | None:
    return next((cause for cause in causes if isinstance(cause, kind)), None)


def speaks_tls_instead(amqp_url: str) -> BrokerUnreachable:
    """What to say of a port for TLS that was spoken to without."""
    host, port = host_and_port(amqp_url)
    return BrokerUnreachable(
        f"What answers at {host}:{port} speaks TLS, and the address begins with amqp://. Expected amqps:// there. "
        "If its authority is one of your own, give --ca, too."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that is inside of what pika tells of its attempts to connect."""
    yield error
    inside = [*getattr(error, "exceptions", []), getattr(error, "exception", None), *error.args]
    for each in inside:
        if isinstance(each, BaseException):
            yield from _causes(each)


def is_refusal(reason: BaseException) -> bool:
    """Whether a channel ended because the broker would not do what was asked on it."""
    return isinstance(reason, pika.exceptions.ChannelClosedByBroker)


def is_not_equivalent(reason: BaseException) -> bool:
    """Whether what was declared is there with other arguments."""
    return is_refusal(reason) and getattr(reason, "reply_code", 0) == _NOT_EQUIVALENT


def is_forbidden(reason: BaseException) -> bool:
    """Whether the account has no right to what was asked."""
    return is_refusal(reason) and getattr(reason, "reply_code", 0) == _ACCESS_REFUSED


def is_missing(reason: BaseException) -> bool:
    """Whether what was asked for is not there."""
    return getattr(reason, "reply_code", 0) == _NOT_FOUND


def delivery_of(name: str, method: Any, properties: Any, body: bytes, number: int) -> Delivery:
    """What pika gives as a delivery of ours; `number` says which channel it came through."""
    return Delivery(
        queue=name,
        body=body,
        message_type=properties.type,
        content_type=properties.content_type,
        user_id=properties.user_id,
        headers=properties.headers or {},
        tag=(number, method.delivery_tag),
    )
