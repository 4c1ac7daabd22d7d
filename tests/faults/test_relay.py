"""Two regions behind relays: the bits of the same workers at one broker, whoever is killed or away meanwhile."""

import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.hosting import accounts
from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker, free_ports
from broker.wire.tensors import Vector
from tests.brokers import fresh_vhost, started_broker
from tests.faults.actors import Break, undisturbed
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, Actor, Stage
from tests.faults.test_thin_lines import INT8, undisturbed_steps

REGIONS = {
    "north": {f"n{number}": 90 + number for number in range(5)},
    "south": {f"s{number}": 40 + 7 * number for number in range(5)},
}
EVERYBODY = {worker: number for region in REGIONS.values() for worker, number in region.items()}
ROUNDS = 3
SHOVEL = Path(__file__).parents[2] / "deploy" / "shovel.json"


#: Where the relay of the north is killed. With five workers "settle" comes five times a round.
STEPS = {
    "before the round is on disk": Break(point="keep-start", count=2),
    "with a round on disk that nobody below was told of": Break(point="open-round", when="after", count=2),
    "with two of five updates accepted": Break(point="settle", when="after", count=7),
    "with all updates in the sum, none acknowledged": Break(point="settle", when="after", count=10),
    "between the sum on disk and the acknowledgement": Break(point="release", count=2),
    "with the sum acknowledged below, not sent": Break(point="announce", count=2),
    "with the sum announced": Break(point="announce", when="after", count=2),
    "before its workers are told of the end": Break(point="finish-part"),
}
IN_PARTS = {
    "with 10 of 25 parts of the weights passed on": Break(point="send-part", count=11),
    "with 10 of 25 parts of an update fetched": Break(point="fetch", count=25 + 11),
    "with half of its sum sent": Break(point="upload-part", count=25),
}


def mostly_soak(steps: Iterable[str], everyday: str = "") -> list[Any]:
    """All of them, of which `make test` has one or none: each takes seconds."""
    return [step if step == everyday else pytest.param(step, marks=pytest.mark.soak) for step in steps]


class Tree:
    """A coordinator at one broker, and relays at others with their workers."""

    def __init__(self, top: str, below: dict[str, str], folder: Path, **more: object) -> None:
        self.top = Stage(top, folder, **more)  # type: ignore[arg-type]
        self.regions = {name: Stage(url, folder / name, **more) for name, url in below.items()}  # type: ignore[arg-type]
        for name in below:
            (folder / name).mkdir()
        self.relays: dict[str, Actor] = {}
        self.workers: list[Actor] = []

    def start(
        self, *, breaks: dict[str, tuple[Break, ...]] | None = None, above: tuple[Break, ...] = ()
    ) -> Actor:
        """Everybody, with the coordinator last."""
        for name in self.regions:
            self.region(name, breaks=(breaks or {}).get(name, ()))
        return self.coordinator(breaks=above)

    def coordinator(self, **more: object) -> Actor:
        """The one above."""
        run = {"workers": len(self.regions)} | more.pop("run", {})  # type: ignore[operator]
        return self.top.coordinator(**{"rounds": ROUNDS, **more}, run=run)  # type: ignore[arg-type]

    def region(self, name: str, *, breaks: tuple[Break, ...] = (), above: str = "") -> None:
        """A relay and its workers."""
        self.relay(name, breaks=breaks, above=above)
        stage = self.regions[name]
        self.workers += [
            stage.worker(worker, num_examples=number) for worker, number in REGIONS[name].items()
        ]

    def relay(self, name: str, *, breaks: tuple[Break, ...] = (), above: str = "") -> Actor:
        """One of the relays."""
        region, number = self.regions[name], len(REGIONS[name])
        self.relays[name] = region.relay(name, above or self.top.amqp_url, workers=number, breaks=breaks)
        return self.relays[name]

    @property
    def story(self) -> str:
        """What everybody said."""
        return "\n".join(stage.story for stage in (self.top, *self.regions.values()))

    def assert_same_bits(
        self, coordinator: Actor, workers: dict[str, int] = EVERYBODY, expected: Vector | None = None
    ) -> None:
        """All ended, with the model of the same workers at one broker; nobody trained twice, and nothing is left."""
        everybody = [coordinator, *self.relays.values(), *self.workers]
        assert [actor.ended(120) for actor in everybody] == [0] * len(everybody), self.story
        if expected is None:
            expected = undisturbed(workers, rounds=ROUNDS, size=self.top.size)
        self.top.assert_bits(expected, ROUNDS)
        assert self.top.leftovers(REGIONS) == {}, self.story
        for name, region in self.regions.items():
            region.assert_nobody_trained_twice()
            assert region.leftovers(REGIONS[name]) == {}, self.story

    def close(self) -> None:
        """End everybody."""
        for stage in (self.top, *self.regions.values()):
            stage.close()


MakeTree = Callable[..., Tree]


@pytest.fixture
def make_tree(broker: PrivateBroker, tmp_path: Path) -> Iterator[MakeTree]:
    """Makes a tree of three virtual hosts; everything on it is ended with the test."""
    trees: list[Tree] = []
    with fresh_vhost(broker) as top, fresh_vhost(broker) as north, fresh_vhost(broker) as south:

        def make(**more: object) -> Tree:
            trees.append(Tree(top, {"north": north, "south": south}, tmp_path, **more))
            return trees[-1]

        yield make
        for tree in trees:
            tree.close()


def test_two_regions_give_the_bits_of_one_federation(make_tree: MakeTree) -> None:
    """Ten workers behind two relays end with the model of ten at one broker, to the bit: partial sums are integers of
    one scale. The history names the relays, and its figures are those of all workers together."""
    tree = make_tree()
    tree.assert_same_bits(tree.start())
    last = tree.top.checkpoint.history[-1]
    assert (set(last.accepted), last.num_examples) == (set(REGIONS), sum(EVERYBODY.values()))
    assert (last.metrics, last.num_test_examples) == ({"loss": 1.0}, 10 * len(EVERYBODY))
    assert "loss" in last.test, "the last model is measured by all"


def test_relays_may_stand_behind_a_relay(make_tree: MakeTree, broker: PrivateBroker) -> None:
    """A tree of two levels, with a worker beside it at the top: a relay's sum goes into another's, at one scale."""
    with fresh_vhost(broker) as between:
        tree = make_tree()
        middle = Stage(between, tree.top.folder)
        tree.relays["middle"] = middle.relay("middle", tree.top.amqp_url, workers=2)
        tree.workers.append(tree.top.worker("w1"))
        above, tree.top.amqp_url = tree.top.amqp_url, between
        for name in REGIONS:
            tree.region(name)
        tree.top.amqp_url = above
        coordinator = tree.top.coordinator(rounds=ROUNDS, run={"workers": 2})
        tree.assert_same_bits(coordinator, EVERYBODY | {"w1": 100})
        middle.close()
    assert set(tree.top.checkpoint.history[-1].accepted) == {"middle", "w1"}


def assert_goes_on(tree: Tree, wanted: Break) -> None:
    coordinator = tree.start(breaks={"north": (wanted,)})
    assert tree.relays["north"].ended() == -signal.SIGKILL, tree.story
    again = tree.relay("north")
    tree.assert_same_bits(coordinator)
    assert "asking for it again" not in again.said, "what was acknowledged is on disk"


@pytest.mark.parametrize("step", mostly_soak(STEPS, "with all updates in the sum, none acknowledged"))
def test_a_killed_relay_goes_on_and_nobody_trains_twice(make_tree: MakeTree, step: str) -> None:
    """Killed at this step, and started again with the same command line. What was acknowledged below is in the sum on
    disk, and what was not comes again; above the first sum counts, and a second one changes nothing."""
    assert_goes_on(make_tree(), STEPS[step])


@pytest.mark.parametrize("step", mostly_soak(IN_PARTS))
def test_a_relay_killed_among_parts_goes_on(make_tree: MakeTree, step: str) -> None:
    """Killed with a transfer half done, down or up: nothing is mixed, nothing counts twice."""
    assert_goes_on(make_tree(size=MANY_PARTS, patches=SMALL_PARTS), IN_PARTS[step])


def test_relays_are_told_steps_and_one_that_was_killed_a_whole_copy(make_tree: MakeTree) -> None:
    """With int8 on the way down, as plain workers are: the bits are those of all at one broker, told by steps. What
    a relay was told is on disk as the model that it led to, so that it goes on below at once."""
    tree = make_tree(size=MANY_PARTS, patches=SMALL_PARTS)
    for name in REGIONS:
        tree.region(name, breaks=(Break(point="settle", when="after", count=7),) if name == "north" else ())
    coordinator = tree.coordinator(run=INT8)
    assert tree.relays["north"].ended() == -signal.SIGKILL, tree.story
    tree.relay("north")
    tree.assert_same_bits(coordinator, expected=undisturbed_steps(EVERYBODY, rounds=ROUNDS))


COORDINATOR_STEPS = {
    "with one of two regions accepted": Break(point="settle", when="after", count=3),
    "between averaging and checkpoint": Break(point="average", when="after", count=2),
}


@pytest.mark.parametrize("step", mostly_soak(COORDINATOR_STEPS, "with one of two regions accepted"))
def test_a_killed_coordinator_above_goes_on_with_relays(make_tree: MakeTree, step: str) -> None:
    """It restores the sum of the regions that it had accepted, weighed as they were."""
    tree = make_tree()
    first = tree.start(above=(COORDINATOR_STEPS[step],))
    assert first.ended() == -signal.SIGKILL, tree.story
    tree.assert_same_bits(tree.coordinator())


class WithShovels(PrivateBroker):
    """One that has the plugin from its start on: its tool to enable it takes a minute where others are busy."""

    def _write(self, name: str, text: str) -> None:
        is_plugins = name == "enabled_plugins"
        super()._write(
            name,
            text.replace("rabbitmq_management", "rabbitmq_management,rabbitmq_shovel")
            if is_plugins
            else text,
        )


@pytest.fixture(scope="module")
def own_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateBroker, PrivateBroker]]:
    """The one above and that of the north, which the tests of this file may kill."""
    with started_broker(tmp_path_factory.mktemp("above")) as above:
        port, management_port = free_ports(2)
        home = tmp_path_factory.mktemp("north")
        north = WithShovels(home=home, port=port, management_port=management_port)
        try:
            north.start()
            yield above, north
        finally:
            north.kill()


@contextmanager
def planted(above: PrivateBroker, north: PrivateBroker, south: str, folder: Path) -> Iterator[Tree]:
    """A tree at these brokers, with many parts."""
    with fresh_vhost(above) as top, fresh_vhost(north) as below:
        tree = Tree(top, {"north": below, "south": south}, folder, size=MANY_PARTS, patches=SMALL_PARTS)
        try:
            yield tree
        finally:
            tree.close()


def restarted(*brokers: PrivateBroker) -> None:
    """Killed as by a power cut, and there again."""
    for each in brokers:
        each.kill()
    for each in brokers:
        each.start()


def test_the_brokers_on_both_sides_of_a_relay_are_killed_in_mid_round(
    tmp_path_factory: pytest.TempPathFactory, vhost: str, tmp_path: Path
) -> None:
    """One that is both, with two updates in the sum and half of the third fetched: both sides of the relay reconnect by
    themselves, what was not acknowledged comes again, and nothing counts twice."""
    with (
        started_broker(tmp_path_factory.mktemp("own")) as own,
        planted(own, own, vhost, tmp_path) as tree,
    ):
        stage = tree.regions["north"]
        coordinator = tree.start(breaks={"north": (stage.hold("fetch", count=60),)})
        stage.reached("fetch")
        restarted(own)
        stage.let_go("fetch")
        tree.assert_same_bits(coordinator)


@pytest.mark.soak
def test_either_broker_is_killed_in_mid_round(
    own_brokers: tuple[PrivateBroker, PrivateBroker], vhost: str, tmp_path: Path
) -> None:
    """The broker below with half of an update fetched, then the one above with half of the sum sent: neither side
    waits for the other."""
    above, north = own_brokers
    with planted(above, north, vhost, tmp_path) as tree:
        stage = tree.regions["north"]
        breaks = (stage.hold("fetch", count=60), stage.hold("upload-part", count=25))
        coordinator = tree.start(breaks={"north": breaks})
        stage.reached("fetch")
        restarted(north)
        stage.let_go("fetch")
        stage.reached("upload-part")
        restarted(above)
        stage.let_go("upload-part")
        tree.assert_same_bits(coordinator)


@pytest.mark.soak
def test_both_brokers_and_the_relay_are_killed_at_once(
    own_brokers: tuple[PrivateBroker, PrivateBroker], vhost: str, tmp_path: Path
) -> None:
    """A power cut, with two updates in the sum and half of the third fetched."""
    with planted(*own_brokers, vhost, tmp_path) as tree:
        stage = tree.regions["north"]
        coordinator = tree.start(breaks={"north": (stage.hold("fetch", count=60),)})
        stage.reached("fetch")
        tree.relays["north"].kill()
        restarted(*own_brokers)
        tree.relay("north")
        tree.assert_same_bits(coordinator)


@pytest.mark.soak
def test_a_relay_that_lost_its_folder_asks_for_the_round_and_its_updates_again(make_tree: MakeTree) -> None:
    """What it had acknowledged is with its workers still: they keep their updates until the round is closed."""
    tree = make_tree(patches={"coordinator.presence.session:_ROLL_CALL_SECONDS": 2.0})
    coordinator = tree.start(breaks={"north": (STEPS["with the sum acknowledged below, not sent"],)})
    assert tree.relays["north"].ended() == -signal.SIGKILL, tree.story
    shutil.rmtree(tree.regions["north"].folder / "relay-north")
    tree.relay("north")
    tree.assert_same_bits(coordinator)


@pytest.mark.soak
def test_a_relay_reaches_above_by_its_own_brokers_shovels(
    own_brokers: tuple[PrivateBroker, PrivateBroker], tmp_path: Path
) -> None:
    """Where only the broker may dial out: `deploy/shovel.json` at the region's broker carries the relay's words and
    sums up in their order, and the coordinator's down. The broker above is killed with half of a sum on its way."""
    above, here = own_brokers
    management = Management(above.management_url)
    logins = {name: accounts.invite(management, "/", name).password for name in ("coordinator", "north")}
    urls = {name: f"amqp://{name}:{word}@127.0.0.1:{above.port}/%2F" for name, word in logins.items()}
    at_here = f"127.0.0.1:{here.port}/above"
    words = {
        "ABOVE": urls["north"], "HERE": f"amqp://shovel:secret@{at_here}",
        "SHOVEL_PASSWORD": "secret", "RELAY_PASSWORD": "secret",
    }  # fmt: skip
    definitions = SHOVEL.read_text(encoding="utf-8")
    for word, value in words.items():
        definitions = definitions.replace(f"@{word}@", value)
    Management(here.management_url).api.post("definitions", body=json.loads(definitions))
    tree = Tree(urls["coordinator"], {"north": here.amqp_url}, tmp_path, size=MANY_PARTS, patches=SMALL_PARTS)
    stage = tree.regions["north"]
    try:
        tree.region(
            "north", above=f"amqp://north:secret@{at_here}", breaks=(stage.hold("upload-part", count=25),)
        )
        coordinator = tree.coordinator(run={"relays": ("north",)})
        stage.reached("upload-part")
        restarted(above)
        stage.let_go("upload-part")
        tree.assert_same_bits(coordinator, REGIONS["north"])
    finally:
        tree.close()
