"""A data set dealt to sites: everything once, no patient at two sites, and the balance that was asked for."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import DataError, UsageError
from worker.data.partition import deal_examples, parse_share, partition

SCHEMES = st.sampled_from(["iid", "shards", "dirichlet:0.1", "dirichlet:100"])


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[np.ndarray, list[str]]:
    """Two classes of patients with one to five pictures each."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=10, max_size=40))
    labels = np.repeat([0] * 5 + [1] * (len(sizes) - 5), sizes)
    return labels, [f"person{i}" for i, size in enumerate(sizes) for _ in range(size)]


@given(data=data_sets(), into=st.integers(1, 5), scheme=SCHEMES, seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_example_is_dealt_once_and_no_patient_twice(
    data: tuple[np.ndarray, list[str]], into: int, scheme: str, seed: int
) -> None:
    """Whatever the scheme: disjoint, complete, no site empty, patients undivided, the same again."""
    labels, groups = data
    sites = partition(labels, groups, into, scheme, seed)
    assert len(sites) == into
    assert sorted(np.concatenate(sites).tolist()) == list(range(len(labels)))
    assert all(len(site) for site in sites)
    owners = Counter(patient for site in sites for patient in {groups[i] for i in site})
    assert set(owners.values()) == {1}
    again = partition(labels, groups, into, scheme, seed)
    assert all(np.array_equal(one, two) for one, two in zip(sites, again, strict=True))


def test_iid_sites_have_the_same_balance() -> None:
    """9 of one class and 21 of the other among 3: each gets 3 and 7."""
    labels = np.repeat([0, 1], [9, 21])
    for site in partition(labels, None, 3):
        assert np.bincount(labels[site]).tolist() == [3, 7]


def test_iid_sites_are_as_large_when_classes_do_not_divide() -> None:
    """4 and 5 among 3 sites: the site that got the odd one of class 0 gets no odd one of class 1."""
    labels = np.repeat([0, 1], [4, 5])
    assert [len(site) for site in partition(labels, None, 3)] == [3, 3, 3]


def test_another_seed_deals_otherwise() -> None:
    """The first site of seed 1 isn't that of seed 2."""
    labels = np.repeat([0, 1], 50)
    assert not np.array_equal(partition(labels, None, 2, seed=1)[0], partition(labels, None, 2, seed=2)[0])


def test_shards_give_each_site_two_pieces_of_the_sorted_set() -> None:
    """10 classes of 20 and 10 sites, 2 shards of 10 each: at most 2 classes a site (McMahan et al. 2017)."""
    labels = np.tile(np.arange(10), 20)
    sites = partition(labels, None, 10, "shards", seed=3)
    assert [len(site) for site in sites] == [20] * 10
    assert max(len(set(labels[site])) for site in sites) == 2


@pytest.mark.parametrize(("alpha", "low", "high"), [("0.01", 0.6, 1.0), ("1000", 0.1, 0.2)])
def test_a_small_alpha_makes_sites_uneven(alpha: str, low: float, high: float) -> None:
    """The share of a site's commonest of 10 classes: nearly all at 0.01, nearly a tenth at 1000."""
    labels = np.tile(np.arange(10), 500)
    sites = partition(labels, None, 20, f"dirichlet:{alpha}", seed=1)
    commonest = np.mean([np.bincount(labels[site]).max() / len(site) for site in sites])
    assert low < commonest < high
    assert [len(site) for site in sites] == [250] * 20


def test_too_many_sites_are_refused_with_the_largest_number() -> None:
    """Three patients of the rarer class make three sites at most."""
    labels = np.repeat([0, 1], [6, 20])
    groups = [f"a{i // 2}" for i in range(6)] + [f"b{i}" for i in range(20)]
    with pytest.raises(DataError, match="Try 3 sites or fewer"):
        partition(labels, groups, 4)
    with pytest.raises(DataError, match="Try 11 sites or fewer"):
        partition(labels, groups, 12, "shards")
    with pytest.raises(DataError, match="Try 23 sites or fewer"):
        partition(labels, groups, 24, "dirichlet:1")


@pytest.mark.parametrize(
    "scheme", ["", "IID", "iid:2", "dirichlet", "dirichlet:0", "dirichlet:-1", "dirichlet:nan", "dirichlet:x"]
)
def test_an_unknown_scheme_is_refused(scheme: str) -> None:
    """Another name, or an alpha that is no number above 0: the message shows how it is written."""
    with pytest.raises(UsageError, match=r"dirichlet:0\.5"):
        partition(np.array([0, 1]), None, 1, scheme)


def test_no_site_is_refused() -> None:
    """A set can't be cut into 0 sites."""
    with pytest.raises(UsageError, match="1 site or more"):
        partition(np.array([0, 1]), None, 0)


def test_examples_can_be_dealt_to_more_sites_than_there_are() -> None:
    """A swarm of 5 with 3 test examples: two of its workers test on nothing."""
    assert sorted(len(site) for site in deal_examples(np.array([0, 1, 1]), 5, 0)) == [0, 0, 1, 1, 1]


@given(count=st.integers(1, 60), parts=st.integers(1, 60))
def test_the_slices_of_a_swarm_are_the_whole(count: int, parts: int) -> None:
    """K processes play all of N workers, each once, and as evenly as can be."""
    if parts > count:
        return
    slices = [parse_share(f"{part}/{parts}", count) for part in range(1, parts + 1)]
    assert [worker for each in slices for worker in each] == list(range(count))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/11", "2", "/2", "1/", "-1/2", "1.0/2", "a/b", "1/2/3", ""])
def test_a_slice_that_is_none_is_refused(text: str) -> None:
    """I/K needs 1 ≤ I ≤ K ≤ COUNT, both whole; the message says so."""
    with pytest.raises(UsageError, match=r"1 ≤ I ≤ K ≤ COUNT \(10\)"):
        parse_share(text, 10)
