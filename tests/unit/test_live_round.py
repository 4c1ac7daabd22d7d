"""The open round: with thousands of names, whose cost does not grow with their number; with words that come late."""

import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from broker import logs
from broker.link.seam import outgoing, upload_queue
from broker.wire import names
from broker.wire.messages import Declined, Part
from broker.wire.settings import TrainingSettings
from coordinator.folder.run_folder import RunFolder
from coordinator.learning.rounds import Round, Step
from coordinator.learning.spares import Spares
from coordinator.learning.strategies import make_strategy
from coordinator.options import RunOptions
from coordinator.play.open_round.live_round import LiveRound
from coordinator.play.open_round.tools import Tools
from coordinator.play.open_round.unacknowledged import Unacknowledged
from coordinator.play.run import Run
from coordinator.presence.seldom import Seldom
from tests.unit.test_checkpoint import STATE
from tests.unit.test_messages import EXAMPLES
from tests.unit.test_seldom import Clock
from tests.unit.test_session import Place, joined
from tests.unit.test_status import RECORD
from tests.unit.test_waiting_saves import TASK

MANY = [f"w{number}" for number in range(1, 1201)]
SETTINGS = TrainingSettings(epochs=1, batch_size=8, learning_rate=0.1, class_weight="none", examples_per_class=None,
                            seed=0, deterministic=False)  # fmt: skip


@pytest.fixture
def place() -> Place:
    place = Place()
    place.begin()
    return place


def opened(place: Place, folder: Path, *, mode: Any, selected: tuple[str, ...]) -> LiveRound:
    """A round of these, who have not answered."""
    tools = Tools(
        session=place.session,
        folder=RunFolder(folder),
        unacknowledged=Unacknowledged(place.link),
        strategy=make_strategy("fedavg", {}),
        spares=Spares(),
    )
    examples = dict.fromkeys(selected, 2)
    record = replace(RECORD, mode=mode, selected=selected, evaluators=(), num_examples=examples)
    return LiveRound(tools, STATE, Round(record, 0.0), SETTINGS, 5, None)


def test_a_word_on_an_earlier_attempt_takes_no_part_of_the_answer_to_this_one(
    place: Place, tmp_path: Path
) -> None:
    """It came late, or once more after a reconnect, and parts of the next answer are in the upload queue already;
    what is left there by the attempt that is declined goes."""
    options = RunOptions(task=TASK, out=tmp_path, workers=1, rounds=5)
    models: Any = None
    run = Run(
        place.link, options, models, stop=threading.Event(), log=logs.configure(), session=place.session
    )
    worker = place.worker("w1")
    worker.declare([upload_queue("w1")])
    place.session.roster.join(joined("w1"))
    run._live = live = opened(place, tmp_path, mode="train", selected=("w1",))
    live.round.record = replace(live.record, attempt=2)
    part = next(example for example in EXAMPLES if isinstance(example, Part))
    left = []
    for attempt in (1, 2):
        worker.publish([outgoing(part, "upload.w1")])
        declined = Declined(worker="w1", run_id="r", round_number=2, attempt=attempt, reason="no memory")
        place.say(declined)
        run._turn(1.0)
        left.append(place.broker.depth("upload.w1"))
    assert left == [1, 0]
    assert live.round.rejected == {"w1": "no memory"}


def test_who_has_not_answered_is_asked_for_in_pieces_and_all_have_their_turn(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read while queues are asked about: not about ten thousand at once. An evaluation, which waits for
    nobody who is away, closes once the last has been asked for."""
    live = opened(place, tmp_path, mode="evaluate", selected=tuple(MANY))
    asked: list[list[str]] = []

    def unread(queues: list[str]) -> list[str]:
        asked.append(queues)
        return queues

    monkeypatch.setattr(place.link, "unread", unread)
    clock = Clock()
    live._guests._presence = Seldom(5.0, clock)
    for number in (500, 500, 200):
        assert live.round.next_step(1.0) is Step.WAIT
        live.look_after()
        assert len(asked[-1]) == number
    assert sorted(chain(*asked)) == sorted(map(names.worker_queue, MANY))
    assert live.round.next_step(1.0) is Step.CLOSE
    live.look_after()
    assert len(asked) == 3  # the next time begins after a pause
    clock.now += 5.0
    live.look_after()
    assert len(asked[-1]) == 500


def test_who_comes_while_newcomers_are_invited_is_invited_with_the_next(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time the round is written down with everyone in it: once for all who came meanwhile. One that is away
    again keeps no other from taking part."""
    live = opened(place, tmp_path, mode="train", selected=("w1",))
    kept: list[int] = []
    monkeypatch.setattr(live._guests, "_keep", lambda: kept.append(len(live.record.selected)))
    monkeypatch.setattr(live._guests, "_send_to", lambda _workers: None)
    clock = Clock()
    live._guests._inviting = Seldom(0.0, clock)

    def came(name: str) -> None:
        if name != "gone":
            place.worker(name)
        live.greet([place.session.roster.join(joined(name))], takes_newcomers=True)

    came("first")
    assert live.record.selected == ("w1", "first")
    with live._guests._inviting.doing():
        clock.now += 1.0
    for name in ("a", "gone", "b"):
        came(name)
    live.look_after()
    assert live.record.selected == ("w1", "first")
    clock.now += 4.0
    live.look_after()
    assert live.record.selected == ("w1", "first", "a", "b")
    assert kept == [2, 4]


def test_all_who_lost_the_round_start_are_sent_it_together(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that crashed has lost it for everybody: a large model goes out once for all who said so meanwhile, not
    once for each; not to one that has found it since."""
    selected = ("w1", "w2", "w3", "w4")
    live = opened(place, tmp_path, mode="train", selected=selected)
    sent: list[list[str]] = []
    monkeypatch.setattr(live._guests, "_invite", lambda workers: sent.append(list(workers)))
    clock = Clock()
    live._guests._sending_again = Seldom(0.0, clock)

    def said(name: str, **more: Any) -> None:
        live.greet([place.session.roster.join(replace(joined(name), **more))], takes_newcomers=True)

    for name in selected:
        said(name)  # is asked
    with live._guests._sending_again.doing():
        clock.now += 1.0
    for name in selected:
        said(name)
    said("w2", held=live._guests._invitation.held)
    live.look_after()
    assert sent == []
    clock.now += 4.0
    live.look_after()
    live.look_after()
    assert sent == [["w1", "w3", "w4"]]


def test_who_may_not_have_the_round_start_yet_is_asked_without_waiting_for_the_broker(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first round start ten thousand words of before it come in: a confirm waited for at each takes minutes
    at a busy broker."""
    live = opened(place, tmp_path, mode="train", selected=("w1", "w2"))
    posted: list[str] = []
    monkeypatch.setattr(place.link, "post", lambda message: posted.append(message.key))
    monkeypatch.setattr(place.link, "publish", None)
    for name in ("w1", "w2"):
        live.greet([place.session.roster.join(joined(name))], takes_newcomers=True)
    assert posted == ["worker.w1", "worker.w2"]
