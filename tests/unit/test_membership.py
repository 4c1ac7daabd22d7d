"""Who takes part: what workers say of themselves, and who is selected."""

from hypothesis import given
from hypothesis import strategies as st

from broker.wire.messages import Joined
from coordinator.learning.membership import Roster, most_weight, num_selected, select
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


@given(
    num_examples=st.lists(st.integers(1, 10**6), min_size=1, max_size=20),
    most=st.integers(1, 2**40),
    share=st.floats(0.01, 1.0),
)
def test_no_update_weighs_more_than_its_share(num_examples: list[int], most: int, share: float) -> None:
    """Largest w with w ≤ `most` and w ≤ share · Σ min(n, w); 1 where there are too few workers for such a share."""
    weight = most_weight(num_examples, most, share)
    assert 1 <= weight <= most
    if weight > 1:
        assert weight <= share * sum(min(number, weight) for number in num_examples)
    median = sorted(num_examples)[(len(num_examples) - 1) // 2]
    if weight < min(most, max(num_examples), 1024 * median):
        assert weight + 1 > share * sum(min(number, weight + 1) for number in num_examples)


def test_a_claim_of_any_number_of_examples_is_worth_no_more_than_its_share() -> None:
    """Two honest sites of 100 and 300, and one that claims 2^40 − 1: half of it all is the weight of the rest."""
    weight = most_weight([100, 300, 2**40 - 1], 2**40, 0.5)
    assert [min(number, weight) for number in (100, 300, 2**40 - 1)] == [100, 300, 400]


def test_a_claim_of_any_number_of_examples_leaves_the_others_their_bits() -> None:
    """The scale of the exact sum is that of all weights: 2^40 examples would leave a site of 100 two digits."""
    assert most_weight([100, 110, 2**40 - 1], 2**40, 1.0) == 1024 * 110
    assert most_weight([100, 2**40 - 1], 2**40, 1.0) == 1024 * 100
