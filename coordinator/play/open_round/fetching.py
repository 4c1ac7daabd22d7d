"""The parts of one announced update, taken out of its upload queue and put together."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from broker.errors import BrokerError, LinkLost, ProtocolError
from broker.link.seam import Delivery, Link
from broker.link.validator import Validator
from broker.wire import names
from broker.wire.messages import Part, UpdateAnnounced
from broker.wire.settings import Precision
from broker.wire.tensors import FLOAT32, Layout, Values, Vector
from broker.wire.transfer import PLAIN, Assembly, Digest, Encoding, is_local, item_bytes
from coordinator.learning.aggregation import num_integers
from coordinator.learning.exact_sum import Integers
from coordinator.learning.membership import Roster
from coordinator.play.open_round.early_parts import EarlyParts

_PATIENCE_SECONDS = 1.0  #: without any part: the rest is not there
_EMPTY_SECONDS = 0.25  #: after a reconnect the broker needs a moment to put held parts back
_MOST_FOREIGN = 64  #: messages that are no part of this upload, besides a few whole uploads of before
_MOST_OLDER = 4
_MOST_LOOKED_AT = 32  #: more than make a flood
_MOST_OTHER_BYTES = 32 * 1024 * 1024
_MOST_AT_ONCE = 4  #: parts taken of one that is not announced yet before others have their turn
_MOST_BROKEN = (
    10  #: connections lost while one worker's queue was read: a queue of some kinds ends the connection
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What was taken out of an upload queue.

    Attributes:
        deliveries: Every part taken, of this upload or an older one; acknowledge with the next checkpoint.
        is_whole: Whether all parts of this upload were there.
        flaw: Why the update can't be accepted, or None.
        vector: Its values, float32 of shape (U,), in memory that the next fetch overwrites; where the local values
            travelled, float64; of a relay the bytes of its sum.
        digest: Of the parts that were there.
    """

    deliveries: list[Delivery]
    is_whole: bool
    flaw: str | None
    vector: Values
    digest: Digest

    @property
    def integers(self) -> Integers:
        """A relay's sum, int64."""
        return self.vector.view("<i8")


class OtherParts:
    """Parts that were met on the way to others in the queue of a swarm, and may be wanted next: the newest of them.

    They come in the order of their announcements, but for an update of which some are lost: looking for those, one
    takes out what others have uploaded after it. What isn't kept here is asked for again.
    """

    def __init__(self, most_bytes: int = _MOST_OTHER_BYTES) -> None:
        self._left = most_bytes
        self._parts: dict[str, list[Part]] = {}

    def put(self, part: Part) -> None:
        """Keep a part, in the place of the oldest upload's if there is no room."""
        self._parts.setdefault(part.transfer_id, []).append(part)
        self._left -= len(part.data)
        while self._left < 0 and self._parts:
            self.take(next(iter(self._parts)))

    def take(self, upload_id: str) -> list[Part]:
        """What there is of an upload, once."""
        parts = self._parts.pop(upload_id, [])
        self._left += sum(len(part.data) for part in parts)
        return parts


class _Patience:
    """How long one upload is read: a worker may have left older ones behind, but can't hold up a round with junk.

    Args:
        most_foreign: So many messages that bring the upload no further are taken out of its queue.
    """

    def __init__(self, most_foreign: int) -> None:
        self._left = most_foreign
        self._over_at = time.monotonic() + _PATIENCE_SECONDS

    def note(self, *, is_part: bool, is_news: bool, seconds: float) -> None:
        """A message was taken out: any part of this worker's shows that more may come, but only news costs nothing.

        Args:
            is_part: It is one.
            is_news: It was missing.
            seconds: That it took to read, which is no waiting.
        """
        self._left -= not is_news
        self._over_at = time.monotonic() + _PATIENCE_SECONDS if is_part else self._over_at + seconds

    @property
    def is_overrun(self) -> bool:
        """Whether there was more junk than can be by mistake."""
        return self._left < 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be waited for."""
        return self.is_overrun or time.monotonic() >= self._over_at


class Fetcher:
    """Fetches updates one at a time into one reused buffer.

    Args:
        out: The buffer, float32 of shape (U,).
        base: The weights that the workers began with, of which the first are (U,).
        layout: Of the model.
        roster: Says whose upload queue holds a worker's parts, and of how many others.
        precision: What the updates are asked for in.
        early: Where the parts are kept that come before the announcement.
        is_audited: Whether an audit log is to tell which update each was.
    """

    def __init__(
        self,
        link: Link,
        validator: Validator,
        out: Vector,
        base: Vector,
        layout: Layout,
        part_bytes: int,
        stop: threading.Event,
        roster: Roster,
        *,
        precision: Precision = "float32",
        early: EarlyParts | None = None,
        is_audited: bool = False,
    ) -> None:
        self._is_audited = is_audited
        self._early = EarlyParts() if early is None else early
        self._link = link
        self._validator = validator
        self._narrow = out
        self._wide: Values = np.empty(0)  # made when it is needed
        self._out: Values = out  # the one of them that the update at hand goes to
        self._base = base
        self._layout = layout
        self._part_bytes = part_bytes
        self._sent_part_bytes = part_bytes * item_bytes(precision) / FLOAT32.itemsize
        self._stop = stop
        self._roster = roster
        self._others = OtherParts()
        self._num_broken: Counter[str] = Counter()

    def fetch(self, update: UpdateAnnounced) -> Fetched:
        """Bring an announced update here.

        Raises:
            LinkLost: The connection went away; the broker still has everything.
        """
        if update.update is not None:
            return self._inline(update)
        if self._num_broken[update.worker] >= _MOST_BROKEN:
            return self._fetched(flaw="the connection broke each time its upload queue was read")
        try:
            return self._from_queue(update)
        except LinkLost:
            self._num_broken[update.worker] += 1
            raise
        except BrokerError as exc:
            return self._fetched(flaw=f"its upload queue can't be read ({exc})")

    def look_ahead(self, worker: str) -> None:
        """Take out some of what a worker uploads over a thin line, if its queue holds nobody else's.

        Raises:
            LinkLost: The connection went away; the broker still has everything.
        """
        early, queue = self._early.of(worker), names.upload_queue(worker)
        if early.is_left or not self._early.has_room(_MOST_AT_ONCE * self._sent_part_bytes):
            return
        try:
            # What was seen once need not be asked for at each look.
            if not early.is_slow and not early.comes_slowly(
                self._link.waiting(queue) or 0, self._sent_part_bytes
            ):
                return
            if self._link.consumers(queue) != 0:
                return  # whatever is wrong with it is told once its update is announced
            for delivery in self._link.fetch(queue, most=_MOST_AT_ONCE):
                part = self._validator.open(delivery, uploader=worker)
                if isinstance(part, Part):
                    early.put(delivery, part, is_audited=self._is_audited)
                else:
                    early.is_left = True
        except LinkLost:
            raise
        except BrokerError:
            early.is_left = True

    def _from_queue(self, update: UpdateAnnounced) -> Fetched:
        readers = self._link.consumers(self._queue_of(update.worker))
        if readers is None:
            return self._fetched(is_whole=False)  # deleted
        if readers:
            return self._fetched(flaw="somebody reads its upload queue")
        try:
            encoding = self._encoding(update)
        except ProtocolError as exc:
            # Its parts stay where they are: the next upload of this worker is read past them.
            return self._fetched(flaw=str(exc))
        return self._parts(update, encoding)

    def _parts(self, update: UpdateAnnounced, encoding: Encoding) -> Fetched:
        early, flaw = self._early.take(update.worker), None
        queue, deliveries = self._queue_of(update.worker), early.deliveries
        is_of_it = early.upload_id == update.upload_id
        digest = early.digest if is_of_it else Digest(is_audited=self._is_audited)
        assembly = Assembly(self._out, update.upload_id, self._part_bytes, encoding, digest=digest)
        for part in early.parts if is_of_it else ():
            flaw = _place(part, assembly, is_digested=True) or flaw
        for part in self._others.take(update.upload_id):
            flaw = _place(part, assembly) or flaw
        num_sharing = self._roster.num_of_reader(update.worker)
        patience = _Patience(_MOST_FOREIGN + _MOST_OLDER * assembly.num_missing * num_sharing)
        for delivery in self._deliveries(queue, assembly, patience):
            begun, num_missing = time.monotonic(), assembly.num_missing
            opened = self._validator.open(delivery, uploader=update.worker)
            if isinstance(opened, Part):
                deliveries.append(delivery.without_body())  # its values are where they belong
                if opened.transfer_id != update.upload_id:
                    self._others.put(opened)
                flaw = _place(opened, assembly) or flaw
            is_news, seconds = assembly.num_missing < num_missing, time.monotonic() - begun
            patience.note(is_part=opened is not None, is_news=is_news, seconds=seconds)
        if patience.is_overrun:
            self._link.purge(queue)
            flaw = "its upload queue is full of what is no part of its update"
        elif assembly.is_complete:
            flaw = flaw or _digest_flaw(update.digest, assembly.digest)
        is_whole = assembly.is_complete or patience.is_overrun
        return self._fetched(deliveries, is_whole=is_whole, flaw=flaw, digest=assembly.digest)

    def _encoding(self, update: UpdateAnnounced) -> Encoding:
        """How it is written down; from now on memory is at hand that takes it as it is.

        Raises:
            ProtocolError: Nobody may write it down so.
        """
        if update.summed is not None:
            size = num_integers(self._layout, is_fine=update.summed.is_fine)
            self._out = np.empty(2 * size, FLOAT32)  # eight bytes of an integer in the place of two values
            return PLAIN
        self._out = self._narrow
        encoding = Encoding.told(self._layout, update.precision, update.scales, self._base)
        if is_local(update.precision):
            self._wide = self._wide if self._wide.size else np.empty(self._narrow.size)
            self._out = self._wide
        return encoding

    def _queue_of(self, worker: str) -> str:
        (reader,) = self._roster.by_reader([worker])
        return names.upload_queue(reader)

    def _fetched(
        self,
        deliveries: list[Delivery] | None = None,
        *,
        is_whole: bool = True,
        flaw: str | None = None,
        digest: Digest | None = None,
    ) -> Fetched:
        return Fetched(
            deliveries=deliveries or [],
            is_whole=is_whole,
            flaw=flaw,
            vector=self._out,
            digest=digest or Digest(),
        )

    def _deliveries(self, queue: str, assembly: Assembly, patience: "_Patience") -> Iterator[Delivery]:
        """What the queue holds, until the assembly is complete; an empty one is looked at a few times more."""
        while not (assembly.is_complete or patience.is_over):
            is_empty = True
            for delivery in self._link.fetch(queue, most=assembly.num_missing):
                is_empty = False
                yield delivery
            if (is_empty and self._stop.wait(_EMPTY_SECONDS)) or self._stop.is_set():
                return

    def _inline(self, update: UpdateAnnounced) -> Fetched:
        data = update.update or b""
        digest = Digest(is_audited=self._is_audited)
        digest.add(0, data)
        try:
            encoding = self._encoding(update)
            encoding.decode(data, slice(0, self._out.size), self._out)
            flaw = _digest_flaw(update.digest, digest)
        except ProtocolError as exc:
            flaw = str(exc)
        return self._fetched(flaw=flaw, digest=digest)


def empty_upload_queue(link: Link, validator: Validator, worker: str) -> None:
    """Take out what a worker could not announce; whoever else fills its queue, as RabbitMQ 3 lets it, is named.

    Raises:
        BrokerError: It can't be read.
    """
    queue = names.upload_queue(worker)
    for delivery in link.fetch(queue, most=_MOST_LOOKED_AT):
        if validator.open(delivery, uploader=worker) is not None:
            link.ack([delivery])
    link.purge(queue)


def _place(part: Part, assembly: Assembly, *, is_digested: bool = False) -> str | None:
    """Take in a part, or leave it out and say what is wrong with it."""
    try:
        assembly.place(part, is_digested=is_digested)
    except ProtocolError as exc:
        assembly.skip(part)
        return str(exc)
    return None


def _digest_flaw(announced: str, digest: Digest) -> str | None:
    return None if digest.hex() == announced else "the parts do not have the digest that was announced"
