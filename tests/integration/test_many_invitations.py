"""What an invitation does does not grow with the number of those before; and no queue is lost, or stays, by that."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.hosting import accounts
from broker.hosting.management import PLAIN_QUEUES, Management
from broker.hosting.policies import UPLOAD_BYTES, Need, limit_account, make_room, set_policies, unlimit
from broker.link.address import vhost_of

MIB = 2**20
FOURTEEN_DAYS = 14 * 24 * 3600 * 1000
Invite = Callable[..., None]


@pytest.fixture
def name(vhost: str) -> str:
    """Of the virtual host: names of accounts are unique in it, and in the whole broker."""
    return vhost_of(vhost)


@pytest.fixture
def invite(vhost: str, management: Management, name: str) -> Iterator[Invite]:
    """Invites NAME-SUFFIX; the accounts are deleted at the end."""
    users: list[str] = []

    def invited(suffix: str, **options: Any) -> None:
        users.append(accounts.invite(management, vhost_of(vhost), f"{name}-{suffix}", **options).user)

    yield invited
    for user in users:
        management.delete_user(user)


def policy_of(management: Management, vhost: str, queue: str) -> dict[str, Any]:
    """The definition of the policy that RabbitMQ has chosen for a queue."""
    policies = {each["name"]: each for each in management.api.get("policies", vhost_of(vhost))}
    queues = management.api.get("queues", vhost_of(vhost), query=PLAIN_QUEUES)
    (found,) = (each for each in queues if each["name"] == queue)
    return dict(policies[found["policy"]]["definition"])


def bounds_of(management: Management, vhost: str, reader: str) -> list[int]:
    """How many bytes may wait in the queue that it reads, and in the one that it uploads to."""
    queues = (f"worker.{reader}", f"upload.{reader}")
    return [policy_of(management, vhost, queue)["max-length-bytes"] // MIB for queue in queues]


def make_queues(management: Management, vhost: str, reader: str, **arguments: object) -> None:
    """As a worker without an account makes them; without arguments as one of an older Warren did."""
    for queue in (f"worker.{reader}", f"upload.{reader}"):
        body = {"durable": True, "auto_delete": False, "arguments": arguments}
        management.api.put("queues", vhost_of(vhost), queue, body=body)


def limit_as_before(management: Management, vhost: str, name: str) -> None:
    """The two policies that each account had of its own."""
    for kind, badge in (
        ("worker", f"warren: what waits for {name}"),
        ("upload", f"warren: what {name} may upload"),
    ):
        management.put_policy(
            vhost_of(vhost),
            badge,
            pattern=rf"^{kind}\.{re.escape(name)}(\.[1-9][0-9]*)?$",
            definition={"max-length": 10_000, "max-length-bytes": UPLOAD_BYTES, "overflow": "reject-publish"},
            priority=10,
        )


def need(megabytes: int, workers: int = 1) -> Need:
    """Of a model of so many MiB."""
    return Need(start_bytes=megabytes * MIB, update_bytes=megabytes * MIB, parts=1, workers=workers)


def test_a_second_invitation_sets_no_policy_and_asks_for_no_list_of_all_that_were_invited(
    management: Management, invite: Invite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each policy that is set is held against every queue, and lists have a line for each account: with a thousand
    accounts an invitation took minutes."""
    invite("first")
    asked: list[tuple[str, tuple[str, ...]]] = []
    call = management.api._call

    def noted(method: str, path: tuple[str, ...], *words: Any, **more: Any) -> object:
        asked.append((method, path))
        return call(method, path, *words, **more)

    monkeypatch.setattr(management.api, "_call", noted)
    invite("second")
    assert [path for method, path in asked if path[0] == "policies" and method != "GET"] == []
    got = [path for method, path in asked if method == "GET"]
    assert [path for path in got if path[0] in ("queues", "users") and "second" not in path[-1]] == []
    assert len(asked) < 30


def test_a_run_sizes_for_all_at_once_what_the_largest_of_them_needs(
    vhost: str, management: Management, name: str, invite: Invite
) -> None:
    """Two policies a run, however many workers; one that was not invited counts, for the policies are its, too. A swarm
    and who was given a number have their own; an invitation in mid-run leaves what a run has set."""
    invite("a")
    invite("lab", swarm=10)
    invite("said", upload_bytes=5 * MIB)
    make_queues(management, vhost, f"{name}-laptop")
    needs = {
        f"{name}-a": need(100),
        f"{name}-lab": need(100, 10),
        f"{name}-said": need(100),
        f"{name}-laptop": need(100, 3),
    }
    too_tight = make_room(management, vhost_of(vhost), needs)
    assert too_tight == {f"{name}-said": 100 * MIB}
    invite("late")
    invite("lab", swarm=10, again=True)
    for suffix in ("a", "late", "laptop"):
        assert bounds_of(management, vhost, f"{name}-{suffix}") == [256, 1216]
    assert bounds_of(management, vhost, f"{name}-lab") == [256, 4032]
    assert bounds_of(management, vhost, f"{name}-said") == [5, 5]


def test_accounts_of_an_older_warren_keep_their_limits_until_they_are_invited_again(
    vhost: str, management: Management, name: str, invite: Invite
) -> None:
    """Each had two policies of its own. They hold, and runs size them; `--again` and `revoke` take them away."""
    virtual = vhost_of(vhost)
    for suffix in ("a", "b", "c"):
        invite(suffix)
        limit_as_before(management, vhost, f"{name}-{suffix}")
    make_room(management, virtual, {f"{name}-a": need(100), f"{name}-b": need(10)})
    assert bounds_of(management, vhost, f"{name}-a") == [256, 448]
    assert bounds_of(management, vhost, f"{name}-b") == [64, 64]
    assert bounds_of(management, vhost, f"{name}-c") == [1024, 1024]
    invite("a", again=True)
    accounts.revoke(management, f"{name}-b", virtual)
    unlimit(management, virtual, f"{name}-c")
    badges = [policy["name"] for policy in management.api.get("policies", virtual)]
    assert [badge for badge in badges if name in badge] == []
    assert "expires" not in policy_of(management, vhost, f"worker.{name}-a")
    assert bounds_of(management, vhost, f"{name}-c") == [1024, 1024]


def test_what_a_worker_without_an_account_left_under_an_older_warren_still_expires(
    vhost: str, management: Management
) -> None:
    """It has nothing but a policy for that, which the first invitation would take away. Once it is invited itself, it
    must never expire."""
    virtual = vhost_of(vhost)
    set_policies(management, virtual)
    make_queues(management, vhost, "old-1")
    make_queues(management, vhost, "old-2.1")
    make_queues(management, vhost, "new", **{"x-expires": FOURTEEN_DAYS})
    limit_account(management, virtual, "invited")
    make_queues(management, vhost, "invited")
    for reader, expires in (("old-1", True), ("old-2.1", True), ("new", False), ("invited", False)):
        for queue in (f"worker.{reader}", f"upload.{reader}"):
            assert ("expires" in policy_of(management, vhost, queue)) == expires, queue
    limit_account(management, virtual, "old-1")
    assert "expires" not in policy_of(management, vhost, "worker.old-1")
    assert policy_of(management, vhost, "upload.old-2.1")["expires"] == FOURTEEN_DAYS
    limit_account(management, virtual, "old-2", is_swarm=True)
    assert "expires" not in policy_of(management, vhost, "upload.old-2.1")
    assert len(management.api.get("policies", virtual)) == 8


def test_who_is_invited_after_it_took_part_without_gets_queues_that_never_expire(
    vhost: str, management: Management, name: str, invite: Invite
) -> None:
    """Its own would be deleted while it is away, and its account could not make them again."""
    make_queues(management, vhost, f"{name}-a", **{"x-expires": FOURTEEN_DAYS})
    invite("a")
    for kind in ("worker", "upload"):
        queue = management.api.get("queues", vhost_of(vhost), f"{kind}.{name}-a")
        assert "x-expires" not in queue["arguments"]


def test_a_name_that_is_another_swarm_s_is_found_though_nobody_looks_through_all_accounts(
    vhost: str, management: Management, name: str, invite: Invite
) -> None:
    """A swarm's account may be called by any number; its queues, and its limits in any virtual host, tell."""
    invite("lab", swarm=10, parts=2)
    for remove in (
        lambda: None,
        lambda: [
            management.api.delete("queues", vhost_of(vhost), f"worker.{name}-lab.{part}") for part in (1, 2)
        ],
    ):
        remove()
        with pytest.raises(accounts.UsageError, match="has an account already"):
            invite("lab")
        with pytest.raises(accounts.UsageError, match="has an account already"):
            invite("lab", swarm=3)
