"""Workers are awaited: what that costs does not grow with the square of their number."""

import threading
from pathlib import Path
from typing import Any

import pytest

from broker import logs
from broker.errors import Interrupted
from coordinator.options import RunOptions
from coordinator.play.admission import Admission
from coordinator.play.run import Run
from coordinator.presence.seldom import Seldom
from tests.faults.actors import TASK, StandInModels
from tests.unit.test_session import Place, joined

MANY = 300


def test_who_is_there_is_not_counted_anew_at_each_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand words of who joined, and each time a list of all who did, would be fifty million looks."""
    place, stop, counted = Place(), threading.Event(), list[int]()
    trainers = Admission.trainers
    monkeypatch.setattr(
        Admission, "trainers", property(lambda self: counted.append(1) or trainers.fget(self))
    )

    class Once(Seldom):
        """Due at first, and not again while the rest come."""

        @property
        def is_due(self) -> bool:
            return not counted

    monkeypatch.setattr("coordinator.play.run.Seldom", Once)
    models: Any = StandInModels(10)
    run = Run(
        place.link,
        RunOptions(task=TASK, out=tmp_path, workers=MANY + 1, rounds=1),
        models,
        stop=stop,
        log=logs.configure(),
    )
    unheard = [f"w{number}" for number in range(MANY)]

    def each_turn() -> None:
        if counted and unheard:
            place.say(joined(unheard.pop()))
        elif counted:
            stop.set()

    run.each_turn(each_turn)
    with pytest.raises(Interrupted):
        run.play()
    assert 0 < len(counted) < 10
