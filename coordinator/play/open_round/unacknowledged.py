"""Deliveries that the broker keeps for us until a checkpoint covers them: the broker is the journal."""

import time
from collections.abc import Callable, Iterable

from broker.link.seam import Delivery, Link

MOST_HELD = 200  #: answers, below the prefetch of 256, so that held ones never stop the consumer
#: RabbitMQ's delivery timeout (30 minutes) then never decides how long a round may last.
LONGEST_SECONDS = 30.0
#: How often a quorum queue has given one of them in vain, each time to a connection that ended. RabbitMQ 4 deletes what
#: came 20 times, unless a policy says otherwise: a coordinator that ends again and again within `LONGEST_SECONDS`.
MOST_RETURNS = 10

_RETURNS = "x-delivery-count"  # quorum queues alone say it


class Unacknowledged:
    """Holds deliveries, and acknowledges them after what they said is on disk."""

    def __init__(self, link: Link, read_clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._read_clock = read_clock
        self._deliveries: list[Delivery] = []
        self._num_answers = 0
        self._oldest_at = 0.0
        self._is_pressing = False

    def hold(self, answer: Delivery, parts: Iterable[Delivery] = ()) -> None:
        """Keep an answer and its parts unacknowledged until the next checkpoint: their tags, not their bodies.

        The parts were fetched, not consumed: any number of them may be held.
        """
        if not self._deliveries:
            self._oldest_at = self._read_clock()
        self._num_answers += 1
        for each in (answer, *parts):
            self._is_pressing = self._is_pressing or _num_returns(each) >= MOST_RETURNS
            self._deliveries.append(each.without_body())

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint should be written now."""
        return bool(self._deliveries) and (
            self._is_pressing
            or self._num_answers >= MOST_HELD
            or self._read_clock() - self._oldest_at >= LONGEST_SECONDS
        )

    def release(self) -> None:
        """Acknowledge everything held: a checkpoint covers it.

        What was held before a reconnect came again with a new tag; the link ignores the void one.
        """
        deliveries, self._deliveries, self._num_answers = self._deliveries, [], 0
        self._is_pressing = False
        self._link.ack(deliveries)


def _num_returns(delivery: Delivery) -> int:
    """How often it came before, as far as the broker says so; a sender that says so itself has it saved early."""
    told = delivery.headers.get(_RETURNS)
    return told if isinstance(told, int) else 0
