"""Two regions behind relays: the bits of the same workers at one broker, whoever is killed or away meanwhile."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.hosting.private import PrivateBroker
from tests.brokers import fresh_vhost
from tests.faults.actors import Break, undisturbed
from tests.faults.stage import Actor, Stage

REGIONS = {
    "north": {f"n{number}": 90 + number for number in range(5)},
    "south": {f"s{number}": 40 + 7 * number for number in range(5)},
}
EVERYBODY = {worker: number for region in REGIONS.values() for worker, number in region.items()}
ROUNDS = 3


class Tree:
    """A coordinator at one broker, and relays at others with their workers."""

    def __init__(self, top: str, below: dict[str, str], folder: Path, **more: object) -> None:
        self.top = Stage(top, folder, **more)  # type: ignore[arg-type]
        self.regions = {name: Stage(url, folder / name, **more) for name, url in below.items()}  # type: ignore[arg-type]
        for name in below:
            (folder / name).mkdir()
        self.relays: dict[str, Actor] = {}
        self.workers: list[Actor] = []

    def start(self, *, rounds: int = ROUNDS, breaks: dict[str, tuple[Break, ...]] | None = None) -> Actor:
        """Everybody, with the coordinator last."""
        for name, region in self.regions.items():
            self.relay(name, breaks=(breaks or {}).get(name, ()))
            self.workers += [region.worker(worker, num_examples=number) for worker, number in REGIONS[name].items()]
        return self.coordinator(rounds=rounds)

    def coordinator(self, **more: object) -> Actor:
        """The one above."""
        run = {"workers": len(self.regions)} | more.pop("run", {})  # type: ignore[operator]
        return self.top.coordinator(**{"rounds": ROUNDS, **more}, run=run)  # type: ignore[arg-type]

    def relay(self, name: str, *, breaks: tuple[Break, ...] = ()) -> Actor:
        """One of the relays."""
        region = self.regions[name]
        self.relays[name] = region.relay(name, self.top.amqp_url, workers=len(REGIONS[name]), breaks=breaks)
        return self.relays[name]

    @property
    def story(self) -> str:
        """What everybody said."""
        return "\n".join(stage.story for stage in (self.top, *self.regions.values()))

    def assert_same_bits(self, coordinator: Actor) -> None:
        """All ended, with the model of the same workers at one broker; nobody trained twice, and nothing is left."""
        everybody = [coordinator, *self.relays.values(), *self.workers]
        assert [actor.ended() for actor in everybody] == [0] * len(everybody), self.story
        self.top.assert_bits(undisturbed(EVERYBODY, rounds=ROUNDS, size=self.top.size), ROUNDS)
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
