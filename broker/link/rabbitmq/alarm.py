"""The broker's word that it takes no messages now: it is short of memory or disk."""

import logging
import time
from typing import Any

from broker.link.standstill import Standstill

logger = logging.getLogger(__name__)


class Alarm:
    """What the broker says on one connection; begun and ended in its thread, read from any.

    Args:
        cause: What it is called among the causes of the standstill.
        standstill: Told of it.
    """

    def __init__(self, cause: str, standstill: Standstill) -> None:
        self.is_on, self.ended_at = False, float("-inf")
        self._cause, self._standstill = cause, standstill

    def watch(self, connection: Any) -> None:
        """Listen to a new connection."""
        connection.add_on_connection_blocked_callback(self._begin)
        connection.add_on_connection_unblocked_callback(self._end)

    def forget(self) -> None:
        """The connection went away, and with it what was said on it."""
        self.is_on = False
        self._standstill.end(self._cause)

    def _begin(self, _connection: Any, frame: Any) -> None:
        self.is_on = True
        self._standstill.begin(self._cause)
        logger.warning("The broker takes no messages now (%s); waiting.", frame.method.reason)

    def _end(self, _connection: Any, _frame: Any) -> None:
        self.is_on, self.ended_at = False, time.monotonic()
        self._standstill.end(self._cause)
        logger.info("The broker takes messages again.")
