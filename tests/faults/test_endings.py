"""Who is refused, leaves, crashes or is told to stop ends for the right reason, and is not stuck afterwards."""

import pytest

from broker.audit import AUDIT_FILE
from broker.link.seam import Queue, coordinator_queue, dead_queue, outgoing, worker_queue
from broker.wire.messages import Refused
from tests.brokers import at_load
from tests.faults.conftest import MakeStage
from tests.faults.stage import LARGE, MANY_PARTS, SMALL_PARTS, Actor, Stage, drained, lines_of, passed

COUNT = 100
OTHER_CLASSES = ("no", "maybe")


# --- refused ---------------------------------------------------------------------------------------------------


def refused(stage: Stage) -> Actor:
    """A worker that was refused for its classes, and has ended."""
    actor = stage.worker("w3", classes=OTHER_CLASSES)
    assert actor.ended() == 5
    actor.says("The coordinator refused w3: its classes are")
    return actor


def test_a_refused_worker_takes_part_with_mended_data(stage: Stage) -> None:
    """The refusal is acknowledged before the worker ends: started again with other data, it is in the same run.

    It comes after the roll call, to which it would say a second time that it is there, and be refused twice.
    """
    workers = stage.workers("w1", "w2")
    coordinator = stage.coordinator(rounds=2)
    coordinator.says("Waiting for workers: 2 of 3 joined (w1, w2)")
    refused(stage)
    assert drained(stage.link(), "worker.w3") == []
    mended = stage.worker("w3")
    assert [actor.ended() for actor in [coordinator, mended, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=2)


@pytest.mark.parametrize(("version", "older"), [(1, "w3"), (3, "this coordinator")])
def test_a_worker_of_another_version_is_refused_by_name_and_ends(
    stage: Stage, version: int, older: str
) -> None:
    """Both logs and the audit log say which side to upgrade, `dead` is empty, and the run is that of the others."""
    speaks: dict[str, float] = {
        "broker.wire.messages:VERSION": version,
        "broker.wire.versions:VERSION": version,
        "worker.rounds.listener:VERSION": version,
    }
    if version == 1:
        speaks["worker.rounds.listener:_TOKEN_BYTES"] = 0  # there were no tokens in version 1
    coordinator = stage.coordinator(rounds=2, run={"workers": 2, "quorum": 2})
    other = stage.worker("w3", patches=speaks)
    assert other.ended() == 5
    other.says(
        f"The coordinator refused w3: this worker speaks version {version} of the wire, the coordinator 2"
    )
    coordinator.says(
        f"Refused w3: w3 speaks version {version} of the wire, this coordinator 2: upgrade {older}."
    )
    workers = stage.workers("w1", "w2")
    assert [actor.ended() for actor in [coordinator, *workers]] == [0, 0, 0], stage.story
    assert drained(stage.link(), "dead") == []
    told = [line for line in lines_of(stage.out / AUDIT_FILE) if line["event"] == "refused"]
    assert [(line["worker"], line["account"]) for line in told] == [("w3", "guest")]
    assert f"upgrade {older}" in told[0]["reason"]


def test_a_refused_worker_takes_part_in_the_next_run(stage: Stage) -> None:
    """Nothing of the run that refused it is left in its queue for the next."""
    workers = stage.workers("w1", "w2")
    first = stage.coordinator(rounds=1, out=stage.folder / "first")
    refused(stage)
    first.terminate()
    coordinator = stage.coordinator(rounds=1)
    mended = stage.worker("w3")
    assert [actor.ended() for actor in [coordinator, mended, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)


def test_a_refusal_of_a_former_process_ends_nobody(stage: Stage) -> None:
    """The worker was killed before it heard that it was refused: the word waits in its queue, and the next process of
    this name acknowledges and ignores it."""
    link = stage.link()
    link.declare([worker_queue("w3")])
    old = Refused(worker="w3", reason="its classes were others", token="0123456789abcdef")
    link.publish([outgoing(old, "worker.w3")])
    actors = [*stage.workers(), stage.coordinator(rounds=1)]
    assert [actor.ended() for actor in actors] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)


# --- left, or killed -------------------------------------------------------------------------------------------


def ended_before_any_coordinator(stage: Stage, how: str) -> None:
    """w3 has joined the queue of a coordinator that is not there, and ended; longer ago than a transient word lives."""
    stage.link().declare([coordinator_queue(), dead_queue()])
    worker = stage.worker("w3")
    worker.says("Registered with the coordinator's queue")
    if how == "left":
        worker.terminate()
        assert worker.ended() == 0
        passed(11)
    else:
        worker.kill()


@pytest.mark.parametrize("how", ["left", "killed"])
def test_a_worker_that_ended_before_the_coordinator_started_does_not_count(stage: Stage, how: str) -> None:
    """Its `joined` waits in the queue. One that left has taken it back, however long ago; of one that was killed,
    nobody reads the queue. The run waits for a third worker, and begins with the one that comes back."""
    ended_before_any_coordinator(stage, how)
    workers = stage.workers("w1", "w2")
    coordinator = stage.coordinator(rounds=1)
    coordinator.says("Waiting for workers: 2 of 3 joined (w1, w2)")
    passed(1)
    assert "Round 1 of 1" not in coordinator.said
    again = stage.worker("w3")
    assert [actor.ended() for actor in [coordinator, again, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)


def test_a_killed_workers_word_does_not_invite_it_to_the_open_round(stage: Stage) -> None:
    """The coordinator is killed in mid-round; a fourth worker joins and is killed too. The coordinator that goes on
    finds its word, and does not invite it: the round closes as soon as the three have answered, without a grace."""
    workers = stage.workers(train_seconds=3)
    first = stage.coordinator(rounds=1)
    stage.wait(lambda: stage.has_begun("w1", 1), 30, "round 1")
    first.kill()
    fourth = stage.worker("w4")
    fourth.says("Registered with the coordinator's queue")
    fourth.kill()
    second = stage.coordinator(rounds=1)
    assert [actor.ended() for actor in [second, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)


# --- crashed ---------------------------------------------------------------------------------------------------


def test_a_worker_that_crashes_while_it_answers_says_so_and_goes_on(stage: Stage) -> None:
    """Whatever training raises, the coordinator is told its kind and first line, not left to wait for the deadline of
    an hour; the traceback is in the worker's own log. The worker stays, and answers the next attempt."""
    workers = [*stage.workers("w2", "w3"), stage.worker("w1", crashes=1)]
    coordinator = stage.coordinator(rounds=1, run={"deadline_seconds": 3600.0})
    assert [actor.ended() for actor in [coordinator, *workers]] == [0, 0, 0, 0], stage.story
    coordinator.says("w1 can't answer: RuntimeError: You must compile the model.")
    assert "second line" not in coordinator.said
    assert "Traceback" in workers[-1].said
    assert stage.checkpoint.history[1].attempt == 2
    stage.assert_same_bits(rounds=1)


def test_an_update_that_can_not_be_uploaded_is_declined(vhost: str, make_stage: MakeStage) -> None:
    """A bug on the way out (here: a part that can not be encoded) is told like one in training."""
    stage = make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS)
    stage.workers("w2", "w3", once=False)
    broken = stage.worker("w1", once=False, patches={"worker.rounds.uploading:encode_message": 0})
    coordinator = stage.coordinator(rounds=1, run={"deadline_seconds": 3600.0})
    assert coordinator.ended() == 4, stage.story
    coordinator.says("w1: TypeError: 'int' object is not callable")
    assert broken.is_running
    assert "Traceback" in broken.said


# --- a queue with other arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["coordinator", "dead", "worker.w1", "upload.w1"])
def test_a_queue_with_other_arguments_ends_who_needs_it_with_what_to_do(stage: Stage, queue: str) -> None:
    """Made by hand, or by another version: exit code 3, and one line that names the queue to delete. A worker without
    an account needs a queue for its uploads when it has a large one."""
    stage.link().declare([Queue(name=queue, keys=(queue,), max_length=7)])
    stage.size = LARGE
    actor = stage.worker("w1") if queue.endswith("w1") else stage.coordinator()
    if queue == "upload.w1":
        stage.coordinator(rounds=1, run={"workers": 1})
    assert actor.ended() == 3
    (line,) = (line for line in actor.said.splitlines() if line.startswith("Error"))
    assert f"The queue '{queue}' exists with other arguments; delete it" in line
    assert f"rabbitmqctl delete_queue {queue}" in line
    assert "Traceback" not in actor.said


def test_a_queue_that_comes_back_with_other_arguments_is_told_once_and_waited_for(stage: Stage) -> None:
    """Somebody deletes the coordinator's queue in mid-round, and makes it anew by hand: the coordinator says once that
    it can't connect again, the deadline stands still, and when the queue is deleted the run ends with the same bits."""
    workers = stage.workers(train_seconds=3)
    coordinator = stage.coordinator(rounds=1, run={"deadline_seconds": 6.0})
    stage.wait(lambda: stage.has_begun("w3", 1), 30, "round 1")
    link = stage.link()
    link.delete(["coordinator"])
    link.declare([Queue(name="coordinator", keys=("coordinator",), max_length=7)])
    coordinator.says("Not connected again, but trying until it works: The queue 'coordinator' exists")
    passed(8)
    assert coordinator.said.count("Not connected again") == 1
    assert "Connected to the broker again." not in coordinator.said
    link.delete(["coordinator"])
    assert [actor.ended() for actor in [coordinator, *workers]] == [0, 0, 0, 0], stage.story
    assert stage.checkpoint.history[1].attempt == 1
    stage.assert_same_bits(rounds=1)
    stage.assert_nobody_trained_twice()


# --- a swarm ---------------------------------------------------------------------------------------------------


def left_by(stage: Stage) -> list[str]:
    """The queues of the swarm that are still there."""
    link = stage.link()
    left = [queue for queue in ("worker.s", "upload.s") if link.consumers(queue) is not None]
    link.close()
    return left


def assert_ended_well(stage: Stage, swarm: Actor) -> None:
    assert swarm.ended(60) == 0, swarm.said[-3000:]
    assert left_by(stage) == []
    assert "Error" not in swarm.said
    assert "Reconnecting" not in swarm.said


def test_a_swarm_ends_with_0_and_leaves_no_queue(stage: Stage) -> None:
    """A hundred workers take part in a run and leave after it, several times: it stops reading its queues before it
    deletes them, and that is no lost connection."""
    for number in range(4):
        swarm = stage.swarm(COUNT)
        coordinator = stage.coordinator(rounds=1, run={"workers": COUNT}, out=stage.folder / f"run-{number}")
        assert coordinator.ended(60) == 0, stage.story
        assert_ended_well(stage, swarm)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_a_swarm_told_to_stop_while_it_joins_leaves_no_queue(stage: Stage, seconds: float) -> None:
    """Wherever it is: its queues are being made, claimed, or have joined."""
    stage.link().declare([coordinator_queue(), dead_queue()])
    link = stage.link()
    swarm = stage.swarm(COUNT)
    stage.wait(lambda: link.consumers("worker.s") is not None, 20, "the first queue")
    passed(seconds)
    swarm.terminate()
    assert_ended_well(stage, swarm)


def test_a_swarm_told_to_stop_while_it_trains_leaves_no_queue(stage: Stage) -> None:
    """In mid-training: it leaves the step, says once that all have left, and deletes its queues."""
    swarm = stage.swarm(COUNT, train_seconds=60)
    coordinator = stage.coordinator(rounds=1, run={"workers": COUNT})
    stage.wait(lambda: bool(stage.notes()), 30, "round 1")
    assert swarm.terminate() < at_load(5)
    assert_ended_well(stage, swarm)
    coordinator.says("s left, with 100 workers.")


def test_a_second_swarm_of_the_name_keeps_its_queues_when_the_first_ends(stage: Stage) -> None:
    """It waits behind the first, and takes over: what it reads is not deleted under it."""
    stage.link().declare([coordinator_queue(), dead_queue()])
    first = stage.swarm(COUNT)
    first.says("Registered")
    second = stage.swarm(COUNT)
    second.says("Another process reads the queue 'worker.s'")
    first.terminate()
    assert first.ended() == 0
    second.says("Registered")
    assert left_by(stage) == ["worker.s"]
    second.terminate()
    assert_ended_well(stage, second)
