"""Deliveries judged by form and sender before a role sees them; what fails is copied to `dead` with the reason."""

import logging
import time
from collections import Counter
from collections.abc import Callable

from broker import audit
from broker.allowance import Allowance
from broker.envelope import Envelope
from broker.errors import BrokerError, ProtocolError
from broker.link.seam import Delivery, Link
from broker.wire import messages, names
from broker.wire.messages import (
    Launch,
    LaunchAnswered,
    Message,
    Part,
    Ping,
    StatusAsked,
    StatusTold,
    SwarmDeclined,
    SwarmJoined,
    SwarmLeft,
)

logger = logging.getLogger(__name__)

MaySend = Callable[[Message | Envelope, str], bool]
_TOLD_EACH = 20  #: messages of one sender, each with its reason
_TOLD_SECONDS = 60.0

Heed = Callable[[ProtocolError, Envelope, Delivery], bool]


class Validator:
    """Opens deliveries.

    Args:
        link: Where they come from.
        may_send: Whether an account may send this message to this role.
        heed: Told of what can't be read of a sender who may send it, e.g. for it speaks another version; whether that
            was dealt with, and it need not go to `dead`.
        audit_log: Told of what is rejected, as far as the log is.

    Attributes:
        num_dead: How many were rejected.
    """

    def __init__(
        self,
        link: Link,
        may_send: MaySend,
        heed: Heed = lambda _exc, _envelope, _delivery: False,
        read_clock: Callable[[], float] = time.monotonic,
        audit_log: audit.AuditLog = audit.OFF,
    ) -> None:
        self._audit = audit_log
        self._link = link
        self._may_send = may_send
        self._heed = heed
        self._told = Allowance(_TOLD_EACH, _TOLD_SECONDS, read_clock)
        self.num_dead = 0
        self._num_by_sender: Counter[str] = Counter()

    def open(self, delivery: Delivery, *, uploader: str | None = None) -> Message | None:
        """The message of a delivery; None when it is not ours: then it is in `dead` and acknowledged.

        Args:
            delivery: As the broker gave it.
            uploader: The worker whose upload queue it comes from: it holds parts alone, of that worker's account.
        """
        try:
            message = messages.decode(delivery.body, delivery.content_type)
            self._check_sender(message, delivery.user_id, uploader)
        except ProtocolError as exc:
            if not self._is_heeded(exc, delivery, uploader):
                self.bury(delivery, str(exc))
            self._link.ack([delivery])
            return None
        return message

    def _is_heeded(self, exc: ProtocolError, delivery: Delivery, uploader: str | None) -> bool:
        envelope, account = exc.envelope, delivery.user_id
        if envelope is None or account is None or not self._may(envelope, account, uploader):
            return False
        return self._heed(exc, envelope, delivery)

    def _check_sender(self, message: Message, account: str | None, uploader: str | None) -> None:
        if account is None:
            raise ProtocolError("Expected the sender's account in user_id, got none.")
        if not self._may(message, account, uploader):
            raise ProtocolError(f"The account {account!r} may not send this {message.TYPE}. {self._advice()}")

    def _advice(self) -> str:
        """What to do if it is no enemy: two that are meant to work together don't hear each other."""
        own = self._link.account
        if own == names.COORDINATOR:
            return "A worker uses the address that `broker invite` printed for its name."
        return (
            f"This process is logged in as {own!r}, which hears itself and {names.COORDINATOR!r} alone. If a "
            "coordinator and a worker are meant to work together here, either both use one account, or each its own: "
            f"the coordinator the address that `broker invite {names.COORDINATOR}` prints, the worker that of its name."
        )

    def _may(self, message: Message | Envelope, account: str, uploader: str | None) -> bool:
        if account == self._link.account:
            return True
        if names.COORDINATOR not in (account, self._link.account):
            return False  # a coordinator on another account would not be heard by this worker, either
        if uploader is not None:
            return isinstance(message, Part | Envelope) and names.is_of(account, uploader)
        return self._may_send(message, account)

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Copy a delivery to `dead` with the reason, and count it; of a flood the first ones, and the number."""
        self.num_dead += 1
        sender = delivery.user_id or "nobody"
        self._num_by_sender[sender] += 1
        if not self._is_told(sender):
            return
        logger.warning("Rejected a message of %s in %s: %s", sender, delivery.queue, reason)
        self._audit.note("message-rejected", account=sender, queue=delivery.queue, reason=reason)
        try:
            self._link.copy_to_dead(delivery, reason)
        except BrokerError as exc:
            logger.warning("There is no copy of it in %r: %s", names.DEAD, exc)

    def floods(self) -> dict[str, str]:
        """Accounts that sent more of what is rejected than can be by mistake, and how much, in words."""
        return {
            sender: f"sent {number} messages that were rejected"
            for sender, number in self._num_by_sender.items()
            if number > _TOLD_EACH
        }

    def _is_told(self, sender: str) -> bool:
        """Whether there is a line and a copy for it; of a flood there are the first ones, and then the number."""
        num_untold = self._told.num_refused(sender)
        is_told = self._told.take(sender)
        if is_told and num_untold:
            logger.warning("Rejected %d more messages of %s.", num_untold, sender)
        elif not is_told and not num_untold:
            logger.warning("%s goes on sending what is rejected; told again in a minute.", sender)
        return is_told


def may_send_to_coordinator(message: Message | Envelope, account: str) -> bool:
    """A worker's account speaks for that worker alone; only the coordinator's own account launches, asks and pings.

    A swarm's process speaks for the workers that its account was invited for.
    """
    worker = getattr(message, "worker", None)
    if isinstance(message, SwarmJoined | SwarmLeft | SwarmDeclined):
        most = names.numbered(message.worker, [1] if isinstance(message, SwarmLeft) else [message.most])
        return names.reads_for(account, message.worker) and names.is_of(account, most[0])
    if isinstance(message, Envelope) and isinstance(worker, str) and names.reads_for(account, worker):
        return True
    if isinstance(message, Launch | StatusAsked | Ping) or (isinstance(message, Envelope) and worker is None):
        return account == names.COORDINATOR
    return isinstance(worker, str) and names.is_worker(worker) and names.is_of(account, worker)


def may_send_to_worker(_message: Message | Envelope, account: str) -> bool:
    """Rounds are taken from the coordinator's account alone (or the worker's own: a laptop)."""
    return account == names.COORDINATOR


def may_answer(message: Message | Envelope, account: str) -> bool:
    """What was asked of the coordinator is answered by its account alone."""
    return isinstance(message, LaunchAnswered | StatusTold | Envelope) and account == names.COORDINATOR
