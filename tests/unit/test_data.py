"""One participant's data: every layout that is promised opens, all else gets one line that helps."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from broker.errors import DataError, UsageError
from broker.wire.tensors import InputFacts
from worker.cli import main
from worker.data.classes import parse_classes
from worker.data.data_set import open_data, patient_of
from worker.data.split import split
from worker.rounds.participant import Participant

SMALL = (8, 8, 1)
RNG = np.random.default_rng(0)


def write_folders(root: Path, counts: dict[str, int], first: int = 1) -> Path:
    """Folders of 8 × 8 images; each has one gray level, which tells where it came from."""
    for level, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            Image.new("L", (8, 8), 100 * level + i).save(root / name / f"{name}{i}.png")
    return root


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def digits(count: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 255, (count, 28, 28), np.uint8), np.arange(count) % classes


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


# Folders


def test_a_folder_with_train_and_test_is_opened(tmp_path: Path) -> None:
    """Classes are in sorted order, whatever the disk's; validation folders beside a test part belong to neither."""
    write_folders(tmp_path / "train", {"b": 5, "a": 7})
    write_folders(tmp_path / "test", {"b": 2, "a": 1})
    write_folders(tmp_path / "val", {"b": 3, "a": 3})
    data = open_data(str(tmp_path), shape=SMALL)
    assert data.classes == ("a", "b")
    assert data.examples_per_class == {"a": 7, "b": 5}
    assert (data.num_train_examples, data.num_test_examples, data.is_held_out) == (12, 3, False)
    test = data.test(SMALL)
    assert test.x.dtype == np.uint8
    assert test.x[:, 0, 0, 0].tolist() == [101, 1, 2]
    assert test.y.tolist() == [0, 1, 1]


def test_decoded_images_are_kept_until_another_shape_is_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files are read once per shape: they can vanish in between. The error, which may travel, names no file."""
    data = open_data(str(write_folders(tmp_path / "x", {"a": 20, "b": 20})), shape=SMALL)
    colour = data.train((4, 4, 3))
    assert colour.x.shape == (36, 4, 4, 3)
    shutil.rmtree(tmp_path / "x")
    assert data.train((4, 4, 3)).x is colour.x
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match=r"36 of 36 images.* log") as caught:
        data.train((5, 5, 1))
    assert "png" not in str(caught.value)
    assert "no such file" in caplog.text


def test_without_a_test_part_a_tenth_is_held_out_by_patient(tmp_path: Path) -> None:
    """20 patients with 2 pictures: 2 patients of each class are tested on and not trained on."""
    for name, pattern in (("NORMAL", "IM-{:04}-000{}.png"), ("PNEUMONIA", "person{}_virus_{}.png")):
        (tmp_path / name).mkdir()
        for patient in range(20):
            for picture in (1, 2):
                level = patient + 100 * (name == "NORMAL")
                Image.new("L", (8, 8), level).save(tmp_path / name / pattern.format(patient, picture))
    data = open_data(str(tmp_path), shape=SMALL)
    assert data.is_held_out
    assert (data.num_train_examples, data.num_test_examples) == (72, 8)
    trained, tested = ({int(x[0, 0, 0]) for x in part(SMALL).x} for part in (data.train, data.test))
    assert not trained & tested
    assert len(tested) == 4
    assert np.array_equal(open_data(str(tmp_path), shape=SMALL).test(SMALL).x, data.test(SMALL).x)
    assert not np.array_equal(open_data(str(tmp_path), shape=SMALL, seed=1).test(SMALL).x, data.test(SMALL).x)


def test_a_set_to_evaluate_on_is_taken_whole(tmp_path: Path) -> None:
    """Nothing is held out of a plain set of class folders, and train/ isn't even decoded."""
    write_folders(tmp_path / "train", {"a": 2, "b": 2})
    write_folders(tmp_path / "test", {"a": 4, "b": 3})
    for path in (tmp_path, tmp_path / "test"):
        data = open_data(str(path), for_training=False, shape=SMALL)
        assert (data.num_train_examples, data.num_test_examples) == (0, 7)


def test_a_set_with_a_test_part_only_can_be_evaluated_but_not_trained_on(tmp_path: Path) -> None:
    """All of it is measured on; to train, it asks for a train/ folder."""
    write_folders(tmp_path / "test", {"a": 4, "b": 3})
    assert open_data(str(tmp_path), for_training=False, shape=SMALL).num_test_examples == 7
    with pytest.raises(DataError, match="under train/"):
        open_data(str(tmp_path))


def test_images_that_cannot_be_decoded_are_skipped_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning with the number and the first names; they are counted nowhere."""
    write_folders(tmp_path / "train", {"a": 5, "b": 5})
    write_folders(tmp_path / "test", {"a": 1, "b": 1})
    for i in (1, 2, 3, 4):
        (tmp_path / "train" / "a" / f"a{i}.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        data = open_data(str(tmp_path), shape=SMALL)
    assert data.examples_per_class == {"a": 1, "b": 5}
    assert data.train(SMALL).x[:, 0, 0, 0].tolist() == [5, 101, 102, 103, 104, 105]
    assert data.test(SMALL).y.tolist() == [0, 1]
    (record,) = caplog.records
    assert "Skipped 4 of 12 images" in record.getMessage()
    assert "a1.png" in record.getMessage()
    assert "and 1 more" in record.getMessage()


def test_a_class_left_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    """What can't be decoded doesn't count, and a class with nothing left is named."""
    write_folders(tmp_path, {"a": 5, "b": 3})
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="class 'b' can be decoded"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        ({"a": 3}, "two classes or more; it has only 'a'"),
        ({}, "no sub-folder"),
        ({"a": 3, "b": 0}, "b' holds no image"),
        ({"a": 3, "b": 1}, "'b' has 1 example"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path, counts: dict[str, int], match: str) -> None:
    """A class alone, none at all, an empty one, and one too small to hold an example out."""
    with pytest.raises(DataError, match=match):
        open_data(str(write_folders(tmp_path, counts)))


def test_train_and_test_need_the_same_classes(tmp_path: Path) -> None:
    """Otherwise a test image's label would mean another class; both lists are named."""
    write_folders(tmp_path / "train", {"a": 3, "b": 3})
    write_folders(tmp_path / "test", {"a": 3, "c": 3})
    with pytest.raises(DataError, match=r"expected \['a', 'b'\], found \['a', 'c'\]"):
        open_data(str(tmp_path))


def test_images_do_not_fit_a_model_for_numbers(tmp_path: Path) -> None:
    """A picture has height, width and channels; what a model takes that wants a row of numbers is named."""
    data = open_data(str(write_folders(tmp_path, {"a": 3, "b": 3})), shape=SMALL)
    with pytest.raises(DataError, match=r"the model takes \(30,\)"):
        data.train((30,))


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person100_bacteria_475.jpeg", "person100"),
        ("person1_virus_6_2.jpeg", "person1"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-0380-0001-0002.jpeg", "NORMAL2-IM-0380"),
        ("IM-0115.png", "IM-0115"),
        ("scan7.png", "scan7.png"),
        ("personal_1.png", "personal_1.png"),
    ],
)
def test_the_patient_is_read_from_the_name(name: str, patient: str) -> None:
    """The two ways that the Kermany set names patients; any other name is a patient of its own."""
    assert patient_of(name) == patient


# Arrays


def test_an_npz_is_opened_and_gets_a_channel_axis(tmp_path: Path) -> None:
    """Labels 0 to 9 are classes '0' to '9'; 28 × 28 fits a model for 28 × 28 × 1."""
    x, y = digits(40)
    data = open_data(str(write_npz(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])))
    assert data.classes == tuple("0123456789")
    train = data.train((28, 28, 1))
    assert train.x.shape == (40, 28, 28, 1)
    assert train.x.dtype == np.uint8
    assert train.y.dtype == np.int64
    assert data.num_test_examples == 7


def test_an_npz_without_test_has_a_tenth_of_each_class_held_out(tmp_path: Path) -> None:
    """2 of each digit's 20 are tested on, and the other 180 trained on."""
    x, y = digits(200)
    data = open_data(str(write_npz(tmp_path / "d.npz", x_train=x, y_train=y)))
    assert data.is_held_out
    assert np.bincount(data.test((28, 28, 1)).y).tolist() == [2] * 10
    assert data.num_train_examples == 180


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.float64, np.float32),
        (np.float16, np.float32),
        (np.int64, np.uint8),
        (bool, np.uint8),
        (np.float32, np.float32),
    ],
)
def test_numbers_are_kept_small(tmp_path: Path, given: type, kept: type) -> None:
    """uint8 where no value is lost by it, else float32, which is what Keras computes with."""
    x = np.array([[0, 1], [1, 0]] * 5).astype(given)
    data = open_data(str(write_npz(tmp_path / "d.npz", x_train=x, y_train=np.array([0, 1] * 5))))
    assert data.train((2,)).x.dtype == kept


def test_labels_of_any_whole_numbers_become_classes(tmp_path: Path) -> None:
    """A column of labels, as Keras's CIFAR sets have it, with gaps and below zero."""
    y = np.array([[-1], [7]] * 10)
    data = open_data(str(write_npz(tmp_path / "d.npz", x_train=np.zeros((20, 3)), y_train=y)))
    assert data.classes == ("-1", "7")
    assert set(data.train((3,)).y) == {0, 1}


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": np.zeros((4, 2)), "y": np.arange(4)}, r"lacks x_train and y_train.*\['x', 'y'\]"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.arange(4), "x_test": np.zeros((1, 2))}, "lacks y_test"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.arange(3)}, r"\(4, 2\) and \(3,\)"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.zeros(4, int)}, "every label is 0"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.array(["a", "b"] * 2)}, "argmax"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.array([0.5, 1, 2, np.nan])}, "Received"),
        ({"x_train": np.full((4, 2), np.nan), "y_train": np.arange(4)}, "NaN"),
        ({"x_train": np.array([{}] * 4), "y_train": np.arange(4)}, "no pickled objects"),
        ({"x_train": np.full((4, 2), 1e300), "y_train": np.arange(4)}, r"1e\+300, beyond what float32 holds"),
        ({"x_train": np.full((4, 2), 1j), "y_train": np.arange(4)}, "needs real numbers"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.array([0, np.nan, 1, 1])}, "Received nan"),
        (
            {"x_train": np.zeros((4, 2)), "y_train": np.array([0, 2**63, 1, 1], np.uint64)},
            "9223372036854775808",
        ),
        (
            {
                "x_train": np.zeros((4, 2)),
                "y_train": np.arange(4),
                "x_test": np.zeros((4, 3)),
                "y_test": np.arange(4),
            },
            r"one shape\. Received \(2,\) and \(3,\)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], match: str
) -> None:
    """Names, lengths, labels, values; and pickled objects are never opened."""
    with pytest.raises(DataError, match=match):
        open_data(str(write_npz(tmp_path / "d.npz", **arrays)))


def test_a_label_that_only_the_test_part_has_is_refused(tmp_path: Path) -> None:
    """It can't be learned, so it is named."""
    x = np.zeros((3, 2))
    path = write_npz(
        tmp_path / "d.npz", x_train=x, y_train=np.array([0, 1, 1]), x_test=x, y_test=np.array([0, 1, 2])
    )
    with pytest.raises(DataError, match="no training example of the label 2"):
        open_data(str(path))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (np.uint64, np.uint64), (np.uint64, np.int64), (np.uint64, np.int8), (np.int32, np.float32),
        (np.float64, np.uint8), (bool, np.int64), (bool, bool), (np.float16, np.uint64),
    ],
)  # fmt: skip
def test_labels_of_any_type_give_the_same_classes(tmp_path: Path, train: type, test: type) -> None:
    """Class names are '0' and '1', never '0.0' or 'True', so that sites agree; whole fractions are taken."""
    y = np.array([0, 1] * 5)
    x = np.zeros((10, 3))
    path = write_npz(tmp_path / "d.npz", x_train=x, y_train=y.astype(train), x_test=x, y_test=y.astype(test))
    data = open_data(str(path))
    assert data.classes == ("0", "1")
    assert np.array_equal(data.test((3,)).y, y)


def test_large_labels_are_exact(tmp_path: Path) -> None:
    """Neighbours above 2^53 are one number as fractions; uint64 and int64 together would become fractions."""
    y = np.array([2**60, 2**60 + 1] * 5, np.uint64)
    x = np.zeros((10, 3))
    data = open_data(
        str(write_npz(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y.astype(np.int64)))
    )
    assert data.classes == (str(2**60), str(2**60 + 1))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, text, or a cut zip file: one line that says what was expected."""
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"Expected an \.npz"):
        open_data(str(tmp_path / "d.npz"))


def test_a_mismatch_with_the_model_names_both_shapes(tmp_path: Path) -> None:
    """What the examples are, and what the model takes."""
    x, y = digits(20, 2)
    data = open_data(str(write_npz(tmp_path / "d.npz", x_train=x, y_train=y)))
    with pytest.raises(DataError, match=r"\(28, 28\); the model takes \(224, 224, 3\)"):
        data.train((224, 224, 3))


def test_a_function_of_a_module_in_the_current_folder_gives_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Keras's own data sets do: (x_train, y_train), (x_test, y_test)."""
    (tmp_path / "warren_test_data.py").write_text(
        "import numpy as np\n"
        "def load():\n    return (np.zeros((4, 2)), [0, 1, 0, 1]), (np.zeros((2, 2)), [0, 1])\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert open_data("warren_test_data:load").examples_per_class == {"0": 2, "1": 2}
    with pytest.raises(DataError, match="returned int"):
        open_data("warren_test_data:wrong")
    for spec in ("warren_test_data:missing", "warren_no_module:load"):
        with pytest.raises(DataError, match="Can't find the data function"):
            open_data(spec)


_SHADOWED = """
import sys
from worker.data.data_set import open_data
try:
    open_data("colorsys:load")
except Exception as exc:
    print(exc)
print(open_data("persons_data:load").num_train_examples, "" in sys.path)
"""


def test_files_beside_a_data_function_stand_in_for_nobody_elses(tmp_path: Path) -> None:
    """A keras.py or random.py in the current folder is left alone, by what is imported later, too; nor does the
    folder stay importable."""
    for name in ("numpy", "keras", "tensorflow", "random", "json", "wave", "colorsys", "broker", "worker"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py was imported')\n")
    (tmp_path / "persons_data.py").write_text(
        "import wave, colorsys, numpy as np\n"
        "def load():\n    return (np.zeros((4, 2)), [0, 1, 0, 1]), (np.zeros((2, 2)), [0, 1])\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-c", _SHADOWED], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.stderr == ""
    error, found = done.stdout.splitlines()
    assert "module 'colorsys' has no attribute 'load' (" in error
    assert str(tmp_path) not in error
    assert found == "4 False"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def load(): raise ValueError('no such\\nfile at all')", "ValueError: no such."),
        ("def load(): return 1 / 0", "ZeroDivisionError: division by zero."),
        ("raise RuntimeError('at import')", "RuntimeError: at import."),
        ("import warren_not_there", "ModuleNotFoundError: No module named 'warren_not_there'."),
        ("import sys; sys.exit(3)", "SystemExit: 3."),
        ("def load(): raise SystemExit", "SystemExit: SystemExit."),
        ("load = None.something", "AttributeError: 'NoneType' object has no attribute 'something'."),
        ("def load(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_data_function_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    """Whose function it is and what it says; a person's own code may raise anything, at import, too."""
    name = f"warren_failing_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    result = run("split", f"{name}:load", "--into", 2, "--out", tmp_path / "out")
    assert result.exit_code == 5
    assert f"The data function '{name}:load' failed: {said}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_data_function_may_give_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a third value: names of the labels 0, 1, 2, or labels."""
    (tmp_path / "warren_classes_data.py").write_text(
        "import numpy as np\n"
        "x, y = np.zeros((4, 2)), [1, 2, 1, 2]\n"
        "def named(): return (x, y), (x, y), ['a', 'b', 'c']\n"
        "def labels(): return (x, y), (x, y), range(4)\n"
        "def ragged(): return ([[1], [1, 2]], [0, 1]), (x, y)\n"
        "def more(): return (x, y), (x, y), ['a', 'b'], 4\n"
    )
    monkeypatch.chdir(tmp_path)
    assert open_data("warren_classes_data:named").examples_per_class == {"a": 0, "b": 2, "c": 2}
    assert open_data("warren_classes_data:labels").classes == ("0", "1", "2", "3")
    with pytest.raises(DataError, match="can't become arrays"):
        open_data("warren_classes_data:ragged")
    with pytest.raises(DataError, match="and after them, if you like, the classes"):
        open_data("warren_classes_data:more")


def test_a_missing_path_is_refused() -> None:
    """The path is named as it was given."""
    with pytest.raises(DataError, match="no data at '/nowhere/at/all'"):
        open_data("/nowhere/at/all")


# Declared classes


def lacking(tmp_path: Path, labels: list[int], **more: np.ndarray) -> Path:
    """A site in arrays that has these labels alone."""
    y = np.array(labels * 10)
    return write_npz(
        tmp_path / f"{len(list(tmp_path.iterdir()))}.npz", x_train=np.zeros((len(y), 3)), y_train=y, **more
    )


def test_sites_that_lack_a_class_agree_when_it_is_declared(tmp_path: Path) -> None:
    """Labels 0 to 2 at one site, 1 and 2 at another: by `classes` in the file, or on the command line."""
    declared = parse_classes("0,1,2")
    for data in (
        open_data(str(lacking(tmp_path, [0, 1, 2]))),
        open_data(str(lacking(tmp_path, [1, 2], classes=np.arange(3)))),
        open_data(str(lacking(tmp_path, [1, 2])), classes=declared),
        open_data(str(lacking(tmp_path, [2])), classes=declared),
    ):
        assert data.classes == ("0", "1", "2")
    assert set(data.train((3,)).y) == {2}


def test_names_for_labels_are_declared_with_the_data_or_by_hand(tmp_path: Path) -> None:
    """They are those of the labels 0, 1, 2, in one spelling, in the order given."""
    names = np.array(["zebra", "Pneumoni\u0301a", "ape"])
    by_hand = parse_classes("zebra,Pneumon\u00eda,ape")
    for data in (
        open_data(str(lacking(tmp_path, [1, 2], classes=names))),
        open_data(str(lacking(tmp_path, [1, 2], classes=np.char.encode(names, "utf-8")))),
        open_data(str(lacking(tmp_path, [1, 2])), classes=by_hand),
        open_data(
            str(lacking(tmp_path, [1, 2], classes=np.arange(3))),
            classes=by_hand,
        ),
    ):
        assert data.examples_per_class == {"zebra": 0, "Pneumon\u00eda": 9, "ape": 9}
        assert set(data.train((3,)).y) == {1, 2}


@pytest.mark.parametrize(
    ("declared", "given", "match"),
    [
        (np.array(["a", "b"]), None, r"expected 0 to 1, which the names \['a', 'b'\] are for\. Received 2"),
        (np.array([0, 1]), None, r"expected \[0, 1\]\. Received 2"),
        (np.array([0, 1, 2, 2]), None, "names the class '2' 2 times"),
        (np.array(["a", "b", "a"]), None, "names the class 'a' 2 times"),
        (np.array(["a", "b", "c"]), "a,c,b", "declared classes differ"),
        (None, "a,b", "Received 2"),
        (np.array([0.5, 1, 2]), None, "one whole number"),
    ],
)
def test_declared_classes_that_do_not_fit_are_refused(
    tmp_path: Path, declared: np.ndarray | None, given: str | None, match: str
) -> None:
    """Too few for the labels, named twice, at odds with --classes, or no whole number."""
    path = lacking(tmp_path, [1, 2], **({} if declared is None else {"classes": declared}))
    with pytest.raises(DataError, match=match):
        open_data(str(path), classes=parse_classes(given))


@pytest.mark.parametrize(("classes", "dtype"), [("no,yes,maybe", "U"), ("0,1,2", "i"), (None, None)])
def test_a_split_of_arrays_writes_declared_classes_on(
    tmp_path: Path, classes: str | None, dtype: str | None
) -> None:
    """So that its sites keep names and order, whether they lack some or not."""
    path = lacking(tmp_path, [0, 1])
    run("split", path, "--into", 2, "--out", tmp_path / "sites", *(["--classes", classes] if classes else []))
    with np.load(tmp_path / "sites" / "site-1.npz") as site:
        assert ("classes" in site.files) == (classes is not None)
        assert classes is None or site["classes"].dtype.kind == dtype
    expected = tuple(classes.split(",")) if classes else ("0", "1")
    assert open_data(str(tmp_path / "sites" / "site-2.npz")).classes == expected


# What the inputs are


@pytest.mark.parametrize(
    ("given", "dtype", "low", "high"),
    [
        (np.array([[0, 255, 3]], np.uint8), "uint8", 0, 255),
        (np.array([[0, 1, 1]], bool), "bool", 0, 1),
        (np.array([[0, 4095, 3]], np.uint16), "uint16", 0, 4095),
        (np.array([[-1.5, 0.25, 0]], np.float32), "float32", -1.5, 0.25),
        (np.array([[-1.5, 0.25, 0]], ">f8"), "float64", -1.5, 0.25),
        (np.array([[7, 8, 9]], np.int64), "int64", 7, 9),
    ],
)
def test_the_inputs_are_told_as_they_were_given_and_are_handed_on(
    tmp_path: Path, given: np.ndarray, dtype: str, low: float, high: float
) -> None:
    """The type as it was given; the range of both parts together; the same for every logical site."""
    y = np.array([0, 1] * 10)
    train, test = np.repeat(given[:, [0, 2, 2]], 20, axis=0), np.repeat(given, 20, axis=0)
    data = open_data(str(write_npz(tmp_path / "d.npz", x_train=train, y_train=y, x_test=test, y_test=y)))
    assert data.inputs == InputFacts(shape=(3,), dtype=dtype, low=low, high=high)
    assert all(site.inputs is data.inputs for site in data.divide(2, "iid", 0))
    whole = open_data(str(tmp_path / "d.npz"), for_training=False)
    assert whole.inputs == data.inputs


@pytest.mark.parametrize(("factor", "is_told"), [(1, False), (1 / 2, False), (1 / 255, True), (255.0, True)])
def test_parts_of_different_scales_are_told(
    tmp_path: Path, factor: float, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One part divided by 255 and the other not: a usual slip, and no figure would mean anything."""
    x, y = digits(20, 2)
    path = write_npz(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:6] * factor, y_test=y[:6])
    open_data(str(path))
    assert ("scale both alike" in caplog.text) == is_told


def test_images_are_of_any_shape_and_of_8_bits(tmp_path: Path) -> None:
    """They are resized to what the model takes, so they promise no shape, and always 0 to 255."""
    data = open_data(str(write_folders(tmp_path, {"a": 3, "b": 3})), shape=SMALL)
    assert data.inputs == InputFacts(shape=None, dtype="uint8", low=0, high=255)


# Samples and logical sites


def test_a_sample_has_as_many_of_each_class(tmp_path: Path) -> None:
    """The lab's rounds: N random training examples a class, N/2 to validate on, or as many as there are."""
    x, y = digits(60, 2)
    path = write_npz(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    data = open_data(str(path))
    sample = data.sample((28, 28, 1), 20, np.random.default_rng(1))
    assert np.bincount(sample.y).tolist() == [20, 20]
    assert len({example.tobytes() for example in sample.x}) == 40
    assert np.bincount(data.sample_test((28, 28, 1), 4, np.random.default_rng(1)).y).tolist() == [2, 2]
    assert np.bincount(data.sample_test((28, 28, 1), 20, np.random.default_rng(1)).y).tolist() == [3, 3]
    assert len(data.sample((28, 28, 1), None, np.random.default_rng(1))) == 60
    with pytest.raises(DataError, match="31 examples per class; '0' has fewer here"):
        data.sample((28, 28, 1), 31, np.random.default_rng(1))


def test_a_sample_of_another_shape_does_not_decode_everything(tmp_path: Path) -> None:
    """Only the files that were drawn are read: the set decoded before stays."""
    data = open_data(str(write_folders(tmp_path, {"a": 20, "b": 20})), shape=SMALL)
    whole = data.train(SMALL).x
    assert data.sample((4, 4, 3), 2, np.random.default_rng(0)).x.shape == (4, 4, 4, 3)
    assert data.train(SMALL).x.base is whole.base


def test_logical_sites_share_one_set(tmp_path: Path) -> None:
    """A swarm's workers have every example once, of training and test part."""
    x, y = digits(60, 2)
    data = open_data(str(write_npz(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])))
    sites = data.divide(3, "iid", seed=0)
    assert [site.examples_per_class for site in sites] == [{"0": 10, "1": 10}] * 3
    assert sum(site.num_test_examples for site in sites) == 7
    seen = {example.tobytes() for site in sites for example in site.train((28, 28, 1)).x}
    assert len(seen) == 60
    assert len(sites[0].sample((28, 28, 1), 3, np.random.default_rng(0))) == 6


def test_two_processes_of_a_swarm_share_one_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--part 1/2` and `2/2` have together the workers and the data that one process would have, each once."""
    x, y = digits(60, 2)
    path = write_npz(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])
    played: list[list[Participant]] = []
    monkeypatch.setattr("worker.cli.take_part", lambda participants, *_, **__: played.append(participants))
    for part in (["--part", "1/2"], ["--part", "2/2"], []):
        result = run("swarm", "--count", 5, "--data", path, "--classes", "no,yes", "--name", "s", *part)
        assert result.exit_code == 0
    first, second, whole = played
    assert [worker.name for worker in first + second] == [f"s.{i}" for i in range(1, 6)]
    for mine, its in zip(first + second, whole, strict=True):
        assert mine.data.classes == ("no", "yes")
        assert np.array_equal(mine.data.train((28, 28)).x, its.data.train((28, 28)).x)


# worker split


def test_a_split_keeps_the_layout_and_shares_the_files(tmp_path: Path) -> None:
    """train/ and test/ stay; the images are hard links, so the sites cost no space."""
    source = tmp_path / "set"
    write_folders(source / "train", {"a": 6, "b": 9})
    write_folders(source / "test", {"a": 3, "b": 3})
    result = run("split", source, "--into", 3, "--out", tmp_path / "sites")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "site    a  b  test a  test b",
        "site-1  2  3       1       1",
        "site-2  2  3       1       1",
        "site-3  2  3       1       1",
    ]
    found = sorted(path.name for path in tmp_path.glob("sites/site-*/train/*/*"))
    assert found == sorted(path.name for path in source.glob("train/*/*"))
    assert all(path.stat().st_nlink == 2 for path in tmp_path.glob("sites/*/*/*/*"))
    assert not list(tmp_path.glob("sites/*/classes.txt"))
    assert open_data(str(tmp_path / "sites" / "site-2"), shape=SMALL).examples_per_class == {"a": 2, "b": 3}


def test_a_split_into_arrays_keeps_what_was_given(tmp_path: Path) -> None:
    """Each site has all four arrays, its share of them, and the labels' own dtype."""
    x, y = digits(40)
    source = write_npz(
        tmp_path / "d.npz", x_train=x, y_train=y.astype(np.uint8), x_test=x[:20], y_test=y[:20]
    )
    assert run("split", source, "--into", 2, "--out", tmp_path / "sites").exit_code == 0
    with np.load(tmp_path / "sites" / "site-1.npz") as site:
        assert sorted(site.files) == ["x_test", "x_train", "y_test", "y_train"]
        assert site["x_train"].shape == (20, 28, 28)
        assert site["y_train"].dtype == np.uint8


@pytest.mark.parametrize("is_images", [True, False])
def test_a_site_that_lacks_a_class_still_knows_it(tmp_path: Path, is_images: bool) -> None:
    """Uneven sites must agree on the classes, or no coordinator could join them."""
    x, y = digits(40, 4)
    source = (
        write_folders(tmp_path / "set", dict.fromkeys("0123", 10))
        if is_images
        else write_npz(tmp_path / "d.npz", x_train=x, y_train=y)
    )
    result = split(str(source), into=4, out=tmp_path / "sites", scheme="shards")
    assert (result.train == 0).any()
    for site in result.sites:
        assert open_data(str(site), shape=SMALL).classes == tuple("0123")


def test_the_same_split_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    """A demo that is started twice goes on; a folder with other content is never written over."""
    source = write_folders(tmp_path / "set", {"a": 6, "b": 9})
    out = tmp_path / "sites"
    first = split(str(source), into=3, out=out)
    assert np.array_equal(split(str(source), into=3, out=out).train, first.train)
    for into, seed in ((2, 0), (3, 1)):
        with pytest.raises(UsageError, match="holds something else"):
            split(str(source), into=into, out=out, seed=seed)
    (out / "notes.txt").touch()
    assert run("split", source, "--into", 3, "--out", out).exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "sites"]


def test_a_split_that_is_impossible_leaves_nothing(tmp_path: Path) -> None:
    """Too many sites, an unknown scheme, a place inside the data: one line, the right code, no folder."""
    source = write_folders(tmp_path / "set", {"a": 3, "b": 3})
    out = tmp_path / "sites"
    for code, arguments in (
        (5, (source, "--into", 4, "--out", out)),
        (2, (source, "--into", 0, "--out", out)),
        (2, (source, "--into", 2, "--out", out, "--partition", "some")),
        (2, (source, "--into", 2, "--out", source / "sites")),
        (5, (tmp_path / "none", "--into", 2, "--out", out)),
    ):
        result = run("split", *arguments)
        assert result.exit_code == code
        assert code == 2 or (result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_help_shows_examples() -> None:
    """A person can guess the rest from the examples."""
    for command in ("split", "evaluate", "predict"):
        assert f"worker {command} " in run(command, "--help").stdout.replace("Usage: main", "worker")
