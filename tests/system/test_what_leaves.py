"""What workers really send, at each level of --share: a whole run with Keras, held against deploy/what-leaves.md."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.hosting.private import wait_until
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Outgoing, coordinator_queue, outgoing
from broker.logs import LogContext
from broker.wire import codec, names
from broker.wire.statistics import StatisticsAsked
from coordinator.folder.memory_folder import MemoryFolder
from coordinator.keras.in_process import InProcessModels
from coordinator.options import RunOptions
from coordinator.play.run import Run
from coordinator.tasks import Task, TaskDefaults
from tests.leaving import allowed, fields_in, listed
from worker.api import run as work
from worker.rounds.site_rules import SHARES

SECONDS = 120
TASK = Task(name="model", kind="builder", source="", defaults=TaskDefaults())
ASKED = (
    StatisticsAsked(asked="a", step="range"),
    StatisticsAsked(asked="b", step="histogram", bins=2, lows=(0.0,) * 400, highs=(2.0,) * 400),
)
#: What the site of this level can't do without: its update in parts, what these weigh, and what it measured.
ALWAYS = {
    "joined.num_examples",
    "joined.inputs.high",
    "update-announced.digest",
    "part.data",
    "progress.epoch",
}


class Recording(MemoryLink):
    """A worker's link that keeps the fields of whatever is sent through it."""

    def __init__(self, broker: MemoryBroker, account: str) -> None:
        super().__init__(broker, account)
        self.sent: set[str] = set()
        self.inputs: dict[str, Any] = {}

    def publish(self, batch: Sequence[Outgoing]) -> None:
        super().publish(list(map(self._noted, batch)))

    def post(self, message: Outgoing) -> Any:
        return super().post(self._noted(message))

    def _noted(self, message: Outgoing) -> Outgoing:
        body = message.encoded()
        told = codec.unpack(body)
        self.sent |= fields_in(told)
        self.inputs = told.get("inputs", self.inputs)
        return message


def model() -> Any:
    """Two classes by one probability, with a metric that is no mean; its weights travel in parts."""
    import keras

    network = keras.Sequential(
        [
            keras.layers.Input((400,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile("sgd", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(name="auc")])
    return network


def examples() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (rng.random((60, 400)) + y[:, None] / 2).astype(np.float32)
    return (x[:40], y[:40]), (x[40:], y[40:])


@pytest.fixture(scope="module")
def links() -> dict[str, Recording]:
    """A site of each level, after it was asked for statistics and took part in a run of one round."""
    broker = MemoryBroker()
    coordinator = MemoryLink(broker, names.COORDINATOR)
    coordinator.declare([coordinator_queue()])
    links = {share: Recording(broker, share) for share in SHARES}
    stop = threading.Event()
    sites = [
        threading.Thread(target=work, args=(share, examples()), kwargs={
            "link": link, "share": share, "once": True, "stop": stop,
        })
        for share, link in links.items()
    ]  # fmt: skip
    for site in sites:
        site.start()
    assert wait_until(lambda: all("joined.worker" in link.sent for link in links.values()), SECONDS)
    for asked in ASKED:
        coordinator.publish([outgoing(asked, names.worker_queue(share)) for share in SHARES])
    folder = MemoryFolder()
    options = RunOptions(task=TASK, out=Path("run"), workers=len(SHARES), rounds=1)
    Run(
        coordinator,
        options,
        InProcessModels(folder.state_at, model),
        stop=stop,
        log=LogContext(),
        folder=folder,
    ).play()
    for site in sites:
        site.join(SECONDS)
    stop.set()
    folder.close()
    return links


def gained() -> Iterator[tuple[str, set[str]]]:
    """The fields that each level adds."""
    by_level: dict[str, set[str]] = defaultdict(set)
    for field, level in listed().items():
        by_level[level].add(field)
    yield from by_level.items()


@pytest.mark.parametrize("share", SHARES)
def test_nothing_leaves_that_is_not_listed_for_this_level(links: dict[str, Recording], share: str) -> None:
    """Of the whole of a worker's life: joining, statistics, training, update, measuring, leaving."""
    assert links[share].sent - allowed(share) == set()
    assert links[share].sent >= ALWAYS


@pytest.mark.parametrize("share", SHARES[1:])
def test_what_a_level_adds_is_really_sent(links: dict[str, Recording], share: str) -> None:
    """The page keeps no line of what no longer travels, nor calls withheld what nobody would send."""
    new = {name for name in dict(gained())[share] if not name.startswith("swarm-")}
    assert new
    assert links[share].sent >= new
    for lower in SHARES[: SHARES.index(share)]:
        assert not links[lower].sent & new


def test_the_range_is_exact_from_metrics_on(links: dict[str, Recording]) -> None:
    """With weights alone an extreme value is hidden in a quarter of a power of two."""
    largest = max(float(x.max()) for x, _ in examples())
    assert links["metrics"].inputs["high"] == largest
    assert links["weights"].inputs["high"] in (1.5, 1.75)
    assert links["weights"].inputs["low"] <= min(float(x.min()) for x, _ in examples())
