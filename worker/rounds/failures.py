"""What the coordinator is told of an error here: enough to help, and no name of a file, which may be a patient's."""

import logging
import time

from broker.audit import AuditLog
from broker.errors import ModelError, WarrenError
from broker.link.publisher import Publisher
from broker.link.seam import outgoing
from broker.wire import names
from broker.wire.messages import Declined, RoundKey
from broker.wire.swarms import declined_together

logger = logging.getLogger(__name__)

_MOST_SAID = 2000
_GATHERED_SECONDS = 1.0


def told(error: BaseException) -> str:
    """The words of an error of ours; of any other its kind and first line."""
    if isinstance(error, WarrenError):
        return str(error)
    text = (error.strerror or "") if isinstance(error, OSError) else str(error)
    first = text.strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def told_without_words(error: BaseException) -> str:
    """The same of a site that shares no more than it must: another library's words may quote its examples."""
    kind = kind_withheld(error)
    return (
        told(error) if kind is None else f"{kind}; what it says stays in this worker's log (--share weights)."
    )


class ElsewhereError(Exception):
    """Of this kind was the error of another library, in another process of this worker, that caused one of ours."""


def kind_withheld(error: BaseException) -> str | None:
    """The kind of another library's error whose words an error has; None where its words are Warren's own."""
    if isinstance(error.__cause__, ElsewhereError):
        return str(error.__cause__)
    foreign = error.__cause__ if isinstance(error, WarrenError) else error
    if isinstance(error, ModelError) or foreign is None or isinstance(foreign, WarrenError):
        return None
    return type(foreign).__name__


class Declines:
    """What can't be answered: said at once, but of a swarm gathered for a moment, for the same may hold for thousands.

    Args:
        publisher: To the coordinator.
        audit: Told of it, too.
        swarm: The process's name if it is a swarm's; else None.
    """

    def __init__(self, publisher: Publisher, audit: AuditLog, swarm: str | None) -> None:
        self._publisher = publisher
        self._audit = audit
        self._swarm = swarm
        self._gathered: list[Declined] = []
        self._since = 0.0

    def __bool__(self) -> bool:
        """Whether something is still to be said."""
        return bool(self._gathered)

    def add(
        self, worker: str, key: RoundKey, reason: str, words: str = "", bug: Exception | None = None
    ) -> None:
        """Say it.

        Args:
            worker: Who can't.
            key: Which attempt at which round.
            reason: What the coordinator is told.
            words: What this log says, where that is more.
            bug: What nobody expected: its traceback stays in this log.
        """
        declined = Declined(
            worker=worker,
            run_id=key.run_id,
            round_number=key.round_number,
            attempt=key.attempt,
            reason=reason[:_MOST_SAID],
        )
        if not any(each.reason == declined.reason for each in self._gathered):
            logger.error("Can't answer round %d: %s", key.round_number, words or reason, exc_info=bug)
            self._audit.note("declined", worker=worker, run=key.run_id, round=key.round_number, reason=reason)
        if self._swarm is None:
            self._publisher.send([outgoing(declined, names.COORDINATOR)])
            return
        if not self._gathered:
            self._since = time.monotonic()
        self._gathered.append(declined)

    def send(self, *, is_idle: bool) -> None:
        """Say what was gathered, if nothing more is coming, or it was gathered for long enough."""
        if self._swarm is None or not (is_idle or time.monotonic() - self._since > _GATHERED_SECONDS):
            return
        gathered, self._gathered = self._gathered, []
        words = declined_together(self._swarm, gathered)
        self._publisher.send([outgoing(word, names.COORDINATOR) for word in words])
