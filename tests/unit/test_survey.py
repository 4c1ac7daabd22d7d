"""A survey of sites over the in-memory link: real workers with made-up data; who does not answer is named."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker import logs
from broker.audit import OFF, AuditLog
from broker.errors import Interrupted, QuorumNotReached
from broker.hosting.private import wait_until
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Delivery, coordinator_queue, outgoing, worker_queue
from broker.wire import names
from broker.wire.messages import Joined, Message, decode
from broker.wire.statistics import StatisticsAsked, StatisticsRefused, StatisticsTold
from broker.wire.swarms import swarm_words
from coordinator.learning.statistics import Statistics
from coordinator.presence import survey
from coordinator.presence.session import Session
from coordinator.presence.survey import Survey, SurveyOptions
from coordinator.terminal.statistics_text import statistics_text
from tests.unit.test_statistics import Matrix, range_of, rows, site, table
from tests.unit.test_statistics import Site as Rows
from tests.unit.test_worker_loop import Trainer
from worker.learning.console import Console
from worker.rounds.participant import Participant
from worker.rounds.site_rules import Share, SiteRules
from worker.rounds.worker_loop import WorkerLoop
from worker.tables.table import table_of
from worker.tables.table_set import TableSet

Lie = Callable[[StatisticsAsked, StatisticsTold], Message]


class Labelled(Rows):
    """With what joining tells besides."""

    classes = ("no", "yes")
    num_test_examples = 0
    holds = ()

    @property
    def examples_per_class(self) -> dict[str, int]:
        return {"no": 3, "yes": len(self.x) - 3}


class Federation:
    """Workers and a coordinator's place, in this process."""

    def __init__(self, audit_log: AuditLog = OFF) -> None:
        self.broker = MemoryBroker()
        self.stop = threading.Event()
        self.link = MemoryLink(self.broker, "coordinator")
        self.session = Session(self.link, stop=self.stop, audit_log=audit_log)

    @contextmanager
    def worker(self, name: str, x: Matrix | TableSet, share: Share = "statistics") -> Iterator[None]:
        """A real one with these examples."""
        stop, link = threading.Event(), MemoryLink(self.broker, name)
        data: Any = x if isinstance(x, TableSet) else Labelled(x)
        participant = Participant(name=name, data=data, rules=SiteRules(share=share))
        loop = WorkerLoop(
            link, [participant], Trainer([], []), stop=stop, log=logs.configure(), console=Console()
        )
        thread = threading.Thread(target=loop.serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)

    @contextmanager
    def liar(self, name: str, lie: Lie) -> Iterator[None]:
        """One that says what it likes, after the truth was worked out."""
        stop, link, its = threading.Event(), MemoryLink(self.broker, name), site(rows(60))
        link.declare([worker_queue(name), coordinator_queue()])
        link.consume([names.worker_queue(name)], prefetch=0)
        counts = {"classes": ("no", "yes"), "examples_per_class": ()}
        link.publish([outgoing(Joined(worker=name, num_examples=60, **counts), names.COORDINATOR)])  # type: ignore[arg-type]

        def answer() -> None:
            while not stop.is_set():
                received = link.receive(0.05)
                asked = decode(received.body) if isinstance(received, Delivery) else None
                if isinstance(asked, StatisticsAsked):
                    told = lie(asked, replace(its.answer(asked), worker=name))
                    link.publish([outgoing(told, names.COORDINATOR)])

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)

    def survey(self, workers: int = 2, seconds: float = 20.0) -> Statistics:
        return Survey(self.session, SurveyOptions(workers=workers, deadline_seconds=seconds)).take()


def silent(asked: StatisticsAsked, told: StatisticsTold) -> Message:
    """An answer to another question, which is none."""
    return replace(told, asked="of last week")


def test_three_sites_are_put_together_and_who_does_not_fit_is_named() -> None:
    """Another shape, another rule of the operator: each has no part in it, and the others' figures are theirs alone."""
    parts, federation = [rows(200), rows(50, 1), rows(90, 2)], Federation()
    with ExitStack() as stack:
        for number, x in enumerate(parts):
            stack.enter_context(federation.worker(f"site-{number}", x))
        stack.enter_context(federation.worker("odd", rows(80)[:, :2]))
        stack.enter_context(federation.worker("shy", rows(80), "counts"))
        found = federation.survey(3)
        while not {"odd", "shy"} <= found.left_out.keys():  # these two had come late
            found = federation.survey(3)
    together = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose([each.mean for each in found.features], together.mean(axis=0), rtol=1e-12)
    held = {each.worker: each.num_examples for each in found.sites}
    assert held == {"site-0": 200, "site-1": 50, "site-2": 90}
    assert found.sites[1].examples_per_class == {"no": 3, "yes": 47}
    assert "shape (2,), most sites' have (3,)" in found.left_out["odd"]
    assert "--share statistics" in found.left_out["shy"]


def test_tables_without_classes_are_put_together_by_the_names_of_their_columns() -> None:
    """Features and the target; a site whose columns are called otherwise has no part in it."""
    federation, odd = Federation(), table_of({"years": rows(40)[:, 0]}, rows(40), None, "t")
    with (
        federation.worker("one", table(60)),
        federation.worker("other", table(50, 1)),
        federation.worker("odd", TableSet(odd, None)),
    ):
        found = federation.survey(2)
        while "odd" not in found.left_out:  # it had come late
            found = federation.survey(2)
    together = np.concatenate([table(60).columns(), table(50, 1).columns()]).astype(np.float64)
    np.testing.assert_allclose([each.mean for each in found.features], together.mean(axis=0), rtol=1e-12)
    assert [each.role for each in found.features] == ["input", "input", "input", "target"]
    assert found.features[-1].name == "target price.0"
    assert "it has years, target 1, target 2, target 3; most sites have age" in found.left_out["odd"]
    assert "target price.0" in statistics_text(found)


def test_who_does_not_answer_is_named_at_the_deadline() -> None:
    """Too few are left."""
    federation = Federation()
    expected = r"Only 1 of 2 .*: site\. mute: it did not answer within 0\.8 s"
    with (
        federation.worker("site", rows(50)),
        federation.liar("mute", silent),
        pytest.raises(QuorumNotReached, match=expected),
    ):
        federation.survey(2, 0.8)


def test_too_few_workers_are_told_at_the_deadline() -> None:
    """Nobody is asked then."""
    federation = Federation()
    expected = r"Only 1 of 3 workers joined within 0\.8 s: site"
    with federation.worker("site", rows(50)), pytest.raises(QuorumNotReached, match=expected):
        federation.survey(3, 0.8)


@pytest.fixture
def with_swarm() -> Federation:
    """Three workers of one process, `lab`."""
    federation = Federation()
    federation.link.declare([coordinator_queue(), worker_queue("lab")])
    counts = {"classes": ("no", "yes"), "examples_per_class": ()}
    each = [Joined(worker=f"lab.{number}", num_examples=60, **counts) for number in (1, 2, 3)]  # type: ignore[arg-type]
    federation.link.publish([outgoing(word, names.COORDINATOR) for word in swarm_words("lab", each)])
    return federation


def test_swarms_alone_are_refused_and_not_waited_with(
    with_swarm: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its many workers have parts of one data set, which a person has at hand: once everybody had time to answer the
    roll call, the command ends with what to do."""
    monkeypatch.setattr(survey, "_SETTLED_SECONDS", 0.0)
    with pytest.raises(
        QuorumNotReached, match=r"Only swarms are there \(lab\).* `worker run --share statistics`"
    ):
        with_swarm.survey(2, 600.0)


def test_a_swarm_beside_other_sites_is_named_and_left_out(
    with_swarm: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few others are still waited for; enough of them are put together without it."""
    with with_swarm.worker("site", rows(50)):
        with pytest.raises(QuorumNotReached, match=r"Only 1 of 2 .* A swarm tells no statistics\."):
            with_swarm.survey(2, 0.8)
        monkeypatch.setattr(survey, "_SETTLED_SECONDS", 600.0)
        found = with_swarm.survey(1)
    assert [each.worker for each in found.sites] == ["site"]
    assert found.left_out == {"lab": "a swarm tells no statistics."}


@pytest.mark.parametrize(
    "lie",
    [
        lambda asked, told: replace(range_of(10**9, 10**9, number=60), asked=asked.asked, worker=told.worker),
        lambda asked, told: replace(told, num_examples=2**39),
        lambda asked, told: told if told.counts is None else replace(told, counts=told.counts - 1),
        lambda asked, told: told if told.counts is None else replace(told, counts=told.counts + 2**60),
    ],
)
def test_what_can_not_be_is_rejected_and_its_worker_named(lie: Lie) -> None:
    """Negative counts, huge numbers, more examples than it joined with: no part of it gets into the figures."""
    federation = Federation()
    with (
        federation.worker("site", rows(50)),
        federation.worker("another", rows(70, 1)),
        federation.liar("liar", lie),
    ):
        found = federation.survey(2)
        while "liar" not in found.left_out:
            found = federation.survey(2)
    assert [each.worker for each in found.sites] == ["another", "site"]
    assert found.num_examples == 120
    assert federation.session.validator.num_dead >= 1


def test_a_site_that_goes_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it leaves, or its queue has no reader any more."""
    monkeypatch.setattr(survey, "_REPEAT_SECONDS", 0.2)
    federation, gone = Federation(), threading.Event()

    def dies(asked: StatisticsAsked, told: StatisticsTold) -> Message:
        gone.set()
        return silent(asked, told)

    with federation.worker("site", rows(50)), federation.worker("another", rows(70, 1)):
        with federation.liar("mortal", dies):
            taken: list[Statistics] = []
            thread = threading.Thread(target=lambda: taken.append(federation.survey(2)))
            thread.start()
            assert wait_until(gone.is_set, 10)
            federation.link.delete([names.worker_queue("mortal")])
        thread.join(30)
    assert taken[0].left_out == {"mortal": "it went away."}


def test_a_survey_can_be_stopped() -> None:
    """Soon, while it waits for workers."""
    federation = Federation()
    federation.stop.set()
    with pytest.raises(Interrupted):
        federation.survey()


def test_an_answer_to_a_question_of_before_is_ignored() -> None:
    """Also by a coordinator that asks nothing: it is acknowledged, and no message of a stranger's."""
    federation = Federation()
    federation.link.declare([coordinator_queue()])
    refused = StatisticsRefused(worker="w", asked="x", reason="no")
    federation.link.publish([outgoing(refused, names.COORDINATOR)])
    federation.session.begin()
    while not federation.session.is_ready:
        federation.session.forget(federation.session.next_event(0.01))
    while not federation.session.is_idle:
        federation.session.forget(federation.session.next_event(0.01))
    assert federation.session.validator.num_dead == 0


def test_who_was_asked_who_told_and_who_refused_stands_in_the_audit_log(tmp_path: Path) -> None:
    """What left a site before any training, and by which account."""
    path = tmp_path / "audit.jsonl"
    federation = Federation(AuditLog(path))
    with (
        federation.worker("open", rows(200)),
        federation.worker("shy", rows(80), "counts"),
        pytest.raises(QuorumNotReached),
    ):
        federation.survey(2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = [each for each in lines if each["event"].startswith("statistics-")]
    assert [each["event"] for each in told[:1]] == ["statistics-asked"]
    assert (told[0]["step"], told[0]["workers"], told[0]["floor"]) == ("range", ["open", "shy"], 10)
    (answered,) = (each for each in told if each["event"] == "statistics-told")
    assert (answered["worker"], answered["account"], answered["num_examples"]) == ("open", "open", 200)
    (refused,) = (each for each in told if each["event"] == "statistics-refused")
    assert (refused["worker"], "--share statistics" in refused["reason"]) == ("shy", True)
