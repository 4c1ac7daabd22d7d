"""The broker is stopped, killed, away, or takes nothing for a while."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from broker.hosting.private import PrivateBroker
from broker.link.seam import Outgoing, worker_queue
from tests.brokers import ALARMS, at_load, control, started_broker, wait_until
from tests.faults.conftest import MakeStage
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, Stage, drained, passed


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """A broker that the tests of this file may stop and kill."""
    with started_broker(tmp_path_factory.mktemp("own-broker")) as broker:
        yield broker


@pytest.fixture
def own_stage(own_broker: PrivateBroker, make_stage: MakeStage) -> Iterator[Stage]:
    """A stage on it; the queues are gone afterwards."""
    own_broker.start()
    stage = make_stage(own_broker.amqp_url, size=MANY_PARTS, patches=SMALL_PARTS)
    yield stage
    own_broker.start()
    stage.close()
    link = stage.link(own_broker.amqp_url)
    names = [f"{kind}.{name}" for name in ("w1", "w2", "w3") for kind in ("worker", "upload")]
    link.delete(["coordinator", "dead", *names])
    stage.close()


@contextmanager
def alarmed(stage: Stage, broker: PrivateBroker, kind: str = "memory") -> Iterator[None]:
    """The broker is short of memory, or of disk, meanwhile; workers that were held before their training then upload.

    Who sends nothing during an alarm is not told of it.
    """
    alarm, clear = ALARMS[kind]
    stage.reached("train")
    control(broker, *alarm)
    try:
        stage.let_go("train")
        yield
    finally:
        control(broker, *clear)


def restarted(broker: PrivateBroker, end: Callable[[PrivateBroker], None]) -> None:
    end(broker)
    broker.start()


mostly_stopped = pytest.mark.parametrize(
    "end",
    [PrivateBroker.stop, pytest.param(PrivateBroker.kill, marks=pytest.mark.soak)],
    ids=["SIGTERM", "SIGKILL"],
)
mostly_killed = pytest.mark.parametrize(
    "end",
    [pytest.param(PrivateBroker.stop, marks=pytest.mark.soak), PrivateBroker.kill],  # a clean stop takes 6 s
    ids=["SIGTERM", "SIGKILL"],
)


def assert_undisturbed(stage: Stage, actors: list[object], rounds: int) -> None:
    assert [actor.ended(90) for actor in actors] == [0] * len(actors), stage.story  # type: ignore[attr-defined]
    stage.assert_same_bits(rounds=rounds)
    stage.assert_nobody_trained_twice()
    for actor in stage.actors:
        assert actor.said.count("Connected to the broker again.") >= 1, actor.said
    assert stage.leftovers() == {}, stage.story


@mostly_killed
def test_the_broker_restarts_while_weights_go_out(
    own_stage: Stage, own_broker: PrivateBroker, end: Callable[[PrivateBroker], None]
) -> None:
    """It goes away with 10 of 25 parts sent. Both sides reconnect by themselves, what was sent is sent again or still
    there, and nobody trains twice."""
    workers = own_stage.workers()
    coordinator = own_stage.coordinator(rounds=2, breaks=(own_stage.hold("send-part", count=11),))
    own_stage.reached("send-part")
    restarted(own_broker, end)
    own_stage.let_go("send-part")
    assert_undisturbed(own_stage, [coordinator, *workers], 2)


def test_the_broker_is_killed_with_a_whole_round_start_in_it(
    own_stage: Stage, own_broker: PrivateBroker
) -> None:
    """One worker is frozen while the round goes out, and the broker, which writes no round start to its disk, is killed
    with all of it. It is sent to that worker again, and to no other."""
    frozen, *others = own_stage.workers()
    coordinator = own_stage.coordinator(rounds=2, breaks=(own_stage.hold("sent"),))
    own_stage.reached("sent")
    frozen.signal(signal.SIGSTOP)
    own_stage.let_go("sent")
    own_stage.wait(lambda: own_stage.has_begun("w2", 1) and own_stage.has_begun("w3", 1), 30, "round 1")
    restarted(own_broker, PrivateBroker.kill)
    frozen.signal(signal.SIGCONT)
    assert_undisturbed(own_stage, [coordinator, frozen, *others], 2)
    assert coordinator.said.count("Round 1 is sent to w1.") == 1, coordinator.said
    assert "is sent to w2" not in coordinator.said


def test_what_is_said_again_is_not_on_the_brokers_disk(own_stage: Stage, own_broker: PrivateBroker) -> None:
    """A killed broker has what its sender may forget, and not what the sender says again by itself."""
    link = own_stage.link()
    link.declare([worker_queue("w1")])
    sent = [
        Outgoing(key="worker.w1", body=body, message_type="part", is_said_again=is_said_again)
        for body, is_said_again in ((b"start", True), (b"finished", False))
    ]
    link.publish(sent)
    link.close()
    restarted(own_broker, PrivateBroker.kill)
    assert [delivery.body for delivery in drained(own_stage.link(), "worker.w1")] == [b"finished"]


@mostly_stopped
def test_the_broker_restarts_while_workers_train(
    own_stage: Stage, own_broker: PrivateBroker, end: Callable[[PrivateBroker], None]
) -> None:
    """It goes away in mid-training. Training goes on without it, and the update is published when it is back."""
    workers = [own_stage.worker("w1"), *own_stage.workers("w2", "w3", train_seconds=4)]
    coordinator = own_stage.coordinator(rounds=1)
    own_stage.wait(lambda: own_stage.has_begun("w2", 1) and own_stage.has_begun("w3", 1), 30, "round 1")
    restarted(own_broker, end)
    assert_undisturbed(own_stage, [coordinator, *workers], 1)


@mostly_killed
def test_the_broker_restarts_while_updates_come_in(
    own_stage: Stage, own_broker: PrivateBroker, end: Callable[[PrivateBroker], None]
) -> None:
    """It goes away with one update half published and another half fetched: each is published, or fetched, again."""
    workers = [
        own_stage.worker("w1"),
        own_stage.worker("w2", breaks=(own_stage.hold("upload-part", count=11),)),
        own_stage.worker("w3"),
    ]
    coordinator = own_stage.coordinator(rounds=1, breaks=(own_stage.hold("fetch", count=11),))
    own_stage.reached("upload-part")
    own_stage.reached("fetch")
    restarted(own_broker, end)
    own_stage.let_go("upload-part")
    own_stage.let_go("fetch")
    assert_undisturbed(own_stage, [coordinator, *workers], 1)


def test_the_broker_is_away_for_long(own_stage: Stage, own_broker: PrivateBroker) -> None:
    """Nobody answers for 12 s and a broker's start. Both sides say so in one line, try again with growing delays, say
    in one line that it is back, and lose nothing; the deadline of 15 s counts connected time alone."""
    workers = own_stage.workers(train_seconds=3)
    coordinator = own_stage.coordinator(rounds=1, run={"deadline_seconds": 15.0})
    own_stage.wait(lambda: own_stage.has_begun("w1", 1), 30, "round 1")
    own_broker.kill()
    passed(12)
    own_broker.start()
    assert_undisturbed(own_stage, [coordinator, *workers], 1)
    assert own_stage.checkpoint.history[1].attempt == 1
    for actor in own_stage.actors:
        assert actor.said.count("Reconnecting.") == actor.said.count("Connected to the broker again."), (
            actor.said
        )
        assert actor.said.count("Reconnecting.") <= 2


@pytest.mark.parametrize("role", ["coordinator", "worker"])
def test_a_process_told_to_stop_while_the_broker_is_away_stops(
    own_stage: Stage, own_broker: PrivateBroker, role: str
) -> None:
    """The broker is gone, and a process that waits for it gets SIGTERM: it ends within seconds, the worker with 0, the
    coordinator with 128 + 15 and a folder to go on from."""
    workers = own_stage.workers(train_seconds=60)
    coordinator = own_stage.coordinator(rounds=1)
    own_stage.wait(lambda: own_stage.has_begun("w1", 1), 30, "round 1")
    own_broker.kill()
    actor = coordinator if role == "coordinator" else workers[0]
    actor.says("Reconnecting.")
    assert actor.terminate() < at_load(5)
    assert actor.ended() == (128 + 15 if role == "coordinator" else 0)


@pytest.mark.parametrize("kind", ["memory", pytest.param("disk", marks=pytest.mark.soak)])
def test_an_alarm_is_waited_out(own_stage: Stage, own_broker: PrivateBroker, kind: str) -> None:
    """The broker is short of memory or disk, and takes no messages. Both sides say so, wait without failing or
    reconnecting, and go on when it takes messages again."""
    workers = own_stage.workers(breaks=(own_stage.hold("train"),))
    coordinator = own_stage.coordinator(rounds=4)
    with alarmed(own_stage, own_broker, kind):
        workers[0].says("The broker takes no messages now")
        passed(1)  # what had come before may still be taken
        committed = own_stage.committed_round
        passed(4)
        assert own_stage.committed_round == committed < 4
    assert [actor.ended(90) for actor in [coordinator, *workers]] == [0, 0, 0, 0], own_stage.story
    own_stage.assert_same_bits(rounds=4)
    own_stage.assert_nobody_trained_twice()
    workers[0].says("The broker takes messages again.")
    assert "Reconnecting" not in own_stage.story


def test_an_alarm_in_which_both_sides_are_cut_off_is_no_other_reader(
    own_stage: Stage, own_broker: PrivateBroker
) -> None:
    """During a memory alarm all connections are cut: both sides come back, and their claims' pings are not taken for
    longer than another reader is waited for (here 3 s). Once it is over, nobody takes that for another reader: the run
    ends with the same bits. The alarm is longer than the deadline, too, which stands still."""
    workers = own_stage.workers(claim_seconds=3, breaks=(own_stage.hold("train"),))
    coordinator = own_stage.coordinator(rounds=1, claim_seconds=3, run={"deadline_seconds": 10.0})
    with alarmed(own_stage, own_broker):
        for actor in [coordinator, *workers]:
            actor.says("The broker takes no messages now")
        control(own_broker, "close_all_connections", "as a network's fault would")
        for actor in [coordinator, *workers]:
            actor.says("Connected to the broker again.")
        passed(11)
    assert [actor.ended(60) for actor in [coordinator, *workers]] == [0, 0, 0, 0], own_stage.story
    own_stage.assert_same_bits(rounds=1)
    own_stage.assert_nobody_trained_twice()
    assert own_stage.checkpoint.history[1].attempt == 1


def test_an_alarm_does_not_cost_a_round_its_deadline(own_stage: Stage, own_broker: PrivateBroker) -> None:
    """Nobody can send an update for longer than the deadline: the round is not tried again. Nor is a connection
    given up that confirms nothing meanwhile (here after 3 s)."""
    own_stage.patches = own_stage.patches | {"broker.link.rabbitmq.publishing:_CONFIRM_LIMIT_SECONDS": 3}
    workers = own_stage.workers(breaks=(own_stage.hold("train"),))
    coordinator = own_stage.coordinator(rounds=1, run={"deadline_seconds": 10.0})
    with alarmed(own_stage, own_broker):
        coordinator.says("The broker takes no messages now")
        passed(12)
    assert [actor.ended(60) for actor in [coordinator, *workers]] == [0, 0, 0, 0], own_stage.story
    assert "Connecting anew" not in own_stage.story
    own_stage.assert_same_bits(rounds=1)
    assert own_stage.checkpoint.history[1].attempt == 1


def test_the_first_connection_is_given_up_the_next_never(own_stage: Stage, own_broker: PrivateBroker) -> None:
    """Nobody answers at the start: exit code 3 after --connect-seconds, with the address and what to try."""
    own_broker.kill()
    actors = [own_stage.worker("w1", connect_seconds=1), own_stage.coordinator(connect_seconds=1)]
    assert [actor.ended() for actor in actors] == [3, 3]
    for actor in actors:
        actor.says("Nothing listens at")
    wait_until(lambda: not own_broker.is_running(), 30)
