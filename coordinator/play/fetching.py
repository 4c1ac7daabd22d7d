"""The parts of one announced update, taken out of its upload queue and put together."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from broker.errors import ProtocolError
from broker.link.seam import Delivery, Link
from broker.link.validator import Validator
from broker.wire import names
from broker.wire.messages import Part, UpdateAnnounced
from broker.wire.tensors import Layout, Vector
from broker.wire.transfer import Assembly, Digest, Encoding

_EMPTY_TRIES = 4
_EMPTY_SECONDS = 0.25  #: after a reconnect the broker needs a moment to put held parts back


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What was taken out of an upload queue.

    Attributes:
        held: Every part taken, of this upload or an older one; acknowledge with the next checkpoint.
        is_whole: Whether all parts of this upload were there.
        flaw: Why the update can't be accepted, or None.
        vector: Its values, float32 of shape (U,), in memory that the next fetch overwrites.
    """

    held: list[Delivery]
    is_whole: bool
    flaw: str | None
    vector: Vector


class Fetcher:
    """Fetches updates one at a time into one reused buffer.

    Args:
        out: The buffer, float32 of shape (U,).
        layout: Of the model.
    """

    def __init__(
        self,
        link: Link,
        validator: Validator,
        out: Vector,
        layout: Layout,
        part_bytes: int,
        stop: threading.Event,
    ) -> None:
        self._link = link
        self._validator = validator
        self._out = out
        self._layout = layout
        self._part_bytes = part_bytes
        self._stop = stop

    def fetch(self, update: UpdateAnnounced) -> Fetched:
        """Bring an announced update here.

        Raises:
            LinkLost: The connection went away; the broker still has everything.
        """
        if update.update is not None:
            return self._inline(update)
        if self._link.consumers(names.upload_queue(update.worker)) is None:
            # Deleted: to get from it would close the channel.
            return self._fetched(is_whole=False)
        held: list[Delivery] = []
        try:
            encoding = Encoding.told(self._layout, update.precision, update.scales)
        except ProtocolError as exc:
            # Its parts stay where they are: the next upload of this worker is read past them.
            return self._fetched(flaw=str(exc))
        assembly = Assembly(self._out, update.upload_id, self._part_bytes, encoding)
        flaw: str | None = None
        for delivery in self._deliveries(names.upload_queue(update.worker), assembly):
            part = self._validator.open(delivery, uploader=update.worker)
            if part is None:
                continue
            held.append(delivery.without_body())  # its values are in their place
            try:
                if isinstance(part, Part):
                    assembly.place(part)
            except ProtocolError as exc:
                flaw = flaw or str(exc)
                assembly.skip(part)
        if assembly.is_complete:
            flaw = flaw or _digest_flaw(update.digest, assembly.digest)
        return self._fetched(held, is_whole=assembly.is_complete, flaw=flaw)

    def _fetched(
        self, held: list[Delivery] | None = None, *, is_whole: bool = True, flaw: str | None = None
    ) -> Fetched:
        return Fetched(held=held or [], is_whole=is_whole, flaw=flaw, vector=self._out)

    def _deliveries(self, queue: str, assembly: Assembly) -> Iterator[Delivery]:
        """What the queue holds, until the assembly is complete; an empty one is looked at a few times more."""
        empty = 0
        while not assembly.is_complete and empty < _EMPTY_TRIES:
            empty += 1
            for delivery in self._link.fetch(queue, most=assembly.num_missing):
                empty = 0
                yield delivery
            if empty and self._stop.wait(_EMPTY_SECONDS):
                return

    def _inline(self, update: UpdateAnnounced) -> Fetched:
        data = update.update or b""
        digest = Digest()
        digest.add(0, data)
        try:
            encoding = Encoding.told(self._layout, update.precision, update.scales)
            encoding.decode(data, slice(0, self._out.size), self._out)
            flaw = _digest_flaw(update.digest, digest)
        except ProtocolError as exc:
            flaw = str(exc)
        return self._fetched(flaw=flaw)


def _digest_flaw(announced: str, digest: Digest) -> str | None:
    return None if digest.hex() == announced else "the parts do not have the digest that was announced"
