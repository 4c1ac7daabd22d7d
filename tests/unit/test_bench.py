"""What the benchmarks' figures rest on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.bench import moments, report, workload
from tests.bench.cases import all_cases, beside_cluster
from tests.bench.lines import Shape, Way
from tests.bench.report import Row


def test_the_expected_scale_is_what_an_exact_mean_of_all_answers_gives() -> None:
    """Two rounds of three clients, averaged in float64."""
    clients = ("0", "1", "2")
    first = weights = [np.array([1.5, -2.0])]
    for round_number in (1, 2):
        answers = [workload.echo_client(client)(weights, round_number) for client in clients]
        weights = [np.mean(arrays, axis=0) for arrays in zip(*answers, strict=True)]
    expected = workload.expected_scale(clients, rounds=2)
    assert weights[0] / first[0] == pytest.approx([expected, expected], rel=1e-6)
    assert expected != pytest.approx(workload.expected_scale(clients, rounds=1), rel=1e-6)


def test_the_parts_of_a_partition_are_disjoint_and_leave_nothing_out() -> None:
    """Ten examples for three clients."""
    parts = [workload.partition(number, 3, 10) for number in range(3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert sorted(np.concatenate(parts)) == list(range(10))


def test_the_median_leaves_out_the_first_round() -> None:
    """Rounds that end 10, 11, 13 and 16 seconds after the start lasted 10, 1, 2 and 3."""
    told = moments.tell([100.0, 110.0, 111.0, 113.0, 116.0])
    assert told == {"first_seconds": 10.0, "median_seconds": 2.0, "round_seconds": [10.0, 1.0, 2.0, 3.0]}


def test_a_table_shows_each_system_beside_the_lower_bound_and_beside_warren() -> None:
    """A peer that takes three times the floor and one and a half of Warren."""
    table = report.as_table("machine", [_row("floor", 2.0), _row("Warren", 4.0), _row("Flower", 6.0)])
    last = [cell.strip() for cell in table.splitlines()[-1].split("|")]
    assert last[1:6] == ["large", "Flower", "6.000", "3.00", "1.50"]


def test_peers_take_part_where_they_are_asked_for() -> None:
    """Without --peers none does; the 30 clients need --many besides."""

    def systems(*, with_peers: bool, with_many: bool) -> Sequence[str]:
        cases = all_cases(with_peers=with_peers, with_many=with_many)
        return [case.name for case in cases if "Flower" in case.scripts]

    assert systems(with_peers=False, with_many=True) == []
    few = [
        "MNIST CNN, 3 processes",
        "MNIST CNN, 10 of 100 simulated clients",
        "10,000 weights, 3 processes",
        "100 MB, 8 processes",
        "100 MB, 4 lines of 50 Mbit/s, float32 down, float32 up",
    ]
    assert systems(with_peers=True, with_many=False) == few
    assert sorted(systems(with_peers=True, with_many=True)) == sorted([*few, "10,000 weights, 30 processes"])


def test_a_line_s_own_time_for_a_round_s_bytes_is_its_lower_bound() -> None:
    """25 million float32 weights down and up are 200 MB: 32 s at 50 Mbit/s; with int8 up 20 s, both ways 8 s."""
    bounds = [case.line_seconds for case in all_cases(with_peers=False, with_many=False) if case.line_seconds]
    assert bounds == [32.0, 20.0, 8.0]


def test_all_connections_of_a_line_share_its_bandwidth() -> None:
    """Two pieces of a second each that come at once have left after one and after two; one that comes later waits for
    nobody, and what a late wakening cost is made good of."""
    way = Way(Shape(bytes_per_second=1000), seed=0)
    assert [way.pass_through(1000, 10.0), way.pass_through(1000, 10.0)] == pytest.approx([10.95, 11.95])
    assert way.pass_through(500, 20.0) == pytest.approx(20.45)


def test_a_lost_packet_stalls_its_way() -> None:
    """For as long as TCP waits before it sends it again, at the least."""
    way = Way(Shape(bytes_per_second=1448, loss=1.0), seed=0)
    assert way.pass_through(1448, 10.0) == pytest.approx(11.15)


def test_without_mnist_noise_of_its_shape_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the data can benchmark all the same."""
    monkeypatch.setattr(workload, "_BESIDE_THE_REPOSITORY", tmp_path)
    monkeypatch.delenv("WARREN_DATA", raising=False)
    mnist = workload.load_mnist()
    assert {name: array.shape for name, array in mnist.items()} == {
        "x_train": (60_000, 28, 28, 1),
        "y_train": (60_000,),
        "x_test": (10_000, 28, 28, 1),
        "y_test": (10_000,),
    }
    assert mnist["x_train"].max() == 1


def _row(system: str, seconds: float) -> Row:
    return Row(case="large", system=system, seconds=seconds)


def test_what_a_cluster_costs_is_measured_alone() -> None:
    """One node and three, at a small model and at a large one: nothing else that takes minutes."""
    found = beside_cluster(all_cases(with_peers=False, with_many=False))
    assert [case.name for case in found] == ["10,000 weights, 3 processes", "100 MB, 8 processes"]
    assert all(list(case.scripts) == ["Warren", "Warren, 3 nodes"] for case in found)
