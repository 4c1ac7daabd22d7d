"""How much room a run needs at the broker, and what happens where it can't be had."""

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from broker.errors import BrokerUnreachable, ModelError
from broker.hosting.management import Management
from broker.hosting.policies import MOST_WAITING, Need
from broker.link.access import Access
from broker.wire.tensors import Layout, TensorSpec
from coordinator.presence import broker_room
from coordinator.presence.broker_room import BrokerRoom, needs_of, room_at
from tests.unit.test_worker_loop import START
from worker.rounds.uploading import KeptUpdate, Measured, Refusals

MIB = 2**20
LAYOUT: Layout = (
    TensorSpec(dtype="float32", shape=(12 * MIB,), kind="trainable"),
    TensorSpec(dtype="float32", shape=(13 * MIB,), kind="frozen"),
)
#: A model of 100 MiB, of which 48 travel up.


def test_a_round_needs_room_for_four_updates_of_each_worker_and_two_round_starts() -> None:
    """Frozen weights travel down alone. A swarm's workers share one upload queue, and one round start; of its processes
    the largest counts. Whole steps of 64 MiB, 16 of them for what is around."""
    needs = needs_of(LAYOUT, 4 * MIB, {"site-1": 1, "lab.1": 10, "lab.2": 9})
    assert needs == {
        "site-1": Need(start_bytes=100 * MIB, update_bytes=48 * MIB, parts=25),
        "lab": Need(start_bytes=100 * MIB, update_bytes=48 * MIB, parts=25, workers=10),
    }
    assert needs["site-1"].reading == {"max-length": MOST_WAITING + 50, "max-length-bytes": 256 * MIB}
    assert needs["site-1"].uploading == {"max-length": MOST_WAITING + 100, "max-length-bytes": 256 * MIB}
    assert needs["lab"].reading == needs["site-1"].reading
    assert needs["lab"].uploading == {"max-length": MOST_WAITING + 1000, "max-length-bytes": 1984 * MIB}


class Page:
    """In the place of `make_room`: notes what it is asked for; without an answer it is away."""

    def __init__(self, answer: Mapping[str, int] | None) -> None:
        self.answer = answer
        self.asked: list[set[str]] = []

    def __call__(self, _management: Management, _vhost: str, needs: Mapping[str, Need]) -> Mapping[str, int]:
        self.asked.append(set(needs))
        if self.answer is None:
            raise BrokerUnreachable("The management API does not answer.")
        return self.answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, ["What may wait at the broker stays as"]),
        ({"a": 48 * MIB}, ["a was invited with an --upload-limit below one update of this model, 48 MB"]),
        ({}, []),
    ],
)
def test_room_is_asked_for_once_and_a_trouble_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: Any, told: list[str]
) -> None:
    """For every worker that comes, and again after a while, for somebody may be invited anew; a page that is away, or a
    limit that is too low, is one line, and ends nothing."""
    page = Page(answer)
    monkeypatch.setattr(broker_room, "make_room", page)
    room = BrokerRoom(Management("http://coordinator:x@localhost"), "/")
    with caplog.at_level(logging.WARNING):
        for processes in ({"a": 1}, {"a": 1}, {"a": 1, "b": 1}):
            room.make(LAYOUT, 4 * MIB, processes)
        monkeypatch.setattr(broker_room, "_AGAIN_SECONDS", 0.0)
        room.make(LAYOUT[:1], 4 * MIB, {"a": 1})
    assert page.asked == [{"a"}, {"a", "b"}, {"a", "b"}]
    assert [line[: len(text)] for line, text in zip(caplog.messages, told, strict=True)] == told


def test_where_nobody_was_invited_nothing_is_asked() -> None:
    """On a laptop all are guest, and no queue has a limit."""
    assert room_at(Access(amqp_url="amqp://guest:guest@localhost/")) is None
    assert room_at(Access(amqp_url="amqp://coordinator:x@localhost/")) is not None


def test_an_update_is_given_up_when_nothing_makes_room_for_it() -> None:
    """A queue that is gone is made again, and one that holds others' parts is emptied: only one's own stays full."""
    measured = Measured(num_examples=1, metrics={}, global_metrics={}, num_test_examples=0, seconds=1.0)
    update = KeptUpdate("lab.1", START.held, measured, None, layout=START.layout, part_bytes=4 * MIB,
                        precision="float32", seed=1)  # fmt: skip
    refusals = Refusals("lab.1-100")
    refusals.note(update, is_refused=True, is_alone=True, now=0.0)
    refusals.note(update, is_refused=True, is_alone=True, now=29.0)
    refusals.note(update, is_refused=False, is_alone=True, now=31.0)
    refusals.note(update, is_refused=True, is_alone=True, now=32.0)
    refusals.note(update, is_refused=True, is_alone=False, now=63.0)
    refusals.note(update, is_refused=True, is_alone=True, now=64.0)
    with pytest.raises(ModelError, match=r"`broker invite lab --swarm 100 --upload-limit 16M --again`"):
        refusals.note(update, is_refused=True, is_alone=True, now=94.0)
