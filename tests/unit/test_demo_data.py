"""The demo's data: real where it can be had, made up where not, and never half there."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from broker.errors import DataError
from deploy import demo_data
from deploy.demo_data import find_data
from deploy.synthetic import XraySet, make_digit, make_xray, write_xrays
from worker.data.data_set import open_data
from worker.data.listing import patient_of


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data beside the repository and no network; WARREN_DATA is an empty folder."""

    def no_network(url: str) -> None:
        raise demo_data._NotFetchedError("no network")

    monkeypatch.setattr(demo_data, "_BESIDE_THE_REPOSITORY", tmp_path / "none")
    monkeypatch.setattr(demo_data, "_open_in_time", no_network)
    monkeypatch.setenv("WARREN_DATA", str(tmp_path))
    return tmp_path


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))


def test_an_archive_is_unpacked_once(nowhere: Path) -> None:
    """The second time the unpacked folder is there."""
    write_tar(nowhere / "chest_xray.tar", ["chest_xray/train/NORMAL/IM-0001-0001.jpeg"])
    found = find_data("chest_xray", nowhere / "cache")
    assert (found / "train" / "NORMAL" / "IM-0001-0001.jpeg").read_bytes() == b"x"
    changed = found.stat().st_mtime_ns
    assert find_data("chest_xray", nowhere / "cache").stat().st_mtime_ns == changed
    assert len(list((nowhere / "cache").iterdir())) == 1


@pytest.mark.parametrize("names", [["../outside"], None])
def test_an_archive_that_reaches_outside_or_is_cut_leaves_nothing(
    nowhere: Path, names: list[str] | None
) -> None:
    """It is refused, the cache stays empty, and nothing is written beside it."""
    if names:
        write_tar(nowhere / "chest_xray.tar", names)
    else:
        (nowhere / "chest_xray.tar").write_bytes(b"cut")
    with pytest.raises(DataError, match="Can't unpack"):
        find_data("chest_xray", nowhere / "cache")
    assert list((nowhere / "cache").iterdir()) == []
    assert not (nowhere / "outside").exists()


def test_an_npz_and_an_unpacked_folder_are_used_where_they_lie(nowhere: Path) -> None:
    """Data that is there is neither copied nor fetched."""
    (nowhere / "mnist.npz").touch()
    (nowhere / "chest_xray" / "train").mkdir(parents=True)
    assert find_data("mnist", nowhere / "cache") == nowhere / "mnist.npz"
    assert find_data("chest_xray", nowhere / "cache") == nowhere / "chest_xray"


def test_without_data_and_network_a_made_up_set_is_announced(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr says that the set is made up and why; stdout stays the result's."""
    monkeypatch.delenv("WARREN_DATA")
    monkeypatch.setattr(demo_data, "write_digits", lambda path: path.touch())
    assert find_data("mnist", nowhere / "cache").is_file()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no network" in captured.err
    assert "made-up" in captured.err


def test_made_up_xrays_are_named_and_laid_out_as_the_real_ones(nowhere: Path) -> None:
    """Patients can be told apart, and none is in both parts."""
    write_xrays(nowhere / "x", XraySet(train_patients=3, test_patients=2, size=16))
    data = open_data(str(nowhere / "x"), shape=(16, 16, 1))
    assert data.classes == ("NORMAL", "PNEUMONIA")
    owners = [
        {patient_of(path.name) for path in (nowhere / "x" / part).glob("*/*")} for part in ("train", "test")
    ]
    assert [len(patients) for patients in owners] == [6, 4]
    assert not owners[0] & owners[1]


def test_the_same_seed_makes_the_same_pictures() -> None:
    """Bit for bit, so that two people's demos learn from one made-up set."""
    one, two = (make_xray(32, has_pneumonia=True, rng=np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one, two)
    assert make_digit(7, np.random.default_rng(5)).shape == (28, 28)
