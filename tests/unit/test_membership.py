"""Who takes part: what workers say of themselves, and who is selected."""

from broker.wire.messages import Joined
from coordinator.learning.membership import Roster, num_selected, select
from coordinator.play.admission import Admission


def joined(worker: str, *, evaluate_only: bool = False, num_examples: int = 10) -> Joined:
    return Joined(
        worker=worker, classes=("A", "B"), num_examples=num_examples, examples_per_class=(5, 5), num_test_examples=2,
        evaluate_only=evaluate_only, task=None, held=None, token="t",
    )  # fmt: skip


def test_the_newest_word_of_a_worker_counts() -> None:
    """A worker that comes back with more data is believed."""
    roster = Roster()
    roster.join(joined("a"))
    roster.join(joined("a", num_examples=20))
    assert Admission(roster, "mnist").num_examples(["a"]) == {"a": 20}


def test_an_absent_worker_is_not_selected_until_it_joins_again() -> None:
    """Present means: said so, and not found away since."""
    roster = Roster()
    roster.join(joined("b"))
    roster.join(joined("a"))
    roster.join(joined("e", evaluate_only=True))
    roster.set_present("b", is_present=False)
    admission = Admission(roster, "mnist")
    assert (admission.trainers, admission.evaluators) == (["a"], ["e"])
    roster.join(joined("b"))
    assert admission.trainers == ["a", "b"]


def test_a_fraction_selects_the_same_workers_for_the_same_seed_and_others_in_another_round() -> None:
    """Selection depends on (seed, round, attempt) alone, so a restarted coordinator selects the same."""
    workers = [f"w{number:02}" for number in range(50)]
    first = select(workers, 0.2, (7, 1, 1))
    assert first == select(workers, 0.2, (7, 1, 1))
    assert first != select(workers, 0.2, (7, 2, 1))
    assert len(first) == 10
    assert len(set(first)) == 10


def test_everybody_is_selected_by_default_and_nobody_from_nobody() -> None:
    """A fraction of 1 is all."""
    assert select(["a", "b"], 1.0, (0, 1, 1)) == ("a", "b")
    assert select([], 0.5, (0, 1, 1)) == ()


def test_a_fraction_invites_at_least_one() -> None:
    """max(⌊C · K⌋, 1)."""
    assert [num_selected(0.3, number) for number in (1, 3, 10)] == [1, 1, 3]
