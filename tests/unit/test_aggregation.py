"""The weighted sum: exact, the same in any order, and never near the limits of int64."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.wire.tensors import Kind, Layout, TensorSpec
from broker.wire.transfer import Encoding
from coordinator.learning.aggregation import LIMIT, UpdateSum, capacity, examine, scale_exponent
from coordinator.learning.strategies.averages import FedAvg
from tests.steps import next_weights


def layout_of(*sizes: tuple[int, Kind]) -> Layout:
    return tuple(TensorSpec(dtype="float32", shape=(size,), kind=kind) for size, kind in sizes)


def trainable(size: int) -> Layout:
    return layout_of((size, "trainable"))


def flaw_in(update: np.ndarray, layout: Layout | None = None) -> str | None:
    return examine(update, layout or trainable(update.size))[1]


def mean_of(total: UpdateSum) -> np.ndarray:
    return np.concatenate([chunk for _, chunk in total.mean_chunks()])


def test_two_updates_are_weighted_by_their_examples() -> None:
    """(1 · 10 + 3 · 2) / 4 = 4."""
    total = UpdateSum(trainable(1), scale_exponent(4))
    total.add(np.array([10.0], np.float32), 1)
    total.add(np.array([2.0], np.float32), 3)
    assert mean_of(total) == [4.0]


def test_the_scale_leaves_44_bits_for_the_sum_of_examples() -> None:
    """e = 44 − ⌈log2 Σ n⌉."""
    assert [scale_exponent(n) for n in (1, 2, 3, 1000, 1024, 1025)] == [44, 43, 42, 34, 34, 33]


updates = st.lists(
    st.tuples(
        hnp.arrays(np.float32, 7, elements=st.floats(-LIMIT, LIMIT, width=32)), st.integers(1, 100_000)
    ),
    min_size=1,
    max_size=5,
)


@given(updates)
def test_every_order_of_the_same_updates_gives_the_same_bits(
    given_updates: list[tuple[np.ndarray, int]],
) -> None:
    """Integer addition has no rounding: before or after a crash, the mean is the same to the bit."""
    exponent = scale_exponent(sum(n for _, n in given_updates))
    sums = []
    for order in itertools.permutations(given_updates):
        total = UpdateSum(trainable(7), exponent)
        for update, number in order:
            total.add(update, number)
        sums.append(total.values.tobytes())
    assert len(set(sums)) == 1


@given(updates)
def test_the_mean_is_within_k_steps_of_the_float64_formula(
    given_updates: list[tuple[np.ndarray, int]],
) -> None:
    """A result lies within k · 2^-45 of Σ n Δ / Σ n for k updates (or one float64 rounding of large values)."""
    count = sum(n for _, n in given_updates)
    total = UpdateSum(trainable(7), scale_exponent(count))
    for update, number in given_updates:
        total.add(update, number)
    exact = sum(update.astype(np.longdouble) * number for update, number in given_updates) / count
    bound = len(given_updates) * 2.0**-44 + np.abs(exact) * 2.0**-50
    assert np.all(np.abs(mean_of(total) - exact) <= bound)


local_values = hnp.arrays(
    np.float64,
    5,
    elements=st.builds(
        lambda digits, power: float(np.ldexp(digits, power)), st.floats(-1, 1), st.integers(-40, 14)
    ),
)
trainings = st.lists(st.tuples(local_values, st.integers(1, 100_000)), min_size=1, max_size=6)


def as_fetched(local: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Local values as the coordinator has them, once they have travelled."""
    layout, out = trainable(local.size), np.empty(local.size)
    data = Encoding.of(local, layout, "local64").encode(local, slice(0, local.size), [0])
    Encoding.told(layout, "local64", (), base).decode(data, slice(0, local.size), out)
    return out


def stepped(base: np.ndarray, given_updates: list[tuple[np.ndarray, int]], invited: int) -> np.ndarray:
    """FedAvg's next weights."""
    total = UpdateSum(trainable(base.size), scale_exponent(invited))
    for update, number in given_updates:
        total.add(update, number)
    return next_weights(FedAvg(), base, total, ())


def by_the_textbook(every: list[tuple[np.ndarray, int]]) -> list[Fraction]:
    """Σ n w / Σ n without any rounding."""
    count = sum(n for _, n in every)
    columns = zip(*(local.tolist() for local, _ in every), strict=True)
    return [
        sum(n * Fraction(its) for its, (_, n) in zip(column, every, strict=True)) / count
        for column in columns
    ]


def half_an_ulp(value: Fraction) -> Fraction:
    return Fraction(float(np.spacing(np.float32(abs(value))))) / 2


@given(local_values, trainings, st.integers(0, 3))
@example(np.full(5, 1.0), [(np.full(5, 0.001), 1)], 0)  # what changed is far more than what is left
@example(np.zeros(5), [(np.full(5, 0.1), 1), (np.full(5, 1e-7 - 0.1), 1)], 0)  # what is left of two is little
@example(np.full(5, 2.0**-30), [(np.full(5, 3e-9), 7), (np.full(5, -2e-9), 5)], 3)  # the sum's own last bit
def test_of_local_values_each_result_is_the_textbooks_to_the_last_bit(
    base: np.ndarray, every: list[tuple[np.ndarray, int]], silent: int
) -> None:
    """Half an ulp of the result itself, wherever what is added up cancels: beside it only float64's own last bits of
    the largest number. So it is also where most of those that were invited say nothing."""
    before = base.astype(np.float32)
    updates = [(as_fetched(local, before), n) for local, n in every]
    result = stepped(before, updates, sum(n for _, n in every) << silent)
    largest = np.abs([before, *(local for local, _ in every)]).max(axis=0)
    for ours, exact, its in zip(result.tolist(), by_the_textbook(every), largest.tolist(), strict=True):
        assert abs(Fraction(ours) - exact) <= half_an_ulp(exact) + Fraction(its) / 2**50 + Fraction(1, 2**70)


@given(local_values, trainings)
@example(np.full(5, 1.0), [(np.full(5, 0.001), 1)])
def test_of_float32_differences_each_result_is_within_an_ulp_of_the_largest_of_them(
    base: np.ndarray, every: list[tuple[np.ndarray, int]]
) -> None:
    """Half an ulp of the result, half of one of the largest difference, and k · 2^-44: the bound of large models."""
    before = base.astype(np.float32)
    updates = [((local - before).astype(np.float32), n) for local, n in every]
    result = stepped(before, updates, sum(n for _, n in every))
    largest = np.abs([update for update, _ in updates]).max(axis=0)
    for ours, exact, its in zip(result.tolist(), by_the_textbook(every), largest.tolist(), strict=True):
        bound = half_an_ulp(exact) + half_an_ulp(Fraction(its)) + len(every) * Fraction(1, 2**44)
        assert abs(Fraction(ours) - exact) <= bound + Fraction(abs(ours) + its) / 2**50


@given(trainings)
def test_a_sum_in_float64_has_the_same_bits_in_every_order_and_after_a_crash(
    every: list[tuple[np.ndarray, int]],
) -> None:
    """What the first rounding cuts off is an integer, too; it is written and read with the rest."""
    layout, exponent = trainable(5), scale_exponent(sum(n for _, n in every))
    sums = []
    for order in (every, every[::-1]):
        total = UpdateSum(layout, exponent)
        for local, number in order:
            again = UpdateSum(layout, exponent)
            written = np.concatenate([each.ravel() for each in total.integers])
            assert again.restore(written.copy(), total.num_examples)
            again.add(local, number)
            total = again
        sums.append(np.concatenate([total.values, total.lows]).tobytes())
    assert sums[0] == sums[1]
    assert not total.restore(np.zeros(7, np.int64), 1)


@given(st.integers(1, 2**30))
def test_the_largest_updates_of_all_a_round_can_take_stay_below_2_to_the_62(invited: int) -> None:
    """numpy's int64 wraps silently: the scale and its reserve are what keeps it from doing so."""
    exponent = scale_exponent(invited)
    assert capacity(exponent) >= 4 * invited
    assert int(LIMIT) * capacity(exponent) * 2**exponent <= 2**62


def test_a_sum_refuses_more_examples_than_its_scale_can_take() -> None:
    """The reserve is two bits: four times the invited examples fit, and not one more."""
    total = UpdateSum(trainable(1), scale_exponent(8))
    total.add(np.array([LIMIT], np.float32), 32)
    assert total.values[0] == 2**62
    with pytest.raises(OverflowError):
        total.add(np.array([1.0], np.float32), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65_537.0, -1e30])
def test_a_value_that_would_spoil_the_mean_is_a_flaw(bad: float) -> None:
    """Not finite, or beyond 2^16: the whole update is refused, wherever the value is."""
    update = np.zeros(200_000, np.float32)
    update[150_000] = bad
    assert flaw_in(update) is not None


def test_ordinary_values_up_to_the_limit_are_no_flaw() -> None:
    """±2^16 itself is allowed."""
    assert flaw_in(np.array([LIMIT, -LIMIT, 0, 1e-30], np.float32)) is None
    assert flaw_in(np.empty(0, np.float32)) is None


def test_a_sum_in_used_memory_is_the_sum_in_fresh_memory() -> None:
    """The next round adds up where the last one did: what is left there does not count."""
    fresh, used = UpdateSum(trainable(3), 40), UpdateSum(trainable(3), 40, np.full(3, 12345, np.int64))
    for each in (fresh, used):
        each.add(np.array([1, -2, 0.5], np.float32), 2)
        each.add(np.array([4, 0, 1], np.float32), 1)
    assert used.values.tolist() == fresh.values.tolist()


def test_no_updates_have_no_mean() -> None:
    """Dividing by no examples is an error of the caller, not a model of NaN."""
    with pytest.raises(ValueError, match="no mean"):
        next(UpdateSum(trainable(3), 40).mean_chunks())


STATISTICS = layout_of((1, "trainable"), (3, "statistic"), (3, "variance"), (2, "frozen"))

sites = st.lists(
    st.tuples(
        st.integers(1, 2**39),
        st.lists(st.floats(-1e8, 1e8, width=32), min_size=3, max_size=3),
        st.lists(st.floats(0, 2**53, width=32), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


def summed(given_sites: list[tuple[int, list[float], list[float]]]) -> UpdateSum:
    total = UpdateSum(STATISTICS, scale_exponent(sum(n for n, _, _ in given_sites)))
    for n, means, variances in given_sites:
        total.add(np.array([0.5, *means, *variances], np.float32), n)
    return total


@given(sites)
def test_statistics_are_those_of_all_examples_together(
    given_sites: list[tuple[int, list[float], list[float]]],
) -> None:
    """In rational numbers: m̄ = Σ n m / Σ n, and v̄ = Σ n (v + (m − m̄)²) / Σ n, from 1e-38 to 1e16, never below 0."""
    count = sum(n for n, _, _ in given_sites)
    found = summed(given_sites).mean_statistics()
    for place in range(3):
        means = [Fraction(n) * Fraction(m[place]) for n, m, _ in given_sites]
        mean = sum(means) / count
        pooled = [
            Fraction(n) * (Fraction(v[place]) + (Fraction(m[place]) - mean) ** 2) for n, m, v in given_sites
        ]
        variance = sum(pooled) / count
        assert found[place] == pytest.approx(float(mean), rel=1e-15, abs=1e-15)
        assert found[3 + place] == pytest.approx(float(variance), rel=1e-13, abs=1e-15)
        assert found[3 + place] >= 0


@given(sites)
def test_statistics_have_the_same_bits_in_every_order(
    given_sites: list[tuple[int, list[float], list[float]]],
) -> None:
    """As weights have."""
    results = {
        summed(list(order)).mean_statistics().tobytes() for order in itertools.permutations(given_sites)
    }
    assert len(results) == 1


@pytest.mark.parametrize(
    ("statistics", "flaw"),
    [
        ([1e8, 0, 0, 1e16, 0, 0], None),
        ([np.nan, 0, 0, 0, 0, 0], "finite statistics"),
        ([1e30, 0, 0, 0, 0, 0], "finite statistics"),
        ([0, 0, 0, -1e-3, 0, 0], "variances of at least 0"),
    ],
)
def test_statistics_have_bounds_of_their_own(statistics: list[float], flaw: str | None) -> None:
    """Raw features of 1e8 are no fault; a negative variance is."""
    found = flaw_in(np.array([0, *statistics], np.float32), STATISTICS)
    assert found is None if flaw is None else flaw in str(found)


def test_the_largest_change_is_that_of_the_trainable_weights() -> None:
    """Who made a model fail is not told by a large variance."""
    update = np.array([-3, 0, 0, 0, 1e9, 0, 0], np.float32)
    assert examine(update, STATISTICS) == (3.0, None)
