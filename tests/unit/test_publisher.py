"""Publishing for a role."""

import threading
from collections.abc import Sequence

import pytest

from broker.errors import PublishRefused
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.publisher import Publisher
from broker.link.seam import Outgoing


class Refusing(MemoryLink):
    """Refuses as long as it is told to."""

    is_full = True

    def publish(self, batch: Sequence[Outgoing]) -> None:
        if self.is_full:
            raise PublishRefused("The broker refused a message.")


def test_a_refusal_is_told_once_until_something_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """A cluster without a majority refuses for minutes what is sent again and again: that is one line, not one each."""
    link = Refusing(MemoryBroker())
    publisher = Publisher(link, threading.Event())
    assert not any(publisher.send([]) for _ in range(3))
    assert len(caplog.records) == 1
    link.is_full = False
    assert publisher.send([])
    link.is_full = True
    assert not publisher.send([])
    assert publisher.is_refused
    assert len(caplog.records) == 2
