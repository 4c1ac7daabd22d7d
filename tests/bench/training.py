"""Real training by the command line a person types: one coordinator and its workers, each a process of its own.

python -m tests.bench.training --amqp-url URL --workers 3 --rounds 5

Prints one JSON object. A round lasts from one line "Round N closed" to the next, so that whatever lies between two
rounds counts; the first one from the start of the processes, with TensorFlow's import.
"""

import csv
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tests.bench.memory import peak_megabytes
from tests.bench.moments import tell
from tests.bench.workload import BATCH, accuracy_of, write_sites
from worker.tensorflow import load_keras

BIN = Path(sys.executable).parent
END_SECONDS = 60
_RUN_SECONDS = 1800


@contextmanager
def workers(amqp_url: str, sites: list[Path]) -> Iterator[None]:
    """One worker process for each site; they leave after the run, or are ended with the block."""
    words = ["worker", "run", "--once", "--connect-seconds", "60", "--amqp-url", amqp_url]
    processes = [
        subprocess.Popen(
            [BIN / words[0], *words[1:], "--name", f"bench-{number}", "--data", site],
            stderr=subprocess.DEVNULL,
        )
        for number, site in enumerate(sites, 1)
    ]
    try:
        yield
        for process in processes:
            process.wait(END_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def coordinate(
    amqp_url: str, out: Path, count: int, rounds: int, **options: object
) -> tuple[list[float], float | None]:
    """Run the coordinator to its end.

    Args:
        amqp_url: The broker.
        out: The run's folder.
        count: Workers that join.
        rounds: In all.
        options: More of the command line, by name.

    Returns:
        When each round closed, in seconds, and the peak memory of the coordinator's process.
    """
    words = ["coordinator", "run", "tests.bench.workload:cnn", "--out", str(out), "--amqp-url", amqp_url]
    words += ["--workers", str(count), "--rounds", str(rounds), "--epochs", "1"]
    for name, value in ({"batch-size": BATCH} | options).items():
        words += [f"--{name}", str(value)]
    moments: list[float] = []
    lines: list[str] = []
    peak = None
    process = subprocess.Popen(
        [BIN / words[0], *words[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    overdue = threading.Timer(_RUN_SECONDS, process.kill)  # it waits for its workers as long as it takes
    overdue.start()
    try:
        for line in process.stderr or ():
            lines.append(line)
            if " closed after " in line:
                moments.append(time.monotonic())
            peak = peak_megabytes(process.pid) or peak
        if process.wait(END_SECONDS) or len(moments) != rounds:
            sys.exit("The coordinator failed.\n" + "".join(lines[-20:]))
    finally:
        overdue.cancel()
        process.kill()
        process.wait()
    return moments, peak


def slowest_seconds(out: Path) -> list[float]:
    """How long the slowest worker itself took, round by round."""
    with (out / "history.csv").open(newline="") as file:
        told = [row["slowest_worker_seconds"] for row in csv.DictReader(file)]
    return [float(seconds) for seconds in told if seconds]  # the row of the first model has none


def measure(amqp_url: str, folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Play one run and tell its figures."""
    sites, out = write_sites(folder, count), folder / "run"
    started = time.monotonic()
    with workers(amqp_url, sites):
        moments, peak = coordinate(amqp_url, out, count, rounds)
    weights = load_keras().models.load_model(out / "model.keras").get_weights()
    return {
        **tell([started, *moments]),
        "slowest_worker_seconds": slowest_seconds(out),
        "accuracy": accuracy_of(weights),
        "coordinator_peak_mb": peak,
    }


@click.command()
@click.option("--amqp-url", required=True)
@click.option("--workers", "count", type=int, default=3, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(amqp_url: str, count: int, rounds: int) -> None:
    """Measure rounds of training."""
    signal.signal(
        signal.SIGTERM, lambda number, _: sys.exit(128 + number)
    )  # so that the others are ended, too
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(amqp_url, Path(folder), count, rounds)))


if __name__ == "__main__":
    main()
