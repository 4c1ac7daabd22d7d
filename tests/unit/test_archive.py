"""A `.keras` archive is read within limits, by one reader; whatever is wrong with it is one ModelError."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import ModelError
from broker.model.allowlist import MAX_JSON_BYTES
from broker.model.archive import CONFIG, read_config, read_text

MODEL = {"class_name": "Sequential", "module": "keras", "registered_name": None, "config": {"layers": []}}


def write(path: Path, text: str, *, member: str = CONFIG, how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr(member, text)
    return path


def test_a_description_comes_back_checked(tmp_path: Path) -> None:
    """What Keras wrote is what the reader gives."""
    assert read_config(write(tmp_path / "m.keras", json.dumps(MODEL))) == MODEL


@pytest.mark.parametrize("value", [140_000_000_000_000, 0])
def test_a_shared_objects_number_is_passed_over(tmp_path: Path, value: int) -> None:
    """It is an address in its maker's memory, beyond what a number may be elsewhere."""
    told = {**MODEL, "shared_object_id": value}
    assert read_config(write(tmp_path / "m.keras", json.dumps(told))) == told


def encrypted(content: bytes) -> bytes:
    """The flag that says a member has a password, in both headers."""
    changed = bytearray(content)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(signature) + at] |= 1
    return bytes(changed)


def of_method(content: bytes) -> bytes:
    """Compressed in a way that nobody knows."""
    changed = bytearray(content)
    for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = changed.index(signature) + at
        changed[start : start + 2] = struct.pack("<H", 99)
    return bytes(changed)


@pytest.mark.parametrize("spoil", [encrypted, of_method, lambda _content: b"", lambda content: content[:-30]])
@pytest.mark.parametrize(
    "how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_an_archive_that_can_not_be_opened_is_one_line(
    tmp_path: Path, spoil: Callable[[bytes], bytes], how: int
) -> None:
    """With a password, an unknown method, empty or cut: what was expected is said."""
    path = write(tmp_path / "m.keras", json.dumps(MODEL), how=how)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelError, match=r"Expected a model saved by Keras as FILE\.keras") as refused:
        read_config(path)
    assert "\n" not in str(refused.value)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_flipped_bit_gives_the_text_or_a_model_error(tmp_path: Path, data: st.DataObject) -> None:
    """A damaged file never ends in a traceback, and never gives another text than was written."""
    how = data.draw(
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    )
    text = json.dumps(MODEL)
    path = write(tmp_path / "m.keras", text, how=how)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3)):
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    try:
        assert read_text(path, CONFIG, 10_000) in (text, None)
    except ModelError as exc:
        assert "\n" not in str(exc)


def test_a_description_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """A few kB that unpack to more than a message may have: its size is known before."""
    path = write(tmp_path / "m.keras", " " * (MAX_JSON_BYTES + 1))
    assert path.stat().st_size < 100_000
    with pytest.raises(ModelError, match=f"{MAX_JSON_BYTES + 1} bytes; {MAX_JSON_BYTES} are allowed"):
        read_config(path)


def test_an_archive_without_a_description_is_no_model(tmp_path: Path) -> None:
    """Another zip file is said to lack it."""
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_config(write(tmp_path / "m.keras", "{}", member="other"))
