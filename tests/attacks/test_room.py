"""What may wait at the broker is what the model of a run needs: less for an enemy, and enough for everybody else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.hosting.management import Management
from broker.hosting.policies import UPLOAD_BYTES
from broker.hosting.private import PrivateBroker
from broker.hosting.probe import vhost_of
from tests.attacks.conftest import Invite
from tests.attacks.test_accounts import MEGABYTE, channel_to, filled, waiting_in
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, Stage

# Small steps, so that small models differ: of 1.6 MB four take 6.4 MB.
FINE = {
    **SMALL_PARTS,
    "broker.hosting.policies:_STEP_BYTES": MEGABYTE,
    "broker.hosting.policies:_AROUND_BYTES": 0,
}
SMALL, LARGE = MEGABYTE, 7 * MEGABYTE


@pytest.fixture
def stage(vhost: str, tmp_path: Path) -> Iterator[Stage]:
    """Where the actors of one test play."""
    made = Stage(vhost, tmp_path, size=MANY_PARTS, patches=FINE)
    yield made
    made.close()


def limits(management: Management, vhost: str) -> dict[str, int]:
    """How many bytes may wait of each account."""
    policies = management.api.get("policies", vhost_of(vhost))
    ends = {policy["name"].split()[2]: policy for policy in policies if "may upload" in policy["name"]}
    return {name: policy["definition"]["max-length-bytes"] for name, policy in ends.items()}


def test_the_enemy_has_the_room_of_the_model_and_the_next_model_has_its_own(
    vhost: str, invite: Invite, broker: PrivateBroker, management: Management, stage: Stage, tmp_path: Path
) -> None:
    """The enemy holds an account, takes part in a run of a small model, and then uploads parts that it never
    announces, to fill the disk with the gigabyte that it was invited with. It has room for a few updates of that model.
    The room is made for the next, larger one as it opens: everybody's updates come in. What was said at an invitation
    stands, and so does the rest of each policy."""
    as_coordinator = invite("coordinator")
    urls = {name: invite(name) for name in ("evil", "honest")}
    urls["said"] = invite("said", upload_bytes=3 * MEGABYTE)
    before = management.api.get("policies", vhost_of(vhost))
    assert limits(management, vhost) == {"evil": UPLOAD_BYTES, "honest": UPLOAD_BYTES, "said": 3 * MEGABYTE}
    for size, limit in ((1000, SMALL), (MANY_PARTS, LARGE)):
        workers = [stage.worker(name, amqp_url=url) for name, url in urls.items()]
        asked = {"size": size, "amqp_url": as_coordinator, "management_url": as_page(broker, as_coordinator)}
        coordinator = stage.coordinator(rounds=1, run={"workers": 3}, out=tmp_path / str(size), **asked)
        assert [actor.ended() for actor in (coordinator, *workers)] == [0, 0, 0, 0], stage.story
        assert limits(management, vhost) == {"evil": limit, "honest": limit, "said": 3 * MEGABYTE}
        assert "stays as" not in coordinator.said
        with channel_to(urls["evil"]) as enemy, channel_to(vhost) as admin:
            assert filled(enemy, "upload.evil", 100_000, 100) <= limit
            assert waiting_in(admin, "upload.evil") > 0
            admin.queue_purge("upload.evil")
    after = management.api.get("policies", vhost_of(vhost))
    assert [without_bounds(policy) for policy in after] == [without_bounds(policy) for policy in before]


def as_page(broker: PrivateBroker, amqp_url: str) -> str:
    """The management page's address with the login of an invited account."""
    login = amqp_url.partition("//")[2].rpartition("@")[0]
    return f"http://{login}@localhost:{broker.management_port}"


def without_bounds(policy: dict[str, object]) -> dict[str, object]:
    definition = policy["definition"]
    assert isinstance(definition, dict)
    kept = {key: value for key, value in definition.items() if not key.startswith("max-length")}
    return {**policy, "definition": kept}


def test_who_was_given_too_little_says_so_and_holds_nobody_up(
    vhost: str, invite: Invite, broker: PrivateBroker, stage: Stage
) -> None:
    """A careful operator invited a site with less than one update. Nothing makes room for it, and nobody may be kept
    waiting until the deadline: it declines, with the command that helps, and its upload queue is emptied."""
    as_coordinator = invite("coordinator")
    tight = invite("tight", upload_bytes=MEGABYTE)
    for name, url in (("tight", tight), ("honest", invite("honest"))):
        stage.worker(name, amqp_url=url, patches={"worker.rounds.uploading:_REFUSED_SECONDS": 1.0})
    coordinator = stage.coordinator(
        rounds=1,
        run={"workers": 2, "quorum": 1, "grace_seconds": 50.0},
        amqp_url=as_coordinator,
        management_url=as_page(broker, as_coordinator),
    )
    assert [actor.ended() for actor in stage.actors] == [0, 0, 0], stage.story
    (row,) = stage.checkpoint.history[1:]
    assert set(row.accepted) == {"honest"}
    assert "broker invite tight --upload-limit 24M --again" in row.rejected["tight"], row
    assert row.seconds < 40
    assert "tight was invited with an --upload-limit below one update of this model, 2 MB" in coordinator.said
    with channel_to(vhost) as admin:
        assert waiting_in(admin, "upload.tight") == 0
