"""Saving models that stay (best.keras, --keep-every) holds up no round: with a child that is stuck in a save."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker import logs
from broker.hosting.private import wait_until
from broker.link.memory import MemoryBroker, MemoryLink
from broker.model.card import ModelCard
from coordinator.files import make_folder
from coordinator.keras import building, process
from coordinator.keras.process import ModelProcess
from coordinator.options import RunOptions
from coordinator.play.run import Run
from coordinator.tasks import Task, TaskDefaults
from tests.unit.test_simulation import ARRAYS, Mean, examples
from worker.api import site_with
from worker.learning.console import Console
from worker.rounds.own_trainer import OwnTraining
from worker.rounds.participant import Participant
from worker.rounds.worker_loop import WorkerLoop
from worker.trainer import Evaluated, Weights

TASK = Task(name="mean", kind="builder", source="tests:mean", defaults=TaskDefaults())
CARD = ModelCard(
    task="t", classes=(), run_id="r", round_number=1, saved_at="", num_examples=0, shape=(), inputs=None
)


class Measured(Mean):
    """Tells a loss, by which a round is the best."""

    def evaluate(self, weights: Weights) -> Evaluated:
        loss = float(np.abs(self.x_test - weights["coef"]).mean())
        return Evaluated(num_examples=len(self.x_test), metrics={"loss": loss})


class StuckChild:
    """In the place of the child process: its saves end once they may."""

    is_alive = True

    def __init__(self) -> None:
        self.may_save = threading.Event()
        self.asked: list[str] = []

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(Path(request["model"]).name if request["op"] == "save" else request["op"])
        if request["op"] == "save":
            assert self.may_save.wait(60)
        elif request["op"] == "build":
            answer, weights = building.describe(ARRAYS, None, None, ())
            np.savez(request["weights_path"], *weights)
            return {"result": answer}
        return {"result": {"reason": None}}

    def end_request(self, but: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckChild]:
    made = StuckChild()
    monkeypatch.setattr(process, "Child", lambda *_args, **_more: made)
    yield made
    made.may_save.set()


def test_rounds_are_committed_while_the_first_model_is_still_being_saved(
    child: StuckChild, tmp_path: Path
) -> None:
    """All rounds close behind one save that does not end; then every model that was to stay is saved, each once."""
    broker, stop, out = MemoryBroker(), threading.Event(), tmp_path / "run"
    worker = Participant(name="w1", data=site_with(Measured, ((examples()), examples(40)), "w1"))
    loop = WorkerLoop(
        MemoryLink(broker, "w1"), [worker], OwnTraining(), stop=stop, log=logs.configure(), console=Console(), once=True
    )  # fmt: skip
    thread = threading.Thread(target=loop.serve, daemon=True)
    asked = RunOptions(task=TASK, out=out, workers=1, rounds=3, keep_every=1, deadline_seconds=60)
    make_folder(out)
    with ModelProcess(is_warm=False) as models:
        run = Run(MemoryLink(broker, "coordinator"), asked, models, stop=stop, log=logs.configure())
        seen: list[int] = []

        def let_go_at_the_end() -> None:
            view = run.view()
            if view.phase == "measuring":
                seen.append(view.closed_rounds)
                assert [name for name in child.asked if name != "build"] == ["model.npz"]
                child.may_save.set()

        run.each_turn(let_go_at_the_end)
        thread.start()
        run.play()
    thread.join(10)
    assert seen[0] == 3
    kept = [f"model-{number:04d}.npz" for number in (1, 2, 3)]
    assert [name for name in child.asked if name in kept] == kept
    assert "best.npz" in child.asked


def test_what_a_round_waits_for_goes_beside_a_save_and_before_those_that_wait(
    child: StuckChild, tmp_path: Path
) -> None:
    """The trial of the next model is answered while a save is stuck; the others begin after it."""
    with ModelProcess(is_warm=False) as models:
        for name in ("model.keras", "best.keras", "model-0005.keras"):
            models.save(tmp_path / "checkpoint", tmp_path / name, CARD)
        assert wait_until(lambda: child.asked == ["model.keras"], 10)
        assert models.check(tmp_path / "candidate", None) is None
        child.may_save.set()
        assert models.flush(10)
    assert child.asked == ["model.keras", "check", "best.keras", "model-0005.keras"]
