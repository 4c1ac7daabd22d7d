"""Large binary data is not copied through msgpack; the bytes are msgpack's own all the same."""

from typing import Any

import msgpack
import pytest

from broker.errors import ProtocolError
from broker.wire import codec

LARGE = bytes(range(256)) * 400


def fields(**last: Any) -> dict[str, Any]:
    return {"type": "part", "index": 7, "layout": [["float32", [2, 3]]], "scale": 0.5, "none": None, **last}


@pytest.mark.parametrize("data", [b"", b"small", LARGE, memoryview(LARGE)])
def test_a_map_is_packed_to_the_bytes_of_msgpack(data: Any) -> None:
    """Large data takes a shorter way, to the same bytes."""
    assert codec.pack(fields(data=data)) == msgpack.packb(fields(data=bytes(data)), use_bin_type=True)


def test_large_data_at_the_end_comes_back_as_a_view() -> None:
    """A part's values are not copied: they still lie in the body that arrived."""
    body = codec.pack(fields(data=LARGE))
    value = codec.unpack(body)
    assert value == fields(data=LARGE)
    assert isinstance(value["data"], memoryview)
    assert value["data"].obj is body


@pytest.mark.parametrize(
    "value",
    [
        {"data": LARGE, "after": 1},
        {"text": "x" * 100_000},
        {"list": [LARGE, LARGE]},
        {"long": "y" * 5000, "data": LARGE},
        {f"field-{i}": i for i in range(20_000)},
        [1, 2, LARGE],
        LARGE,
    ],
)
def test_other_large_bodies_are_read_as_msgpack_reads_them(value: Any) -> None:
    """Whatever isn't large data at the end of a map takes msgpack's own way."""
    assert codec.unpack(msgpack.packb(value)) == value


@pytest.mark.parametrize(
    "body",
    [
        codec.pack(fields(data=LARGE))[:-1],
        codec.pack(fields(data=LARGE)) + b"\x00",
        b"\x81\xc6" + b"\xff" * 70_000,
        b"\x82\x90\x01\xa1d\xc6" + len(LARGE).to_bytes(4, "big") + LARGE,
        b"\x80\xa1d\xc6" + len(LARGE).to_bytes(4, "big") + LARGE,
        b"\x81\x07\xc6" + len(LARGE).to_bytes(4, "big") + LARGE,
        b"\xdf\xff\xff\xff\xff" + b"\xa1a\x01" * 50_000,
    ],
)
def test_a_large_body_that_is_not_ours_is_refused(body: bytes) -> None:
    """Cut, too long, of other keys, or promising more than there is: a ProtocolError each time."""
    with pytest.raises(ProtocolError):
        codec.unpack(body)


def test_no_message_builds_more_values_than_one_may_have() -> None:
    """15 MB of empty lists are 15 million objects and a gigabyte: refused before they are built."""
    bomb = b"\xdd" + (600_000).to_bytes(4, "big") + b"\x90" * 600_000
    nested = msgpack.packb({"a": [[0] * 1000 for _ in range(600)]})
    for body in (bomb, nested):
        with pytest.raises(ProtocolError):
            codec.unpack(body)
    assert codec.unpack(nested, most_values=2_000_000) == {"a": [[0] * 1000 for _ in range(600)]}
