"""A federation in one call, with trainers that need no TensorFlow: nothing but the call is needed, nothing is left."""

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import coordinator
from broker.errors import DataError, Interrupted, ModelError, QuorumNotReached, UsageError
from broker.wire.tensors import Array
from tests.brokers import at_load, wait_until
from worker.rounds import failures, worker_loop
from worker.trainer import Evaluated, FitSettings, Fitted, Weights

SIZE = 20
ARRAYS = {"coef": np.zeros(SIZE), "intercept": np.zeros(1)}


class Mean:
    """Moves its weights halfway to the mean of its own examples: what comes out can be reckoned by hand."""

    def __init__(self, data: Any, worker: str) -> None:
        (self.x, self.y), (self.x_test, _) = data
        self.worker = worker
        self.num_examples = len(self.y)

    def fit(self, weights: Weights, _settings: FitSettings) -> Fitted:
        moved = {
            "coef": (weights["coef"] + self.x.mean(axis=0)) / 2,
            "intercept": weights["intercept"] + self.y.mean(),
        }
        return Fitted(weights=moved, num_examples=self.num_examples, metrics={"loss": 0.5})

    def evaluate(self, weights: Weights) -> Evaluated | None:
        if not len(self.x_test):
            return None
        error = float(np.abs(self.x_test - weights["coef"]).mean())
        return Evaluated(num_examples=len(self.x_test), metrics={"error": error})


def examples(number: int = 400) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, (number, SIZE)).astype(np.float32)
    return x, np.arange(number) % 4


def simulate(trainer: Any = Mean, **options: Any) -> coordinator.RunResult:
    asked = {"workers": 10, "fraction": 0.5, "rounds": 3, "partition": "iid", "progress": False} | options
    return coordinator.simulate(ARRAYS, examples(), trainer=trainer, **asked)


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Whatever was begun in the block ends with it, or a moment later."""
    before = set(threading.enumerate())
    yield
    wait_until(lambda: not set(threading.enumerate()) - before, 5, what="the end of every thread")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, and that for temporary files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_one_call_gives_history_and_weights_and_leaves_nothing(empty: Path, strategy: str) -> None:
    """No broker, no file, no thread; pandas takes the history as it is."""
    with no_thread_left():
        result = simulate(strategy=strategy)
    assert (result.outcome, result.rounds, result.path, result.num_dead) == ("done", 3, None, 0)
    assert [len(row["accepted"]) for row in result.history[1:]] == [5, 5, 5]
    frame = pd.DataFrame(result.history)
    assert frame["val_error"].iloc[-1] < frame["val_error"].iloc[0]
    assert frame["num_test_examples"].iloc[-1] == 40  # all workers measure the last model
    assert len(pd.DataFrame(result.workers)) > 0
    assert list(result.arrays) == ["coef", "intercept"]
    assert list(empty.iterdir()) == []


def test_the_result_is_the_textbook_average() -> None:
    """Σ n w / Σ n in float64 over what each worker's training gave, to one float32 ulp."""
    made: list[Mean] = []

    def make(data: Any, worker: str) -> Mean:
        made.append(Mean(data, worker))
        return made[-1]

    coef = simulate(make, rounds=1, fraction=1.0, partition="dirichlet:0.3").arrays["coef"]
    assert [each.worker for each in made] == [f"swarm.{number}" for number in range(1, 11)]
    numbers = [each.num_examples for each in made]
    expected = np.average([each.x.mean(axis=0) / 2 for each in made], axis=0, weights=numbers)
    assert sum(numbers) == 360  # a tenth is held out
    np.testing.assert_allclose(coef, expected, rtol=2.0**-23)


def test_without_a_word_about_it_data_are_divided_as_they_can_be() -> None:
    """By their classes if they have some, in mixtures that differ; numbers that are to be learned like cards."""
    x, y = examples()
    for given, is_even in (((x, y), False), ((x, y / 4 + 0.1), True)):
        made: list[Mean] = []

        def make(data: Any, worker: str, made: list[Mean] = made) -> Mean:
            made.append(Mean(data, worker))
            return made[-1]

        coordinator.simulate(ARRAYS, given, trainer=make, workers=5, fraction=1.0, rounds=1, progress=False)
        shares = [np.unique(each.y, return_counts=True)[1].max() / each.num_examples for each in made]
        assert (max(shares) < 0.5) == is_even


def test_a_trainer_has_several_inputs_by_name_and_no_weights() -> None:
    """Weights that a trainer is not given would be left out in silence."""
    x, y = examples(40)
    seen: list[Any] = []

    def make(data: Any, worker: str) -> Mean:
        ((inputs, targets), test) = data
        seen.append(inputs["age"][:, 0].tolist())
        return Mean(((inputs["age"], targets), (test[0]["age"], test[1])), worker)

    asked: Any = {"trainer": make, "workers": 2, "fraction": 1.0, "rounds": 1, "progress": False}
    coordinator.simulate(ARRAYS, (({"age": x}, y / 4), ({"age": x}, y / 4)), **asked)
    assert sorted(seen[0] + seen[1]) == sorted(x[:, 0].tolist())
    for given in ((x, y, np.ones(40)), ({"age": x}, y / 4, np.ones(40))):
        with pytest.raises(DataError, match="sample weights"):
            coordinator.simulate(ARRAYS, (given, given), **asked)


def test_the_same_seed_gives_the_same_bits() -> None:
    """Threads decide who answers first, and nothing else."""
    first, again, other = (simulate(seed=seed).arrays["coef"] for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@dataclass(frozen=True)
class Twice(coordinator.strategies.OfTheMean):
    """A strategy of one's own: it makes the mean step twice."""

    factor: float = 2.0

    def step(self, weights: Any, mean: Any, _state: Any) -> Any:
        return weights + self.factor * mean


def test_a_strategy_is_passed_as_an_object() -> None:
    """One of the table is the same by name and as an object; one of one's own is played, too."""
    by_name = simulate(strategy="fedavgm", strategy_option={"momentum": 0.5}).arrays["coef"]
    as_object = simulate(strategy=coordinator.strategies.FedAvgM(momentum=0.5)).arrays["coef"]
    assert by_name.tobytes() == as_object.tobytes()
    once, twice = (
        simulate(rounds=1, strategy=each).arrays["coef"]
        for each in (coordinator.strategies.FedAvg(), Twice())
    )
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


def test_a_simulation_can_end_early() -> None:
    """As a run does: it is done, and the history says why."""
    result = simulate(
        rounds=20, stop_when="min:val_error", patience=2, strategy=coordinator.strategies.FedAvg()
    )
    assert result.outcome == "done"
    assert result.rounds < 20
    assert "val_error" in result.history[-1]["stopped"]


class Broken(Mean):
    def fit(self, _weights: Weights, _settings: FitSettings) -> Fitted:
        raise ZeroDivisionError("a bug")


class Bare:
    """Lacks what a trainer must have."""

    def __init__(self, **_: Any) -> None:
        self.num_examples = 1


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: simulate(Broken, retries=0), QuorumNotReached, "a bug"),
        (lambda: simulate(Bare), DataError, "no method 'fit'"),
        (lambda: simulate(fractoin=0.5), UsageError, "no option 'fractoin'"),
        (lambda: simulate(from_scratch=True), UsageError, "no option 'from_scratch'"),
        (lambda: simulate(keep_every=2), UsageError, "no folder for 'keep_every'"),
        (lambda: simulate(rounds=-1), UsageError, "rounds"),
        (lambda: simulate(strategy="fedsgd"), UsageError, "fedsgd"),
        (lambda: simulate(fraction=2.0), UsageError, "fraction"),
        (lambda: simulate(partition="fair"), UsageError, "partition"),
        (lambda: simulate(processes=-1), UsageError, "processes"),
        (lambda: simulate(workers=1000), DataError, "Can't cut"),
        (lambda: coordinator.simulate(ARRAYS, examples(), progress=False), UsageError, "trainer"),
        (lambda: coordinator.simulate("mnist", 5, progress=False), DataError, "received int"),
        (lambda: coordinator.simulate({}, examples(), trainer=Mean, progress=False), ModelError, "array"),
    ],
)
def test_what_can_not_be_played_is_refused_with_our_errors(
    call: Callable[[], object], error: type[Exception], words: str
) -> None:
    """By name, before a round opens or at the latest when nobody can train."""
    with no_thread_left(), pytest.raises(error, match=words):
        call()


def test_a_run_that_fails_leaves_no_file(empty: Path) -> None:
    """Also where updates of an open round lie in a temporary folder."""

    def make(data: Any, worker: str) -> Mean:
        return (Broken if worker == "swarm.3" else Mean)(data, worker)

    with pytest.raises(QuorumNotReached):
        simulate(make, strategy="median", fraction=1.0, retries=0)
    assert list(empty.iterdir()) == []


def test_a_reason_that_holds_for_a_whole_swarm_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line at the process and one at the coordinator, and no thousand; each of its workers has answered."""
    monkeypatch.setattr(failures, "_GATHERED_SECONDS", 60.0)
    monkeypatch.setattr(worker_loop, "_OUTBOX_SECONDS", 2.0)
    with pytest.raises(QuorumNotReached, match="a bug"):
        simulate(Broken, workers=80, fraction=1.0, retries=0, rounds=1)
    assert caplog.text.count("Can't answer round 1: ") == 1
    assert caplog.text.count("swarm.1, swarm.2") == caplog.text.count(" and 72 more can't answer: ") == 1


def waiting(act: Callable[[], None]) -> type[Mean]:
    """A trainer that does something in its first training, and then waits for the round's end."""

    class Waiting(Mean):
        def fit(self, weights: Weights, settings: FitSettings) -> Fitted:
            act()
            assert settings.stop.wait(20)
            return super().fit(weights, settings)

    return Waiting


def test_an_event_ends_the_call() -> None:
    """From any thread; the training under way ends, and no thread is left."""
    stop = threading.Event()
    with no_thread_left(), pytest.raises(Interrupted):
        simulate(waiting(stop.set), stop=stop)


def test_ctrl_c_ends_the_call_with_keyboard_interrupt() -> None:
    """As it ends any Python code, but with the workers gone; the handler of before is there again."""
    assert threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    with no_thread_left(), pytest.raises(KeyboardInterrupt):
        simulate(waiting(lambda: signal.raise_signal(signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_works_in_another_thread() -> None:
    """A notebook's or a page's: no signal handlers are asked for there."""
    results: list[coordinator.RunResult] = []
    thread = threading.Thread(target=lambda: results.append(simulate()))
    thread.start()
    thread.join(30)
    assert [result.rounds for result in results] == [3]


class Trivial:
    """Trains nothing: what is left is what the federation costs."""

    def __init__(self, data: Any, worker: str) -> None:
        del data, worker
        self.num_examples = 10

    def fit(self, weights: Weights, _settings: FitSettings) -> Fitted:
        return Fitted(weights={"w": weights["w"] + 1}, num_examples=10, metrics={})

    def evaluate(self, _weights: Weights) -> None:
        return None


def test_a_hundred_workers_take_seconds_beyond_training() -> None:
    """100 workers, all invited, 10 rounds, 10,000 weights: at most 5 s; half a second on two free cores.

    Others may be busy on this machine: the best of three counts, and more is allowed while they are.
    """

    def seconds() -> float:
        started = time.monotonic()
        result = coordinator.simulate(
            {"w": np.zeros(10_000)},
            None,
            trainer=Trivial,
            workers=100,
            fraction=1.0,
            rounds=10,
            progress=False,
        )
        assert result.arrays["w"].tolist() == [10.0] * 10_000
        return time.monotonic() - started

    assert any(seconds() < at_load(5) for _ in range(3))
