"""A queue is deleted, emptied, or full, while a round is open."""

import pytest

from broker.hosting.management import Management
from tests.brokers import wait_until
from tests.faults.conftest import MakeStage
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, Stage

#: The roll call comes every 30 s; here every 2 s.
QUICK: dict[str, float] = SMALL_PARTS | {"coordinator.presence.session:_ROLL_CALL_SECONDS": 2}


@pytest.fixture
def parts_stage(vhost: str, make_stage: MakeStage) -> Stage:
    """A model of 25 parts."""
    return make_stage(vhost, size=MANY_PARTS, patches=QUICK)


@pytest.mark.parametrize("what", ["purge", "delete"])
@pytest.mark.parametrize("queue", ["coordinator", "upload.w1", "worker.w1"])
def test_a_lost_queue_is_noticed_and_the_round_ends(parts_stage: Stage, queue: str, what: str) -> None:
    """Somebody deletes or empties a queue, with the update of w1 in it or on its way. The queue is made again, and
    what was in it is asked for again, not waited for until the deadline; nobody trains twice."""
    stage = parts_stage
    stage.worker("w1")
    stage.workers("w2", "w3", train_seconds=1.5)
    coordinator = stage.coordinator(rounds=1, breaks=(stage.hold("fetch"),), run={"deadline_seconds": 600.0})
    stage.reached("fetch")
    link = stage.link()
    link.purge(queue) if what == "purge" else link.delete([queue])
    stage.let_go("fetch")
    assert coordinator.ended(60) == 0, stage.story
    stage.assert_same_bits(rounds=1)
    stage.assert_nobody_trained_twice()


@pytest.mark.parametrize("what", ["purge", "delete"])
def test_lost_announcements_are_asked_for_again(parts_stage: Stage, what: str) -> None:
    """The coordinator is away; all updates are announced, and its queue is emptied. Its next roll call finds workers
    that have announced what nobody has: it asks for the updates again, and nobody trains twice."""
    stage = parts_stage
    stage.workers(train_seconds=1)
    first = stage.coordinator(rounds=2, run={"deadline_seconds": 600.0})
    stage.wait(lambda: stage.has_begun("w3", 1), 30, "round 1")
    first.kill()
    stage.wait(lambda: len(stage.notes("ended")) == 3, 30, "all trainings")
    link = stage.link()
    wait_until(lambda: sum(stage.num_ready(f"upload.{name}") for name in ("w1", "w2", "w3")) == 75, 20)
    link.purge("coordinator") if what == "purge" else link.delete(["coordinator"])
    second = stage.coordinator(rounds=2, run={"deadline_seconds": 600.0})
    assert second.ended(60) == 0, stage.story
    stage.assert_same_bits(rounds=2)
    stage.assert_nobody_trained_twice()


@pytest.mark.parametrize("queue", ["upload.w1", "coordinator"])
def test_a_full_queue_is_told_and_the_round_ends(
    parts_stage: Stage, management: Management, queue: str
) -> None:
    """A policy lets a queue hold so little that an update, or anything at all, is refused. Who is refused says so and
    tries again; when the policy is gone the run ends with the same bits."""
    stage = parts_stage
    vhost = stage.amqp_url.rsplit("/", 1)[1]
    stage.workers(train_seconds=2)
    coordinator = stage.coordinator(rounds=1, run={"deadline_seconds": 600.0})
    stage.wait(lambda: len(stage.notes()) == 3, 30, "round 1")
    limit = {"max-length-bytes": 100, "overflow": "reject-publish"}
    management.put_policy(vhost, "tight", pattern=f"^{queue.replace('.', '[.]')}$", definition=limit)
    stage.wait(
        lambda: "a queue is full, or its nodes are away" in stage.story or queue == "coordinator",
        30,
        "the refusal",
    )
    management.api.delete("policies", vhost, "tight")
    assert coordinator.ended(60) == 0, stage.story
    stage.assert_same_bits(rounds=1)
    stage.assert_nobody_trained_twice()


def test_a_full_worker_queue_does_not_hold_up_the_others(parts_stage: Stage, management: Management) -> None:
    """One invited worker is dead, and its queue refuses the round start. The coordinator says so; the others get
    theirs, the round closes on the quorum, and the one without is late."""
    stage = parts_stage
    vhost = stage.amqp_url.rsplit("/", 1)[1]
    dead = stage.worker("w1")
    stage.workers("w2", "w3")
    coordinator = stage.coordinator(
        rounds=1, breaks=(stage.hold("open-round"),), run={"quorum": 2, "grace_seconds": 1.0}
    )
    stage.reached("open-round")
    dead.kill()
    limit = {"max-length": 5, "overflow": "reject-publish"}
    management.put_policy(vhost, "tight", pattern="^worker[.]w1$", definition=limit)
    stage.let_go("open-round")
    assert coordinator.ended(60) == 0, stage.story
    coordinator.says("a queue is full, or its nodes are away")
    assert stage.checkpoint.history[1].late == ("w1",)
    assert sorted(stage.checkpoint.history[1].accepted) == ["w2", "w3"]
