"""Questions to a coordinator over the broker, from another process: launch this, what goes on?"""

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from broker.envelope import Envelope
from broker.errors import BrokerError, NobodyServes, OtherVersion, ProtocolError
from broker.link.seam import Delivery, Link, outgoing, reply_queue
from broker.link.validator import Validator, may_answer
from broker.wire import names
from broker.wire.messages import Launch, LaunchAnswered, Message, StatusAsked, StatusTold
from broker.wire.versions import difference

REPLY_SECONDS = 10.0  #: a question that nobody has read by then is dropped by the broker

_Reply = TypeVar("_Reply", bound=Message)


class Asker:
    """Asks, and hears the replies in a queue of its own. Make one with `asking`."""

    def __init__(self, link: Link, queue: str, stop: threading.Event) -> None:
        self._link = link
        self._queue = queue
        self._stop = stop
        self._validator = Validator(link, may_answer, self._heed)

    def launch(self, task: str, options: dict[str, str]) -> LaunchAnswered:
        """Ask for a run.

        Raises:
            NobodyServes: No coordinator is there, or none answered.
        """
        return self._ask(Launch(task=task, options=options, reply_to=self._queue), LaunchAnswered)

    def status(self) -> str:
        """What goes on, as JSON.

        Raises:
            NobodyServes: No coordinator is there, or none answered.
        """
        return self._ask(StatusAsked(reply_to=self._queue), StatusTold).state

    def _ask(self, question: Message, kind: type[_Reply]) -> _Reply:
        """Publish a question that expires, for it must not be found and acted on tomorrow."""
        if not self._link.consumers(names.COORDINATOR):
            raise NobodyServes(
                "No coordinator works on this virtual host. Start one with `coordinator serve`, or check --amqp-url."
            )
        self._link.publish([outgoing(question, names.COORDINATOR, is_transient=True)])
        deadline = time.monotonic() + REPLY_SECONDS
        while time.monotonic() < deadline and not self._stop.is_set():
            reply = self._hear()
            if isinstance(reply, kind):
                return reply
        raise NobodyServes(
            f"The coordinator did not answer within {REPLY_SECONDS:g} s. It may be aggregating: ask again; or older "
            "than this command: its log then says so."
        )

    @staticmethod
    def _heed(exc: ProtocolError, envelope: Envelope, _delivery: Delivery) -> bool:
        """A reply of another version is a reply, too.

        Raises:
            NobodyServes: Always, for nobody understands each other.
        """
        if isinstance(exc, OtherVersion):
            raise NobodyServes(
                f"No answer: {difference('the coordinator', envelope.version, 'this command')}."
            ) from exc
        return False

    def _hear(self) -> Message | None:
        event = self._link.receive(0.2)
        if not isinstance(event, Delivery):
            return None
        reply = self._validator.open(event)
        if reply is not None:
            self._link.ack([event])
        return reply


@contextmanager
def asking(link: Link, stop: threading.Event) -> Iterator[Asker]:
    """Have a queue for replies; it is deleted at the end, by the broker if need be."""
    queue = reply_queue(f"reply.{secrets.token_hex(8)}")
    link.declare([queue])
    link.consume([queue.name], prefetch=10)
    try:
        yield Asker(link, queue.name, stop)
    finally:
        with suppress(BrokerError):
            link.delete([queue.name])
