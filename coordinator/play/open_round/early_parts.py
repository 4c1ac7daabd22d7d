"""Parts of updates that are not announced yet, taken out while they are on their way over thin lines."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.link.seam import Delivery
from broker.wire.messages import Part
from broker.wire.transfer import Digest

_MOST_EARLY_BYTES = 64 * 1024 * 1024  #: of all workers together
_MOST_OLDER = 4  #: uploads of before in one queue
_THIN_BYTES_A_SECOND = 12.5e6  #: of one upload: 100 Mbit/s
_LEAST_SECONDS = 0.4  #: that tell how fast parts come


@dataclass(slots=True, kw_only=True)
class Early:
    """What has come of one worker's upload.

    Attributes:
        parts: Of the newest upload.
        digest: Of these, worked out while nothing else is to be done.
        deliveries: Of whatever was taken.
        is_left: Nothing more is to be taken before the announcement.
        is_slow: Its parts were seen to come as over a thin line.
        first_seen: How many parts waited when first some did, and when that was.
        read: A monotonic clock.
    """

    parts: list[Part] = field(default_factory=list)
    digest: Digest = field(default_factory=Digest)
    deliveries: list[Delivery] = field(default_factory=list)
    is_left: bool = False
    is_slow: bool = False
    first_seen: tuple[int, float] | None = None
    read: Callable[[], float] = time.monotonic

    def comes_slowly(self, num_waiting: int, part_bytes: float) -> bool:
        """Whether the upload takes so long that it pays to take out what is there.

        What comes as over a good line is all there in a moment: copies of it would cost memory, and save nothing.

        Args:
            num_waiting: How many parts wait in the queue, as long as none was taken.
            part_bytes: What one of them weighs.
        """
        if self.is_slow or not num_waiting:
            return self.is_slow
        now = self.read()
        if self.first_seen is None or num_waiting < self.first_seen[0]:
            self.first_seen = (num_waiting, now)
        number, since = self.first_seen
        is_long = now - since >= _LEAST_SECONDS
        self.is_slow = is_long and (num_waiting - number) * part_bytes < _THIN_BYTES_A_SECOND * (now - since)
        return self.is_slow

    @property
    def upload_id(self) -> str:
        """The newest upload that a part of was seen."""
        return self.parts[0].transfer_id if self.parts else ""

    @property
    def num_bytes(self) -> int:
        """The memory that its parts take."""
        return sum(len(part.data) for part in self.parts)

    def put(self, delivery: Delivery, part: Part, *, is_audited: bool = False) -> None:
        """Keep a part; those of an upload before it, or of a channel that has since been closed, are let go of."""
        is_other = part.transfer_id != self.upload_id
        if is_other or (self.deliveries and self.deliveries[-1].tag[0] != delivery.tag[0]):
            self.parts = []
        if not self.parts:
            self.digest = Digest(is_audited=is_audited)
        self.parts.append(part)
        self.digest.add(part.index, part.data)
        self.deliveries.append(delivery.without_body())
        self.is_left = len(self.parts) >= part.count or len(self.deliveries) >= _MOST_OLDER * part.count


class EarlyParts:
    """Parts taken out while their uploads go on: over thin lines these take long, and end all at the same time.

    What is kept here is a copy. Its deliveries are held until the update is taken, or the round is over: after a crash
    all of it is at the broker still.
    """

    def __init__(
        self, most_bytes: int = _MOST_EARLY_BYTES, read: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_bytes = most_bytes
        self._read = read
        self._of: dict[str, Early] = {}

    def has_room(self, num_bytes: float) -> bool:
        """Whether so much more can be kept."""
        return sum(early.num_bytes for early in self._of.values()) + num_bytes <= self._most_bytes

    def of(self, worker: str) -> Early:
        """What there is of a worker's."""
        return self._of.setdefault(worker, Early(read=self._read))

    def take(self, worker: str) -> Early:
        """The same, once."""
        return self._of.pop(worker, Early())

    def end(self) -> list[Delivery]:
        """Let go of everything; what the broker can forget."""
        left, self._of = self._of, {}
        return [delivery for early in left.values() for delivery in early.deliveries]
