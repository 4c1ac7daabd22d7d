"""A claim to a queue, with time passed in."""

import pytest

from broker.claim import Claim
from broker.errors import NameInUse
from broker.link import coordinator_queue
from broker.memory import MemoryBroker, MemoryLink


def made() -> Claim:
    """A claim whose ping nobody gives back."""
    link = MemoryLink(MemoryBroker())
    link.declare([coordinator_queue()])
    return Claim(link, "coordinator", wait_seconds=50)


def test_another_reader_is_waited_for_and_then_told() -> None:
    """As long as a half-open predecessor may live; then the name is in use."""
    claim = made()
    claim.begin(0)
    claim.check(50)
    with pytest.raises(NameInUse):
        claim.check(51)


def test_time_without_the_broker_does_not_count() -> None:
    """A broker that is away for long is no other reader: the wait begins anew with the connection."""
    claim = made()
    claim.begin(0)
    claim.pause()
    claim.check(1000)
    claim.begin(1000)
    claim.check(1050)
    with pytest.raises(NameInUse):
        claim.check(1051)
