"""The RabbitMQ link keeps the contract of every link."""

import socket
from collections.abc import Callable, Iterator

import pytest

from broker.link import Link
from broker.rabbitmq import LinkSettings, RabbitLink
from tests.link_contract import LinkContract


class TestRabbitLink(LinkContract):
    """The contract, on a real broker."""

    @pytest.fixture
    def make_link(self, vhost: str) -> Iterator[Callable[[], Link]]:
        links: list[RabbitLink] = []

        def make() -> Link:
            link = RabbitLink(LinkSettings(amqp_url=vhost, name=f"test {len(links)}"))
            link.open()
            links.append(link)
            return link

        yield make
        for link in links:
            link.close()

    @pytest.fixture
    def drop(self) -> Callable[[Link], None]:
        def cut(link: Link) -> None:
            assert isinstance(link, RabbitLink)
            link._consumer._connection._transport._sock.shutdown(socket.SHUT_RDWR)

        return cut
