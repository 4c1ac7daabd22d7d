"""Where the actors play: starts them as processes, waits for them with bounds, and looks at what they leave behind."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from broker.errors import PublishRefused
from broker.hosting import private
from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Delivery, Link
from broker.wire.tensors import Vector
from coordinator.folder.checkpoint import CHECKPOINT_FILE, Checkpoint, read_checkpoint
from tests.faults import actors
from tests.faults.actors import Break, Options, undisturbed

# A server that has imported everything once, and forks: a process of its own for each actor, in milliseconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.faults.actors"])

WORKERS = {"w1": 100, "w2": 110, "w3": 120}
SIZE = 1000
LARGE = 3_000_000  #: floats: 12 MB, three parts of 4 MB
MANY_PARTS = 400_000  #: floats: 25 parts of 64 KiB
SMALL_PARTS: dict[str, float] = {"coordinator.play.attempts:PART_BYTES": 64 * 1024}

Patches = dict[str, float]


@dataclass(slots=True)
class Actor:
    """One process and what it says."""

    process: ForkServerProcess
    log: Path
    name: str

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.exitcode is None

    @property
    def said(self) -> str:
        """Everything on stderr and stdout so far."""
        return self.log.read_text(errors="replace")

    def ended(self, seconds: float = 60) -> int:
        """Its exit code, once it has ended."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.signal(signal.SIGUSR1)  # where its threads are
            private.wait_until(lambda: "most recent call first" in self.said, 2)
            raise AssertionError(f"{self.name} did not end within {seconds:g} s:\n{self.said[-6000:]}")
        return code

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.join(10)

    def terminate(self) -> float:
        """Ask it to end; the seconds that took."""
        begun = time.monotonic()
        self.process.terminate()
        self.ended()
        return time.monotonic() - begun

    def says(self, text: str, seconds: float = 20) -> None:
        """Wait until it has said this."""
        assert private.wait_until(lambda: text in self.said or not self.is_running, seconds), self._missed(
            text
        )
        assert text in self.said, self._missed(text)

    def _missed(self, text: str) -> str:
        return f"{self.name} did not say {text!r}:\n{self.said[-5000:]}"


class Stage:
    """One federation of actors.

    Args:
        amqp_url: The broker, or a forwarder in front of it.
        folder: Where the run, the logs and the notes of trainings go.
        size: Float weights of the model.
    """

    def __init__(
        self, amqp_url: str, folder: Path, *, size: int = SIZE, patches: Patches | None = None
    ) -> None:
        self.amqp_url = amqp_url
        self.folder = folder
        self.size = size
        self.patches = patches or {}
        self.out = folder / "run"
        self.trainings = folder / "trainings.jsonl"
        self.connections = folder / "connections.jsonl"
        self.actors: list[Actor] = []
        self._links: list[RabbitLink] = []

    # --- starting ------------------------------------------------------------------------------------------

    def coordinator(
        self, *, rounds: int = 3, breaks: tuple[Break, ...] = (), out: Path | None = None, **more: Any
    ) -> Actor:
        """Start a coordinator of all WORKERS; `more` are fields of Options, or of RunOptions by `run`."""
        run = {"workers": len(WORKERS), "rounds": rounds, "deadline_seconds": 60.0} | more.pop("run", {})
        return self._start(
            "coordinator", "coordinator", out=str(out or self.out), run=run, breaks=breaks, **more
        )

    def worker(self, name: str, *, breaks: tuple[Break, ...] = (), **more: Any) -> Actor:
        """Start one worker."""
        num_examples = more.pop("num_examples", WORKERS.get(name, 100))
        return self._start(name, "worker", names=(name,), num_examples=num_examples, breaks=breaks, **more)

    def workers(self, *names: str, **more: Any) -> list[Actor]:
        """Start several (all of WORKERS by default)."""
        return [self.worker(name, **more) for name in names or WORKERS]

    def swarm(self, count: int, **more: Any) -> Actor:
        """Start one process of many workers, s.1 to s.COUNT."""
        names = tuple(f"s.{number}" for number in range(1, count + 1))
        return self._start("swarm", "worker", names=names, is_swarm=True, num_examples=10, **more)

    def relay(
        self, name: str, above: str, *, workers: int, breaks: tuple[Break, ...] = (), **more: Any
    ) -> Actor:
        """Start a relay from this stage's broker to the one above; its folder is on this stage."""
        run = {"workers": workers} | more.pop("run", {})
        out = str(self.folder / f"relay-{name}")
        return self._start(name, "relay", names=(name,), above=above, out=out, run=run, breaks=breaks, **more)

    def _start(self, name: str, role: Any, **options: Any) -> Actor:
        asked = Options(
            role=role,
            **{
                "amqp_url": self.amqp_url,
                "size": self.size,
                "trainings": str(self.trainings),
                "connections": str(self.connections),
                **options,
                "patches": self.patches | options.get("patches", {}),
            },
        )
        log = self.folder / f"{name}-{len(self.actors)}.log"
        log.touch()
        process = _FORKS.Process(target=actors.main, args=(asked, str(log)), name=name)
        process.start()
        actor = Actor(process, log, name)
        self.actors.append(actor)
        return actor

    def link(self, amqp_url: str | None = None) -> RabbitLink:
        """A connection of the test's own."""
        link = RabbitLink(
            LinkSettings(access=Access(amqp_url=amqp_url or self.amqp_url), name="test", connect_seconds=20)
        )
        link.open()
        self._links.append(link)
        return link

    def close(self) -> None:
        """End everything that was started here."""
        for actor in self.actors:
            if actor.is_running:
                actor.kill()
        for link in self._links:
            link.close()

    def leftovers(
        self, workers: Iterable[str] = (), enemy: str | None = None
    ) -> dict[tuple[str, str | None], int]:
        """What waits in the queues after all: (queue, type) to count, but for who is there, which changes nothing.

        Args:
            workers: Whose queues are looked at; by default of those who have trained.
            enemy: An account whose messages may wait for ever.
        """
        link = self.link()
        workers = set(workers) or {note["worker"] for note in self.notes()}
        queues = ["coordinator", *(f"{kind}.{name}" for name in workers for kind in ("worker", "upload"))]
        found = Counter(
            (queue, each.message_type)
            for queue in queues
            for each in drained(link, queue)
            if enemy is None or each.user_id != enemy
        )
        return {
            key: count
            for key, count in found.items()
            if key[1] not in ("ping", "roll-call", "joined", "left", "swarm-joined", "swarm-left", "progress")
        }

    def num_ready(self, queue: str) -> int:
        """How many messages wait in a queue; they are taken and given back."""
        link = self.link()
        count = len(list(_taken(link, queue)))
        link.close()
        return count

    # --- break points --------------------------------------------------------------------------------------

    def hold(self, point: str, **more: Any) -> Break:
        """A break point at which an actor waits for `let_go`."""
        return Break(point=point, action="hold", folder=str(self.folder), **more)

    def reached(self, point: str, seconds: float = 30) -> None:
        """Wait until an actor is held there."""
        assert private.wait_until((self.folder / f"{point}.reached").exists, seconds), (
            f"nobody came to {point}:\n{self.story}"
        )

    def let_go(self, point: str) -> None:
        """Let an actor go on."""
        (self.folder / f"{point}.go").touch()

    # --- looking -------------------------------------------------------------------------------------------

    @property
    def story(self) -> str:
        """The end of what everybody said."""
        return "\n".join(f"--- {actor.name}\n{actor.said[-3000:]}" for actor in self.actors)

    @property
    def checkpoint(self) -> Checkpoint:
        """The committed state."""
        return read_checkpoint(self.out)

    @property
    def committed_round(self) -> int:
        """The last closed round; -1 before there is a run."""
        return self.checkpoint.round_number if (self.out / CHECKPOINT_FILE).exists() else -1

    def wait_for_round(self, number: int, seconds: float = 30) -> None:
        """Wait until so many rounds are committed."""
        self.wait(lambda: self.committed_round >= number, seconds, f"round {number}")

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait with a bound; the failure tells what everybody said."""
        assert private.wait_until(condition, seconds), f"{what} not within {seconds:g} s:\n{self.story}"

    def assert_same_bits(self, rounds: int = 3, workers: dict[str, int] | None = None) -> None:
        """The run ended with the model of an undisturbed one."""
        self.assert_bits(undisturbed(workers or WORKERS, rounds=rounds, size=self.size), rounds)

    def assert_bits(self, expected: Vector, rounds: int) -> None:
        """The run ended with these weights."""
        state = self.checkpoint
        assert state.round_number == rounds, self.story
        assert np.array_equal(state.vector.view(np.uint32), expected.view(np.uint32)), self.story

    def notes(self, what: str = "began", mode: str = "train") -> list[dict[str, Any]]:
        """The trainings noted so far."""
        if not self.trainings.exists():
            return []
        notes = [json.loads(line) for line in self.trainings.read_text().splitlines()]
        return [note for note in notes if (note["what"], note["mode"]) == (what, mode)]

    def has_begun(self, worker: str, round_number: int) -> bool:
        """Whether a worker has begun to train a round."""
        return any((note["worker"], note["round"]) == (worker, round_number) for note in self.notes())

    def gaps(self) -> list[tuple[str, float, float]]:
        """Each time that one side of somebody's link was without its connection: whose, and from when to when."""
        return self._outages()[0]

    @property
    def away(self) -> set[str]:
        """Which sides of somebody's link are without their connection now."""
        return self._outages()[1]

    def _outages(self) -> tuple[list[tuple[str, float, float]], set[str]]:
        lost: dict[tuple[str, int], float] = {}
        found = []
        for line in lines_of(self.connections):
            key = (f"{line['who']}, {line['side']}", line["pid"])
            if line["what"] == "lost":
                lost[key] = line["at"]
            elif key in lost:
                found.append((key[0], lost.pop(key), line["at"]))
        return found, {who for who, _ in lost}

    def assert_nobody_trained_twice(self) -> None:
        """Each worker trained each round once."""
        counts = Counter((note["worker"], note["round"]) for note in self.notes())
        assert {key for key, count in counts.items() if count > 1} == set(), self.story


def lines_of(log: Path) -> list[dict[str, Any]]:
    """What an audit log tells."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def passed(seconds: float) -> None:
    """Let time pass, where the time is the fault itself: a worker that is away for so long."""
    private.wait_until(lambda: False, seconds)


def drained(link: Link, queue: str) -> list[Delivery]:
    """Everything ready in a queue, which is empty afterwards."""
    deliveries = list(_taken(link, queue))
    link.ack(deliveries)
    return deliveries


def _taken(link: Link, queue: str) -> Iterator[Delivery]:
    """Everything ready in a queue; a quorum queue with a single active consumer gives to a consumer alone (405)."""
    try:
        while (delivery := next(link.fetch(queue), None)) is not None:
            yield delivery
    except PublishRefused:
        link.consume([queue], prefetch=0)
        while isinstance(received := link.receive(1.0), Delivery):
            yield received
        link.cancel([queue])
