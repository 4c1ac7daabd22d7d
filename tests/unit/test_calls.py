"""`coordinator.run` and `worker.run` from Python: over a link in memory, with results as objects and our errors."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import coordinator
import worker
from broker.errors import BrokerUnreachable, DataError, Interrupted, UsageError
from broker.link.memory import MemoryBroker, MemoryLink
from tests.brokers import at_load
from worker.trainer import Evaluated, FitSettings, Fitted, Weights

TASK = "def arrays():\n    import numpy\n    return {'w': numpy.zeros(3)}\n"


class Adds:
    """Adds its number of examples to each weight."""

    def __init__(self, number: int) -> None:
        self.num_examples = number

    def fit(self, weights: Weights, settings: FitSettings) -> Fitted:
        settings.report(1, {"loss": 1.0})
        moved = {"w": weights["w"] + self.num_examples}
        return Fitted(weights=moved, num_examples=self.num_examples, metrics={"loss": 1.0})

    def evaluate(self, weights: Weights) -> Evaluated:
        return Evaluated(num_examples=2, metrics={"first": float(weights["w"][0])})


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MODULE:FUNCTION in the current folder."""
    (tmp_path / "task_of_calls.py").write_text(TASK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "task_of_calls:arrays"


def test_a_run_and_its_workers_are_three_calls(task: str, tmp_path: Path) -> None:
    """What the commands do, in threads of one process; the links are the caller's, and stay open."""
    broker = MemoryBroker()
    links = [MemoryLink(broker) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        run = pool.submit(coordinator.run, task, "run", link=links[0], workers=2, rounds=2)
        names = {"one": (Adds(1), links[1]), "three": (Adds(3), links[2])}
        working = [
            pool.submit(worker.run, name, trainer=trainer, link=link, once=True)
            for name, (trainer, link) in names.items()
        ]
        result, works = run.result(at_load(60)), [each.result(30) for each in working]
    assert (result.outcome, result.rounds, result.num_dead) == ("done", 2, 0)
    assert result.path == Path("run/model.npz")
    assert dict(np.load(tmp_path / "run" / "model.npz"))["w"].tolist() == [5.0] * 3  # (1·1 + 3·3) / 4 twice
    assert result.arrays["w"].tolist() == [5.0] * 3
    assert pd.DataFrame(result.history)["val_first"].tolist() == [0.0, 2.5, 5.0]
    assert [row["round"] for row in works[0].history] == [1, 2, 3]
    assert [row["has_trained"] for row in works[0].history] == [
        True,
        True,
        False,
    ]  # the last one only measures
    assert works[1].history[1]["global_first"] == 2.5
    assert all(link.is_connected for link in links)


def test_a_call_goes_on_where_a_run_was_stopped(task: str) -> None:
    """`stop` ends it with Interrupted; the same call with no workers there waits for them, and is stopped again."""
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    with pytest.raises(Interrupted):
        coordinator.run(task, "run", link=MemoryLink(MemoryBroker()), stop=stop)
    timer.join()


def test_a_worker_ends_when_it_is_told_to() -> None:
    """With what it did: nothing, for nobody asked."""
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    result = worker.run("idle", trainer=Adds(1), link=MemoryLink(MemoryBroker()), stop=stop)
    timer.join()
    assert (result.name, result.history, result.has_left_behind) == ("idle", [], False)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "Not A Name", "trainer": Adds(1)}, UsageError),
        ({"name": "one"}, UsageError),
        ({"name": "one", "trainer": Adds(1), "classes": "a,b"}, UsageError),
        ({"name": "one", "trainer": "nowhere_at_all:Trainer"}, UsageError),
        ({"name": "one", "data": "no/such/folder"}, DataError),
        ({"name": "one", "data": (np.zeros((2, 3)), np.zeros(2))}, DataError),
        ({"name": "one", "trainer": Adds(1), "amqp_url": "amqp://me:secret@broker.example/"}, UsageError),
        ({"name": "one", "trainer": Adds(1), "amqp_url": "amqp://localhost:1/", "connect_seconds": 0.1},
         BrokerUnreachable),
    ],
)  # fmt: skip
def test_a_worker_raises_our_errors(arguments: dict[str, Any], error: type[Exception]) -> None:
    """Those that the command ends with; a password in the clear beyond this machine needs `insecure=True`."""
    with pytest.raises(error):
        worker.run(**arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"worker": 3},
        {"rounds": "many"},
        {"quorum": 3},
        {"strategy": "none"},
        {"standby": True, "amqp_url": "x"},
    ],
)
def test_a_run_refuses_what_the_command_refuses(task: str, tmp_path: Path, options: dict[str, Any]) -> None:
    """Before there is a folder."""
    with pytest.raises(UsageError):
        coordinator.run(task, "run", **options)
    assert not (tmp_path / "run").exists()
