"""What is measured: each case is the same work for several systems, each by a script that prints one JSON object."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from broker.hosting import private
from broker.hosting.private import PrivateBroker
from tests.bench.memory import peak_megabytes
from tests.bench.peers.install import python_of
from tests.brokers import started_broker, started_cluster

_END_SECONDS = 60
_ITEM_BYTES = {"float32": 4, "int8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One module to run, with its words."""

    module: str
    words: tuple[str, ...]
    python: str = sys.executable
    needs_broker: bool = False
    is_on_cluster: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The same work for several systems, by their names.

    Attributes:
        line_seconds: What a thin line needs for a round's bytes alone; None on loopback.
    """

    name: str
    scripts: dict[str, Script]
    line_seconds: float | None = None


def all_cases(*, with_peers: bool, with_many: bool) -> list[Case]:
    """All there are.

    Args:
        with_peers: Whether the peers do the same.
        with_many: Whether they do it with 30 clients, too.
    """
    tiny, large = 10_000, 25_000_000
    return [
        _training(with_peers=with_peers),
        _simulation(with_peers=with_peers),
        _transport(
            "10,000 weights, 3 processes",
            tiny,
            workers=3,
            rounds=30,
            cluster=True,
            peers=5 if with_peers else 0,
        ),
        _transport(
            "10,000 weights, 30 processes",
            tiny,
            workers=30,
            rounds=20,
            peers=3 if with_peers and with_many else 0,
        ),
        _transport("10,000 weights, swarm of 100", tiny, swarm=100, rounds=10),
        _transport("10,000 weights, swarm of 1,000", tiny, swarm=1000, rounds=5),
        _transport("10,000 weights, swarm of 10,000", tiny, swarm=10_000, rounds=3),
        _transport("100 MB, 4 processes", large, workers=4, floor=True),
        _transport(
            "100 MB, 8 processes", large, workers=8, floor=True, cluster=True, peers=3 if with_peers else 0
        ),
        _transport("100 MB, 8 processes, int8 up", large, workers=8, precision="int8"),
        _transport("100 MB, 8 processes, int8 both ways", large, workers=8, precision="int8", down="int8"),
        _transport("100 MB, 16 processes", large, workers=16, floor=True),
        _thin(large, workers=4, rounds=3, peers=2 if with_peers else 0),
        _thin(large, workers=4, rounds=3, precision="int8"),
        _thin(large, workers=4, rounds=3, precision="int8", down="int8"),
    ]


def beside_cluster(cases: list[Case]) -> list[Case]:
    """Of those that are played on a cluster, too: Warren on one node, and on three."""
    of_interest = [case for case in cases if any(each.is_on_cluster for each in case.scripts.values())]
    return [
        replace(
            case, scripts={name: each for name, each in case.scripts.items() if name.startswith("Warren")}
        )
        for case in of_interest
    ]


def _training(*, with_peers: bool) -> Case:
    scripts = {
        "ideal": Script(module="tests.bench.ideal", words=("--clients", "3", "--rounds", "5")),
        "Warren": _ours("training", workers=3, rounds=5),
    }
    if with_peers:
        scripts |= _peers(weights=0, clients=3, rounds=5)
    return Case(name="MNIST CNN, 3 processes", scripts=scripts)


def _simulation(*, with_peers: bool) -> Case:
    """A tenth of a hundred clients in a round, one epoch of batches of 10 each: C = 0.1, E = 1, B = 10."""
    asked: dict[str, object] = {"clients": 100, "fraction": 0.1, "rounds": 10}
    scripts = {"Warren": _ours("simulation", **asked, processes=2)}
    if with_peers:
        scripts["Flower"] = _peer("flower", "simulate", **asked)
        scripts["pfl, 1 process"] = _peer("pfl", "simulate", **asked)
        scripts["pfl, 2 processes"] = _peer("pfl", "simulate", **asked, processes=2)
    return Case(name="MNIST CNN, 10 of 100 simulated clients", scripts=scripts)


def _transport(
    name: str,
    weights: int,
    *,
    workers: int = 0,
    swarm: int = 0,
    rounds: int = 3,
    precision: str = "float32",
    down: str = "float32",
    floor: bool = False,
    cluster: bool = False,
    peers: int = 0,
) -> Case:
    """A case without training; `peers` is how many rounds the peers play of it, which may be none."""
    scripts = {}
    if floor:
        megabytes = weights * 4 // 1_000_000
        scripts["floor"] = _ours("floor", megabytes=megabytes, workers=workers, rounds=rounds)
    who = {"workers": workers} if workers else {"swarm": swarm}
    asked: dict[str, object] = {"weights": weights, **who, "rounds": rounds, "precision": precision}
    asked["download-precision"] = down
    scripts["Warren"] = _ours("fleet", **asked)
    if cluster:
        scripts["Warren, 3 nodes"] = replace(scripts["Warren"], is_on_cluster=True)
    if peers:
        scripts |= _peers(weights=weights, clients=workers, rounds=peers)
    return Case(name=name, scripts=scripts)


def _thin(
    weights: int,
    *,
    workers: int,
    rounds: int,
    precision: str = "float32",
    down: str = "float32",
    peers: int = 0,
) -> Case:
    """Each worker behind a line of its own, which carries the weights down, and then the update up."""
    megabits, milliseconds = 50.0, 40.0
    line = {"megabits": megabits, "milliseconds": milliseconds}
    num_bytes = weights * (_ITEM_BYTES[down] + _ITEM_BYTES[precision])
    asked: dict[str, object] = {"weights": weights, "workers": workers, "rounds": rounds}
    asked |= {"precision": precision, "download-precision": down, **line}
    scripts = {"Warren": _ours("fleet", **asked)}
    if peers:
        scripts |= _peers(weights=weights, clients=workers, rounds=peers, **line)
    return Case(
        name=f"100 MB, {workers} lines of {megabits:g} Mbit/s, {down} down, {precision} up",
        scripts=scripts,
        line_seconds=8 * num_bytes / (megabits * 1e6),
    )


def _ours(module: str, **options: object) -> Script:
    return Script(module=f"tests.bench.{module}", words=_words(options), needs_broker=True)


def _peers(**options: object) -> dict[str, Script]:
    systems = (("Flower", "flower"), ("NVIDIA FLARE", "nvflare"))
    return {name: _peer(package, "drive", **options) for name, package in systems}


def _peer(package: str, module: str, **options: object) -> Script:
    return Script(
        module=f"tests.bench.peers.{package}.{module}",
        words=_words(options),
        python=str(python_of(package)),
    )


def _words(options: dict[str, object]) -> tuple[str, ...]:
    return tuple(word for name, value in options.items() for word in (f"--{name}", str(value)))


def run(script: Script) -> dict[str, Any]:
    """Run one script, on a broker of its own if it needs one, and return what it tells."""
    if not script.needs_broker:
        return _answer_of(script, ())
    with tempfile.TemporaryDirectory() as home, _brokers(script, Path(home)) as brokers:
        answer = _answer_of(script, ("--amqp-url", ",".join(broker.amqp_url for broker in brokers)))
        peaks = [
            max((peak_megabytes(pid) or 0 for pid in private._pids(each.home)), default=0) for each in brokers
        ]
        return answer | {"broker_peak_mb": sum(peaks) or None}


@contextmanager
def _brokers(script: Script, folder: Path) -> Iterator[list[PrivateBroker]]:
    """One, or the three nodes of a cluster."""
    if script.is_on_cluster:
        with started_cluster(folder) as nodes:
            yield nodes
    else:
        with started_broker(folder) as broker:
            yield [broker]


def _answer_of(script: Script, more: tuple[str, ...]) -> dict[str, Any]:
    command = [script.python, "-m", script.module, *more, *script.words]
    with _started(command) as process:
        told, said = process.communicate()
    if process.returncode:
        sys.exit(f"{script.module} failed with exit code {process.returncode}.\n{said[-4000:]}")
    answer: dict[str, Any] = json.loads(told.splitlines()[-1])
    return answer


@contextmanager
def _started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that is asked to end with the block: by force it could not end what it has started itself."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_END_SECONDS)
