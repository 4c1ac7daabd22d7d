"""What may wait at the broker is what the model of a run needs: less for an enemy, and enough for everybody else."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pika
import pika.exceptions
import pytest

from broker.hosting.management import Management
from broker.hosting.policies import UPLOAD_BYTES
from broker.hosting.private import PrivateBroker
from broker.link.address import vhost_of
from broker.wire.names import EXCHANGE
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
    """How many bytes may wait in each upload queue: of the policies that match it the highest counts."""
    policies = sorted(management.api.get("policies", vhost_of(vhost)), key=lambda policy: policy["priority"])
    queues = [queue["name"] for queue in management.queues(vhost_of(vhost))]
    return {
        queue.partition(".")[2]: policy["definition"]["max-length-bytes"]
        for queue in queues
        for policy in policies
        if queue.startswith("upload.") and re.search(policy["pattern"], queue)
        if "max-length-bytes" in policy["definition"]
    }


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
            assert filled(enemy, "upload.evil", 100_000, 100) <= limit + 100_000  # a quorum queue: one more
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
    patches = {
        "worker.rounds.uploading:_REFUSED_SECONDS": 1.0,
        "broker.link.rabbitmq.publishing:_WINDOW_MESSAGES": 1,  # a quorum queue takes what is under way, too
    }
    for name, url in (("tight", tight), ("honest", invite("honest"))):
        stage.worker(name, amqp_url=url, patches=patches)
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


@contextmanager
def flood(amqp_url: str, queue: str, end: threading.Event) -> Iterator[list[int]]:
    """While the block lasts, put messages into another's queue, beside one's own, by a BCC header; how many."""
    sent = [0]

    def run() -> None:
        properties = pika.BasicProperties(user_id="evil", headers={"BCC": [queue]})
        with suppress(pika.exceptions.AMQPError), channel_to(amqp_url) as channel:
            while not end.is_set():
                with suppress(pika.exceptions.NackError):  # its own queue, or the other's, is full
                    channel.basic_publish(EXCHANGE, "worker.evil", bytes(50_000), properties)
                    sent[0] += 1

    enemy = threading.Thread(target=run, daemon=True)
    enemy.start()
    try:
        yield sent
    finally:
        end.set()
        enemy.join(10)


def checks_every_key(management: Management) -> bool:
    """Whether this RabbitMQ asks for the right to each routing key, those in the headers, too."""
    return int(management.overview()["rabbitmq_version"].partition(".")[0]) >= 4


def test_the_enemy_fills_the_queue_that_another_reads_and_changes_nothing(
    vhost: str, invite: Invite, broker: PrivateBroker, management: Management, stage: Stage
) -> None:
    """The enemy holds an account. On RabbitMQ 3 it puts messages into the queue that another worker reads, by CC or BCC
    headers, to have round starts refused, or dropped before they are read, and to fill that worker's memory. From 4 on
    the broker refuses that. On 3 the queue drops its oldest rather than refuse the coordinator's; who is there reads
    all of it, and takes no notice; who is away is sent the round start when it comes."""
    as_coordinator, as_enemy = invite("coordinator"), invite("evil")
    as_victim = invite("victim", upload_bytes=4 * MEGABYTE)
    stage.worker("honest", amqp_url=invite("honest"), train_seconds=3.0, num_examples=100)
    with flood(as_enemy, "worker.victim", threading.Event()) as sent:
        asked = {"amqp_url": as_coordinator, "management_url": as_page(broker, as_coordinator)}
        coordinator = stage.coordinator(rounds=3, run={"workers": 1, "quorum": 1}, **asked)
        stage.wait_for_round(1, 60)
        with channel_to(vhost) as admin:
            assert waiting_in(admin, "worker.victim") * 50_000 <= 4 * MEGABYTE
        victim = stage.worker("victim", amqp_url=as_victim)
        assert [actor.ended() for actor in (coordinator, victim)] == [0, 0], stage.story
        assert sent[0] > 1000 or checks_every_key(management)
    last = stage.checkpoint.history[-1]
    assert set(last.accepted) == {"honest", "victim"}, stage.story


def test_the_enemy_fills_another_s_upload_queue_and_is_named(
    vhost: str, invite: Invite, broker: PrivateBroker, management: Management, stage: Stage
) -> None:
    """The enemy holds an account. On RabbitMQ 3 it fills the upload queue of another, that its updates be refused, to
    have the round wait for them without end, or end the run. It does keep that one's large updates out, for as long as
    it goes on; but that worker says so in half a minute, the round closes with the quorum, and the run's history, and
    its page, name who did it. From 4 on the broker refuses that."""
    as_coordinator, as_enemy = invite("coordinator"), invite("evil")
    names = ("honest", "victim")
    for name in names:
        stage.worker(name, amqp_url=invite(name), patches={"worker.rounds.uploading:_REFUSED_SECONDS": 1.0})
    with flood(as_enemy, "upload.victim", threading.Event()):
        if not checks_every_key(management):
            with channel_to(vhost) as admin:
                stage.wait(lambda: waiting_in(admin, "upload.victim") > 100, 20, "a full queue")
        run = {"workers": 2, "quorum": 1, "grace_seconds": 50.0}
        asked = {"amqp_url": as_coordinator, "management_url": as_page(broker, as_coordinator)}
        stage.coordinator(rounds=1, run=run, **asked)
        assert [actor.ended() for actor in stage.actors] == [0, 0, 0], stage.story
    (row,) = stage.checkpoint.history[1:]
    if checks_every_key(management):
        assert set(row.accepted) == set(names)
    else:
        assert set(row.accepted) == {"honest"}
        assert "upload queue is full" in row.rejected["victim"]
        number = re.fullmatch(r"sent (\d+) messages that were rejected", row.rejected["evil"])
        assert number is not None
        assert 32 <= int(number[1]) < 64
        assert row.seconds < 40
