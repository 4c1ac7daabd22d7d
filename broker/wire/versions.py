"""Which wire this Warren speaks, what can be read of a message of another version, and what is said to its sender.

Three promises hold in every version, or two versions could not even tell each other apart:

- A body is a msgpack map with `type` and `version`. A worker's word names it in `worker`, and the process in `token`;
  a question names the queue for its answer in `reply_to`; a round start its `run_id`, `round_number` and `attempt`.
- `refused` can be made of `worker`, `reason` and (since version 2) `token`.
- `launch-answered` can be made of `run` and `reason`.
"""

import functools
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from broker.envelope import Envelope
from broker.wire import codec, names

VERSION = 2  #: of the wire; another one where a message changes in a way that a default can't bridge

_LAST_VERSION = 65535
_TOKENS_SINCE = 2
_LONGEST_TEXT = 100


def read_envelope(fields: dict[str, Any]) -> Envelope | None:
    """What a message says of itself in every version; None if it is no message of any version."""
    kind, number = _text(fields.get("type")), _count(fields.get("version"))
    if kind is None or number is None or not 1 <= number <= _LAST_VERSION:
        return None
    worker, reply_to = _text(fields.get("worker")), _text(fields.get("reply_to"))
    return Envelope(
        type=kind,
        version=number,
        worker=worker if worker and names.is_worker(worker) else None,
        token=_text(fields.get("token")) or "",
        reply_to=reply_to if reply_to and names.is_reply_queue(reply_to) else None,
        run_id=_text(fields.get("run_id")),
        round_number=_count(fields.get("round_number")),
        attempt=_count(fields.get("attempt")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= _LONGEST_TEXT else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def encode_refused(to: Envelope, worker: str, reason: str) -> bytes:
    """A `refused` that the sender of a `joined` can read, whatever version it speaks."""
    token = {"token": to.token} if to.version >= _TOKENS_SINCE else {}
    return codec.pack({"type": "refused", "version": to.version, "worker": worker, "reason": reason, **token})


def encode_not_launched(to: Envelope, reason: str) -> bytes:
    """A `launch-answered` with a refusal that the sender of a `launch` can read, whatever version it speaks."""
    return codec.pack({"type": "launch-answered", "version": to.version, "run": "", "reason": reason})


def difference(speaker: str, version: int, listener: str) -> str:
    """Who speaks which version, and which side is to be upgraded, e.g. for `the coordinator` and `this worker`."""
    older = listener if version > VERSION else speaker
    return f"{speaker} speaks version {version} of the wire, {listener} {VERSION}: upgrade {older}"


@functools.cache
def release() -> str:
    """The Warren that runs here, e.g. "0.1.0"; empty where it runs from its source, not installed."""
    try:
        return version("warren")
    except PackageNotFoundError:
        return ""
