"""Light participants: names with queues of their own, hundreds a connection, that answer at once and train nothing.

To the broker and the coordinator each is a worker like any other: a durable queue (two, as an invited one has), a
`joined` with each roll call, an update of its own. The link, the wire and the bytes are the product's; what is left out
is a connection of its own, a model, and what a real worker writes.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from broker.link.access import Access
from broker.link.publisher import Publisher
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Connection, Delivery, Outgoing, outgoing, upload_queue, worker_queue
from broker.wire import messages, names
from broker.wire.messages import Joined, Message, RollCall, RoundKey, RoundStart, RunFinished, UploadAgain
from broker.wire.tensors import FLOAT32
from tests.bench.fleet import CLASSES, NUM_EXAMPLES
from tests.bench.workload import multiple_of
from worker.rounds.uploading import KeptUpdate, Measured

_FEW = 25  #: names whose queues are made at once: a busy broker answers each call in time
_HANDFUL = 64  #: answers that are published together
_WAIT_SECONDS = 0.5


@dataclass(slots=True)
class Name:
    """What one participant remembers: as much as its next `joined` must say."""

    name: str
    held: RoundStart | None = None
    announced: str | None = None

    @property
    def key(self) -> RoundKey | None:
        """The round that it holds."""
        return self.held.held if self.held else None


@dataclass(slots=True)
class Told:
    """What a group of participants has done."""

    declare_seconds: float = 0.0
    num_answers: int = 0
    num_joined: int = 0


class Group(threading.Thread):
    """Some participants on one link.

    Args:
        names_of: Who they are.
        stop: The wish to end.
        is_invited: Each has an upload queue, too, which others make once an update is too large to ride.
    """

    def __init__(
        self, amqp_url: str, names_of: Sequence[str], stop: threading.Event, *, is_invited: bool
    ) -> None:
        super().__init__(name=f"group {names_of[0]}", daemon=True)
        self.told = Told()
        self.is_over = threading.Event()
        self._names = {name: Name(name) for name in names_of}
        self._queues = (worker_queue, upload_queue) if is_invited else (worker_queue,)
        self._wish_to_end = stop
        access = Access(amqp_url=amqp_url)
        self._link = RabbitLink(LinkSettings(access=access, name=f"worker {names_of[0]}", stop=stop))
        self._publisher = Publisher(self._link, stop)
        self._to_join: set[str] = set()
        self._answers: list[Outgoing] = []
        self._answered: list[Delivery] = []
        self._known: tuple[bytes, Message] | None = None  # the same bytes came for another name just now

    def run(self) -> None:
        """Take part until told to end."""
        begun = time.monotonic()
        self._link.open()
        everyone = list(self._names)
        for few in (everyone[begin : begin + _FEW] for begin in range(0, len(everyone), _FEW)):
            self._link.declare([make(name) for name in few for make in self._queues])
            self._link.consume([names.worker_queue(name) for name in few], prefetch=8)
        self.told.declare_seconds = time.monotonic() - begun
        self._to_join.update(self._names)
        while not self._wish_to_end.is_set():
            self._turn()
        self._link.close()

    def _turn(self) -> None:
        event = self._link.receive(0.0 if self._answers or self._to_join else _WAIT_SECONDS)
        if isinstance(event, Delivery):
            self._take(self._names[event.queue.removeprefix(names.worker_queue(""))], event)
        elif event is Connection.RESTORED:
            self._to_join.update(self._names)
        if event is None or len(self._answers) >= _HANDFUL:
            self._send_answers()
        if event is None and self._to_join:
            self._join()

    def _take(self, who: Name, delivery: Delivery) -> None:
        message = self._decoded(delivery.body)
        if isinstance(message, RoundStart) and who.key != message.held:
            who.held, who.announced = message, None
            self._answer(who)
        elif isinstance(message, UploadAgain):
            self._answer(who)
        elif isinstance(message, RollCall):
            self._to_join.add(who.name)
        elif isinstance(message, RunFinished):
            self.is_over.set()
        self._answered.append(delivery)
        if not self._answers and len(self._answered) >= _HANDFUL:
            self._acknowledge()

    def _decoded(self, body: bytes) -> Message:
        if self._known is None or self._known[0] != body:
            self._known = body, messages.decode(body)
        return self._known[1]

    def _answer(self, who: Name) -> None:
        start = who.held
        assert start is not None
        assert start.weights is not None, "a light participant has no room for parts"
        vector = np.frombuffer(start.weights, FLOAT32) * multiple_of(who.name, start.round_number)
        measured = Measured(
            num_examples=NUM_EXAMPLES,
            metrics={"loss": 1.0},
            global_metrics={},
            num_test_examples=0,
            seconds=0.0,
        )
        trains = start.mode == "train"
        update = KeptUpdate(
            who.name,
            start.held,
            measured if trains else Measured(num_examples=0, metrics={}, global_metrics={}, num_test_examples=0,
                                             seconds=0.0),
            vector if trains else None,
            layout=start.layout,
            part_bytes=start.part_bytes,
            precision="float32",
            seed=0,
        )  # fmt: skip
        update.note_uploading()
        update.note_announced()
        who.announced = update.announced
        self._answers.append(update.announcement())

    def _send_answers(self) -> None:
        if self._answers:
            self._publisher.send(self._answers)
            self.told.num_answers += len(self._answers)
            self._answers = []
        self._acknowledge()

    def _acknowledge(self) -> None:
        self._link.ack(self._answered)
        self._answered = []

    def _join(self) -> None:
        words = [outgoing(self._joined(self._names[name]), names.COORDINATOR) for name in self._to_join]
        if self._publisher.try_send(words):
            self.told.num_joined += len(words)
            self._to_join.clear()
        else:
            self._wish_to_end.wait(_WAIT_SECONDS)

    def _joined(self, who: Name) -> Joined:
        return Joined(
            worker=who.name,
            classes=CLASSES,
            num_examples=NUM_EXAMPLES,
            examples_per_class=(NUM_EXAMPLES // 2,) * 2,
            held=who.key,
            announced=who.announced,
            token="light",
            release="light",
        )


def take_part(
    amqp_url: str, names_of: Sequence[str], group_size: int, stop: threading.Event, *, is_invited: bool
) -> None:
    """Be these participants until the run is over; then print what they did."""
    groups = [
        Group(amqp_url, names_of[begin : begin + group_size], stop, is_invited=is_invited)
        for begin in range(0, len(names_of), group_size)
    ]
    for group in groups:
        group.start()
    while not stop.wait(_WAIT_SECONDS) and not all(group.is_over.is_set() for group in groups):
        pass
    stop.set()
    for group in groups:
        group.join(30)
    print(
        json.dumps(
            {
                "declare_seconds": round(max(group.told.declare_seconds for group in groups), 1),
                "answers": sum(group.told.num_answers for group in groups),
                "joined": sum(group.told.num_joined for group in groups),
            }
        ),
        flush=True,
    )
