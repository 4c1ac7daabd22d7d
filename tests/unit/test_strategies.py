"""Strategies against their formulas, in numbers that can be checked by hand."""

from pathlib import Path

import numpy as np
import pytest

from broker.errors import ModelDiverged, UsageError
from broker.wire.tensors import Kind, TensorSpec
from coordinator.learning.aggregation import UpdateSum, scale_exponent
from coordinator.learning.strategies import STRATEGIES, first_states, make_strategy
from coordinator.learning.strategies.averages import FedAdam, FedAvg, FedAvgM
from coordinator.learning.strategies.fedprox import FedProx
from coordinator.learning.strategies.mean import OfTheMean
from coordinator.options import RunOptions
from coordinator.tasks import resolve
from tests.steps import next_weights


def total_of(*values: float, kinds: tuple[Kind, ...] = ("trainable",)) -> UpdateSum:
    layout = tuple(TensorSpec(dtype="float32", shape=(1,), kind=kind) for kind in kinds)
    total = UpdateSum(layout, scale_exponent(2))
    total.add(np.array(values, np.float32), 2)
    return total


def test_fedavg_adds_the_mean_update() -> None:
    """1 + 0.5 = 1.5."""
    assert next_weights(FedAvg(), np.array([1.0], np.float32), total_of(0.5), ()) == [1.5]


def test_fedprox_adds_the_mean_update_and_asks_the_workers_for_its_term() -> None:
    """1 + 0.5 = 1.5, as fedavg; μ is the workers'."""
    strategy = FedProx(mu=0.25)
    assert next_weights(strategy, np.array([1.0], np.float32), total_of(0.5), ()) == [1.5]
    assert strategy.worker_settings == {"prox_mu": 0.25}


@pytest.mark.parametrize(
    ("name", "options", "terms"),
    [("fedprox", {"mu": "0.01"}, {"prox_mu": 0.01}), ("fedprox", {"mu": "0"}, {}), ("fedavg", {}, {})],
)  # fmt: skip
def test_what_a_strategy_needs_of_the_workers_travels_with_a_round(
    name: str, options: dict[str, str], terms: dict[str, float]
) -> None:
    """From the command line's KEY=VALUE to the settings of every round."""
    asked = RunOptions(task=resolve("mnist"), out=Path("out"), strategy=name, strategy_options=options)
    assert asked.settings(1).terms == asked.settings(7).terms == terms


def test_fedavgm_carries_its_velocity() -> None:
    """v: 1, then 0.5 · 1 + 1 = 1.5; w: 0 → 1 → 2.5."""
    strategy, state, weights = FedAvgM(momentum=0.5), (np.zeros(1, np.float32),), np.zeros(1, np.float32)
    for expected in (1.0, 2.5):
        weights = next_weights(strategy, weights, total_of(1.0), state)
        assert weights == [expected]


def test_fedadam_makes_one_step_of_the_paper() -> None:
    """m = 0.1, v = 0.99 · τ² + 0.01 with τ = 0.001 (algorithm 2: v ≥ τ² at first); w = 0.01 · 0.1 / (√v + 0.001)."""
    strategy = FedAdam()
    weights = next_weights(strategy, np.zeros(1, np.float32), total_of(1.0), first_states(strategy, 1))
    assert weights[0] == pytest.approx(0.01 * 0.1 / ((0.99e-6 + 0.01) ** 0.5 + 0.001), rel=1e-6)


@pytest.mark.parametrize(
    "strategy",
    [FedAvg(), FedAvgM(), FedAdam(learning_rate=0.1), FedProx(mu=0.1)],
    ids=lambda each: type(each).__name__,
)
def test_a_strategy_moves_trainable_weights_alone(strategy: OfTheMean) -> None:
    """Statistics take the workers' mean whatever the momentum, and frozen weights stay, round after round."""
    weights = np.array([1, 0, 1, 7], np.float32)
    kinds: tuple[Kind, ...] = ("trainable", "statistic", "variance", "frozen")
    state = first_states(strategy, 1)
    for _ in range(20):
        weights = next_weights(strategy, weights, total_of(-0.5, 0.3, 1e5, kinds=kinds), state)
        assert weights[1:].tolist() == [np.float32(0.3), 1e5, 7.0]
    assert weights[0] < 0


@pytest.mark.parametrize("strategy", [FedAvgM(learning_rate=1e300), FedAdam(learning_rate=1e39)])
def test_a_step_beyond_float32_is_an_error_that_names_the_strategy(strategy: OfTheMean) -> None:
    """Infinity is never committed."""
    with pytest.raises(ModelDiverged, match=type(strategy).__name__):
        next_weights(strategy, np.zeros(1, np.float32), total_of(1.0), first_states(strategy, 1))


def test_every_strategy_is_made_from_its_name() -> None:
    """The table of names is what the command line offers."""
    for name, kind in STRATEGIES.items():
        assert isinstance(make_strategy(name, {}), kind)


@pytest.mark.parametrize("options", [{"speed": "1"}, {"momentum": "fast"}, {"momentum": "nan"}])
def test_an_option_that_is_not_there_or_no_number_is_refused(options: dict[str, str]) -> None:
    """A typo is told, not ignored."""
    with pytest.raises(UsageError):
        make_strategy("fedavgm", options)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("fedavgm", "momentum", "2"), ("fedavgm", "momentum", "-0.1"), ("fedavgm", "learning_rate", "0"),
        ("fedadam", "beta_1", "1.5"), ("fedadam", "beta_2", "1"), ("fedadam", "learning_rate", "-3"),
        ("fedadam", "tau", "0"), ("fedprox", "mu", "-0.1"), ("fedprox", "mu", "1e39"),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_refused_with_its_name(name: str, option: str, value: str) -> None:
    """A momentum of 2 grows without end; the command line says so at once."""
    with pytest.raises(UsageError, match=option):
        make_strategy(name, {option: value})
