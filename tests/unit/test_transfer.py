"""Weights on their way: cut, encoded, and put together from parts in any order."""

import hashlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.errors import ProtocolError
from broker.wire.messages import Part
from broker.wire.settings import Precision
from broker.wire.tensors import (
    Kind,
    Layout,
    Sections,
    TensorSpec,
    flatten,
    flatten_first,
    part_count,
    unflatten,
)
from broker.wire.transfer import Assembly, Digest, Encoding, Writing, slices

PART_BYTES = 64


def parts_of(vector: np.ndarray, transfer_id: str = "t") -> list[Part]:
    places = list(slices(vector.size, PART_BYTES))
    return [
        Part(
            run_id="run", round_number=1, transfer_id=transfer_id, index=index, count=len(places),
            precision="float32", data=vector[place].tobytes(),
        )
        for index, place in enumerate(places)
    ]  # fmt: skip


@given(st.permutations(list(range(7))), st.integers(0, 6))
def test_parts_in_any_order_and_repeated_give_the_same_vector_and_digest(
    order: list[int], repeated: int
) -> None:
    """A repeat holds the same bytes and changes nothing."""
    vector = np.arange(100, dtype=np.float32)
    parts, out = parts_of(vector), np.empty(100, np.float32)
    assembly = Assembly(out, "t", PART_BYTES)
    for index in [*order[:-1], repeated, order[-1]]:
        assert assembly.place(parts[index])
    in_order = Assembly(np.empty(100, np.float32), "t", PART_BYTES)
    for part in parts:
        in_order.place(part)
    assert assembly.is_complete
    assert out.tobytes() == vector.tobytes()
    assert assembly.digest.hex() == in_order.digest.hex()


def test_the_digest_is_the_one_of_the_wire() -> None:
    """Another digest is another wire: XXH3-64 of nothing is 2d06800538d394c2, as its authors publish it."""
    digest = Digest()
    digest.add(0, b"")
    assert digest.hex() == hashlib.sha256(bytes.fromhex("2d06800538d394c2")).hexdigest()


def test_a_part_of_another_transfer_is_not_taken() -> None:
    """A worker that died after half its parts and uploads again does not mix the two."""
    assembly = Assembly(np.empty(100, np.float32), "new", PART_BYTES)
    assert not assembly.place(parts_of(np.ones(100, np.float32), "old")[0])
    assert not assembly.is_complete


def test_a_part_of_the_wrong_size_or_count_is_an_error() -> None:
    """Shapes that differ are told, not stretched."""
    assembly = Assembly(np.empty(100, np.float32), "t", PART_BYTES)
    with pytest.raises(ProtocolError):
        assembly.place(parts_of(np.ones(50, np.float32))[0])


values = hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1000, 1000, width=32))


def layout_of(*kinds: tuple[tuple[int, ...], Kind]) -> Layout:
    return tuple(TensorSpec(dtype="float32", shape=shape, kind=kind) for shape, kind in kinds)


def sent(
    vector: np.ndarray, layout: Layout, precision: Precision, seed: int = 1, part: int = 7
) -> np.ndarray:
    """The vector as its receiver has it, in parts of so many values."""
    ours, out = Encoding.of(vector, layout, precision), np.empty_like(vector)
    theirs = Encoding.told(layout, precision, ours.scales)
    for index, place in enumerate(slices(vector.size, 4 * part)):
        theirs.decode(ours.encode(vector, place, [seed, index]), place, out[place])
    return out


@given(values, st.sampled_from(["float32", "float16", "int8"]), st.integers(0, 9))
@example(np.array([2.2e-44], np.float32), "int8", 0)
def test_a_value_comes_back_within_the_step_of_its_precision(
    vector: np.ndarray, precision: Precision, seed: int
) -> None:
    """float32 loses nothing, float16 11 bits' worth, int8 at most one step of its tensor's largest / 127."""
    out = sent(vector, layout_of(((vector.size,), "trainable")), precision, seed)
    largest = float(np.max(np.abs(vector)))
    bound = {"float32": 0.0, "float16": largest * 2**-10 + 1e-7, "int8": 1.001 * largest / 127 + 1e-30}[
        precision
    ]
    assert np.max(np.abs(out - vector)) <= bound


def test_int8_rounding_is_right_on_average() -> None:
    """E[decoded] = value (stochastic rounding): 20,000 draws of 0.3 of a step."""
    vector = np.full(20_000, 0.3, np.float32)
    vector[0] = 127.0
    out = sent(vector, layout_of(((20_000,), "trainable")), "int8", part=4096)
    assert float(out[1:].mean()) == pytest.approx(0.3, abs=0.02)


def test_int8_rounds_each_chunk_by_chances_of_its_own() -> None:
    """200,000 values, four times the same: their roundings are not, and on average they are right."""
    vector = np.tile(np.linspace(-1, 1, 50_000, dtype=np.float32), 4)
    layout = layout_of(((200_000,), "trainable"))
    out = sent(vector, layout, "int8", part=1 << 20)
    error = (out - vector) * 127
    assert abs(float(error.mean())) < 0.005
    assert float(error.var()) == pytest.approx(1 / 6, abs=0.005), "the mean of p (1 - p)"
    assert np.all(np.abs(np.corrcoef(error.reshape(4, -1))[np.triu_indices(4, 1)]) < 0.02)


def test_the_same_seed_rounds_int8_to_the_same_bytes() -> None:
    """An update that is uploaded again is the same one; another part, or another round, is rounded otherwise."""
    vector = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    encoding = Encoding.of(vector, layout_of(((1000,), "trainable")), "int8")
    first, again, other = (encoding.encode(vector, slice(0, 1000), [5, index]) for index in (0, 0, 1))
    assert first == again != other


@given(st.floats(2**-90, 2**90), st.integers(0, 9))
def test_the_largest_value_is_127_steps_and_never_wraps_around(largest: float, seed: int) -> None:
    """One rounded up to 128 would come back as its opposite."""
    vector = np.full(64, np.float32(largest))
    layout = layout_of(((64,), "trainable"))
    for sign in (1, -1):
        out = sent(sign * vector, layout, "int8", seed, part=64) * sign
        assert out.min() > 0
        assert out.max() <= vector[0] * np.float32(1 + 2**-7)


def test_what_a_precision_cuts_off_stays_behind() -> None:
    """What was written down and what was cut off are the vector. Of statistics nothing is, nor of float32."""
    layout = layout_of(((6,), "trainable"), ((2,), "statistic"))
    vector = np.array([0.1, 0.2, -0.3, 0.4, 0.5, 0.6, 7.7, 8.8], np.float32)
    for precision in ("int8", "float16"):
        rest, out = vector.copy(), np.empty_like(vector)
        encoding = Encoding.of(rest, layout, precision)
        spans = list(slices(8, 12))
        for span, data in zip(
            spans, Writing(rest, encoding, spans, 1, keeps_rest=True).all_parts(), strict=True
        ):
            encoding.decode(data, span, out[span])
        assert out + rest == pytest.approx(vector, rel=1e-6)
        assert np.any(rest[:6] != 0)
        assert np.all(rest[6:] == 0)
    rest = vector.copy()
    Writing(rest, Encoding(), [slice(0, 8)], 1, keeps_rest=True).all_parts()
    assert rest.tobytes() == vector.tobytes()


def test_a_scale_belongs_to_one_tensor() -> None:
    """Beside a tensor of thousands, one of thousandths keeps its own steps, wherever the parts are cut."""
    vector = np.concatenate([np.full(10, 5000.0), np.linspace(-1e-3, 1e-3, 11)]).astype(np.float32)
    out = sent(vector, layout_of(((10,), "trainable"), ((11,), "trainable")), "int8")
    assert np.abs(out[10:] - vector[10:]).max() <= 1.001e-3 / 127
    assert np.abs(out[:10] - vector[:10]).max() <= 5001 / 127


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_statistics_travel_as_they_are_whatever_the_precision(precision: Precision) -> None:
    """A variance of 1e-4 beside one of 1e8 is not rounded below zero, and 1e8 is no float16."""
    layout = layout_of(((5,), "trainable"), ((2,), "statistic"), ((2,), "variance"))
    vector = np.array([1, 2, 3, 4, 5, -1e8, 0.5, 1e-4, 1e8], np.float32)
    assert sent(vector, layout, precision)[5:].tobytes() == vector[5:].tobytes()


@pytest.mark.parametrize("scales", [(), (1.0,), (1.0, 0.0), (1.0, np.nan), (1.0, 1e31), (1.0, 1.0, 1.0)])
def test_scales_that_do_not_fit_the_model_are_an_error(scales: tuple[float, ...]) -> None:
    """One for each trainable tensor, above 0 and finite."""
    layout = layout_of(((2,), "trainable"), ((2,), "trainable"), ((2,), "statistic"))
    with pytest.raises(ProtocolError, match="scales"):
        Encoding.told(layout, "int8", scales)


def test_weights_are_flattened_trainable_first_and_rebuilt_in_their_order() -> None:
    """[trainable | statistics | frozen], integers apart: what travels up is the vector's beginning."""
    layout = (
        TensorSpec(dtype="float32", shape=(2, 2), kind="frozen"),
        TensorSpec(dtype="int64", shape=(), kind="integer"),
        TensorSpec(dtype="float16", shape=(3,), kind="trainable"),
        TensorSpec(dtype="float32", shape=(1,), kind="statistic"),
        TensorSpec(dtype="float32", shape=(1,), kind="variance"),
        TensorSpec(dtype="float32", shape=(), kind="trainable"),
    )
    weights = [
        np.ones((2, 2), np.float32), np.array(5, np.int64), np.full(3, 0.5, np.float16),
        np.array([7], np.float32), np.array([8], np.float32), np.array(9, np.float32),
    ]  # fmt: skip
    vector, integers = flatten(weights, layout)
    assert vector.tolist() == [0.5, 0.5, 0.5, 9, 7, 8, 1, 1, 1, 1]
    sections = Sections(layout)
    assert (sections.num_trainable, sections.num_up, sections.size) == (4, 6, 10)
    assert sections.tensors == (slice(0, 3), slice(3, 4))
    assert sections.variances == ((slice(0, 1), slice(1, 2)),)
    assert flatten_first(weights, layout, sections.num_up).tolist() == vector[:6].tolist()
    back = unflatten(layout, vector, integers)
    assert [np.asarray(each).tolist() for each in back] == [np.asarray(each).tolist() for each in weights]


def test_a_variance_without_its_mean_is_an_error() -> None:
    """Nobody knows what it is about."""
    for layout in (layout_of(((2,), "variance")), layout_of(((1,), "statistic"), ((2,), "variance"))):
        with pytest.raises(ProtocolError, match="mean"):
            Sections(layout).variances  # noqa: B018 - worked out when asked for


@pytest.mark.parametrize("size", [0, 1, 6, 8])
def test_a_vector_that_does_not_fit_its_layout_is_an_error(size: int) -> None:
    """Never silently too short or too long."""
    with pytest.raises(ProtocolError):
        unflatten(layout_of(((7,), "trainable")), np.zeros(size, np.float32), [])


def test_small_vectors_ride_inline() -> None:
    """64 KiB and less need no part of their own."""
    assert [part_count(n, 4 << 20) for n in (4, 65_536, 65_540, 4 << 20, (4 << 20) + 4)] == [0, 0, 1, 1, 2]


def test_an_audited_digest_tells_which_update_it_was() -> None:
    """SHA-256 over that of each part, in whatever order they come; a part that comes again counts once."""
    parts = [b"first", b"second"]
    digest = Digest(is_audited=True)
    for index in (1, 0, 1):
        digest.add(index, parts[index])
    assert (
        digest.sha256 == hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    )
    assert digest.num_bytes == len(b"firstsecond")
    assert Digest().sha256 is None
