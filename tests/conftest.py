"""Fixtures that every kind of test may ask for; a unit test asks for none that starts a broker."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from broker.management import Management
from broker.private import PrivateBroker
from tests.brokers import fresh_vhost, started_broker

settings.register_profile("warren", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("warren")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """The session's own RabbitMQ: real, shared by all tests, and never killed by one."""
    with started_broker(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def vhost(broker: PrivateBroker) -> Iterator[str]:
    """The AMQP URL of a virtual host that belongs to this test alone."""
    with fresh_vhost(broker) as amqp_url:
        yield amqp_url


@pytest.fixture
def management(broker: PrivateBroker) -> Management:
    """The session's broker seen through its management API, as administrator."""
    return Management(broker.management_url)
