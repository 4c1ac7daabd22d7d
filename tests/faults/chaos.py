"""What befalls a federation in the soak: a seeded random schedule of faults, and the proof that a run minds none."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from broker.hosting.private import PrivateBroker, wait_until
from broker.link.seam import Outgoing
from broker.wire.tensors import Vector
from tests.attacks.enemy import NAME as ENEMY
from tests.attacks.enemy import Enemy
from tests.brokers import ALARMS, control
from tests.faults.forwarder import Forwarder
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, WORKERS, Actor, Stage, passed

QUICK = SMALL_PARTS | {
    "broker.link.rabbitmq.settings:_HEARTBEAT_SECONDS": 2,
    "broker.link.attempts:_LONGEST_DELAY_SECONDS": 2,
    "coordinator.presence.session:_ROLL_CALL_SECONDS": 3,
    "coordinator.play.open_round.guests:_PRESENCE_SECONDS": 1,
    "coordinator.play.open_round.unacknowledged:LONGEST_SECONDS": 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """What is played under the faults.

    Attributes:
        name: "arithmetic" or "TensorFlow".
        pause_seconds: Between two faults, from and to.
        longest_seconds: A run that takes longer is stuck.
        data: What each worker trains on; {} means plain arithmetic.
        expected: The weights after `rounds` undisturbed rounds.
    """

    name: str
    rounds: int
    pause_seconds: tuple[float, float]
    longest_seconds: float
    data: dict[str, str]
    expected: Vector


Faults = dict[str, tuple[int, Callable[[], None]]]


class Chaos:
    """One federation under faults.

    Args:
        broker: Killed and restarted.
        amqp_url: The virtual host there that is this federation's alone.
        folder: Logs and runs.
        seed: Of the schedule; the same seed chooses the same faults.
        logins: Addresses with accounts of their own, by name, an enemy's among them; {} for one account.
    """

    #: Who begins each run, in this order, and ends with it.
    actors: tuple[str, ...] = ("coordinator", "w1", "w2")

    def __init__(
        self,
        play: Play,
        broker: PrivateBroker,
        amqp_url: str,
        folder: Path,
        seed: int,
        logins: Mapping[str, str] | None = None,
    ) -> None:
        self.survived: Counter[str] = Counter()
        self.memory: list[int] = []
        self.play = play
        self._broker = broker
        self._amqp_url = amqp_url
        self._folder = folder
        self._random = random.Random(seed)
        self._logins = logins or {}
        self._networks = {
            name: Forwarder(self._logins.get(name, amqp_url)) for name in ("coordinator", *WORKERS)
        }
        self._actors: dict[str, Actor] = {}

    def run(self, number: int) -> None:
        """One run under faults, and its proof."""
        folder = self._folder / f"{self.play.name}-{number}"
        folder.mkdir()
        enemy = Enemy(self._logins[ENEMY], is_two_faced=False) if self._logins else None
        if enemy is not None:
            enemy.start()
        self._raise_stages(folder)
        stage, faults = self._stage, Counter[str]()
        try:
            for name in self.actors:
                self._start(name)
            if "w3" not in self._actors:
                self._start("w3")
            end = time.monotonic() + self.play.longest_seconds
            while not self._is_done:
                assert time.monotonic() < end, f"stuck after {dict(faults)}:\n{self._story}"
                passed(self._random.uniform(*self.play.pause_seconds))
                if not self._is_done:
                    faults[self._one_fault()] += 1
                self._see_to_everyone()
            if enemy is not None:
                enemy.end.set()
                enemy.join(60)
            self._prove()
        finally:
            if enemy is not None:
                enemy.end.set()
            if "w3" in self._actors and self._actors["w3"] in stage.actors:
                stage.actors.remove(self._actors["w3"])  # it plays on
            for each in self._stages:
                each.close()
        self.survived += faults

    def _raise_stages(self, folder: Path) -> None:
        self._stage = Stage(self._amqp_url, folder, size=MANY_PARTS, patches=QUICK)

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return (self._stage,)

    @property
    def _story(self) -> str:
        return "\n".join(stage.story for stage in self._stages)

    @property
    def _is_done(self) -> bool:
        return self._stage.committed_round >= self.play.rounds

    def report(self) -> str:
        """How many runs, and what the worker that lived through them holds."""
        return (
            f"{len(self.memory)} runs of {self.play.rounds} rounds with {self.play.name}; memory of the worker that "
            f"lived through them: {self.memory} MB."
        )

    @property
    def grows(self) -> bool:
        """Whether the memory of that worker does; the first run does not count, nor does noise."""
        later = self.memory[1:]
        return bool(later) and max(later) > 1.3 * later[0] + 20

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
                rounds=self.play.rounds,
                amqp_url=url,
                connect_seconds=120,
                run={"deadline_seconds": 3600.0, "deterministic": True, "workers": self._num_joining},
                data="mnist" if self.play.data else "",
            )
        else:
            self._actors[name] = self._stage_of(name).worker(
                name,
                amqp_url=url,
                train_seconds=self._random.uniform(0.0, 0.8),
                connect_seconds=120,
                once=name != "w3",
                data=self.play.data.get(name, ""),
                trainings=str(self._folder / "trainings.jsonl"),
            )

    @property
    def _num_joining(self) -> int:
        """At the coordinator's own broker."""
        return len(WORKERS)

    def _stage_of(self, _worker: str) -> Stage:
        """Where it plays."""
        return self._stage

    def _see_to_everyone(self) -> None:
        """Nobody may end by itself before the run does."""
        if self._is_done:
            return
        for name, actor in self._actors.items():
            assert actor.is_running, (
                f"{name} ended by itself with {actor.process.exitcode}:\n{actor.said[-4000:]}"
            )

    def _prove(self) -> None:
        for name in self.actors:
            assert self._actors[name].ended(120) == 0, self._story
        assert self._actors["w3"].is_running
        self._stage.assert_bits(self.play.expected, self.play.rounds)
        self.memory.append(self._memory_of(self._actors["w3"]))
        assert wait_until(lambda: not self._left(), 20), self._left()

    def _left(self) -> list[object]:
        """Messages that nobody will take."""
        left = [stage.leftovers(self._readers_at(stage), ENEMY) for stage in self._stages]
        return [each for each in left if each]

    def _readers_at(self, _stage: Stage) -> tuple[str, ...]:
        """Who has queues there."""
        return tuple(WORKERS)

    def _memory_of(self, actor: Actor) -> int:
        """Its resident megabytes."""
        pages = int(Path(f"/proc/{actor.process.pid}/statm").read_text().split()[1])
        return pages * 4096 // 2**20

    # --- faults --------------------------------------------------------------------------------------------

    def _faults(self) -> Faults:
        return {
            "coordinator killed": (5, lambda: self._kill("coordinator")),
            "coordinator told to stop": (2, lambda: self._terminate("coordinator", 143)),
            "worker killed": (5, lambda: self._kill(self._random.choice(["w1", "w2"]))),
            "worker told to stop": (2, lambda: self._terminate(self._random.choice(["w1", "w2"]), 0)),
            "worker away for 5 s": (1, lambda: self._kill(self._random.choice(["w1", "w2"]), 5)),
            "broker killed": (1, lambda: self._restart(self._broker, PrivateBroker.kill)),
            "broker stopped": (1, lambda: self._restart(self._broker, PrivateBroker.stop)),
            "connections dropped": (4, lambda: self._network().drop()),
            "network cut": (2, lambda: self._disturb(Forwarder.cut, self._random.uniform(0.5, 3))),
            "black hole": (2, lambda: self._disturb(Forwarder.swallow, self._random.uniform(1, 8))),
            "half open": (2, lambda: self._network().half_open()),
            "very slow": (2, self._slow_down),
            "queue emptied": (2, lambda: self._lose_queue(is_deleted=False)),
            "queue deleted": (1, lambda: self._lose_queue(is_deleted=True)),
            "coordinator frozen": (1, lambda: self._freeze("coordinator")),
            "worker frozen": (2, lambda: self._freeze(self._random.choice(list(WORKERS)))),
            "broker short of memory": (1, lambda: self._alarm("memory")),
            "broker short of disk": (1, lambda: self._alarm("disk")),
            "junk sent": (2, self._send_junk),
        }

    def _one_fault(self) -> str:
        faults = self._faults()
        name = self._random.choices(list(faults), [weight for weight, _ in faults.values()])[0]
        round_number = self._stage.committed_round
        click.echo(f"{time.strftime('%H:%M:%S')} {self.play.name}, round {round_number}: {name}", err=True)
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

    def _restart(self, broker: PrivateBroker, end: Callable[[PrivateBroker], None]) -> None:
        end(broker)
        broker.start()

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

    def _freeze(self, name: str) -> None:
        """Longer than its heartbeats, sometimes: the broker takes it for dead, and it does not know."""
        actor = self._actors[name]
        actor.signal(signal.SIGSTOP)
        passed(self._random.uniform(1, 8))
        actor.signal(signal.SIGCONT)

    def _alarm(self, kind: str) -> None:
        raised, cleared = ALARMS[kind]
        control(self._broker, *raised)
        passed(self._random.uniform(1, 5))
        control(self._broker, *cleared)

    def _send_junk(self) -> None:
        stage = self._random.choice(self._stages)
        link = stage.link()
        names = self._readers_at(stage)
        keys = ["coordinator", *(f"{kind}.{name}" for kind in ("worker", "upload") for name in names)]
        for key in keys:
            body = self._random.randbytes(self._random.randrange(1, 5000))
            link.publish([Outgoing(key=key, body=body, message_type="junk", is_mandatory=False)])
        link.close()

    def _lose_queue(self, *, is_deleted: bool) -> None:
        stage = self._random.choice(self._stages)
        names = self._readers_at(stage)
        queues = ["coordinator", *(f"{kind}.{name}" for name in names[:2] for kind in ("worker", "upload"))]
        queue = self._random.choice(queues)
        link = stage.link()
        # An invited worker can't make its queue again: the admin side does.
        link.delete([queue]) if is_deleted and not self._logins else link.purge(queue)
        link.close()
