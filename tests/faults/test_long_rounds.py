"""A round lasts longer than the broker lets a delivery stay unacknowledged, and training blocks Python for long."""

from collections.abc import Iterator

import pytest

from broker.hosting.private import PrivateBroker
from tests.brokers import started_broker
from tests.faults.conftest import MakeStage
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, Stage

TIMEOUT_SECONDS = 6
#: A checkpoint of the partial sum after 2 s instead of 30, as the delivery timeout is 6 s instead of 30 minutes.
QUICK: dict[str, float] = SMALL_PARTS | {"coordinator.play.open_round.unacknowledged:LONGEST_SECONDS": 2}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """A broker that closes a channel on which a delivery stays unacknowledged for long."""
    with started_broker(
        tmp_path_factory.mktemp("impatient"),
        conf=(f"consumer_timeout = {TIMEOUT_SECONDS * 1000}",),
        erlang=("-rabbit channel_tick_interval 1000",),
    ) as broker:
        yield broker


@pytest.fixture
def impatient_stage(impatient: PrivateBroker, make_stage: MakeStage) -> Iterator[Stage]:
    """A stage there."""
    stage = make_stage(impatient.amqp_url, size=MANY_PARTS, patches=QUICK)
    yield stage
    stage.close()
    link = stage.link()
    names = [f"{kind}.{name}" for name in ("w1", "w2", "w3") for kind in ("worker", "upload")]
    link.delete(["coordinator", "dead", *names])


def test_a_round_outlasts_the_delivery_timeout(impatient_stage: Stage) -> None:
    """One worker trains for more than twice the broker's delivery timeout, while the updates of the others are held.
    A checkpoint of the partial sum is written and they are acknowledged: no channel is closed, nobody reconnects."""
    workers = [*impatient_stage.workers("w1", "w2"), impatient_stage.worker("w3", train_seconds=13)]
    coordinator = impatient_stage.coordinator(rounds=1)
    assert [actor.ended(90) for actor in [coordinator, *workers]] == [0, 0, 0, 0], impatient_stage.story
    impatient_stage.assert_same_bits(rounds=1)
    impatient_stage.assert_nobody_trained_twice()
    assert "closed a channel" not in impatient_stage.story
    assert "Reconnecting" not in impatient_stage.story


def test_a_coordinator_killed_late_in_a_long_round_has_the_acknowledged_on_disk(
    impatient_stage: Stage,
) -> None:
    """Two updates were acknowledged in mid-round, so the broker no longer has them: they are in the partial sum on
    disk, and a coordinator that is killed then goes on with them."""
    workers = [*impatient_stage.workers("w1", "w2"), impatient_stage.worker("w3", train_seconds=7)]
    first = impatient_stage.coordinator(rounds=1)
    path = impatient_stage.out / "open-round"
    impatient_stage.wait(
        lambda: path.exists() and path.stat().st_size > MANY_PARTS * 8, 30, "the partial sum"
    )
    first.kill()
    second = impatient_stage.coordinator(rounds=1)
    assert [actor.ended(90) for actor in [second, *workers]] == [0, 0, 0, 0], impatient_stage.story
    second.says("with the 2 answers on disk")
    impatient_stage.assert_same_bits(rounds=1)
    impatient_stage.assert_nobody_trained_twice()


def test_training_that_blocks_python_costs_a_reconnect_at_most(vhost: str, make_stage: MakeStage) -> None:
    """A C extension holds Python's lock for longer than three heartbeats (of 2 s here), so no thread can send one. The
    broker gives the connection up; afterwards the worker connects again, and its update counts: trained once."""
    stage = make_stage(
        vhost,
        size=MANY_PARTS,
        patches=SMALL_PARTS | {"broker.link.rabbitmq.settings:_HEARTBEAT_SECONDS": 2},
    )
    workers = [*stage.workers("w1", "w2"), stage.worker("w3", holds_gil_seconds=8)]
    coordinator = stage.coordinator(rounds=1)
    assert [actor.ended(90) for actor in [coordinator, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)
    stage.assert_nobody_trained_twice()


@pytest.mark.soak
def test_busy_training_misses_no_heartbeat(vhost: str, make_stage: MakeStage) -> None:
    """The training thread computes in pure Python for four times the heartbeat (of 2 s here) without a pause. The link
    has a thread of its own, gets its turns, and the connection stays."""
    stage = make_stage(
        vhost,
        size=MANY_PARTS,
        patches=SMALL_PARTS | {"broker.link.rabbitmq.settings:_HEARTBEAT_SECONDS": 2},
    )
    workers = [*stage.workers("w1", "w2"), stage.worker("w3", busy_seconds=7)]
    coordinator = stage.coordinator(rounds=1)
    assert [actor.ended(90) for actor in [coordinator, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)
    assert "Reconnecting" not in stage.story


@pytest.mark.soak
def test_busy_training_of_three_minutes_outlasts_the_delivery_timeout(impatient_stage: Stage) -> None:
    """Three minutes of pure Python under a delivery timeout of 6 s, with the real heartbeats of 15 s."""
    workers = [*impatient_stage.workers("w1", "w2"), impatient_stage.worker("w3", busy_seconds=180)]
    coordinator = impatient_stage.coordinator(rounds=1, run={"deadline_seconds": 600.0})
    assert [actor.ended(300) for actor in [coordinator, *workers]] == [0, 0, 0, 0], impatient_stage.story
    impatient_stage.assert_same_bits(rounds=1)
    impatient_stage.assert_nobody_trained_twice()
    assert "Reconnecting" not in impatient_stage.story


@pytest.mark.soak
def test_training_that_blocks_python_for_a_minute(vhost: str, make_stage: MakeStage) -> None:
    """The same with the real heartbeats of 15 s, blocked for 60 s."""
    stage = make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS)
    workers = [*stage.workers("w1", "w2"), stage.worker("w3", holds_gil_seconds=60)]
    coordinator = stage.coordinator(rounds=1, run={"deadline_seconds": 600.0})
    assert [actor.ended(150) for actor in [coordinator, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)
    stage.assert_nobody_trained_twice()
