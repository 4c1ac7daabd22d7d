"""Fixtures that every kind of test may ask for; a unit test asks for none that starts a broker."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker
from tests.brokers import fresh_vhost, started_broker

# A busy machine is no fault of the code. CI says the same of a commit every time; new inputs are tried at every desk.
settings.register_profile("warren", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("warren")


#: What tests do for most of their time, by folder: they wait for processes, or compute. The others are short.
_KINDS = (("attacks", "faults"), ("system", "integration"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take files that wait and files that compute in turn, so that of those under way at a time some are of each."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    place = {path: (1.0, number) for number, path in enumerate(files)}
    for kind in _KINDS:
        paths = [path for folder in kind for path in files if path.parent.name == folder]
        place |= {path: (number / len(paths), number) for number, path in enumerate(paths)}
    items[:] = [item for path in sorted(files, key=place.__getitem__) for item in files[path]]


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """What a shell starts in the background ignores it, and would hand that on to what the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _state_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands keep for their user, such as audit logs, is none of whoever runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


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
