"""The in-memory link keeps the contract of every link."""

from collections.abc import Callable

import pytest

from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Link
from tests.link_contract import LinkContract


class TestMemoryLink(LinkContract):
    """The contract, in memory."""

    @pytest.fixture
    def make_link(self) -> Callable[[], Link]:
        broker = MemoryBroker()
        return lambda: MemoryLink(broker)

    @pytest.fixture
    def drop(self) -> Callable[[Link], None]:
        return lambda link: link.drop()  # type: ignore[attr-defined]
