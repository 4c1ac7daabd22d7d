"""A login that was taken is refused later: for a moment, or for good."""

from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest

from broker.hosting import accounts
from broker.hosting.management import Management
from broker.hosting.private import wait_until
from broker.hosting.probe import login_of
from broker.link.address import vhost_of
from tests.faults.conftest import MakeStage
from tests.faults.stage import WORKERS

Urls = dict[str, str]
PATIENCE = "broker.link.attempts:REFUSED_SECONDS"


@pytest.fixture
def urls(vhost: str, management: Management) -> Iterator[Urls]:
    """The AMQP URL of each role with its own account."""
    parts, found = urlsplit(vhost), {}
    for name in ("coordinator", *WORKERS):
        invited = accounts.invite(management, vhost_of(vhost), name)
        login = f"{name}:{quote(invited.password or '', safe='')}"
        found[name] = parts._replace(netloc=f"{login}@{parts.hostname}:{parts.port}").geturl()
    yield found
    for name in set(found) & set(management.users()):
        accounts.revoke(management, name)


def rotate(management: Management, user: str) -> None:
    """Change a password; the management API knows a connection only after some seconds."""
    management.put_user(user, "another")
    assert wait_until(lambda: management.close_connections(user=user) > 0, 20)


def test_a_login_that_is_refused_for_good_ends_worker_and_coordinator(
    vhost: str, make_stage: MakeStage, urls: Urls, management: Management
) -> None:
    """A site is revoked in the middle of its training, the coordinator's password is changed: each says so, and ends
    with 3 after the patience (here 2 s of 30) and at most one more try. With its new password the coordinator goes on
    with the run in its folder."""
    stage = make_stage(vhost, patches={PATIENCE: 2.0})
    w1, *_ = [
        stage.worker(name, amqp_url=urls[name], train_seconds=50 if name == "w1" else 0) for name in WORKERS
    ]
    run = {"quorum": 3, "grace_seconds": 0.0}
    coordinator = stage.coordinator(rounds=1, amqp_url=urls["coordinator"], run=run)
    stage.wait(lambda: stage.has_begun("w1", 1), 30, "a training")
    accounts.revoke(management, "w1")
    assert w1.ended(30) == 3, stage.story
    w1.says("refused the user or the password")

    user, password = login_of(urls["coordinator"])
    rotate(management, user)
    assert coordinator.ended(30) == 3, stage.story
    coordinator.says("refused the user or the password")

    management.put_user(user, password)
    again = accounts.invite(management, vhost_of(vhost), "w1")
    parts = urlsplit(vhost)
    login = f"w1:{quote(again.password or '', safe='')}"
    stage.worker("w1", amqp_url=parts._replace(netloc=f"{login}@{parts.hostname}:{parts.port}").geturl())
    coordinator = stage.coordinator(rounds=1, amqp_url=urls["coordinator"], run=run)
    assert coordinator.ended(60) == 0, stage.story
    stage.assert_same_bits(rounds=1)


def test_logins_refused_for_a_moment_end_nobody(
    vhost: str, make_stage: MakeStage, urls: Urls, management: Management
) -> None:
    """A broker is restored, and for some seconds does not know its accounts: everybody was refused more than three
    times, and said so; then the run goes on, with the same bits."""
    stage = make_stage(vhost)
    workers = [stage.worker(name, amqp_url=urls[name], train_seconds=6) for name in WORKERS]
    coordinator = stage.coordinator(rounds=1, amqp_url=urls["coordinator"])
    stage.wait(lambda: stage.has_begun("w3", 1), 30, "round 1")
    logins = [login_of(url) for url in urls.values()]
    for user, _ in logins:
        rotate(management, user)
    for actor in [coordinator, *workers]:
        actor.says("Not connected again; ending unless this changes")
    for user, password in logins:
        management.put_user(user, password)
    assert [actor.ended(60) for actor in [coordinator, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)
