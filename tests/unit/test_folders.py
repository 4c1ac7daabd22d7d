"""Folders of images as hospitals and public data sets have them: all is read, or told in one line."""

import logging
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from broker.errors import DataError
from tests.dicoms import SECRETS, dicom, ramp
from worker.cli import main
from worker.data.data_set import open_data
from worker.data.split import split

SMALL = (8, 8, 1)
NFC, NFD = (unicodedata.normalize(form, "Pneumonía") for form in ("NFC", "NFD"))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def image(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), level).save(path, {".jpe": "JPEG", ".jfif": "JPEG"}.get(path.suffix.lower()))
    return path


def images(folder: Path, count: int = 3) -> Path:
    for i in range(count):
        image(folder / f"{i}.png", i)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    return record.getMessage()


# What is read, and what is left out


@pytest.mark.parametrize(
    "name",
    ["a.jfif", "a.jpe", "a.tif", "a.tiff", "a.TIF", "a.JPG", "a.PNG", "a.Jpeg", "a.bmp", "a.gif", "a.webp"],
)
def test_every_usual_suffix_is_an_image(tmp_path: Path, name: str) -> None:
    """In lower or upper case."""
    image(tmp_path / "a" / name)
    images(tmp_path / "b", 1)
    assert open_data(str(tmp_path), for_training=False, shape=SMALL).num_test_examples == 2


@pytest.mark.parametrize("name", ["x.dcm", "x.DCM", "x.dicom", "IM000001", "1.2.840.113619.2.55", "x.ima"])
def test_dicom_is_read_whatever_its_name(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Archives name files by numbers; the content tells."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(dicom(ramp(12), BitsStored=12, PatientID=folder))
    data = open_data(str(tmp_path), for_training=False, shape=(16, 20, 1))
    assert np.array_equal(data.test((16, 20, 1)).x[0, ..., 0], np.rint(ramp(12) * (255 / 4095)))
    assert not caplog.records


def test_what_is_left_out_is_told_once_with_counts_by_suffix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hidden files, and what systems keep beside data, needn't be told."""
    for folder in ("a", "b/p1/deep"):
        images(tmp_path / folder)
        for i in range(6):
            (tmp_path / folder / f"{i}.nii.gz").touch()
        for name in ("x.txt", ".hidden.txt", "Thumbs.db", ".DS_Store", "DICOMDIR", "desktop.ini"):
            (tmp_path / folder / name).touch()
    (tmp_path / "a" / "strange").touch()
    (tmp_path / "labels.csv").touch()
    images(tmp_path / "a" / ".thumbnails")
    data = open_data(str(tmp_path), shape=SMALL)
    assert data.num_train_examples + data.num_test_examples == 6
    assert warning(caplog) == (
        "Left out 16 files that are no images: 12 .nii.gz, 2 .txt, 1 .csv, 1 without suffix"
    )


def test_images_outside_the_class_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beside the classes, and in folders beside train/ and test/."""
    for folder in ("train/a", "train/b", "test/a", "test/b", "more/a"):
        images(tmp_path / folder)
    image(tmp_path / "train" / "lost.png")
    open_data(str(tmp_path), shape=SMALL)
    assert warning(caplog) == (
        "Left out 3 images in more/ (beside train/ and test/); 1 image in train/ (outside the class folders)"
    )


def test_nothing_is_said_when_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A clean folder makes no warning."""
    for name in "ab":
        images(tmp_path / name)
    open_data(str(tmp_path), shape=SMALL)
    assert not caplog.records


def test_an_empty_class_folder_says_what_it_holds(tmp_path: Path) -> None:
    """The person sees why there is no image."""
    images(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for i in range(3):
        (tmp_path / "b" / f"{i}.nii").touch()
    with pytest.raises(DataError, match=r"TIFF or DICOM\); it holds 3 \.nii"):
        open_data(str(tmp_path))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """A link to the folder above; links to folders are followed, each once."""
    for name in "ab":
        images(tmp_path / "set" / name)
    images(tmp_path / "elsewhere", 2)
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "circle").symlink_to(tmp_path / "set" / "a")
    assert open_data(str(tmp_path / "set"), for_training=False, shape=SMALL).num_test_examples == 8


def test_files_with_pages_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line with their number, not one a file."""
    for name in "ab":
        images(tmp_path / name)
        tifffile.imwrite(tmp_path / name / "x.tif", np.zeros((2, 8, 8), np.uint8), photometric="minisblack")
    open_data(str(tmp_path), shape=SMALL)
    assert "2 of 2 TIFF files have more than one page; the first page of each is read" in warning(caplog)


def test_skipped_dicom_files_are_named_without_their_tags(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """File names are this machine's own; tags are a patient's."""
    for name in "ab":
        images(tmp_path / name)
    (tmp_path / "a" / "film.dcm").write_bytes(dicom(ramp(), NumberOfFrames=4, Rows=4))
    open_data(str(tmp_path), shape=SMALL)
    assert "Skipped 1 of 7 images. Can't read the image" in warning(caplog)
    assert "film.dcm" in warning(caplog)
    assert "4 frames" in warning(caplog)
    assert not any(secret in caplog.text for secret in SECRETS)


# Patients


def patients_at(site: Path) -> set[str]:
    return {path.parent.name for path in site.glob("*/*/*")}


def test_a_sub_folder_is_a_patient_and_is_not_divided(tmp_path: Path) -> None:
    """In split: names that repeat in every folder stay apart, and a site has the folders as they were."""
    for name in "ab":
        for patient in range(6):
            images(tmp_path / "set" / name / f"{name}-{patient}", 4)
    split(str(tmp_path / "set"), into=3, out=tmp_path / "sites")
    sites = [tmp_path / "sites" / f"site-{i}" for i in (1, 2, 3)]
    owners = Counter(patient for site in sites for patient in patients_at(site))
    assert owners == dict.fromkeys((f"{name}-{i}" for name in "ab" for i in range(6)), 1)
    assert [len(list(site.glob("*/*/*.png"))) for site in sites] == [16, 16, 16]


def test_a_patient_with_images_of_two_classes_is_held_out_in_both(tmp_path: Path) -> None:
    """The tenth that is tested on shares nobody with what is trained on."""
    for patient in range(20):
        for name in "ab":
            for i in range(2):
                image(tmp_path / name / f"p{patient}" / f"{i}.png", patient)
    for seed in range(5):
        data = open_data(str(tmp_path), shape=SMALL, seed=seed)
        trained, tested = ({int(x[0, 0, 0]) for x in part(SMALL).x} for part in (data.train, data.test))
        assert not trained & tested
        assert len(tested) == 2


def test_swarm_workers_share_no_patient(tmp_path: Path) -> None:
    """The same in `worker swarm`."""
    for name in "ab":
        for patient in range(8):
            for i in range(3):
                image(
                    tmp_path / "train" / name / f"{name}{patient}" / f"{i}.png", patient + 100 * (name == "b")
                )
        images(tmp_path / "test" / name)
    sites = open_data(str(tmp_path), shape=SMALL).divide(4, "iid", 0)
    seen = [{int(x[0, 0, 0]) for x in site.train(SMALL).x} for site in sites]
    assert sum(map(len, seen)) == 16 == len(set().union(*seen))


def test_a_folder_that_holds_a_whole_class_is_no_patient(tmp_path: Path) -> None:
    """a/images/*.png and b/images/*.png: public sets are like this, and can be split."""
    for name in "ab":
        images(tmp_path / "set" / name / "images", 6)
    assert (split(str(tmp_path / "set"), into=3, out=tmp_path / "sites").train == 2).all()


def test_dicoms_patient_beats_the_folder(tmp_path: Path) -> None:
    """One person's files in two folders stay together; two persons in one folder may part."""
    for name in "ab":
        for patient in range(6):
            for visit in range(2):
                path = tmp_path / "set" / name / f"{2020 + visit}" / f"{patient}.dcm"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(dicom(ramp(), PatientID=f"{name}{patient}"))
    split(str(tmp_path / "set"), into=3, out=tmp_path / "sites")
    for name in "ab":
        for patient in range(6):
            found = list((tmp_path / "sites").glob(f"*/{name}/*/{patient}.dcm"))
            assert len(found) == 2
            assert len({path.parents[2] for path in found}) == 1


def test_a_placeholder_as_patient_is_told_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files made anonymous often all have the same number; they are not one person."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "set" / name / f"{i}.dcm").write_bytes(dicom(ramp(), PatientID="ANON-77"))
    assert (split(str(tmp_path / "set"), into=2, out=tmp_path / "sites").train == 2).all()
    assert "All 8 DICOM files have the same PatientID" in warning(caplog)
    assert "ANON" not in caplog.text


# train, test and val


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "TEST"), ("Training", "Testing")])
def test_parts_may_have_capitals(tmp_path: Path, names: tuple[str, str]) -> None:
    """They are no classes."""
    for part, count in zip(names, (5, 2), strict=True):
        for name in "ab":
            images(tmp_path / part / name, count)
    data = open_data(str(tmp_path), shape=SMALL)
    assert (data.classes, data.num_train_examples, data.num_test_examples) == (("a", "b"), 10, 4)


@pytest.mark.parametrize("val", ["val", "validation", "Valid"])
def test_without_test_val_is_the_test_part(
    tmp_path: Path, val: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is said."""
    caplog.set_level(logging.INFO)
    for part, count in (("train", 5), (val, 2)):
        for name in "ab":
            images(tmp_path / part / name, count)
    data = open_data(str(tmp_path), shape=SMALL)
    assert (data.num_train_examples, data.num_test_examples, data.is_held_out) == (10, 4, False)
    assert f"There is no test/: {val}/ is the test part." in caplog.text


def test_val_beside_test_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There is one test part; what is not used is counted in one line."""
    for part in ("train", "test", "val"):
        for name in "ab":
            images(tmp_path / part / name)
    open_data(str(tmp_path), shape=SMALL)
    assert warning(caplog) == "Left out 6 images in val/ (there is a test part)"


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    """train and Train might hold the same images: nobody guesses, both are named."""
    for part in ("train", "Train", "test"):
        for name in "ab":
            images(tmp_path / part / name)
    with pytest.raises(DataError, match="'Train' and 'train', which mean the same"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("inner", [("train", "test"), ("a", "b")])
def test_a_path_one_level_too_high_says_which_to_give(tmp_path: Path, inner: tuple[str, ...]) -> None:
    """As archives unpack: chest_xray/chest_xray/train."""
    for part in inner:
        for name in "ab":
            images(tmp_path / "chest_xray" / part / name)
    with pytest.raises(DataError, match=r"one level too high.*Give '.*chest_xray'"):
        open_data(str(tmp_path))


def test_class_folders_that_are_data_sets_are_refused(tmp_path: Path) -> None:
    """Two data sets side by side are no two classes, now that sub-folders are read."""
    for data_set in ("chest", "digits"):
        for part in ("train", "test"):
            images(tmp_path / data_set / part / "a")
    with pytest.raises(DataError, match="chest' holds train/, so it is a data set of its own and no class"):
        open_data(str(tmp_path))


# Classes


def test_both_spellings_of_a_name_are_one_class(tmp_path: Path) -> None:
    """macOS writes í as two characters: such a site agrees with the others, and train/ with test/."""
    assert NFC != NFD
    for part, name in (("train", NFD), ("test", NFC)):
        images(tmp_path / part / name)
        images(tmp_path / part / "Normal")
    data = open_data(str(tmp_path), shape=SMALL)
    assert data.classes == ("Normal", NFC)
    assert data.num_test_examples == 6
    split(str(tmp_path), into=1, out=tmp_path.with_name("out"))
    assert (tmp_path.with_name("out") / "site-1" / "train" / NFC).is_dir()


def test_two_folders_that_look_the_same_are_refused_by_name(tmp_path: Path) -> None:
    """What tells them apart is shown."""
    for name in (NFC, NFD, "Normal"):
        images(tmp_path / name)
    with pytest.raises(DataError, match=r"two folders for the class.*'Pneumon\\xeda'.*'Pneumoni\\u0301a'|"
                       r"two folders for the class.*'Pneumoni\\u0301a'.*'Pneumon\\xeda'"):  # fmt: skip
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"c\nb\na\n", b"c\nb\na", b"\xef\xbb\xbfc\nb\na\n", b"c\r\nb\r\na\r\n", b"\nc\n\n b \na\n\n",
        b"c\nb\na\n",
    ],
)  # fmt: skip
def test_classes_txt_is_read_as_any_editor_writes_it(tmp_path: Path, content: bytes) -> None:
    """No last newline, a BOM, Windows' line ends, blank lines; the order is the file's."""
    for name in "ab":
        images(tmp_path / name)
    (tmp_path / "classes.txt").write_bytes(content)
    data = open_data(str(tmp_path), shape=SMALL)
    assert data.classes == ("c", "b", "a")
    assert data.examples_per_class["c"] == 0


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"a\nb\na\n", "names the class 'a' 2 times"),
        (f"{NFC}\n{NFD}\n".encode(), "names the class 'Pneumonía' 2 times"),
        (b"a\n", r"two classes or more. Received \['a'\]"),
        ("Pneumonía\nb\n".encode("latin-1"), "Expected text in UTF-8"),
    ],
)
def test_a_wrong_classes_txt_is_one_line(tmp_path: Path, content: bytes, match: str) -> None:
    """A name twice (also in two encodings), one class alone, or no UTF-8: each is named."""
    for name in "ab":
        images(tmp_path / name)
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=match):
        open_data(str(tmp_path))


def test_a_folder_may_lack_declared_classes(tmp_path: Path) -> None:
    """`--classes`: the names in the model's order; a site made by split keeps both."""
    for part in ("train", "test"):
        images(tmp_path / "set" / part / "b", 6)
        images(tmp_path / "set" / part / "a", 6)
    result = run("split", tmp_path / "set", "--into", 2, "--out", tmp_path / "sites", "--classes", "c, b,a")
    assert (result.exit_code, result.stdout.split("\n")[0].split()[1:4]) == (0, ["c", "b", "a"])
    data = open_data(str(tmp_path / "sites" / "site-1"), shape=SMALL)
    assert data.examples_per_class == {"c": 0, "b": 3, "a": 3}
    assert sorted(set(data.test(SMALL).y.tolist())) == [1, 2]


@pytest.mark.parametrize(
    ("classes", "code", "said"),
    [
        ("a,b,a", 2, "--classes names the class 'a' 2 times"),
        ("a", 2, "--classes needs two classes or more"),
        ("a,,b", 2, "a class named ''"),
        ("a,c", 5, "expected ['a', 'c'], found ['a', 'b']"),
    ],
)
def test_wrong_declared_classes_are_one_line(tmp_path: Path, classes: str, code: int, said: str) -> None:
    """Wrong usage is exit code 2; classes that the data doesn't have are exit code 5."""
    for name in "ab":
        images(tmp_path / "set" / name)
    result = run("split", tmp_path / "set", "--into", 2, "--out", tmp_path / "sites", "--classes", classes)
    assert result.exit_code == code
    assert said in result.stderr


def test_classes_declared_twice_must_agree(tmp_path: Path) -> None:
    """--classes and classes.txt in another order are refused, and both are shown."""
    for name in "ab":
        images(tmp_path / "set" / name)
    (tmp_path / "set" / "classes.txt").write_text("a\nb\n")
    result = run("split", tmp_path / "set", "--into", 1, "--out", tmp_path / "out", "--classes", "b,a")
    assert result.exit_code == 5
    assert "--classes has ['b', 'a'], classes.txt has ['a', 'b']" in result.stderr
