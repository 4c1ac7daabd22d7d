"""Two coordinators where there may be one."""

from tests.faults.stage import Stage


def test_a_second_coordinator_on_the_same_virtual_host_ends(stage: Stage) -> None:
    """Another coordinator reads the queue. The second is given nothing by the broker, waits as long as a half-open
    predecessor could live, and ends with exit code 2; the first goes on undisturbed."""
    first = stage.coordinator()
    first.says("Waiting for workers")
    second = stage.coordinator(out=stage.folder / "other", claim_seconds=2)
    assert second.ended() == 2
    second.says("name is in use")
    workers = stage.workers()
    assert [actor.ended() for actor in [first, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits()


def test_a_second_coordinator_in_the_same_folder_ends_at_once(stage: Stage) -> None:
    """Two processes would write one checkpoint. The folder is locked: the second ends with exit code 2, and touches
    neither the folder nor the broker."""
    first = stage.coordinator()
    first.says("Waiting for workers")
    before = {path.name: path.read_bytes() for path in stage.out.iterdir()}
    second = stage.coordinator()
    assert second.ended(10) == 2
    second.says("Another coordinator works on")
    assert {path.name: path.read_bytes() for path in stage.out.iterdir()} == before


def test_a_standby_takes_over_when_the_first_dies(stage: Stage) -> None:
    """The first is killed in mid-round. The one that stood by takes the folder and the queue, and ends the run with
    the same bits; nobody trains twice."""
    workers = stage.workers(train_seconds=0.5)
    first = stage.coordinator()
    first.says("Round 2 of 3")
    standby = stage.coordinator(run={"standby": True})
    stage.wait(lambda: stage.has_begun("w1", 2), 20, "round 2")
    first.kill()
    assert [actor.ended() for actor in [standby, *workers]] == [0, 0, 0, 0], stage.story
    standby.says("Round 2 was open" if "was open" in standby.said else "Going on after round")
    stage.assert_same_bits()
    stage.assert_nobody_trained_twice()


def test_a_second_worker_of_the_same_name_ends(stage: Stage) -> None:
    """Two workers of one name would answer for each other. The second ends with exit code 2; the first goes on."""
    first = stage.worker("w1")
    stage.coordinator()
    stage.workers("w2")
    first.says("Registered")
    second = stage.worker("w1", claim_seconds=2)
    assert second.ended() == 2
    second.says("name is in use")
    stage.worker("w3")
    assert first.ended() == 0
    stage.assert_same_bits()
