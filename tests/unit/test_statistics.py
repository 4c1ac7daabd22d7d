"""What a site tells of its examples, and what becomes of it: exact to the bit, and nothing that rests on few."""

import itertools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.errors import DataError, ProtocolError
from broker.wire.messages import decode, encode
from broker.wire.statistics import (
    MOST_FEATURES,
    StatisticsAsked,
    StatisticsTold,
    columns_of,
    from_bytes,
    to_bytes,
)
from broker.wire.tensors import InputFacts
from coordinator.folder.statistics_file import write_statistics
from coordinator.keras.process import normalization_in
from coordinator.learning.statistics import (
    Statistics,
    common_edges,
    flaw_in,
    flaw_in_columns,
    put_together,
)
from worker.data.data_set import Examples
from worker.site.bins import count, tellable
from worker.site.sums import exact_sums
from worker.site.telling import SiteStatistics, outward
from worker.tables.stream import Stream
from worker.tables.table import table_of
from worker.tables.table_set import TableSet

RANGE = StatisticsAsked(asked="a", step="range")
HISTOGRAM = StatisticsAsked(asked="b", step="histogram", bins=4, lows=(0.0,), highs=(4.0,))

Matrix = npt.NDArray[Any]


@dataclass
class Site:
    """As much of a Dataset as statistics need."""

    x: Matrix

    @property
    def num_train_examples(self) -> int:
        return len(self.x)

    @property
    def inputs(self) -> InputFacts:
        return InputFacts(shape=self.x.shape[1:], dtype=self.x.dtype.name, low=0.0, high=1.0)

    def train(self, shape: tuple[int, ...]) -> Examples:
        if shape != self.x.shape[1:]:
            raise DataError("another shape")
        return Examples(x=self.x, y=np.zeros(len(self.x), np.int64))


def site(x: Matrix, least_examples: int = 1) -> SiteStatistics:
    return SiteStatistics("w", Site(x), least_examples)  # type: ignore[arg-type]


def over(parts: list[Matrix], bins: int = 20) -> Statistics:
    """What a survey of sites with these examples finds; all that is told travels."""
    sites = {f"site-{number}": site(x) for number, x in enumerate(parts)}
    ranges = {name: travelled(its.answer(RANGE)) for name, its in sites.items()}
    number, lows, highs = common_edges(list(ranges.values()), bins)
    asked = StatisticsAsked(asked="b", step="histogram", bins=number, lows=lows, highs=highs)
    for name, told in ranges.items():
        assert flaw_in(told, RANGE, told.num_examples) is None, name
    histograms = {name: travelled(its.answer(asked)) for name, its in sites.items()}
    for name, told in histograms.items():
        assert flaw_in(told, asked, told.num_examples) is None, name
    return put_together(ranges, histograms, asked, [], {})


def travelled(told: StatisticsTold) -> StatisticsTold:
    received = decode(encode(told))
    assert isinstance(received, StatisticsTold)
    return received


def rows(number: int, seed: int = 0) -> Matrix:
    rng = np.random.default_rng(seed)
    columns = (rng.normal(60, 14, number), rng.normal(-3e-5, 1e-6, number), rng.integers(0, 2, number) * 1e30)
    return np.stack(columns, axis=1).astype(np.float32)


def table(number: int, seed: int = 0) -> TableSet:
    """Rows of a regression: two named inputs, one of texts among them, and a target."""
    x = {
        "age": rows(number, seed)[:, 0],
        "ward": np.resize(["a", "b"], number),
        "values": rows(number, seed)[:, 1:],
    }
    return TableSet(table_of(x, {"price": rows(number, seed)[:, :1] * 2}, None, "t"), None)


# --- data without classes ------------------------------------------------------------------------------------------


def test_data_without_classes_is_told_of_by_its_columns() -> None:
    """Inputs and targets, each number by its name; of texts nothing; exact as everything here is."""
    sites = [table(200), table(90, 1)]
    columns = columns_of(sites[0].holds)
    assert [(each.role, each.name) for each in columns] == [
        ("input", "age"), ("input", "values.0"), ("input", "values.1"), ("target", "target price.0"),
    ]  # fmt: skip
    told = [SiteStatistics("w", each, 1).answer(RANGE) for each in sites]
    together = np.concatenate([each.columns() for each in sites]).astype(np.float64)
    number, lows, highs = common_edges(told, 10)
    asked = StatisticsAsked(asked="b", step="histogram", bins=number, lows=lows, highs=highs)
    histograms = [SiteStatistics("w", each, 1).answer(asked) for each in sites]
    for site, *answers in zip(sites, told, histograms, strict=True):
        for question, its in zip((RANGE, asked), answers, strict=True):
            assert flaw_in(its, question, 200) is None
            assert flaw_in_columns(its, site.holds) is None
            assert flaw_in_columns(its, table(20).holds[:1]) is not None
    found = put_together(
        dict(enumerate(told)), dict(enumerate(histograms)), asked, [], {}, columns  # type: ignore[arg-type]
    )  # fmt: skip
    assert [each.name for each in found.features] == [each.name for each in columns]
    np.testing.assert_allclose([each.mean for each in found.features], together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose([each.std for each in found.features], together.std(axis=0), rtol=1e-12)


def test_arrays_without_names_are_features_and_a_target() -> None:
    """As in the table of labelled examples."""
    x, y = rows(20), rows(20)[:, 0]
    names = [each.name for each in columns_of(TableSet(table_of(x, y, None, "t"), None).holds)]
    assert names == ["feature 1", "feature 2", "feature 3", "target"]


def test_what_is_no_table_of_rows_is_refused_in_one_sentence() -> None:
    """Streams, pictures without classes, and a shape that was asked for."""
    stream = TableSet(Stream(lambda: [(rows(20), rows(20)[:, :1])], "a stream"), None)
    pictures = TableSet(table_of(np.zeros((20, 4, 4, 1)), rows(20), None, "t"), None)
    for data, asked, said in (
        (stream, RANGE, "is streamed; statistics are told of tables"),
        (pictures, RANGE, r"input '0' has the shape \(4, 4, 1\)"),
        (table(20), replace(RANGE, shape=(2,)), "has 4 numbers an example. Ask without a shape"),
        (table(9), RANGE, "fewer than the 10 examples"),
    ):
        with pytest.raises(DataError, match=said):
            SiteStatistics("w", data, 1).answer(asked)


def test_a_layer_is_set_from_the_inputs_alone(tmp_path: Path) -> None:
    """What is learned is no input; of several inputs nobody knows which the layer normalises."""
    data = TableSet(table_of(rows(50), rows(50)[:, 0], None, "t"), None)
    for held, number in ((data, 3), (table(50), None)):
        found = SiteStatistics("w", held, 1)
        told = found.answer(RANGE)
        bins, lows, highs = common_edges([told], 4)
        asked = StatisticsAsked(asked="b", step="histogram", bins=bins, lows=lows, highs=highs)
        every = put_together({"w": told}, {"w": found.answer(asked)}, asked, [], {}, columns_of(held.holds))
        write_statistics(tmp_path / "s.json", every)
        if number:
            assert len(normalization_in(tmp_path / "s.json")["means"]) == number
        else:
            with pytest.raises(DataError, match="of several inputs"):
                normalization_in(tmp_path / "s.json")


# --- exact ---------------------------------------------------------------------------------------------------------


@given(
    hnp.arrays(
        np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_sums_are_those_of_fractions(values: npt.NDArray[np.float32]) -> None:
    """No float32 is too small or too large to count whole."""
    total, squares = exact_sums(values)
    exact = [Fraction(float(value)) for value in values]
    assert Fraction(total, 2**149) == sum(exact)
    assert Fraction(squares, 2**298) == sum(each * each for each in exact)


def test_bytes_count_as_the_numbers_that_they_are() -> None:
    """Images are added up by their 256 values, to the same sums."""
    values = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    assert exact_sums(values) == exact_sums(values.astype(np.float32))
    counts, has = count(values.reshape(50, 100), np.linspace(0, 256, 21))
    others, theirs = count(values.reshape(50, 100).astype(np.float32), np.linspace(0, 256, 21))
    assert (counts.tolist(), has.tolist()) == (others.tolist(), theirs.tolist())


@given(st.integers())
def test_a_whole_number_of_any_size_travels(whole: int) -> None:
    """Σ x² · 2^298 has up to 600 bits."""
    assert from_bytes(to_bytes(whole)) == whole


@pytest.mark.parametrize("number", [2, 5])
def test_the_same_examples_give_the_same_bits_however_they_are_divided(number: int) -> None:
    """Of 2 sites or of 5, in any order; rows that are in plenty everywhere, so that no bin is held back."""
    x = rows(3000)
    x[:, 0] = np.clip(x[:, 0], 50, 70)
    x[:, 1] = np.clip(x[:, 1], -3.05e-5, -2.95e-5)
    whole = over([x], bins=4)
    cuts = list(np.array_split(np.random.default_rng(1).permutation(x), number))
    for divided in (cuts, cuts[::-1]):
        found = over(divided, bins=4)
        assert (found.features, found.num_examples) == (whole.features, whole.num_examples)
    assert [feature.untold for feature in whole.features] == [0, 0, 0]


def test_mean_and_deviation_are_numpy_s_in_double_precision() -> None:
    """To 1e-12 of them, for rows and for the channels of images; float32's own sums are off by 1e-4 there."""
    for parts, axes in (
        ([rows(400), rows(70, 1), rows(900, 2)], (0,)),
        (
            [np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8) for n in (20, 50)],
            (0, 1, 2),
        ),
    ):
        found, together = over(parts), np.concatenate(parts).astype(np.float64)
        np.testing.assert_allclose([f.mean for f in found.features], together.mean(axis=axes), rtol=1e-12)
        np.testing.assert_allclose([f.std for f in found.features], together.std(axis=axes), rtol=1e-12)
        for feature, values in zip(found.features, np.moveaxis(together, -1, 0), strict=True):
            assert feature.low <= values.min() <= values.max() <= feature.high
            counts, _ = np.histogram(values, np.linspace(feature.edges_low, feature.edges_high, 21))
            assert all(
                its in (0, int(all_of)) or its < all_of
                for its, all_of in zip(feature.counts, counts, strict=True)
            )
            assert sum(feature.counts) + feature.untold == found.num_values


def test_a_feature_that_is_always_the_same_has_no_deviation() -> None:
    """And a histogram of one bin; nothing is divided by nothing."""
    (feature,) = over([np.full((30, 1), 7, np.float32)]).features
    assert (feature.mean, feature.std, feature.low, feature.high) == (7.0, 0.0, 7.0, 7.0)
    assert sum(feature.counts) == 30


@given(st.floats(-1e38, 1e38), st.floats(0, 1e38))
def test_a_told_end_lies_outside_and_is_one_of_few_numbers(low: float, width: float) -> None:
    """Within a quarter of the value; who asks at two times gets the same one for all values of a step."""
    high = low + width
    below, above = outward(low, high)
    assert below <= low <= high <= above
    for end in (below, above):
        assert math.frexp(end)[0] * 8 % 1 == 0
    assert above - high <= abs(high) / 4
    assert low - below <= abs(low) / 4


# --- nothing that rests on few --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 40), st.integers(10, 20))
def test_what_is_told_and_what_is_not_both_rest_on_the_floor(
    sizes: list[int], outside: int, floor: int
) -> None:
    """Each bin that is told has so many examples, and so have those that are not together: the number of all
    examples is known. A higher floor tells no bin that a lower one holds back."""
    places = np.repeat(np.arange(len(sizes) + 1), [*sizes, outside])
    values = (places.astype(np.float32) + np.float32(0.5))[:, None]  # the last ones lie beyond the edges
    counts, has = count(values, np.arange(len(sizes) + 1, dtype=np.float64))
    assert counts.tolist() == [*sizes, outside]
    told = tellable(counts, has, floor)
    assert all(number == 0 or number == size >= floor for number, size in zip(told, sizes, strict=True))
    untold = len(places) - told.sum()
    assert untold == 0 or untold >= floor or len(places) < floor
    higher = tellable(counts, has, floor + 5)
    assert all(number in (0, before) for number, before in zip(higher, told, strict=True))


def test_many_pixels_of_one_image_are_one_example() -> None:
    """A bright spot of a thousand pixels in one X-ray of a hundred is that patient's."""
    images = np.random.default_rng(0).integers(0, 100, (100, 32, 32, 1)).astype(np.uint8)
    images[7] = 250
    asked = StatisticsAsked(asked="b", step="histogram", bins=2, lows=(0.0,), highs=(256.0,))
    told = site(images).answer(asked).counts
    assert told is not None
    assert told.tolist() == [[0, 0]]  # a hundred less one would tell it, too


def test_few_examples_are_not_told_of() -> None:
    """The site's own floor counts where it is higher, and none is below ten."""
    with pytest.raises(DataError, match="fewer than the 10 examples"):
        site(rows(9)).answer(replace(RANGE, floor=1))
    with pytest.raises(DataError, match="fewer than the 30 examples"):
        site(rows(29), least_examples=30).answer(RANGE)
    assert site(rows(10)).answer(replace(RANGE, floor=1)).num_examples == 10


def test_other_edges_are_refused_and_a_repeat_is_answered() -> None:
    """Two histograms by different edges, one less the other, leave the few examples between two edges."""
    x = np.linspace(0, 4, 101, dtype=np.float32)[:, None]
    its = site(x)
    first = its.answer(HISTOGRAM)
    assert repr(its.answer(replace(HISTOGRAM, asked="c"))) == repr(replace(first, asked="c"))
    for other in (
        replace(HISTOGRAM, bins=5),
        replace(HISTOGRAM, lows=(0.01,)),
        replace(HISTOGRAM, highs=(4.1,)),
    ):
        with pytest.raises(DataError, match="other edges"):
            its.answer(other)
    with pytest.raises(DataError, match="by the shape"):
        its.answer(replace(RANGE, shape=(1, 1)))


def test_what_can_not_be_counted_is_said() -> None:
    """Images without a shape, more features than are told of, NaN."""
    images = Site(rows(20))
    images.__class__ = type(
        "Images", (Site,), {"inputs": InputFacts(shape=None, dtype="uint8", low=0.0, high=1.0)}
    )
    with pytest.raises(DataError, match="--shape 224,224,1"):
        SiteStatistics("w", images, 1).answer(RANGE)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"at most {MOST_FEATURES}"):
        site(np.zeros((20, MOST_FEATURES + 1), np.float32)).answer(RANGE)
    with pytest.raises(DataError, match="NaN"):
        site(np.full((20, 1), np.nan, np.float32)).answer(RANGE)


# --- what can't be ---------------------------------------------------------------------------------------------------


def range_of(
    total: int, squares: int, *, number: int = 100, low: float = -1.0, high: float = 1.0
) -> StatisticsTold:
    return StatisticsTold(
        worker="w", asked="a", step="range", shape=(1,), num_examples=number, lows=(low,), highs=(high,),
        sums=(to_bytes(total << 149),), squares=(to_bytes(squares << 298),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("total", "squares", "flaw"),
    [
        (50, 50, None),
        (101, 100, "sums"),
        (-101, 100, "sums"),
        (0, -1, "sums"),
        (0, 101, "sums"),
        (50, 20, "sums"),
    ],
)
def test_sums_that_no_values_have_are_rejected(total: int, squares: int, flaw: str | None) -> None:
    """Beyond the range that it told, below nothing, or a mean square below the squared mean."""
    assert (flaw_in(range_of(total, squares), RANGE, 100) or "None").startswith(flaw or "None")


def test_more_examples_than_a_worker_has_are_rejected() -> None:
    """A claim of 2^40 would drown everybody else's figures."""
    assert "of 100 that it told of" in (flaw_in(range_of(0, 0, number=2**39), RANGE, 100) or "")
    assert "of 100 that it told of" in (flaw_in(range_of(0, 0, number=3), RANGE, 100) or "")


@pytest.mark.parametrize(
    "counts",
    [
        [[-1, 0, 0, 0]],
        [[2**62] * 4],
        [[101, 0, 0, 0]],
        [[1, 2]],
        [[0, 0, 0, 0]] * 2,
        [[0.5, 0, 0, 0]],
        [0, 0, 0, 0],
    ],
)
def test_counts_that_can_not_be_are_rejected(counts: list[Any]) -> None:
    """Negative ones, more than there are values (also where their sum wraps), and other forms."""
    told = StatisticsTold(
        worker="w", asked="b", step="histogram", shape=(1,), num_examples=100, counts=np.array(counts)
    )
    assert flaw_in(told, HISTOGRAM, 100) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"bins": 0}, {"bins": 201}, {"lows": ()}, {"lows": (0.0, 0.0)}, {"lows": (4.0,)}, {"highs": (math.inf,)},
        {"lows": (math.nan,)}, {"shape": (0,)}, {"shape": (1,) * 9}, {"asked": "x" * 300},
        {"lows": (0.0,) * 2000, "highs": (1.0,) * 2000, "bins": 200},
    ],
)  # fmt: skip
def test_a_question_that_can_not_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    """It would cost a site its memory."""
    with pytest.raises(ProtocolError):
        replace(HISTOGRAM, **wrong)


def test_sums_of_endless_digits_are_refused() -> None:
    """And ends that no float32 has, and more features than there may be."""
    told = range_of(0, 0)
    for wrong in (
        {"sums": (bytes(101),)},
        {"lows": (-math.inf,)},
        {"highs": (math.nan,)},
        {"lows": (0.0,) * 2001},
    ):
        with pytest.raises(ProtocolError):
            replace(told, **wrong)  # type: ignore[arg-type]


def test_an_answer_tells_of_every_feature() -> None:
    """A low, a high and both sums for each, and the low is none above the high."""
    told = range_of(0, 0)
    for wrong in ({"squares": ()}, {"lows": (0.0, 0.0)}, {"lows": (2.0,)}, {"shape": (2,)}):
        assert flaw_in(replace(told, **wrong), RANGE, 100) is not None  # type: ignore[arg-type]


def test_edges_leave_room_for_a_word_to_the_coordinator() -> None:
    """With many features there are fewer bins: the answer is below 512 KiB."""
    x = np.random.default_rng(0).normal(size=(50, MOST_FEATURES)).astype(np.float32) * 1e37
    its = site(x)
    told = its.answer(RANGE)
    bins, lows, highs = common_edges([told], 200)
    counts = its.answer(StatisticsAsked(asked="b", step="histogram", bins=bins, lows=lows, highs=highs))
    assert bins == 20
    assert all(len(encode(each)) < 400_000 for each in (told, counts))
    assert all(len(edge) == MOST_FEATURES for edge in itertools.chain([lows, highs]))
