"""A model that answers NaN is never committed: the round names whose update made it so, and the last one stays."""

from tests.faults.actors import Break
from tests.faults.stage import Stage

TOO_MUCH = 50_000.0  #: each value is finite and within ±2^16, and the model made of them answers nothing


def test_an_update_that_makes_the_model_fail_is_rejected_and_the_round_goes_on(stage: Stage) -> None:
    """One of three sends values that pass every bound and spoil the model. It is found out before the commit, named,
    and left out; the others answer again without training again, and each round has the bits of the two of them."""
    stage.workers("w1", "w2")
    stage.worker("w3", spoils=TOO_MUCH, once=False)
    coordinator = stage.coordinator(run={"quorum": 2, "grace_seconds": 20.0, "retries": 2})
    assert coordinator.ended(60) == 0, stage.story
    coordinator.says("without w3: with its update its model answers NaN or infinity")
    history = stage.checkpoint.history
    assert all("NaN or infinity" in row.rejected["w3"] for row in history[1:]), stage.story
    assert [sorted(row.accepted) for row in history[1:]] == [["w1", "w2"]] * 3
    stage.assert_same_bits(workers={"w1": 100, "w2": 110})
    stage.assert_nobody_trained_twice()


def test_a_model_that_fails_by_nobodys_single_fault_ends_the_run_with_the_last_good_one(stage: Stage) -> None:
    """All updates are alike, and too large: exit code 5, the sizes told, the committed model untouched."""
    workers = stage.workers(spoils=TOO_MUCH, once=False)
    coordinator = stage.coordinator(rounds=2)
    assert coordinator.ended() == 5, stage.story
    coordinator.says(
        "Round 1 is not committed: its model answers NaN or infinity. Largest change of a weight: "
    )
    coordinator.says("The model of round 0 stays.")
    assert stage.committed_round == 0
    assert all(actor.is_running for actor in workers)


def test_a_coordinator_killed_while_it_tries_the_model_goes_on_and_finds_the_same(stage: Stage) -> None:
    """The round is open until it is committed: what was judged is judged again."""
    stage.workers("w1", "w2")
    stage.worker("w3", spoils=TOO_MUCH, once=False)
    run = {"quorum": 2, "grace_seconds": 20.0}
    coordinator = stage.coordinator(run=run, breaks=(Break(point="checkpoint", count=2),))
    assert coordinator.ended(60) == -9
    again = stage.coordinator(run=run)
    assert again.ended(60) == 0, stage.story
    stage.assert_same_bits(workers={"w1": 100, "w2": 110})
