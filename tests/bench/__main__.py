"""`make bench`: what Warren costs beside the floor and the ideal; `make bench-peers`: and beside its peers.

Each measurement of ours runs on a broker of its own. The systems of a case run one after the other, so that their
ratios hold on a noisy machine. A benchmark reports; nothing here asserts a time.
"""

import signal
import statistics
import sys
from pathlib import Path
from types import FrameType

import click

from tests.bench import report
from tests.bench.cases import Case, Script, all_cases, beside_cluster
from tests.bench.cases import run as run_script
from tests.bench.peers import install
from tests.bench.report import Row
from tests.bench.workload import find_mnist


def play(case: Case, repeat: int) -> list[Row]:
    """Measure all systems of a case, one after the other, `repeat` times over."""
    told: dict[str, list[Row]] = {system: [] for system in case.scripts}
    for _ in range(repeat):
        for system, script in case.scripts.items():
            print(f"{case.name}: {system} …", file=sys.stderr, flush=True)
            told[system].append(_row(case, system, script))
    bound = case.line_seconds
    line = [] if bound is None else [Row(case=case.name, system="line", seconds=bound)]
    return line + [_middle(rows) for rows in told.values()]


def _row(case: Case, system: str, script: Script) -> Row:
    answer = run_script(script)
    return Row(
        case=case.name,
        system=system,
        seconds=answer["median_seconds"],
        first_seconds=answer.get("first_seconds"),
        server_megabytes=answer.get("coordinator_peak_mb", answer.get("server_peak_mb")),
        broker_megabytes=answer.get("broker_peak_mb"),
        training_seconds=statistics.median(answer.get("slowest_worker_seconds", [0])[1:] or [0]) or None,
        accuracy=answer.get("accuracy"),
        result_over_expected=answer.get("result_over_expected"),
    )


def _middle(rows: list[Row]) -> Row:
    """The measurement whose seconds a round are the median; of an even number the slower one."""
    return sorted(rows, key=lambda row: row.seconds)[len(rows) // 2]


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


@click.command()
@click.argument("words", nargs=-1)
@click.option("--peers", is_flag=True, help="Flower and NVIDIA FLARE, too; installed if need be.")
@click.option("--many", is_flag=True, help="The peers with 30 clients, too: Flower needs a minute a round.")
@click.option("--cluster", is_flag=True, help="One node beside three with quorum queues, and nothing else.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Times over.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True, help="A folder."
)
def main(words: tuple[str, ...], out: Path, repeat: int, *, peers: bool, many: bool, cluster: bool) -> None:
    """Run every case whose name contains one of the WORDS, or all."""
    signal.signal(signal.SIGTERM, _end)  # so that what was started is ended
    if peers:
        install.main()
    header = report.describe_machine(with_peers=peers)
    if find_mnist() is None:
        header += "; noise in the place of MNIST, which is not here"
    rows: list[Row] = []
    cases = all_cases(with_peers=peers, with_many=many)
    for case in beside_cluster(cases) if cluster else cases:
        if not words or any(word in case.name for word in words):
            rows += play(case, repeat)
            report.write(out, header, rows)  # after each, for an interrupted benchmark has told something
    print(report.as_table(header, rows))


if __name__ == "__main__":
    main()
