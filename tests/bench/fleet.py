"""Real processes without training: what the transport alone costs, with everything durable.

    python -m tests.bench.fleet --amqp-url URL --weights 25000000 --workers 8 --rounds 3
    python -m tests.bench.fleet --amqp-url URL --weights 10000 --swarm 1000 --rounds 5
    python -m tests.bench.fleet --amqp-url URL --weights 25000000 --workers 4 --megabits 50 --milliseconds 40

Prints one JSON object: seconds a round (the median is of those from the second on), the coordinator's peak memory,
and how far the result is from the exact one.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from broker import logs
from broker.audit import AUDIT_FILE, AuditLog
from broker.command import Stop
from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.wire.messages import RoundStart
from broker.wire.settings import Precision
from broker.wire.tensors import TensorSpec, Vector
from coordinator.keras.process import BuiltModel
from coordinator.options import RunOptions
from coordinator.play.open_round.live_round import LiveRound
from coordinator.play.run import Run
from coordinator.tasks import Task, TaskDefaults
from tests.bench.memory import peak_megabytes
from tests.bench.moments import tell
from tests.bench.workload import expected_scale, multiple_of, synthetic
from worker.learning.console import Console
from worker.rounds.participant import Participant, Report, Trained
from worker.rounds.uploading import Measured
from worker.rounds.worker_loop import WorkerLoop

TASK = Task(name="transport", kind="builder", source="none:none", defaults=TaskDefaults())
CLASSES = ("no", "yes")
NUM_EXAMPLES = 100
_START_SECONDS = 300


class NoModels:
    """In the place of the Keras child: a vector of the wanted size, and nothing to save."""

    def __init__(self, size: int) -> None:
        self._size = size

    def build(self, _task: Task, *, seed: int, initial_model: Path | None = None, **_: object) -> BuiltModel:
        """One tensor of random weights."""
        del initial_model
        return BuiltModel(
            model_json="{}",
            layout=(TensorSpec(dtype="float32", shape=(self._size,), kind="trainable"),),
            vector=synthetic(self._size, seed=seed),
            integers=[],
            input_shape=(1,),
            num_classes=len(CLASSES),
            num_parameters=self._size,
        )

    def check(self, *_: object) -> None:
        """Any model will do."""

    def draw_workers(self, *_: object) -> None:
        """Nobody looks."""

    def save(self, *_: object, **__: object) -> None:
        """The child that saves is measured apart."""

    def flush(self, _timeout_seconds: float) -> bool:
        """Nothing to wait for."""
        return True


class NoData:
    """As much of a data set as joining needs."""

    classes = CLASSES
    num_train_examples = NUM_EXAMPLES
    num_test_examples = 0
    examples_per_class = dict.fromkeys(CLASSES, NUM_EXAMPLES // 2)
    inputs = None
    holds = ()


class Echo:
    """In the place of Keras: answers at once."""

    def warm_up(self) -> None:
        """Nothing to import."""

    def answer(
        self,
        participant: Participant,
        start: RoundStart,
        weights: Vector,
        _stop: threading.Event,
        _report: Report,
    ) -> Trained:
        """A multiple of the weights, computed in one pass."""
        trains = participant.trains_in(start)
        vector = weights * multiple_of(participant.name, start.round_number) if trains else None
        measured = Measured(
            num_examples=NUM_EXAMPLES if trains else 0,
            metrics={"loss": 1.0} if trains else {},
            global_metrics={},
            num_test_examples=0,
            seconds=0.0,
        )
        return Trained(vector=vector, measured=measured)


def noted_starts() -> list[float]:
    """When each round begins, from now on."""
    starts: list[float] = []
    send = LiveRound.send

    def noting(live: LiveRound) -> None:
        starts.append(time.monotonic())
        send(live)

    LiveRound.send = noting  # type: ignore[method-assign]
    return starts


def coordinate(
    amqp_url: str,
    weights: int,
    workers: list[str],
    rounds: int,
    precision: Precision,
    download_precision: Precision,
    strategy: str,
    *,
    is_audited: bool,
) -> dict[str, Any]:
    """Play the rounds in this process and measure them."""
    started, models, log = time.monotonic(), NoModels(weights), logs.configure()
    starts = noted_starts()
    link = RabbitLink(LinkSettings(access=Access(amqp_url=amqp_url), name="coordinator"))
    with Stop() as stop, tempfile.TemporaryDirectory(dir=".") as folder:
        options = RunOptions(
            task=TASK,
            out=Path(folder),
            workers=len(workers),
            rounds=rounds,
            grace_seconds=60,
            precision=precision,
            download_precision=download_precision,
            strategy=strategy,
        )
        link.open()
        audit_log = AuditLog(Path(folder) / AUDIT_FILE if is_audited else None)
        run = Run(link, options, models, stop=stop.event, log=log, audit_log=audit_log)  # type: ignore[arg-type]
        run.play()
        link.close()
        state, peak = (
            run._committed.present,
            peak_megabytes(),
        )  # before the check below takes memory of its own
    first = models.build(TASK, seed=0).vector
    ratio = float(state.vector[0]) / float(first[0]) / expected_scale(workers, rounds)
    return {
        "workers": len(workers),
        "megabytes": round(weights * 4 / 1e6, 2),
        "precision": precision,
        "download_precision": download_precision,
        **tell([started, *starts[1:]]),
        "update_bytes": state.history[-1].update_bytes,
        "coordinator_peak_mb": peak,
        "result_over_expected": ratio,
    }


def take_part(amqp_url: str, names: list[str], *, is_swarm: bool, is_audited: bool) -> None:
    """Be one worker, or a swarm, until the run is over."""
    link = RabbitLink(LinkSettings(access=Access(amqp_url=amqp_url), name=f"worker {names[0]}"))
    log = logs.configure()
    with Stop() as stop, tempfile.TemporaryDirectory(dir=".") as folder:
        link.open()
        WorkerLoop(
            link,
            [Participant(name=name, data=NoData()) for name in names],  # type: ignore[arg-type]
            Echo(),
            stop=stop.event,
            log=log,
            console=Console(),
            once=True,
            is_swarm=is_swarm,
            audit_log=AuditLog(Path(folder) / AUDIT_FILE if is_audited else None),
        ).serve()
        link.close()


@contextmanager
def thin_lines(amqp_url: str, count: int, megabits: float, milliseconds: float) -> Iterator[list[str]]:
    """The broker's address as each process has it: by way of a line of its own, where one is asked for."""
    if not megabits:
        yield [amqp_url] * count
        return
    parts = urlsplit(amqp_url)
    shape = ["--count", str(count), "--megabits", str(megabits), "--milliseconds", str(milliseconds)]
    target = f"{parts.hostname}:{parts.port or 5672}"
    command = [sys.executable, "-m", "tests.bench.lines", "--target", target, *shape]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as lines:
        assert lines.stdin and lines.stdout
        login = f"{parts.username}:{parts.password}"
        ports = json.loads(lines.stdout.readline())
        yield [parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl() for port in ports]
        lines.stdin.close()


@click.command()
@click.option("--amqp-url", required=True)
@click.option("--weights", type=int, default=10_000, show_default=True)
@click.option("--workers", type=int, default=0, help="Processes of one worker each.")
@click.option("--swarm", type=int, default=0, help="Logical workers in one process.")
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--precision", type=click.Choice(["float32", "float16", "int8"]), default="float32")
@click.option("--download-precision", type=click.Choice(["float32", "float16", "int8"]), default="float32")
@click.option(
    "--strategy", default="fedavg", help="Of all but fedavg the result is another than is expected."
)
@click.option(
    "--audit/--no-audit", default=True, show_default=True, help="Keep audit logs, as the commands do."
)
@click.option(
    "--megabits", type=float, default=0.0, help="Of each process's own line, a second; 0: loopback."
)
@click.option("--milliseconds", type=float, default=0.0, help="There and back on that line.")
@click.option("--be", hidden=True, help="Be this worker (used by this script itself).")
@click.option("--by", hidden=True, help="The broker's address as that worker has it.")
def main(
    amqp_url: str,
    weights: int,
    workers: int,
    swarm: int,
    rounds: int,
    precision: Precision,
    download_precision: Precision,
    strategy: str,
    audit: bool,
    megabits: float,
    milliseconds: float,
    be: str | None,
    by: str | None,
) -> None:
    """Measure the transport."""
    swarm_names = [f"swarm.{number}" for number in range(1, swarm + 1)]
    names = [f"w{number}" for number in range(1, workers + 1)]
    if be is not None:
        everyone = swarm_names if be == "swarm" else [be]
        take_part(by or amqp_url, everyone, is_swarm=be == "swarm", is_audited=audit)
        return
    again = [sys.executable, "-m", "tests.bench.fleet", *sys.argv[1:]]
    who = names + (["swarm"] if swarm else [])
    with thin_lines(amqp_url, len(who), megabits, milliseconds) as urls:
        processes = [
            subprocess.Popen([*again, "--by", url, "--be", name], stderr=subprocess.DEVNULL)
            for name, url in zip(who, urls, strict=True)
        ]
        try:
            every = names + swarm_names
            precisions = (precision, download_precision)
            print(
                json.dumps(
                    coordinate(amqp_url, weights, every, rounds, *precisions, strategy, is_audited=audit)
                )
            )
            for process in processes:
                process.wait(_START_SECONDS)
        finally:
            for process in processes:
                process.kill()


if __name__ == "__main__":
    main()
