"""The network between one actor and the broker is cut, swallows, crawls, or is half open."""

from collections.abc import Iterator

import pytest

from tests.faults.conftest import MakeStage
from tests.faults.forwarder import Forwarder
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, Actor, Stage, passed

QUICK_HEARTBEAT: dict[str, float] = {"broker.link.rabbitmq.settings:_HEARTBEAT_SECONDS": 2}


@pytest.fixture
def forwarder(vhost: str) -> Iterator[Forwarder]:
    """Between one actor and the broker."""
    with Forwarder(vhost) as forwarder:
        yield forwarder


@pytest.fixture
def parts_stage(vhost: str, make_stage: MakeStage) -> Stage:
    """A model of 25 parts, heartbeats of 2 s."""
    return make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS | QUICK_HEARTBEAT)


def cast(
    stage: Stage, forwarder: Forwarder, role: str, rounds: int = 2, deadline_seconds: float = 60.0
) -> tuple[Actor, list[Actor]]:
    """All actors; one of them behind the forwarder. That one, and all."""
    urls = {role: {"amqp_url": forwarder.amqp_url}}
    workers = [stage.worker(name, train_seconds=2, **urls.get(name, {})) for name in ("w1", "w2", "w3")]
    run = {"deadline_seconds": deadline_seconds}
    coordinator = stage.coordinator(rounds=rounds, run=run, **urls.get("coordinator", {}))
    return (coordinator if role == "coordinator" else workers[0]), [coordinator, *workers]


def assert_undisturbed(stage: Stage, actors: list[Actor], rounds: int = 2) -> None:
    assert [actor.ended(90) for actor in actors] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=rounds)
    stage.assert_nobody_trained_twice()


mostly_one = pytest.mark.parametrize("role", ["coordinator", pytest.param("w1", marks=pytest.mark.soak)])


@mostly_one
def test_a_cut_network_is_connected_again(parts_stage: Stage, forwarder: Forwarder, role: str) -> None:
    """Connections end, and new ones are refused for 3 s. The actor reconnects by itself, and nothing is lost."""
    actor, actors = cast(parts_stage, forwarder, role)
    parts_stage.wait(lambda: parts_stage.has_begun("w1", 1), 30, "round 1")
    forwarder.cut()
    actor.says("Reconnecting.")
    passed(3)
    forwarder.restore()
    actor.says("Connected to the broker again.")
    assert_undisturbed(parts_stage, actors)


@mostly_one
def test_a_black_hole_is_noticed_by_its_silence(parts_stage: Stage, forwarder: Forwarder, role: str) -> None:
    """Bytes go nowhere, and no FIN tells of it. Missing heartbeats do: the actor gives the connection up, and connects
    again when the network is well. It says so once, whether its first sign was a message that nobody confirms or the
    silence, and once that it is over."""
    actor, actors = cast(parts_stage, forwarder, role)
    parts_stage.wait(lambda: parts_stage.has_begun("w1", 1), 30, "round 1")
    forwarder.swallow()
    parts_stage.wait(lambda: f"{role}, broker-consume" in parts_stage.away, 40, "the end of its connection")
    forwarder.restore()
    parts_stage.wait(lambda: not parts_stage.away, 60, "the next connections")
    assert_undisturbed(parts_stage, actors)
    for either in (
        ("Reconnecting.", "has not confirmed"),
        ("Connected to the broker again.", "takes messages again"),
    ):
        assert sum(map(actor.said.count, either)) == 1, actor.said


def test_a_silent_broker_does_not_cost_a_round_its_deadline(
    vhost: str, make_stage: MakeStage, forwarder: Forwarder
) -> None:
    """The coordinator's connection is there, and nothing it sends is confirmed, as by a broker that has lost its
    majority: it says so in one line, and the deadline of 8 s stands still for the 14 s that this lasts."""
    stage = make_stage(vhost)
    coordinator, actors = cast(stage, forwarder, "coordinator", rounds=1, deadline_seconds=8.0)
    stage.wait(lambda: stage.has_begun("w3", 1), 30, "round 1")
    forwarder.swallow()
    coordinator.says("The broker has not confirmed a message for 5 s; waiting.")
    passed(7)
    assert "Reconnecting" not in coordinator.said
    assert coordinator.said.count("has not confirmed a message") == 1
    forwarder.restore()
    assert_undisturbed(stage, actors, rounds=1)
    assert stage.checkpoint.history[1].attempt == 1


@mostly_one
def test_a_half_open_predecessor_is_waited_for(parts_stage: Stage, forwarder: Forwarder, role: str) -> None:
    """The actor's side has ended, and the broker still takes it for connected: its queue has the old reader. The new
    connection waits behind it until the broker misses heartbeats, is then the active reader, and the run goes on."""
    actor, actors = cast(parts_stage, forwarder, role)
    parts_stage.wait(lambda: parts_stage.has_begun("w1", 1), 30, "round 1")
    forwarder.half_open()
    actor.says("Connected to the broker again.", 60)
    assert_undisturbed(parts_stage, actors)


@mostly_one
def test_a_very_slow_network_is_only_slow(parts_stage: Stage, forwarder: Forwarder, role: str) -> None:
    """1 MB a second for updates of 1.6 MB: heartbeats still pass, nothing is cut, nothing is sent twice."""
    _actor, actors = cast(parts_stage, forwarder, role, rounds=1)
    forwarder.bytes_per_second = 1_000_000
    assert_undisturbed(parts_stage, actors, rounds=1)
    assert forwarder.num_connections == 2
