"""Publishing that outlives a lost connection: repeated until the broker has everything, or until told to stop."""

import logging
import threading
from collections.abc import Sequence

from broker.errors import BrokerError, LinkLost, PublishRefused, Unroutable
from broker.link.seam import Link, Outgoing

logger = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.05
_LONGEST_DELAY_SECONDS = 2.0


class Publisher:
    """Publishes for a role.

    Args:
        link: The role's connection.
        stop: The wish to end: what can't be published at once is then left.

    Attributes:
        is_refused: Whether a queue, being full, did not take the last that was sent.
    """

    def __init__(self, link: Link, stop: threading.Event) -> None:
        self._link = link
        self._stop = stop
        self.is_refused = False
        self._is_refusal_told = False

    def send(self, batch: Sequence[Outgoing]) -> bool:
        """Publish; whether every mandatory message reached a queue, and none was refused.

        Raises:
            LinkLost: Told to stop while there was no connection.
        """
        delay = _FIRST_DELAY_SECONDS
        self.is_refused = False
        while True:
            try:
                self._link.publish(batch)
            except Unroutable:
                return False
            except PublishRefused as exc:
                # It is sent again until it is taken: a cluster without a majority refuses for minutes.
                logger.log(logging.DEBUG if self._is_refusal_told else logging.WARNING, "%s", exc)
                self.is_refused = self._is_refusal_told = True
                return False
            except LinkLost as exc:
                logger.debug("Publishing again in %.1f s: %s", delay, exc)
                if self._stop.wait(delay):
                    raise
                delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
                batch = batch[exc.num_confirmed :]  # an upload that was cut at 90 % goes on from there
            else:
                self._is_refusal_told = False
                return True

    def try_send(self, batch: Sequence[Outgoing]) -> bool:
        """Publish if there is a connection now; whether it was."""
        try:
            self._link.publish(batch)
        except BrokerError:
            return False
        return True
