"""`worker check`: what is found in real data of every kind, in words and as facts, and how the clock is read."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from broker.errors import DataError
from broker.link.access import Access
from broker.link.validity import Validity
from tests.unit.test_data import write_npz
from worker.api import site_of
from worker.site import check, reaching
from worker.site.check import DataFacts, facts_of
from worker.site.reaching import BrokerFacts, Tls

RNG = np.random.default_rng(0)
FOUND = BrokerFacts(address="amqps://w@host/%2F", account="w", is_login_accepted=True, num_readers=0)


def pictures(root: Path) -> Path:
    """Twelve of two classes, of several sizes, among files of other kinds and one that is cut off."""
    for name, first in (("NORMAL", 40), ("PNEUMONIA", 60)):
        (root / name).mkdir(parents=True)
        for i in range(6):
            pixels = RNG.integers(10, 200, (first, first + i), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}{i}.png")
    for i in range(3):
        (root / "NORMAL" / f"scan{i}.nii.gz").write_bytes(b"x")
    (root / "PNEUMONIA" / "notes.txt").write_text("x")
    whole = (root / "NORMAL" / "NORMAL0.png").read_bytes()
    (root / "PNEUMONIA" / "cut.png").write_bytes(whole[:200])
    return root


def opened(data: Any, *, trainer: str | None = None, deep: bool = True) -> DataFacts:
    site = site_of("site-1", data, trainer, None, seed=0, for_training=True)
    return facts_of(site, str(trainer or data), looks_into_all=deep)


def words(facts: DataFacts) -> str:
    return "\n".join(check.lines_of(facts))


def test_what_is_left_out_of_a_folder_is_named_by_kind_and_counted(tmp_path: Path) -> None:
    """A hospital's folder of NIfTI beside PNG is seen before a training, and so is a file that was cut off."""
    facts = opened(str(pictures(tmp_path / "set")))
    foreign, unreadable = facts.skipped
    assert (foreign.count, foreign.types) == (4, {".nii.gz": 3, ".txt": 1})
    assert (unreadable.count, unreadable.types) == (1, {".png": 1})
    assert "cut.png" in unreadable.reasons[0]
    assert "files that are no images: 4 (3 .nii.gz, 1 .txt)" in words(facts)
    assert "images that can't be read: 1 (1 .png). " in words(facts)


def test_classes_counts_sizes_and_values_of_pictures_are_found(tmp_path: Path) -> None:
    """As they are stored, and as they are decoded: an archive that is black, or of thumbnails, shows here."""
    facts = opened(str(pictures(tmp_path / "set")))
    assert [(each.name, each.train + each.test) for each in facts.classes] == [
        ("NORMAL", 6),
        ("PNEUMONIA", 6),
    ]
    assert all(each.test >= 1 for each in facts.classes)
    assert facts.is_held_out
    (examples,) = facts.arrays
    assert examples.sizes == ((40, 40), (65, 60))
    assert examples.low is not None
    assert examples.high is not None
    assert 10 <= examples.low < examples.high <= 199
    assert "images of 40 x 40 to 65 x 60, values from" in words(facts)


def test_the_log_of_a_start_says_what_opening_has_found_and_looks_into_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`worker run` begins no later for it."""
    data = str(pictures(tmp_path / "set"))
    monkeypatch.setattr("worker.data.sources.size_of", lambda _path: pytest.fail("looked into a file"))
    facts = opened(data, deep=False)
    assert facts.arrays[0].sizes is None
    assert len(facts.skipped) == 2
    assert "images in files, values from 0 to 255" in words(facts)


def test_arrays_of_classes_have_shape_and_range(tmp_path: Path) -> None:
    """One input, as it was given."""
    x = RNG.random((30, 4)).astype(np.float32)
    facts = opened(str(write_npz(tmp_path / "d.npz", x_train=x, y_train=np.arange(30) % 3)))
    (examples,) = facts.arrays
    assert (examples.shape, examples.dtype, examples.high) == ((4,), "float32", float(x.max()))
    assert [each.name for each in facts.classes] == ["0", "1", "2"]
    assert "float32 of shape 4, values from" in words(facts)


def test_data_of_any_form_are_listed_array_by_array(tmp_path: Path) -> None:
    """Texts have no range; and a table's values are looked at by `worker check` alone."""
    x, y = RNG.random((20, 3)), RNG.random(20)
    names = np.array([f"text {i}" for i in range(20)])
    path = write_npz(tmp_path / "d.npz", **{"x_train.lab": x, "x_train.note": names, "y_train": y})
    facts = opened(str(path))
    assert [(each.name, each.shape, each.high) for each in facts.arrays] == [
        ("input lab", (3,), pytest.approx(x.max())),
        ("input note", (), None),
        ("target 0", (), pytest.approx(y.max())),
    ]  # fmt: skip
    assert "float32 of shape 3, values from" in words(facts)
    assert opened(str(path), deep=False).arrays[0].low is None


def test_what_a_function_returns_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called once, with the worker's name if it takes one."""
    (tmp_path / "my_ward.py").write_text(
        "import numpy as np\ndef data(worker):\n"
        "    assert worker == 'site-1'\n"
        "    return (np.ones((9, 2)), np.arange(9) % 2), (np.zeros((3, 2)), np.array([0, 1, 1])), ['no', 'yes']\n"
    )
    monkeypatch.chdir(tmp_path)
    facts = opened("my_ward:data")
    assert [(each.name, each.train, each.test) for each in facts.classes] == [("no", 5, 1), ("yes", 4, 2)]
    assert not facts.is_held_out


def test_of_a_trainer_of_ones_own_its_number_is_known() -> None:
    """What its examples are like is its own affair."""
    facts = opened(None, trainer="worker.examples.sklearn_logistic:Trainer")
    assert (facts.kind, facts.classes, facts.arrays) == ("trainer", (), ())
    assert facts.num_train_examples > 0


def test_examples_of_classes_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """Their range can't be told, and nothing is learned of them."""
    x = np.full((30, 4), np.nan, np.float32)
    with pytest.raises(DataError, match="NaN or infinity"):
        opened(str(write_npz(tmp_path / "d.npz", x_train=x, y_train=np.arange(30) % 3)))


def test_many_classes_have_not_a_line_each() -> None:
    """A table is for a person."""
    classes = tuple(check.ClassFacts(name=str(i), train=1, test=1) for i in range(1000))
    facts = DataFacts(
        called="d", kind="arrays", num_train_examples=1000, num_test_examples=1000, classes=classes
    )
    lines = list(check.lines_of(facts))
    assert len(lines) < 30
    assert "and 980 more" in lines[-1]


# The clock


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[urllib.request.Request]]:
    """A management page that wants a login and is 100 s ahead; what it is asked."""
    requests: list[urllib.request.Request] = []

    def answer(_self: object, request: urllib.request.Request, **_: object) -> None:
        requests.append(request)
        headers = Message()
        headers["Date"] = formatdate(1_000_100, usegmt=True)
        raise urllib.error.HTTPError(request.full_url, 401, "no", headers, None)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", answer)
    monkeypatch.setattr("worker.site.reaching.time.time", lambda: 1_000_000.5)
    yield requests


def test_the_clock_is_held_against_the_brokers_without_a_login(asked: list[urllib.request.Request]) -> None:
    """Every answer of its management page says what time it is, a refusal, too; the password goes nowhere."""
    access = Access(amqp_url="amqps://w:secret@host:5671/%2F")
    (url,) = reaching._management_urls(access)
    assert reaching._clock_seconds_at(access, url) == -100.0
    (request,) = asked
    assert request.full_url == "https://host:15671"
    assert "Authorization" not in request.headers
    assert "100 s behind the broker's" in reaching._clock_text(-100.0)


def test_a_clock_that_nobody_tells_is_unknown() -> None:
    """That is said, and is no error: a site's firewall may let AMQP through alone."""
    assert reaching._difference(None, 0.0, 0.0) is None
    assert reaching._difference("no date", 0.0, 0.0) is None
    assert "unknown" in reaching._clock_text(None)
    assert "as the broker's" in reaching._clock_text(0.4)


def test_what_was_found_at_the_broker_is_told_in_words() -> None:
    """Each thing that stops a hospital has its line."""
    tls = Tls(version="TLSv1.3", subject="host", issuer="our CA", valid_until="2027-01-01", days_left=30)
    text = "\n".join(reaching.lines_of(replace(FOUND, tls=tls, num_readers=1, has_coordinator=True)))
    for word in ("TLSv1.3", "signed by our CA", "(30 days)", "accepted as w", "the name is in use", "there"):
        assert word in text
    untold = "\n".join(reaching.lines_of(replace(FOUND, has_coordinator=None)))
    assert "the broker tells this account nothing of its queue" in untold
    away = "\n".join(
        reaching.lines_of(replace(FOUND, problems_at={"amqps://w@other/%2F": "nobody is there"}))
    )
    assert "amqps://w@other/%2F: nobody is there" in away
    short = Validity(whose="broker", subject="host", expires_at=2e9, days_left=29)
    warned = "\n".join(reaching.lines_of(replace(FOUND, tls=tls, certificates=(short,))))
    assert "certificate (host) expires in 29 days, on 2033-05-18; afterwards nobody connects" in warned
    refused = "\n".join(reaching.lines_of(replace(FOUND, is_login_accepted=False, problem="refused")))
    assert "refused" in refused
    assert "accepted" not in refused
