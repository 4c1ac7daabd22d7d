"""Ten thousand names, each with queues of its own: joining, rounds, memory, and both ends killed in mid-round.

    python -m tests.bench.crowd --names 1000 --names 10000 --rounds 3 --kill

The coordinator and the broker are real ones, each a process of its own; the names are light participants
(`tests.bench.light`). Prints a JSON object for each number of names. Seconds are worth what the machine is; processor
time, and the ratios between two rows of one call, are worth more. It ends with an error if the final weights are not,
to the bit, those of an undisturbed run.
"""

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
import numpy as np

from broker import logs
from broker.audit import AUDIT_FILE, AuditLog
from broker.command import Stop
from broker.hosting.private import PrivateBroker, _pids
from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.wire.tensors import TensorSpec, Vector
from coordinator.folder.checkpoint import read_checkpoint
from coordinator.learning.aggregation import UpdateSum, scale_exponent
from coordinator.learning.strategies.averages import FedAvg
from coordinator.options import RunOptions
from coordinator.play.open_round.live_round import LiveRound
from coordinator.play.open_round.taking import Taking
from coordinator.play.run import Run
from tests.bench.fleet import NUM_EXAMPLES, TASK, NoModels
from tests.bench.idle import cpu_seconds
from tests.bench.light import take_part
from tests.bench.memory import peak_megabytes
from tests.bench.workload import multiple_of, synthetic
from tests.brokers import started_broker
from tests.steps import next_weights

_PROCESSES = 2  #: that hold the participants
_GROUP = 500  #: names on one link
_PATIENCE_SECONDS = 900.0
_KILLED_ROUNDS = {2: "coordinator", 3: "broker"}


def names_of(count: int) -> list[str]:
    """What so many participants are called."""
    return [f"site-{number}" for number in range(1, count + 1)]


def undisturbed(count: int, size: int, rounds: int) -> Vector:
    """The weights after so many rounds, computed here."""
    weights = synthetic(size)
    layout = (TensorSpec(dtype="float32", shape=(size,), kind="trainable"),)
    for number in range(1, rounds + 1):
        total = UpdateSum(layout, scale_exponent(count * NUM_EXAMPLES))
        for name in names_of(count):
            total.add(weights * multiple_of(name, number), NUM_EXAMPLES)
        weights = next_weights(FedAvg(), weights, total, ())
    return weights


# --- the parts that are played in processes of their own ----------------------------------------------------------


def tell(event: str, **fields: object) -> None:
    """Tell the driver, in a line."""
    print(json.dumps({"event": event, "at": time.monotonic(), **fields}), flush=True)


def tell_rounds(count: int) -> None:
    """Have each round told when it opens, is half answered, and is committed."""
    send, settle, end = LiveRound.send, Taking._settle, LiveRound.end

    def sending(live: LiveRound) -> None:
        tell("opened", round=live.record.round_number)
        send(live)
        tell("sent", round=live.record.round_number)

    def settling(taking: Taking, *words: Any) -> None:
        settle(taking, *words)
        if len(taking.round.answers) == count // 2:
            tell("half", round=taking.record.round_number)

    def ending(live: LiveRound) -> None:
        end(live)
        tell("closed", round=live.record.round_number)

    LiveRound.send, Taking._settle, LiveRound.end = sending, settling, ending  # type: ignore[method-assign]


def coordinate(amqp_url: str, out: Path, count: int, size: int, rounds: int) -> None:
    """Be the coordinator."""
    tell_rounds(count)
    log = logs.configure()
    link = RabbitLink(LinkSettings(access=Access(amqp_url=amqp_url), name="coordinator", connect_seconds=60))
    with Stop() as stop:
        options = RunOptions(
            task=TASK,
            out=out,
            workers=count,
            quorum=count,
            rounds=rounds,
            deadline_seconds=_PATIENCE_SECONDS,
            grace_seconds=_PATIENCE_SECONDS,
        )
        out.mkdir(exist_ok=True)
        link.open()
        models: Any = NoModels(size)
        Run(link, options, models, stop=stop.event, log=log, audit_log=AuditLog(out / AUDIT_FILE)).play()
        link.close()
    tell("over", peak_mb=peak_megabytes())


# --- the driver ---------------------------------------------------------------------------------------------------


class Play:
    """One run with so many names: its processes, and what they tell.

    Args:
        broker: Its own.
        folder: For the run and the logs.
        count: Names.
        size: Weights.
        rounds: How many; with `kill`, the coordinator is killed in the second and the broker in the third.
        invited: Each name has an upload queue, too.
    """

    def __init__(
        self,
        broker: PrivateBroker,
        folder: Path,
        *,
        count: int,
        size: int,
        rounds: int,
        kill: bool,
        invited: bool,
    ) -> None:
        self._broker, self._folder = broker, folder
        self._count, self._size, self._rounds = count, size, rounds
        self._more = ["--invited"] if invited else []
        self._kills = dict(_KILLED_ROUNDS) if kill else {}
        self._processes: list[subprocess.Popen[str]] = []
        self._crowd: list[subprocess.Popen[str]] = []
        self._coordinator: subprocess.Popen[str] | None = None
        self._peaks: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Play it, and tell the figures."""
        self._start_coordinator()
        begun = time.monotonic()
        for number in range(_PROCESSES):
            self._crowd.append(self._start("crowd", str(number)))
        told = {"names": self._count, "weights": self._size, **self._follow(begun)}
        crowds = [json.loads(each.communicate(timeout=120)[0].splitlines()[-1]) for each in self._crowd]
        told["declare_seconds"] = max(each["declare_seconds"] for each in crowds)
        told |= {f"{who}_peak_mb": peak for who, peak in self._peaks.items()}
        self._check()
        return told

    def close(self) -> None:
        """End what runs still."""
        for process in self._processes:
            process.kill()
            process.wait(10)

    def _follow(self, begun: float) -> dict[str, Any]:
        """From the first word of the coordinator to its last."""
        opened_at, sent_at, cpu = 0.0, 0.0, self._cpu()
        killed: str | None = None
        rounds: list[dict[str, Any]] = []
        told: dict[str, Any] = {}
        while True:
            word = self._next_word()
            event, at = word["event"], word["at"]
            print(f"{at - begun:.1f} s: {event} {word.get('round', '')}", file=sys.stderr, flush=True)
            if event == "opened" and word["round"] == 1:
                told = {"joining_seconds": round(at - begun, 1), "joining_cpu": _since(cpu, self._cpu())}
            if event == "opened":
                opened_at, cpu, killed = at, self._cpu(), None
            elif event == "sent":
                sent_at = at
            elif event == "half":
                if to_kill := self._kills.pop(word["round"], None):
                    killed = to_kill
                    self._kill(to_kill)
            elif event == "closed" and word["round"] <= self._rounds:
                rounds.append(
                    {
                        "seconds": round(at - opened_at, 1),
                        "sending": round(sent_at - opened_at, 1),
                        "cpu": None if killed else _since(cpu, self._cpu()),
                        "killed": killed,
                        "broker_mb": _resident(self._broker),
                    }
                )
            elif event == "over":
                self._note_peaks()
                self._peaks["coordinator"] = word["peak_mb"]
                return {**told, "rounds": rounds, "whole_seconds": round(at - begun, 1)}

    def _next_word(self) -> dict[str, Any]:
        assert self._coordinator is not None
        assert self._coordinator.stdout is not None
        line = self._coordinator.stdout.readline()
        if not line:
            raise SystemExit(f"The coordinator ended: {self._log('coordinator').read_text()[-3000:]}")
        word: dict[str, Any] = json.loads(line)
        return word

    def _kill(self, who: str) -> None:
        if who == "coordinator":
            assert self._coordinator is not None
            self._coordinator.kill()
            self._coordinator.wait(10)
            self._start_coordinator()
        else:
            self._note_peaks()
            self._broker.kill()
            self._broker.start(seconds=300)

    def _start_coordinator(self) -> None:
        self._coordinator = self._start("coordinator")

    def _start(self, role: str, number: str = "") -> "subprocess.Popen[str]":
        words = ["--names", str(self._count), "--weights", str(self._size), "--rounds", str(self._rounds)]
        words += [*self._more, "--be", role, "--number", number or "0", "--amqp-url", self._broker.amqp_url]
        with self._log(f"{role}{number}").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.crowd", *words, "--out", str(self._folder / "run")],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._processes.append(process)
        return process

    def _log(self, role: str) -> Path:
        return self._folder / f"{role}.log"

    def _cpu(self) -> dict[str, float]:
        """Processor seconds so far."""
        assert self._coordinator is not None
        return {
            "broker": sum(map(cpu_seconds, _pids(self._broker.home))),
            "coordinator": cpu_seconds(self._coordinator.pid),
            "crowd": sum(cpu_seconds(each.pid) for each in self._crowd),
        }

    def _note_peaks(self) -> None:
        peak = max((peak_megabytes(pid) or 0 for pid in _pids(self._broker.home)), default=0)
        self._peaks["broker"] = max(peak, self._peaks.get("broker", 0))

    def _check(self) -> None:
        found = read_checkpoint(self._folder / "run").vector
        expected = undisturbed(self._count, self._size, self._rounds)
        if not np.array_equal(found.view(np.uint32), expected.view(np.uint32)):
            raise SystemExit(f"With {self._count} names the weights are not those of an undisturbed run.")


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {who: round(now[who] - before[who], 1) for who in now}


def _resident(broker: PrivateBroker) -> float:
    def of(pid: int) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)

    return round(max(map(of, _pids(broker.home)), default=0) / 1024)


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    yield stop


@click.command()
@click.option("--names", "counts", type=int, multiple=True, default=(1000,), help="How many; several times.")
@click.option("--weights", type=int, default=10_000, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option(
    "--kill", is_flag=True, help="SIGKILL the coordinator in the second round, the broker in the third."
)
@click.option("--invited", is_flag=True, help="Each has an upload queue, too, as with an account of its own.")
@click.option("--conf", multiple=True, help="A line more for the broker's rabbitmq.conf.")
@click.option("--be", type=click.Choice(["coordinator", "crowd"]), hidden=True)
@click.option("--number", type=int, default=0, hidden=True)
@click.option("--amqp-url", default="", hidden=True)
@click.option("--out", type=click.Path(path_type=Path), hidden=True)
def main(
    counts: tuple[int, ...],
    weights: int,
    rounds: int,
    conf: tuple[str, ...],
    be: str | None,
    number: int,
    amqp_url: str,
    out: Path,
    *,
    kill: bool,
    invited: bool,
) -> None:
    """Measure what names cost."""
    if be == "coordinator":
        coordinate(amqp_url, out, counts[0], weights, rounds)
    elif be == "crowd":
        logs.configure()
        with _told_to_end() as stop:
            take_part(amqp_url, names_of(counts[0])[number::_PROCESSES], _GROUP, stop, is_invited=invited)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started is ended
        for count in counts:
            with (
                tempfile.TemporaryDirectory(prefix="warren-crowd-") as name,
                started_broker(Path(name) / "broker", conf=conf) as broker,
            ):
                play = Play(
                    broker, Path(name), count=count, size=weights, rounds=rounds, kill=kill, invited=invited
                )
                try:
                    print(json.dumps(play.run()), flush=True)
                finally:
                    play.close()


if __name__ == "__main__":
    main()
