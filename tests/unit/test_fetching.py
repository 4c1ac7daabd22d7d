"""Updates taken out of upload queues: what is no part of them costs little, and never holds up a round."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from broker.errors import PublishRefused
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Delivery, Outgoing, dead_queue, upload_queue
from broker.link.validator import Validator, may_send_to_coordinator
from broker.wire.messages import Part, UpdateAnnounced, encode
from broker.wire.settings import Precision
from broker.wire.tensors import TensorSpec
from broker.wire.transfer import Digest
from coordinator.learning.membership import Roster
from coordinator.play.open_round import early_parts, fetching
from coordinator.play.open_round.early_parts import EarlyParts
from coordinator.play.open_round.fetching import Fetched, Fetcher, OtherParts

PART_BYTES = 8
VALUES = np.arange(6, dtype=np.float32)
BASE = np.full(6, 1e-9, np.float32)


class Upload:
    """An upload queue of the worker w, and the coordinator that fetches from it."""

    def __init__(self) -> None:
        broker = MemoryBroker()
        self.link, self.worker = MemoryLink(broker, "coordinator"), MemoryLink(broker, "w")
        self.link.declare([dead_queue(), upload_queue("w")])
        self.broker = broker
        layout = (TensorSpec(dtype="float32", shape=(6,), kind="trainable"),)
        validator = Validator(self.link, may_send_to_coordinator)
        out = np.empty(6, np.float32)
        self.now = 0.0
        self.early = EarlyParts(read=lambda: self.now)
        self.fetcher = Fetcher(
            self.link, validator, out, BASE, layout, PART_BYTES, threading.Event(), Roster(), early=self.early
        )

    def part(self, index: int, upload_id: str = "u1") -> bytes:
        part = Part(
            run_id="r", round_number=1, transfer_id=upload_id, index=index, count=3,
            data=VALUES[2 * index : 2 * index + 2].tobytes(),
        )  # fmt: skip
        return encode(part)

    def look_ahead(self) -> None:
        """Twice, a second apart: what has not come on by then comes slowly."""
        self.fetcher.look_ahead("w")
        self.now += 1.0
        self.fetcher.look_ahead("w")

    def put(self, *bodies: bytes) -> None:
        self.worker.publish([Outgoing(key="upload.w", body=body, message_type="part") for body in bodies])

    def fetch(self, upload_id: str = "u1") -> Fetched:
        digest = Digest()
        for index in range(3):
            digest.add(index, VALUES[2 * index : 2 * index + 2].tobytes())
        return self.fetcher.fetch(
            UpdateAnnounced(
                worker="w", run_id="r", round_number=1, attempt=1, upload_id=upload_id, num_examples=1, parts=3,
                digest=digest.hex(), seconds=0.0,
            )
        )  # fmt: skip


@pytest.fixture
def upload(monkeypatch: pytest.MonkeyPatch) -> Upload:
    monkeypatch.setattr(fetching, "_EMPTY_SECONDS", 0.0)
    monkeypatch.setattr(fetching, "_PATIENCE_SECONDS", 0.2)
    return Upload()


def test_parts_of_an_older_upload_are_read_past(upload: Upload) -> None:
    """A worker that was killed in the middle of an upload leaves them behind."""
    upload.put(*(upload.part(index, "u0") for index in range(3)), *(upload.part(index) for index in range(3)))
    fetched = upload.fetch()
    assert (fetched.is_whole, fetched.flaw) == (True, None)
    assert np.array_equal(fetched.vector, VALUES)
    assert len(fetched.deliveries) == 6


def test_a_little_junk_is_read_past(upload: Upload) -> None:
    """It goes to `dead`, and the update counts."""
    upload.put(b"x", upload.part(0), b"y", upload.part(1), upload.part(2))
    assert upload.fetch().flaw is None
    assert upload.broker.depth("dead") == 2


def test_junk_that_takes_long_to_refuse_is_no_wait_for_parts(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts are there: however long the reader is busy with what is between them, the update counts."""
    validator = upload.fetcher._validator
    opened = validator.open

    def slowly(delivery: Delivery, **more: Any) -> Any:
        if delivery.body == b"x":
            threading.Event().wait(0.3)  # as long as it takes to refuse
        return opened(delivery, **more)

    monkeypatch.setattr(validator, "open", slowly)
    upload.put(upload.part(0), b"x", b"x", upload.part(1), b"x", upload.part(2))
    fetched = upload.fetch()
    assert (fetched.is_whole, fetched.flaw) == (True, None)


@pytest.mark.parametrize("kind", ["junk", "older parts", "the same part"])
def test_an_upload_queue_full_of_something_else_is_given_up_and_emptied(upload: Upload, kind: str) -> None:
    """20,000 messages of one byte took half a minute of a round. So many are no accident: this update is rejected."""
    body = {"junk": b"x", "older parts": upload.part(0, "u0"), "the same part": upload.part(0)}[kind]
    upload.put(*[body] * 500)
    fetched = upload.fetch()
    assert fetched.is_whole
    assert fetched.flaw == "its upload queue is full of what is no part of its update"
    assert upload.broker.depth("upload.w") == 0
    assert upload.broker.depth("dead") <= 20


def test_junk_that_trickles_in_does_not_keep_a_fetch_open(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte every moment: a wait for parts that never come ends as if there were none."""
    fetch = upload.link.fetch

    def trickling(queue: str, most: int = 1) -> Iterator[Delivery]:
        upload.put(b"x")
        return fetch(queue, 1)

    monkeypatch.setattr(fetching, "_MOST_FOREIGN", 10**9)
    monkeypatch.setattr(upload.link, "fetch", trickling)
    assert not upload.fetch().is_whole


def test_a_queue_that_can_not_be_read_is_its_workers_fault(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads it exclusively, or made it of another kind: this update alone is rejected."""

    def refuse(_queue: str, most: int = 1) -> Iterator[Delivery]:
        raise PublishRefused("The broker refused: 403 ACCESS_REFUSED")

    monkeypatch.setattr(upload.link, "fetch", refuse)
    assert "can't be read" in (upload.fetch().flaw or "")
    upload.worker.consume(["upload.w"], prefetch=1)
    assert upload.fetch().flaw == "somebody reads its upload queue"


def test_what_others_uploaded_behind_lost_parts_is_not_lost_with_them(upload: Upload) -> None:
    """A swarm's workers share a queue: looking for the rest of one update, the coordinator takes out another's, which
    is found when its turn comes."""
    upload.put(upload.part(0, "torn"), *(upload.part(index) for index in range(3)))
    torn = upload.fetch("torn")
    assert not torn.is_whole
    fetched = upload.fetch()
    assert (fetched.is_whole, fetched.flaw) == (True, None)
    assert np.array_equal(fetched.vector, VALUES)


def test_what_is_kept_for_others_is_bounded() -> None:
    """The oldest upload's parts are let go of: they can be asked for again."""
    others = OtherParts(most_bytes=10)
    parts = [
        Part(run_id="r", round_number=1, transfer_id=upload_id, index=0, count=1, data=bytes(4))
        for upload_id in ("a", "b", "c")
    ]
    for part in parts:
        others.put(part)
    assert [others.take(upload_id) for upload_id in ("a", "b", "c")] == [[], [parts[1]], [parts[2]]]
    assert others.take("c") == []


def test_parts_that_came_before_the_announcement_are_not_fetched_again(upload: Upload) -> None:
    """Over a thin line an upload takes minutes, in which the coordinator has nothing else to do. Each part is taken
    out once, and all of them are acknowledged with the update, and not sooner."""
    upload.put(upload.part(0), upload.part(1))
    upload.look_ahead()
    assert upload.broker.depth("upload.w") == 0
    upload.put(upload.part(2))
    fetched = upload.fetch()
    assert (fetched.is_whole, fetched.flaw, len(fetched.deliveries)) == (True, None, 3)
    assert np.array_equal(fetched.vector, VALUES)
    assert upload.early.end() == []


def test_a_line_that_was_seen_to_be_thin_is_not_asked_for_its_length_again(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look would cost one more way to the broker and back."""
    upload.put(upload.part(0))
    upload.look_ahead()
    monkeypatch.setattr(upload.link, "waiting", None)
    upload.put(upload.part(1))
    upload.fetcher.look_ahead("w")
    assert upload.broker.depth("upload.w") == 0


def test_early_parts_that_were_damaged_are_found_out(upload: Upload) -> None:
    """Their digest is worked out before the update is announced, and holds all the same."""
    broken = Part(run_id="r", round_number=1, transfer_id="u1", index=0, count=3, data=bytes(8))
    upload.put(encode(broken), upload.part(1))
    upload.look_ahead()
    upload.put(upload.part(2))
    assert "digest" in (upload.fetch().flaw or "")


def test_early_parts_of_an_upload_that_was_begun_anew_are_let_go_of(upload: Upload) -> None:
    """A worker that was killed on the way uploads under another id; its first parts are acknowledged in the end."""
    upload.put(upload.part(0, "u0"))
    upload.look_ahead()
    upload.put(*(upload.part(index) for index in range(3)))
    upload.look_ahead()
    fetched = upload.fetch()
    assert (fetched.is_whole, fetched.flaw, len(fetched.deliveries)) == (True, None, 4)


def test_junk_in_an_upload_queue_is_not_looked_ahead_for(upload: Upload) -> None:
    """What is there is told once the update is announced; before that nobody's junk takes the coordinator's time."""
    upload.put(b"x", *[upload.part(0)] * 50)
    for _ in range(20):
        upload.look_ahead()
    assert upload.broker.depth("upload.w") >= 40


def test_early_parts_take_no_more_memory_than_they_may(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest stays with the broker until the update is announced."""
    monkeypatch.setattr(upload.early, "_most_bytes", fetching._MOST_AT_ONCE * PART_BYTES - 1)
    upload.put(*(upload.part(index) for index in range(3)))
    upload.look_ahead()
    assert upload.broker.depth("upload.w") == 3


def test_what_was_left_of_a_round_is_forgotten_by_the_broker(upload: Upload) -> None:
    """An upload that nobody announced any more would else be held until the coordinator ends."""
    upload.put(upload.part(0))
    upload.look_ahead()
    assert len(upload.early.end()) == 1
    assert upload.fetch().is_whole is False


def local(values: np.ndarray, precision: Precision, size: int = 6) -> tuple[Fetched, np.ndarray]:
    """Local values that ride inside their announcement, and the weights that they began with."""
    base = np.full(size, 1e-9, np.float32)
    layout = (TensorSpec(dtype="float32", shape=(size,), kind="trainable"),)
    link = MemoryLink(MemoryBroker(), "coordinator")
    fetcher = Fetcher(
        link, Validator(link, may_send_to_coordinator), np.empty(size, np.float32), base, layout, PART_BYTES,
        threading.Event(), Roster(),
    )  # fmt: skip
    digest = Digest()
    digest.add(0, values.tobytes())
    announced = UpdateAnnounced(
        worker="w", run_id="r", round_number=1, attempt=1, upload_id="u1", num_examples=1, digest=digest.hex(),
        seconds=0.0, precision=precision, update=values.tobytes(),
    )  # fmt: skip
    return fetcher.fetch(announced), base


@pytest.mark.parametrize(("precision", "dtype"), [("local32", np.float32), ("local64", np.float64)])
def test_local_values_become_the_difference_in_float64(precision: Precision, dtype: type) -> None:
    """1 − 1e-9 is 1 in float32."""
    fetched, base = local(np.ones(6, dtype), precision)
    assert fetched.flaw is None
    assert fetched.vector.tolist() == (1.0 - base.astype(np.float64)).tolist()


def test_local_values_of_a_large_model_are_refused() -> None:
    """Else anybody could have the coordinator take twice the memory of a model: 4 MB of weights are the most."""
    size = 2**20 + 1
    fetched, _ = local(np.ones(size), "local64", size)
    assert fetched.flaw is not None
    assert "difference" in fetched.flaw
    assert fetched.vector.dtype == np.float32


def test_parts_that_come_fast_are_left_at_the_broker(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a good line all of an update is there in a moment: copies of its parts cost memory, and save nothing."""
    monkeypatch.setattr(early_parts, "_THIN_BYTES_A_SECOND", PART_BYTES - 0.5)
    for index in range(3):
        upload.put(upload.part(index))
        upload.fetcher.look_ahead("w")
        upload.now += 1.0
    assert upload.broker.depth("upload.w") == 3
    upload.now += 1.0
    upload.fetcher.look_ahead("w")
    assert upload.broker.depth("upload.w") == 0


def test_how_fast_parts_come_is_told_by_what_they_weigh_on_their_way(upload: Upload) -> None:
    """A part of int8 is a quarter of one of float32: over the same line four times as many come."""
    parts = {"float32": 4 * 2**20, "int8": 2**20}
    slow: dict[str, bool] = {}
    for precision, part_bytes in parts.items():
        early = EarlyParts(read=lambda: upload.now).of(precision)
        early.comes_slowly(1, part_bytes)
        upload.now += 1.0
        slow[precision] = early.comes_slowly(1 + 6, part_bytes)  # 6 parts a second
    assert slow == {"float32": False, "int8": True}
