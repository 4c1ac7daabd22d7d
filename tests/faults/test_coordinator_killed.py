"""The coordinator is killed (SIGKILL) and started again with the same command line and folder."""

import shutil
import signal
from typing import Any

import pytest

from broker.audit import AUDIT_FILE
from broker.wire.versions import release
from tests.brokers import at_load
from tests.faults.actors import Break, undisturbed, undisturbed_median
from tests.faults.conftest import MakeStage
from tests.faults.forwarder import Forwarder
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, WORKERS, Stage, lines_of

STEPS = {
    "before the first checkpoint": Break(point="checkpoint"),
    "before a round is on disk": Break(point="open-round", count=2),
    "with a round on disk that nobody was told of": Break(point="open-round", when="after", count=2),
    "with one of three updates accepted": Break(point="settle", when="after", count=4),
    "with all updates of the last round in the broker": Break(point="settle", count=9),
    "before averaging": Break(point="average", count=2),
    "between averaging and checkpoint": Break(point="average", when="after", count=2),
    "with the checkpoint written aside, not renamed": Break(point="fsync", when="after", count=8),
    "between checkpoint and acknowledgement": Break(point="release", count=2),
    "between acknowledgement and telling the workers": Break(point="closed", count=2),
    "between checkpoint and model.keras": Break(point="save", count=3),
    "after the last round's checkpoint": Break(point="release", count=3),
    "after the last round": Break(point="finish"),
}
IN_PARTS = {
    "with 10 of 25 parts of the weights sent": Break(point="send-part", count=11),
    "with 10 of 25 parts of an update fetched": Break(point="fetch", count=25 + 11),
    "with two updates fetched, and half of the third": Break(point="fetch", count=60),
}


def assert_goes_on(stage: Stage, wanted: Break, strategy: str) -> None:
    workers = stage.workers()
    first = stage.coordinator(breaks=(wanted,), run={"strategy": strategy})
    assert first.ended() == -signal.SIGKILL, stage.story
    second = stage.coordinator(run={"strategy": strategy})
    assert [actor.ended() for actor in [second, *workers]] == [0, 0, 0, 0], stage.story
    expected = undisturbed_median if strategy == "median" else undisturbed
    stage.assert_bits(expected(WORKERS, rounds=3, size=stage.size), 3)
    assert not (stage.out / "updates").exists(), "what was spooled is removed"
    stage.assert_nobody_trained_twice()
    assert "loss" in stage.checkpoint.history[-1].test, stage.story
    model = (stage.out / "model.keras").read_text()
    assert model.startswith("3 ")
    assert len((stage.out / "history.csv").read_text().splitlines()) == 1 + 1 + 3
    assert stage.leftovers() == {}, stage.story


BOTH_KINDS = pytest.mark.parametrize("strategy", ["fedavg", "median"])  # a sum, and every update side by side


@BOTH_KINDS
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_coordinator_goes_on_and_nobody_trains_twice(stage: Stage, step: str, strategy: str) -> None:
    """Killed at this step. The broker gives back what was not acknowledged, and the folder says what is committed;
    the same command line ends with the same bits, and no worker trains a round twice because of it."""
    assert_goes_on(stage, STEPS[step], strategy)


@BOTH_KINDS
@pytest.mark.parametrize("step", IN_PARTS)
def test_a_coordinator_killed_among_parts_goes_on(
    vhost: str, make_stage: MakeStage, step: str, strategy: str
) -> None:
    """Killed with a transfer half done. Half a round start is thrown away and sent whole; half a fetched update is
    given back by the broker and fetched from the start: nothing is mixed, nothing counts twice."""
    assert_goes_on(make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS), IN_PARTS[step], strategy)


def test_held_updates_survive_a_dropped_link_and_then_a_kill(vhost: str, make_stage: MakeStage) -> None:
    """The link drops while two updates are held unacknowledged; they are delivered again, and then the coordinator is
    killed. To take the second delivery for a repeat and acknowledge it would lose both: the broker must still hold
    them for the next coordinator."""
    with Forwarder(vhost) as forwarder:
        stage = make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS)
        workers = [*stage.workers("w1", "w2"), stage.worker("w3", train_seconds=6)]
        first = stage.coordinator(rounds=1, amqp_url=forwarder.amqp_url, verbose=True)
        first.says("w1: accepted")
        first.says("w2: accepted")
        forwarder.drop()
        first.says("Connected to the broker again.")
        first.kill()
    second = stage.coordinator(rounds=1)
    assert [actor.ended() for actor in [second, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=1)
    stage.assert_nobody_trained_twice()
    assert stage.leftovers() == {}, stage.story


def test_a_coordinator_told_to_stop_goes_on_later(stage: Stage) -> None:
    """SIGTERM in mid-round: it stops within 2 seconds with 128 + 15; the workers stay, and the same command line goes
    on to the same bits."""
    workers = stage.workers(train_seconds=1.0)
    first = stage.coordinator()
    first.says("Round 2 of 3")
    assert first.terminate() < at_load(2)
    assert first.ended() == 128 + signal.SIGTERM
    second = stage.coordinator()
    assert [actor.ended() for actor in [second, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits()
    stage.assert_nobody_trained_twice()


def test_a_run_restored_from_an_older_copy_goes_on_at_once(stage: Stage) -> None:
    """The folder is lost, and put back as it was two rounds ago, while the workers live on and hold a later round: the
    newest start of the coordinator counts, not the highest number. No attempt is lost, and the bits are the same; the
    audit logs of both sides tell of every round that was played, twice where it was, and of the same updates."""
    logs = {worker: stage.folder / f"{worker}.jsonl" for worker in WORKERS}
    workers = [stage.worker(worker, audit=str(logs[worker])) for worker in WORKERS]
    first = stage.coordinator(
        rounds=4, breaks=(stage.hold("release", count=1), Break(point="average", count=4))
    )
    stage.reached("release")
    shutil.copytree(stage.out, stage.folder / "copy")
    stage.let_go("release")
    assert first.ended() == -signal.SIGKILL, stage.story
    assert stage.committed_round == 3
    shutil.copy(stage.out / AUDIT_FILE, stage.folder / "copy")  # it is appended to, and not restored
    shutil.rmtree(stage.out)
    shutil.copytree(stage.folder / "copy", stage.out)
    assert stage.committed_round == 1
    second = stage.coordinator(rounds=4)
    assert [actor.ended() for actor in [second, *workers]] == [0, 0, 0, 0], stage.story
    assert "trying again" not in second.said
    stage.assert_same_bits(rounds=4)
    _assert_audited(lines_of(stage.out / AUDIT_FILE), {name: lines_of(log) for name, log in logs.items()})


def _assert_audited(ours: list[dict[str, Any]], theirs: dict[str, list[dict[str, Any]]]) -> None:
    closed = [line for line in ours if line["event"] == "round-closed" and line["mode"] == "train"]
    assert [line["round"] for line in closed] == [1, 2, 3, 2, 3, 4]
    assert [line["round"] for line in ours if line["event"] == "run-resumed"] == [1]
    assert closed[1]["sha256"] == closed[3]["sha256"], "the same round once more, the same bits"
    assert [line["outcome"] for line in ours if line["event"] == "run-ended"] == ["done"]
    model_of = {line["round"]: line["sha256"] for line in closed}
    for worker, lines in theirs.items():
        sent = {line["upload"]: line.get("sha256") for line in lines if line["event"] == "update-sent"}
        taken = {
            line["upload"]: line["sha256"]
            for line in ours
            if line["event"] == "update-accepted" and line["worker"] == worker and "sha256" in line
        }
        assert len(taken) >= len(closed)
        assert taken.items() <= sent.items()
        begun = [line for line in lines if line["event"] == "round-received" and line["round"] > 1]
        assert {(line["round"] - 1, line["sha256"]) for line in begun} <= model_of.items()
        assert lines[0]["event"] == "registered"
        assert (lines[0]["account"], lines[0]["version"]) == ("guest", release())
    joined = {line["worker"]: line for line in ours if line["event"] == "joined"}
    assert joined.keys() == theirs.keys()
    assert {line["version"] for line in joined.values()} == {release()}


def test_a_worker_that_was_away_meanwhile_learns_of_the_end(stage: Stage) -> None:
    """Killed with all updates of the last round in the broker; one worker is frozen when the next coordinator asks who
    is there, which closes the round with its update and ends. When that worker wakes up, it finds the run's end."""
    workers = stage.workers()
    first = stage.coordinator(breaks=(STEPS["with all updates of the last round in the broker"],))
    assert first.ended() == -signal.SIGKILL, stage.story
    workers[0].signal(signal.SIGSTOP)
    assert stage.coordinator().ended() == 0, stage.story
    workers[0].signal(signal.SIGCONT)
    assert [actor.ended() for actor in workers] == [0, 0, 0], stage.story
    stage.assert_same_bits()
