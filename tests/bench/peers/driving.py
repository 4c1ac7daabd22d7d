"""The frame of both drivers: deploy a peer, wait for the outcome, end everything, and print one JSON object."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench import moments
from tests.bench.lines import Line, Shape
from tests.bench.peers.job import Job
from tests.bench.peers.processes import PeakMemory, descendants_ended, wait_for

_RUN_SECONDS = 1800
_LAST_CHARACTERS = 3000


def drive(*, package: str, server: tuple[str, ...], log: str, deploy: Callable[[Job], None]) -> None:
    """Measure the job that the command line asks for.

    Args:
        package: As PyPI calls the peer.
        server: A process of the peer's server has one of these words in its command line.
        log: Where the server's log is in the job's folder, as a pattern; its end is shown when something fails.
        deploy: Starts all processes, and hands them the job.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        job = _asked_for(Path(folder))
        job.prepare()
        started = time.time()  # the one clock that the processes share
        with descendants_ended(), PeakMemory(server) as peak, redirect_stdout(sys.stderr):
            try:
                deploy(job)
                wait_for("The outcome", job.outcome.exists, seconds=_RUN_SECONDS)
            except Exception:
                for path in job.folder.glob(log):
                    sys.stderr.write(path.read_text(errors="replace")[-_LAST_CHARACTERS:])
                raise
        outcome: dict[str, Any] = json.loads(job.outcome.read_text())
        told = {
            "system": package,
            "version": version(package),
            **moments.tell([started, *outcome.pop("ends")]),
            "server_peak_mb": peak.megabytes,
        }
        print(json.dumps(told | outcome))


def ports_to(server: int, job: Job) -> list[int]:
    """Where each client finds the server: by way of a line of its own, where lines are asked for."""
    if not job.megabits:
        return [server] * job.clients
    shape = Shape(bytes_per_second=job.megabits * 1e6 / 8, seconds=job.milliseconds / 2000)
    return [Line(("127.0.0.1", server), shape, number).port for number in range(job.clients)]


def _asked_for(folder: Path) -> Job:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=int, default=10_000, help="0 trains the CNN")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabits", type=float, default=0.0, help="of each client's own line; 0: loopback")
    parser.add_argument("--milliseconds", type=float, default=0.0)
    return Job(**vars(parser.parse_args()), folder=folder)
