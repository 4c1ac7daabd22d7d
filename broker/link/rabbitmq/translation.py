"""pika's errors and deliveries become ours here, and nowhere else."""

import ssl
from typing import Any

import pika.exceptions

from broker.errors import BrokerError, BrokerUnreachable, LinkLost, LoginRefused, PublishRefused, Unroutable
from broker.link.address import not_trusted, without_password
from broker.link.seam import Delivery

_NOT_EQUIVALENT = 406  #: AMQP's PRECONDITION_FAILED
_NOT_FOUND = 404
_ACCESS_REFUSED = 403


def translate(error: BaseException, amqp_url: str) -> BrokerError:
    """Turn an error of pika or of the socket into ours; every pika error has its place here."""
    where = without_password(amqp_url)
    reason = str(error) or type(error).__name__
    untrusted = _untrusted(error)
    if untrusted is not None:
        return BrokerUnreachable(not_trusted(where, untrusted.verify_message))
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError):
        return LoginRefused(f"The broker at {where} refused the user or the password. Check --amqp-url.")
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        return LoginRefused(f"The broker at {where} refused the virtual host in the address: {reason}")
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


def _untrusted(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """The certificate that failed the check, inside what pika tells of all its attempts to connect."""
    causes = [getattr(attempt, "exception", attempt) for attempt in getattr(error, "exceptions", [error])]
    return next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None)


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
