"""Weights on their way: cut, encoded, and put together from parts in any order."""

import hashlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.errors import ProtocolError
from broker.messages import Part
from broker.tensors import TensorSpec, flatten, layout_of, part_count, unflatten
from broker.transfer import Assembly, Digest, decode_values, encode_values, slices

PART_BYTES = 64


def parts_of(vector: np.ndarray, transfer_id: str = "t") -> list[Part]:
    places = list(slices(vector.size, PART_BYTES))
    return [
        Part(
            run_id="run", round_number=1, transfer_id=transfer_id, index=index, count=len(places),
            precision="float32", scale=1.0, data=vector[place].tobytes(),
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


@given(values, st.sampled_from(["float32", "float16", "int8"]), st.integers(0, 9))
@example(np.array([2.2e-44], np.float32), "int8", 0)
def test_a_value_comes_back_within_the_step_of_its_precision(
    vector: np.ndarray, precision: str, seed: int
) -> None:
    """float32 loses nothing, float16 11 bits' worth, int8 at most one step of the part's largest / 127."""
    encoded = encode_values(vector, precision, np.random.default_rng(seed))  # type: ignore[arg-type]
    out = np.empty_like(vector)
    decode_values(encoded, precision, out)  # type: ignore[arg-type]
    largest = float(np.max(np.abs(vector)))
    bound = {"float32": 0.0, "float16": largest * 2**-10 + 1e-7, "int8": 1.001 * largest / 127 + 1e-30}[
        precision
    ]
    assert np.max(np.abs(out - vector)) <= bound


def test_int8_rounding_is_right_on_average() -> None:
    """E[decoded] = value (stochastic rounding): 20,000 draws of 0.3 of a step."""
    vector = np.full(20_000, 0.3, np.float32)
    vector[0] = 127.0
    out = np.empty_like(vector)
    decode_values(encode_values(vector, "int8", np.random.default_rng(1)), "int8", out)
    assert float(out[1:].mean()) == pytest.approx(0.3, abs=0.02)


def test_weights_are_flattened_and_rebuilt_with_integers_apart() -> None:
    """Only float weights are averaged; a Normalization layer's count stays the global model's."""
    weights = [np.ones((2, 2), np.float32), np.array(5, np.int64), np.full(3, 0.5, np.float16)]
    vector, integers = flatten(weights)
    assert vector.tolist() == [1, 1, 1, 1, 0.5, 0.5, 0.5]
    back = unflatten(layout_of(weights), vector, integers)
    assert [each.shape for each in back] == [(2, 2), (), (3,)]
    assert back[1] == 5


@pytest.mark.parametrize("size", [0, 1, 6, 8])
def test_a_vector_that_does_not_fit_its_layout_is_an_error(size: int) -> None:
    """Never silently too short or too long."""
    with pytest.raises(ProtocolError):
        unflatten((TensorSpec(dtype="float32", shape=(7,)),), np.zeros(size, np.float32), [])


def test_small_vectors_ride_inline() -> None:
    """64 KiB and less need no part of their own."""
    assert [part_count(n, 4 << 20) for n in (4, 65_536, 65_540, 4 << 20, (4 << 20) + 4)] == [0, 0, 1, 1, 2]
