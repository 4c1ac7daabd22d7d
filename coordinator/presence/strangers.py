"""Whoever speaks so that this coordinator can't understand it: told by name, and answered in words that it knows."""

import logging

from broker import audit
from broker.allowance import Allowance
from broker.envelope import Envelope
from broker.errors import OtherVersion, ProtocolError
from broker.link.publisher import Publisher
from broker.link.seam import Delivery, Outgoing, outgoing
from broker.wire import names
from broker.wire.messages import Joined, Launch, LaunchAnswered, Refused, StatusAsked, StatusTold
from broker.wire.versions import difference, encode_not_launched, encode_refused

logger = logging.getLogger(__name__)

_MOST_REFUSALS = 20  #: of one worker; each is a message that the broker keeps
_REFUSALS_SECONDS = 30.0


class Strangers:
    """Deals with messages that can't be read although their senders may send them."""

    def __init__(self, publisher: Publisher, audit_log: audit.AuditLog = audit.OFF) -> None:
        self._publisher = publisher
        self._audit = audit_log
        self._refusals = Allowance(_MOST_REFUSALS, _REFUSALS_SECONDS)
        self._told: dict[str, int] = {}  #: of which worker the log has told, and its version

    def heed(self, exc: ProtocolError, envelope: Envelope, delivery: Delivery) -> bool:
        """Answer what can't be read; whether that is all, as it is of another version, and nothing need go to `dead`.

        A worker is refused when it joins, and not when a round fails; or by the first that is heard of it, if it joined
        another coordinator before.
        """
        is_other = isinstance(exc, OtherVersion)
        if envelope.worker is not None:
            is_news = is_other and self._told.get(envelope.worker) != envelope.version
            if is_news:
                self._tell(envelope.worker, envelope.version, delivery.user_id)
            if is_news or (envelope.type == Joined.TYPE and self._refusals.take(envelope.worker)):
                self._refuse(exc, envelope, envelope.worker)
        elif envelope.reply_to is not None:
            self._answer(exc, envelope, envelope.reply_to)
        elif envelope.type == Launch.TYPE:
            return False  # typed at the management page: why it was not taken is looked for in `dead`
        return is_other

    def _tell(self, worker: str, version: int, account: str | None) -> None:
        self._told[worker] = version
        why = difference(worker, version, "this coordinator")
        logger.warning("Refused %s: %s.", worker, why)
        self._audit.note("refused", worker=worker, account=account, reason=why)

    def _refuse(self, exc: ProtocolError, envelope: Envelope, worker: str) -> None:
        reason = _reason(exc, envelope, "this worker")
        body = encode_refused(envelope, worker, f"The coordinator refused {worker}: {reason}")
        key = names.worker_queue(worker)
        self._publisher.try_send([Outgoing(key=key, body=body, message_type=Refused.TYPE)])

    def _answer(self, exc: ProtocolError, envelope: Envelope, reply_to: str) -> None:
        """A launch is refused; who asks for the status learns which version is spoken here from the answer's own."""
        if envelope.type == Launch.TYPE:
            body = encode_not_launched(envelope, _reason(exc, envelope, "this command"))
            answer = Outgoing(
                key=reply_to,
                body=body,
                message_type=LaunchAnswered.TYPE,
                is_transient=True,
                is_mandatory=False,
            )
        elif envelope.type == StatusAsked.TYPE:
            answer = outgoing(StatusTold(state="{}"), reply_to, is_transient=True)
        else:
            return
        self._publisher.try_send([answer])


def _reason(exc: ProtocolError, envelope: Envelope, speaker: str) -> str:
    if isinstance(exc, OtherVersion):
        return f"{difference(speaker, envelope.version, 'the coordinator')}."
    return str(exc)
