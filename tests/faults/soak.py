"""`make soak MINUTES=N`: real processes, a seeded random schedule of all faults, and the bits of an undisturbed run.

Runs of some rounds follow each other on one broker of its own. Meanwhile coordinator, workers and broker are killed,
told to stop and started again, their networks cut, and their queues emptied. Each run must end with the bits that plain
arithmetic gives, no process stuck, no queue with a message left; worker w3 lives through all runs, and must not grow.
"""

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click

from broker.private import PrivateBroker, wait_until
from tests.brokers import started_broker
from tests.faults.forwarder import Forwarder
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, WORKERS, Actor, Stage, passed

ROUNDS = 8
QUICK = SMALL_PARTS | {
    "broker.rabbitmq:_HEARTBEAT_SECONDS": 2,
    "broker.rabbitmq:_LONGEST_DELAY_SECONDS": 2,
    "coordinator.run:_ROLL_CALL_SECONDS": 3,
    "coordinator.run:_PRESENCE_SECONDS": 1,
    "coordinator.journal:LONGEST_SECONDS": 2,
}
_RUN_SECONDS = 300.0
_STABLE_SECONDS = 1.0


class Chaos:
    """One federation under faults.

    Args:
        broker: Killed and restarted.
        folder: Logs and runs.
        seed: Of the schedule; the same seed chooses the same faults.
    """

    def __init__(self, broker: PrivateBroker, folder: Path, seed: int) -> None:
        self.survived: Counter[str] = Counter()
        self.memory: list[int] = []
        self._broker = broker
        self._folder = folder
        self._random = random.Random(seed)
        self._networks = {name: Forwarder(broker.amqp_url) for name in ("coordinator", *WORKERS)}
        self._actors: dict[str, Actor] = {}
        self._ending = threading.Event()

    def run(self, number: int) -> None:
        """One run under faults, and its proof."""
        folder = self._folder / f"run-{number}"
        folder.mkdir()
        stage = self._stage = Stage(self._broker.amqp_url, folder, size=MANY_PARTS, patches=QUICK)
        faults: Counter[str] = Counter()
        try:
            for name in ("coordinator", "w1", "w2"):
                self._start(name)
            if "w3" not in self._actors:
                self._start("w3")
            end = time.monotonic() + _RUN_SECONDS
            while stage.committed_round < ROUNDS:
                assert time.monotonic() < end, f"stuck after {dict(faults)}:\n{stage.story}"
                passed(self._random.uniform(0.2, 2.0))
                if stage.committed_round < ROUNDS:
                    faults[self._one_fault()] += 1
                self._see_to_everyone()
            self._prove()
        finally:
            others = [actor for actor in stage.actors if actor is not self._actors.get("w3")]
            for actor in others:
                if actor.is_running:
                    actor.kill()
        self.survived += faults

    def close(self) -> None:
        """End what is left."""
        for actor in self._actors.values():
            if actor.is_running:
                actor.kill()
        for network in self._networks.values():
            network.__exit__()

    def __enter__(self) -> "Chaos":
        for network in self._networks.values():
            network.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- actors --------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        url = self._networks[name].amqp_url
        if name == "coordinator":
            self._actors[name] = self._stage.coordinator(
                rounds=ROUNDS, amqp_url=url, connect_seconds=120, run={"deadline_seconds": 3600.0}
            )
        else:
            self._actors[name] = self._stage.worker(
                name,
                amqp_url=url,
                train_seconds=self._random.uniform(0.0, 0.8),
                connect_seconds=120,
                once=name != "w3",
                trainings=str(self._folder / "trainings.jsonl"),
            )

    def _see_to_everyone(self) -> None:
        """Nobody may end by itself before the run does."""
        if self._stage.committed_round >= ROUNDS:
            return
        for name, actor in self._actors.items():
            assert actor.is_running, (
                f"{name} ended by itself with {actor.process.exitcode}:\n{actor.said[-4000:]}"
            )

    def _prove(self) -> None:
        coordinator = self._actors["coordinator"]
        assert coordinator.ended(120) == 0, self._stage.story
        for name in ("w1", "w2"):
            assert self._actors[name].ended(60) == 0, self._stage.story
        assert self._actors["w3"].is_running
        self._stage.assert_same_bits(rounds=ROUNDS)
        self.memory.append(self._memory_of(self._actors["w3"]))
        self._stage.trainings = self._folder / "trainings.jsonl"
        assert wait_until(lambda: not self._stage.leftovers(), 20), self._stage.leftovers()

    def _memory_of(self, actor: Actor) -> int:
        """Its resident megabytes."""
        pages = int(Path(f"/proc/{actor.process.pid}/statm").read_text().split()[1])
        return pages * 4096 // 2**20

    # --- faults --------------------------------------------------------------------------------------------

    def _one_fault(self) -> str:
        faults: dict[str, tuple[int, Callable[[], None]]] = {
            "coordinator killed": (5, lambda: self._kill("coordinator")),
            "coordinator told to stop": (2, lambda: self._terminate("coordinator", 143)),
            "worker killed": (5, lambda: self._kill(self._random.choice(["w1", "w2"]))),
            "worker told to stop": (2, lambda: self._terminate(self._random.choice(["w1", "w2"]), 0)),
            "worker away for 5 s": (1, lambda: self._kill(self._random.choice(["w1", "w2"]), 5)),
            "broker killed": (1, lambda: self._restart(PrivateBroker.kill)),
            "broker stopped": (1, lambda: self._restart(PrivateBroker.stop)),
            "connections dropped": (4, lambda: self._network().drop()),
            "network cut": (2, lambda: self._disturb(Forwarder.cut, self._random.uniform(0.5, 3))),
            "black hole": (2, lambda: self._disturb(Forwarder.swallow, self._random.uniform(1, 8))),
            "half open": (2, lambda: self._network().half_open()),
            "very slow": (2, self._slow_down),
            "queue emptied": (2, lambda: self._lose_queue(is_deleted=False)),
            "queue deleted": (1, lambda: self._lose_queue(is_deleted=True)),
        }
        name = self._random.choices(list(faults), [weight for weight, _ in faults.values()])[0]
        click.echo(f"{time.strftime('%H:%M:%S')} round {self._stage.committed_round}: {name}", err=True)
        faults[name][1]()
        return name

    def _kill(self, name: str, away_seconds: float = 0.0) -> None:
        self._actors[name].kill()
        passed(away_seconds)
        self._start(name)

    def _terminate(self, name: str, code: int) -> None:
        actor = self._actors[name]
        actor.process.terminate()
        ended = actor.ended(20)
        assert ended in (code, 0, -15), f"{name} ended with {ended}:\n{actor.said[-4000:]}"
        if ended == code or ended < 0:  # told before it could listen: as good as killed
            self._start(name)

    def _restart(self, end: Callable[[PrivateBroker], None]) -> None:
        end(self._broker)
        self._broker.start()

    def _network(self) -> Forwarder:
        return self._networks[self._random.choice(list(self._networks))]

    def _disturb(self, fault: Callable[[Forwarder], None], seconds: float) -> None:
        network = self._network()
        fault(network)
        passed(seconds)
        network.restore()

    def _slow_down(self) -> None:
        network = self._network()
        network.bytes_per_second = 200_000
        passed(4)
        network.bytes_per_second = None

    def _lose_queue(self, *, is_deleted: bool) -> None:
        queue = self._random.choice(["coordinator", "worker.w1", "upload.w1", "worker.w2", "upload.w2"])
        link = self._stage.link()
        link.delete([queue]) if is_deleted else link.purge(queue)
        link.close()


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(minutes: float, seed: int) -> None:
    """Runs under faults for so many minutes."""
    end = time.monotonic() + 60 * minutes
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="warren-soak-"))
    click.echo(f"logs in {folder}", err=True)
    number = 0
    with started_broker(folder / "broker") as broker, Chaos(broker, folder, seed) as chaos:
        while time.monotonic() < end:
            chaos.run(number)
            number += 1
    click.echo(
        f"{number} runs of {ROUNDS} rounds in {(time.monotonic() - begun) / 60:.1f} minutes (seed {seed}),"
    )
    click.echo("each with the bits of an undisturbed run; no process stuck, no message left in a queue.")
    click.echo(f"Memory of a worker that lived through all: {chaos.memory} MB.")
    for name, count in sorted(chaos.survived.items()):
        click.echo(f"{count:6}  {name}")
    later = chaos.memory[1:]
    if later and max(later) > 1.3 * later[0] + 20:
        raise SystemExit("The worker's memory grows.")


if __name__ == "__main__":
    main()
