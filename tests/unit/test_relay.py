"""A relay's sums, words and judgements, and a tree of coordinators, relays and workers in one process."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from broker import logs
from broker.errors import DataError, Interrupted, ProtocolError
from broker.hosting.private import wait_until
from broker.link.access import Access
from broker.link.invitation import write_invitation
from broker.link.memory import MemoryBroker, MemoryLink
from broker.wire.messages import Joined
from broker.wire.names import swarm_account
from broker.wire.scores import count_answers, merged
from broker.wire.settings import RelayTerms, Summed
from broker.wire.tensors import FLOAT32, TensorSpec, Vector
from coordinator import cli as coordinator_cli
from coordinator.files import make_folder
from coordinator.learning.aggregation import UpdateSum, flaw_in_sum, num_integers, scale_exponent
from coordinator.learning.measures import Measurement, pooled, together
from coordinator.learning.membership import Member, RelayShare, Roster
from coordinator.learning.rounds import Round, Verdict
from coordinator.options import RunOptions
from coordinator.play.admission import Admission
from coordinator.play.inviting import open_record
from coordinator.play.run import Run, Summary
from coordinator.starting.relay.above import relay
from coordinator.starting.relay.gathered import alike, word_of
from coordinator.starting.relay.part import RelayOptions, _within
from tests.faults.actors import TASK, NumpyTrainer, Options, StandInData, StandInModels, undisturbed
from tests.unit.test_admission import state_of
from tests.unit.test_rounds import RECORD, update
from worker.learning.console import Console
from worker.rounds.participant import Participant
from worker.rounds.worker_loop import WorkerLoop

LAYOUT = (
    TensorSpec(dtype="float32", shape=(3,), kind="trainable"),
    TensorSpec(dtype="float32", shape=(2,), kind="statistic"),
    TensorSpec(dtype="float32", shape=(2,), kind="variance"),
)

# --- sums ------------------------------------------------------------------------------------------------------

values = st.floats(-(2.0**16), 2.0**16, width=32)
variances = st.floats(0, 2.0**40, width=32)
updates = st.lists(
    st.tuples(
        st.lists(values, min_size=5, max_size=5),
        st.lists(variances, min_size=2, max_size=2),
        st.integers(1, 10_000),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=8,
)


@given(updates, st.booleans())
def test_a_sum_of_sums_is_the_sum_of_all_to_the_bit(
    drawn: list[tuple[list[float], list[float], int, int]], is_fine: bool
) -> None:
    """However the workers are divided into regions, of updates in float32 and some in float64; and no sum of updates
    that were judged is refused."""
    exponent = scale_exponent(sum(number for *_, number, _ in drawn))
    flat, top = UpdateSum(LAYOUT, exponent), UpdateSum(LAYOUT, exponent)
    regions = [UpdateSum(LAYOUT, exponent) for _ in range(3)]
    for place, (first, last, number, region) in enumerate(drawn):
        vector: Any = np.array([*first, *last], FLOAT32)
        if is_fine and place % 2:
            vector = vector.astype(np.float64) / 3
        flat.add(vector, number)
        regions[region].add(vector, number)
    for region_number, total in enumerate(regions):
        num_workers = sum(where == region_number for *_, where in drawn)
        if num_workers:
            summed = Summed(num_workers=num_workers, weight=total.num_examples, largest=1.0)
            assert flaw_in_sum(total.as_one, LAYOUT, exponent, summed) is None
            assert total.as_one.size == num_integers(LAYOUT, is_fine=bool(total.lows.size))
            top.add_sum(total.as_one, total.num_examples)
    assert np.array_equal(top.as_one, flat.as_one)
    assert top.num_examples == flat.num_examples


def sum_of(*vectors: list[float]) -> UpdateSum:
    total = UpdateSum(LAYOUT, 40)
    for vector in vectors:
        total.add(np.array(vector, np.float64), 5)
    return total


@pytest.mark.parametrize(
    ("place", "value", "flaw"),
    [
        (0, 2**62, "sums within"),
        (1, -(2**63), "sums within"),
        (3, 2**40, "numbers beyond"),
        (num_integers(LAYOUT), 2**40, "sums within"),
        (num_integers(LAYOUT) - 3, -(2**63), "numbers beyond"),
        (3 + 4 * 6, 2**33, "sums of statistics within"),
        (3 + 3 * 6 + 2, -(2**32), "variances and squares"),
        (3 + 3 * 6 + 4, -(2**33), "variances and squares"),
    ],
)
def test_a_sum_that_no_updates_have_is_refused(place: int, value: int, flaw: str) -> None:
    """Or a relay could let the whole sum wrap: integers say nothing when they do."""
    integers = sum_of([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]).as_one.copy()
    summed = Summed(num_workers=2, weight=10, largest=3.0)
    assert flaw_in_sum(integers, LAYOUT, 40, summed) is None
    integers[place] = value
    assert flaw in (flaw_in_sum(integers, LAYOUT, 40, summed) or "")


# --- measures --------------------------------------------------------------------------------------------------


def measurement(number: int, right: int, **metrics: float) -> Measurement:
    generator = np.random.default_rng(number)
    scores = generator.random((number, 1))
    counts = count_answers(np.hstack([1 - scores, scores]), generator.integers(0, 2, number))
    states = {"precision": np.array([float(right), float(number - right)])}
    return Measurement(num_examples=number, metrics=metrics, states=states, counts=counts)


def precision(sums: Any) -> dict[str, float]:
    return {name: float(state[0] / state.sum()) for name, state in sums.items()}


def test_figures_of_regions_are_those_of_all_workers() -> None:
    """Means by examples, what is no mean from the sums, answers from the counts; also where one region is all."""
    north = [measurement(10, 4, loss=0.5, precision=0.4), measurement(30, 20, loss=0.7, precision=0.67)]
    south = [measurement(7, 1, loss=0.1, precision=0.14), Measurement(num_examples=0, metrics={}, states={})]
    flat = pooled([*north, *south], precision)
    assert pooled([together(north), together(south)], precision) == pytest.approx(flat, rel=1e-12)
    assert pooled([together([together(north), *south])], precision) == pytest.approx(flat, rel=1e-12)
    assert flat["precision"] == pytest.approx(25 / 47)
    assert together(south).figures == south[0].figures, "what one worker measured is taken as it is"


def test_counts_of_several_are_those_of_all_examples() -> None:
    """Of two classes, with their bins; of more, without."""
    generator = np.random.default_rng(1)
    for num_classes in (2, 3):
        scores = generator.dirichlet(np.ones(num_classes), 60)
        labels = generator.integers(0, num_classes, 60)
        parts = merged([count_answers(scores[:20], labels[:20]), count_answers(scores[20:], labels[20:])])
        whole = count_answers(scores, labels)
        assert np.array_equal(parts.per_class, whole.per_class)
        assert np.array_equal(parts.bins, whole.bins)


# --- who takes part, and with what -----------------------------------------------------------------------------


def joined(worker: str, number: int = 10, **more: Any) -> Joined:
    said: dict[str, Any] = {
        "classes": ("no", "yes"),
        "examples_per_class": (number // 2, number - number // 2),
    }
    return Joined(worker=worker, num_examples=number, **{**said, **more})


def record_of(*words: Joined, **options: Any) -> Any:
    roster = Roster()
    for word in words:
        roster.join(word)
    asked = RunOptions(task=TASK, out=Path("run"), workers=len(words), **options)
    return open_record(
        state_of("classes", classes=("no", "yes")),
        asked,
        Admission(roster, TASK.name),
        is_training=True,
        part_bytes=1 << 20,
    )


def test_a_round_with_relays_has_the_scale_of_the_same_workers_at_one_broker() -> None:
    """Also where no update weighs more than so much: that is said of each worker, and not of a region."""
    numbers = [3, 1000, 40, 5000, 7]
    for options in ({}, {"max_examples": 50}, {"max_share": 0.4}):
        flat = record_of(*(joined(f"w{place}", number) for place, number in enumerate(numbers)), **options)
        behind = (joined("north", 1003, behind=(3, 1000)), joined("south", 5047, behind=(40, 5000, 7)))
        relayed = record_of(*behind, **options)
        assert (relayed.scale_exponent, relayed.most_weight) == (flat.scale_exponent, flat.most_weight)
        assert sum(map(relayed.reserved, relayed.selected)) == sum(map(flat.reserved, flat.selected))


SHARE = RelayShare(num_workers=3, weight=25)
SUMMED = Summed(num_workers=3, weight=25, largest=0.5, scale_exponent=RECORD.scale_exponent)


@pytest.mark.parametrize(
    ("worker", "summed", "verdict"),
    [
        ("a", SUMMED, Verdict.ACCEPTED),
        ("a", None, Verdict.REJECTED),
        ("b", SUMMED, Verdict.REJECTED),
        ("a", replace(SUMMED, weight=26), Verdict.REJECTED),
        ("a", replace(SUMMED, weight=0), Verdict.REJECTED),
        ("a", replace(SUMMED, num_workers=4), Verdict.REJECTED),
        ("a", replace(SUMMED, num_workers=0), Verdict.REJECTED),
        ("a", replace(SUMMED, scale_exponent=RECORD.scale_exponent - 5), Verdict.REJECTED),
        ("a", replace(SUMMED, largest=float("nan")), Verdict.REJECTED),
        ("a", replace(SUMMED, largest=2.0**17), Verdict.REJECTED),
    ],
)
def test_a_relay_sends_a_sum_of_what_it_was_counted_with(
    worker: str, summed: Summed | None, verdict: Verdict
) -> None:
    """Nobody else does; and its sum weighs no more than its workers were counted with, whatever it says."""
    the_round = Round(replace(RECORD, relays={"a": SHARE}), 0.0)
    assert the_round.judge(update(worker, summed=summed), 2)[0] is verdict


def test_what_a_relay_was_counted_with_stays_in_the_next_attempt() -> None:
    """It holds the sum of those workers, however many are there by now."""
    the_round = Round(replace(RECORD, relays={"a": SHARE}), 0.0)
    record = the_round.next_attempt({"a": 99, "d": 5}, (), {"a": replace(SHARE, weight=99)})
    assert (record.num_examples["a"], record.num_examples["d"]) == (10, 5)
    assert record.relays == {"a": SHARE}


def test_a_strategy_that_needs_each_update_refuses_a_relay_by_name() -> None:
    """A sum has no median in it."""
    member = Roster().join(joined("north", 30, behind=(10, 20)))
    plain = Roster().join(joined("w1", 30))
    state = state_of("classes", classes=("no", "yes"))
    admission = Admission(Roster(), TASK.name, takes_sums=False)
    assert "it is a relay" in (admission.consider(member, state) or "")
    assert admission.consider(plain, state) is None
    assert Admission(Roster(), TASK.name).consider(member, state) is None


def test_an_invited_account_is_a_relay_only_where_the_run_says_so() -> None:
    """Or whoever was invited as one worker would weigh as much as it says that there are behind it."""
    state, roster = state_of("classes", classes=("no", "yes")), Roster()
    member, plain = roster.join(joined("north", 30, behind=(10, 20))), roster.join(joined("w1", 30))
    for relays, reason in (
        (("south",), "--relay north"),
        ((), "--relay north"),
        (("north",), ""),
        (None, ""),
    ):
        admission = Admission(roster, TASK.name, relays=relays)
        assert reason in (admission.consider(member, state) or "")
        assert bool(reason) == ("north" in admission.unfit)
        assert admission.consider(plain, state) is None


def test_a_relay_can_t_say_more_of_its_workers_than_their_sum() -> None:
    """Its weight rests on it."""
    for behind, number in (((10, 20), 31), ((0, 30), 30), ((-1, 31), 30)):
        with pytest.raises(ProtocolError, match="behind a relay"):
            joined("north", number, behind=behind)


TERMS = RelayTerms(num_examples=200, num_workers=2, weight=100, most_weight=50)


@pytest.mark.parametrize(
    ("terms", "words", "chosen"),
    [
        (TERMS, [("a", 100), ("b", 100)], ["a", "b"]),
        (TERMS, [("b", 100), ("c", 50), ("d", 50)], ["b", "c"]),  # a has left, and two have come in its place
        (replace(TERMS, weight=60), [("a", 100), ("b", 100), ("c", 10)], ["a", "c"]),
        (replace(TERMS, num_examples=120), [("a", 100), ("b", 100), ("c", 20)], ["a", "c"]),
        (None, [("a", 100)], []),
    ],
)
def test_a_relay_invites_no_more_than_were_counted_above(
    terms: RelayTerms | None, words: list[tuple[str, int]], chosen: list[str]
) -> None:
    """Neither more examples, nor more workers, nor more weight: or its whole sum was refused, at every attempt."""
    there = members(*(joined(worker, number) for worker, number in words))
    assert [member.worker for member in _within(terms, there)] == chosen
    if terms is not None:
        assert _within(terms, there, [(terms.num_examples, 1, 1)]) == [], "all of it is in the sum already"


@pytest.mark.parametrize("asked", [("--quorum", "3"), ("--deadline-seconds", "nan"), ("--grace-seconds", "nan"),
                                   ("--connect-seconds", "inf"), ("--name", "south")])  # fmt: skip
def test_a_relay_that_could_never_do_as_asked_is_refused(asked: tuple[str, str], tmp_path: Path) -> None:
    """A quorum that was lowered in silence, a deadline that never comes, an invitation for another."""
    write_invitation(tmp_path / "north.toml", Access(amqp_url="amqp://north:a@localhost:1/%2F", name="north"))
    words = ["relay", "--above", str(tmp_path / "north.toml"), "--out", str(tmp_path / "out"), *asked]
    result = CliRunner().invoke(coordinator_cli.main, words)
    assert (result.exit_code, asked[1] in result.stderr) == (2, True), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["localhost:5672/%2F", "localhost/%2F"])
def test_a_relay_between_a_broker_and_itself_is_refused(place: str, tmp_path: Path) -> None:
    """It would be its own worker, and count itself once more at each word."""
    words = ["relay", "--name", "n", "--above", f"amqp://n:a@{place}", "--out", str(tmp_path / "out")]
    below = {"AMQP_URL": "amqp://guest:guest@localhost:5672/%2F"}
    result = CliRunner().invoke(coordinator_cli.main, words, env=below)
    assert (result.exit_code, "a worker of itself" in result.stderr) == (2, True), result.output


def members(*words: Joined) -> list[Member]:
    roster = Roster()
    return [roster.join(word) for word in words]


def test_a_relay_says_of_its_workers_what_they_have_in_common() -> None:
    """And adds up what can be; of another relay behind it, the workers behind that."""
    behind, odd = alike(
        members(joined("b", 10), joined("a", 30, behind=(10, 20)), joined("c", 5, classes=("x", "y")),
                joined("d", 0, evaluate_only=True), joined("e", 7, pause="outside its hours"))
    )  # fmt: skip
    assert [member.worker for member in behind] == ["a", "b"]
    assert set(odd) == {"c", "d"}
    word = word_of("north", behind)
    assert (word.num_examples, word.behind, word.examples_per_class) == (40, (10, 20, 10), (20, 20))


# --- a tree in one process -------------------------------------------------------------------------------------

REGIONS = {"north": {"n1": 100, "n2": 60}, "south": {"s1": 30, "s2": 90}}
EVERYBODY = REGIONS["north"] | REGIONS["south"]
SIZE = 50


class Tree:
    """A coordinator, two relays and four workers, in threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stop = threading.Event()
        self.brokers = {name: MemoryBroker() for name in ("top", *REGIONS)}
        self.threads = ThreadPoolExecutor(8)
        self.relays: dict[str, Future[None]] = {}
        self.ends: list[threading.Event] = []
        self.run: Run | None = None

    def region(self, name: str, *, slow: str = "", crashes: str = "", **options: Any) -> None:
        """A relay and its workers."""
        self.begin_relay(name, **options)
        for worker, number in REGIONS[name].items():
            more: dict[str, Any] = {"train_seconds": 60.0} if worker == slow else {}
            more |= {"crashes": 1} if worker == crashes else {}
            self.worker(name, worker, number, **more)

    def begin_relay(self, name: str, **options: Any) -> Callable[[], None]:
        """A relay without workers; what is returned ends it, and gives back what it has not acknowledged."""
        asked = RelayOptions(name=name, out=self.folder / name, **{"workers": 2, **options})
        make_folder(asked.out)
        self.ends.append(ends := threading.Event())
        links = MemoryLink(self.brokers[name], "coordinator"), MemoryLink(self.brokers["top"], name)
        self.relays[name] = self.threads.submit(relay, *links, asked, ends, logs.configure(), once=True)

        def end() -> None:
            ends.set()
            self.relays[name].result(20)
            for link in links:
                link.close()

        return end

    def worker(
        self, region: str, worker: str, number: int, count: int = 1, **more: Any
    ) -> Callable[[], None]:
        """One worker, or a swarm of so many; what is returned ends it."""
        self.ends.append(stop := threading.Event())
        told = Options(role="worker", amqp_url="", trainings=str(self.folder / "notes"), **more)
        data: Any = StandInData(number)
        names = [worker] if count == 1 else [f"{worker}.{place}" for place in range(1, count + 1)]
        link = MemoryLink(self.brokers[region], worker if count == 1 else swarm_account(worker, count))
        loop = WorkerLoop(
            link, [Participant(name=name, data=data) for name in names], NumpyTrainer(told), stop=stop,
            log=logs.configure(), console=Console(), once=True, is_swarm=count > 1,
        )  # fmt: skip
        served = self.threads.submit(loop.serve)

        def end() -> None:
            stop.set()
            served.result(20)
            link.close()

        return end

    def play(self, stop: threading.Event | None = None, **options: Any) -> Summary:
        """All rounds."""
        asked = RunOptions(
            task=TASK,
            out=self.folder / "run",
            **{"workers": 2, "rounds": 2, "deadline_seconds": 60.0, "relays": tuple(REGIONS), **options},
        )
        make_folder(asked.out)
        models: Any = StandInModels(SIZE)
        link = MemoryLink(self.brokers["top"], "coordinator")
        self.run = Run(link, asked, models, stop=stop or self.stop, log=logs.configure())
        try:
            return self.run.play()
        finally:
            link.close()

    def notes(self) -> str:
        """What the trainings say."""
        file = self.folder / "notes"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    yield made
    for event in (made.stop, *made.ends):
        event.set()
    made.threads.shutdown(wait=True, cancel_futures=True)


Bits = Callable[[Vector], Any]


def bits(vector: Vector) -> Any:
    return vector.view(np.uint32)


def test_a_worker_that_fails_behind_a_relay_costs_an_attempt_and_no_bits(tree: Tree) -> None:
    """The relay declines with its workers' reasons; the next attempt above is one below, which keeps what was accepted:
    only the one that failed trains again."""
    tree.region("north", crashes="n2")
    tree.region("south")
    done = tree.play()
    assert np.array_equal(bits(done.state.vector), bits(undisturbed(EVERYBODY, rounds=2, size=SIZE)))
    assert [row.attempt for row in done.history] == [0, 2, 1]
    assert tree.notes().count('"began", "worker": "n1", "round": 1, "mode": "train"') == 1


def test_a_region_closes_on_its_quorum_and_says_of_how_many(tree: Tree) -> None:
    """The others are told; what they would have weighed is not in the mean."""
    tree.region("north", slow="n2", quorum=1, grace_seconds=0.1)
    tree.region("south")
    done = tree.play(rounds=1)
    assert done.history[-1].num_examples == sum(EVERYBODY.values()) - 60
    assert wait_until(lambda: '"stopped", "worker": "n2"' in tree.notes(), 10)


def test_a_round_that_closes_above_without_a_region_ends_there_too(tree: Tree) -> None:
    """Its workers stop training, and the next round finds them free."""
    tree.region("north", slow="n2")
    tree.region("south")
    done = tree.play(rounds=1, quorum=1, grace_seconds=0.2, deadline_seconds=30.0)
    assert done.history[-1].accepted == ("south",)
    assert wait_until(lambda: '"stopped", "worker": "n2"' in tree.notes(), 10)


@pytest.mark.parametrize("begins_again", [False, True])
def test_more_answers_come_to_a_relay_than_the_broker_gives_before_some_are_acknowledged(
    tree: Tree, begins_again: bool
) -> None:
    """Its broker gives 256: what is on disk is acknowledged before that, or the round would stand still, and a relay
    that begins again in the middle would not find its own ping behind them."""
    end = tree.begin_relay("north")
    tree.worker("north", "n", 10, 300)
    done = tree.threads.submit(tree.play, workers=1, relays=("north",))
    if begins_again:
        assert wait_until(lambda: tree.notes().count('"began"') >= 230, 30)
        end()
        tree.begin_relay("north")
    everybody = {f"n.{place}": 10 for place in range(1, 301)}
    assert np.array_equal(
        bits(done.result(60).state.vector), bits(undisturbed(everybody, rounds=2, size=SIZE))
    )


def test_a_round_that_is_opened_anew_with_another_scale_has_a_sum_of_that_scale(tree: Tree) -> None:
    """The coordinator above goes on from a folder of before it opened the round, and meanwhile another worker has a
    hundred times the examples. The relay's sum is of the former scale: it would count 32 times as much."""
    tree.region("north")
    end = tree.worker("top", "big", 10, train_seconds=60.0)
    stop = threading.Event()
    first = tree.threads.submit(tree.play, stop, rounds=1, relays=("north",))

    def is_in_the_sum() -> bool:
        live = tree.run._live if tree.run else None
        return live is not None and "north" in live.round.accepted

    assert wait_until(is_in_the_sum, 20)
    stop.set()
    with pytest.raises(Interrupted):
        first.result(20)
    end()
    (tree.folder / "run" / "open-round").unlink()
    tree.worker("top", "big", 100_000)
    done = tree.play(rounds=1, relays=("north",))
    assert done.history[-1].attempt == 1, (
        "the relay was told at once, and asked for no sum that it has no more"
    )
    expected = undisturbed({**REGIONS["north"], "big": 100_000}, rounds=1, size=SIZE)
    assert np.array_equal(bits(done.state.vector), bits(expected))


def test_a_run_of_the_median_ends_a_relay_with_the_reason(tree: Tree) -> None:
    """By name, when it joins."""
    tree.region("north")
    tree.threads.submit(tree.play, strategy="median", deadline_seconds=5.0)
    with pytest.raises(DataError, match=r"north: it is a relay, .* choose a strategy of the mean"):
        tree.relays["north"].result(20)
