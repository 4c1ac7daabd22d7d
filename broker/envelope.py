"""What can be read of any message, whatever its version: enough to tell its sender so."""

from dataclasses import dataclass
from typing import ClassVar


class Message:
    """Root of all messages."""

    TYPE: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What can be read of a message although the rest can't be; None where it isn't there, or isn't what it should be.

    Attributes:
        type: As the sender calls it; a newer version may have types that this one lacks.
        version: Of the wire that the sender speaks.
        worker: Who speaks, by its own word: whoever reads this holds it against the account.
        token: Of the worker's process; empty where there is none.
        reply_to: Where an answer is awaited.
    """

    type: str
    version: int
    worker: str | None = None
    token: str = ""
    reply_to: str | None = None
    run_id: str | None = None
    round_number: int | None = None
    attempt: int | None = None
