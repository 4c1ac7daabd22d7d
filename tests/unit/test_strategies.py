"""Strategies against their formulas, in numbers that can be checked by hand."""

import numpy as np
import pytest

from broker.errors import UsageError
from coordinator.aggregation import FixedPointSum, scale_exponent
from coordinator.strategies import STRATEGIES, FedAdam, FedAvg, FedAvgM, make_strategy, next_weights


def total_of(value: float) -> FixedPointSum:
    total = FixedPointSum(1, scale_exponent(2))
    total.add(np.array([value], np.float32), 2)
    return total


def test_fedavg_adds_the_mean_update() -> None:
    """1 + 0.5 = 1.5."""
    assert next_weights(FedAvg(), np.array([1.0], np.float32), total_of(0.5), ()) == [1.5]


def test_fedavgm_carries_its_velocity() -> None:
    """v: 1, then 0.5 · 1 + 1 = 1.5; w: 0 → 1 → 2.5."""
    strategy, state, weights = FedAvgM(momentum=0.5), (np.zeros(1, np.float32),), np.zeros(1, np.float32)
    for expected in (1.0, 2.5):
        weights = next_weights(strategy, weights, total_of(1.0), state)
        assert weights == [expected]


def test_fedadam_makes_one_step_of_the_paper() -> None:
    """m = 0.1, v = 0.01; w = 0.01 · 0.1 / (0.1 + 0.001)."""
    state = (np.zeros(1, np.float32), np.zeros(1, np.float32))
    weights = next_weights(FedAdam(), np.zeros(1, np.float32), total_of(1.0), state)
    assert weights[0] == pytest.approx(0.01 * 0.1 / 0.101, rel=1e-5)


def test_every_strategy_is_made_from_its_name() -> None:
    """The table of names is what the command line offers."""
    for name, kind in STRATEGIES.items():
        assert isinstance(make_strategy(name, {}), kind)


@pytest.mark.parametrize("options", [{"speed": "1"}, {"momentum": "fast"}, {"momentum": "nan"}])
def test_an_option_that_is_not_there_or_no_number_is_refused(options: dict[str, str]) -> None:
    """A typo is told, not ignored."""
    with pytest.raises(UsageError):
        make_strategy("fedavgm", options)
