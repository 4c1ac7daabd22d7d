"""Questions that would single out an example: a site tells sums and counts of many, and by one set of edges."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from broker import logs
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Delivery, coordinator_queue, upload_queue, worker_queue
from broker.wire import names
from broker.wire.messages import decode
from broker.wire.statistics import StatisticsAsked, StatisticsRefused, StatisticsTold
from tests.unit.test_survey import Labelled
from tests.unit.test_worker_loop import Trainer
from worker.learning.console import Console
from worker.rounds.hand_over import StatisticsJob
from worker.rounds.participant import Participant
from worker.rounds.site_rules import Share, SiteRules
from worker.rounds.worker_loop import WorkerLoop

SECRET = np.float32(87.25)  #: one patient's value; nobody else's is near


class Enemy:
    """It holds the coordinator, and asks one site what it likes."""

    def __init__(self, share: Share = "statistics", least_examples: int = 1) -> None:
        broker = MemoryBroker()
        self.link, site = MemoryLink(broker, "coordinator"), MemoryLink(broker, "site")
        self.link.declare([coordinator_queue(), worker_queue("site"), upload_queue("site")])
        self.link.consume([names.COORDINATOR], prefetch=0)
        x = np.random.default_rng(0).normal(20, 3, (200, 1)).astype(np.float32)
        x[123] = SECRET
        rules = SiteRules(share=share, least_examples=least_examples)
        participant = Participant(name="site", data=Labelled(x), rules=rules)  # type: ignore[arg-type]
        self.loop = WorkerLoop(
            site,
            [participant],
            Trainer([], []),
            stop=threading.Event(),
            log=logs.configure(),
            console=Console(),
        )

    def ask(
        self, low: float, high: float, *, bins: int = 2, floor: int = 1
    ) -> StatisticsTold | StatisticsRefused:
        asked = StatisticsAsked(
            asked="q", session=1, step="histogram", floor=floor, bins=bins, lows=(low,), highs=(high,)
        )
        self.loop._hand_over.jobs.put(StatisticsJob(worker="site", asked=asked))
        self.loop._turn()
        return next(self.heard())

    def heard(self) -> Iterator[StatisticsTold | StatisticsRefused]:
        while isinstance(received := self.link.receive(0), Delivery):
            message = decode(received.body)
            if isinstance(message, StatisticsTold | StatisticsRefused):
                yield message


@pytest.mark.parametrize(("low", "high", "bins"), [(80, 90, 200), (0, 100, 200), (0, 100, 2), (87, 87.5, 1)])
def test_a_coordinator_that_asks_for_single_examples_is_told_of_none(
    low: float, high: float, bins: int
) -> None:
    """By narrow bins, by one wide bin of all others, by a floor of one, and again with edges beside the value: the one
    patient beyond all others is in no count that is told, nor left over by those that are; asking twice is refused."""
    enemy = Enemy()
    told = enemy.ask(low, high, bins=bins)
    assert isinstance(told, StatisticsTold)
    assert told.counts is not None
    edges = np.linspace(low, high, bins + 1)
    place = int(np.searchsorted(edges, SECRET, side="right")) - 1
    assert told.counts[0, place] == 0
    assert told.counts[told.counts > 0].min(initial=10) >= 10
    assert told.num_examples - told.counts.sum() >= 10
    again = enemy.ask(low, high + 1, bins=bins)
    assert isinstance(again, StatisticsRefused)
    assert "other edges" in again.reason
    higher = enemy.ask(low, high, bins=bins, floor=50)
    assert isinstance(higher, StatisticsTold)
    assert higher.counts is not None
    assert ((higher.counts == 0) | (higher.counts == told.counts)).all()


@pytest.mark.parametrize(
    ("share", "least", "reason"),
    [
        ("metrics", 1, "shares metrics"),
        ("counts", 1, "--share statistics"),
        ("statistics", 201, "fewer than the 201"),
    ],
)
def test_a_site_whose_operator_says_no_tells_nothing(share: Share, least: int, reason: str) -> None:
    """Statistics are the operator's to allow, and rest on as many examples as it says."""
    refused = Enemy(share, least).ask(0, 100, bins=20)
    assert isinstance(refused, StatisticsRefused)
    assert reason in refused.reason
