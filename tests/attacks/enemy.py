"""An enemy with an account of its own: everything that it can think of, again and again."""

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, cycle, islice

import msgpack
import pika
import pika.exceptions

from broker.wire.names import EXCHANGE
from broker.wire.versions import VERSION

NAME = "evil"
_BOMB = b"\xdd" + (14_000_000).to_bytes(4, "big") + b"\x90" * 14_000_000  # as many empty lists


@dataclass
class Enemy(threading.Thread):
    """Holds an invited account, listens to its own queue to learn of the round, and attacks without a pause.

    Attributes:
        is_two_faced: It begins as an honest worker does, and is invited to rounds; else it makes war at once.
        done: How often it did what.
    """

    amqp_url: str
    is_two_faced: bool = True
    end: threading.Event = field(default_factory=threading.Event)
    done: dict[str, int] = field(default_factory=dict)
    run_id: str = "r"
    round_number: int = 1
    attempt: int = 1

    def __post_init__(self) -> None:
        super().__init__(name="enemy", daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """One kind after the other, again and again; a channel or connection that is closed is opened again."""
        honest_faced = [
            self.come,
            self.listen,
            self.announce,
            self.junk,
            self.progress,
            self.bomb,
            self.noise,
        ]
        open_war = [
            self.decline, self.speak_for_others, self.make_queues, self.read_alone, self.fill, self.claim_much,
            self.repeat, self.lie,
        ]  # fmt: skip
        first = honest_faced * 60 if self.is_two_faced else []
        attacks = chain(
            first, cycle(open_war + (honest_faced if self.is_two_faced else [self.junk, self.noise]))
        )
        while not self.end.is_set():
            try:
                connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
            except (pika.exceptions.AMQPError, OSError):
                # Thousands of tries at a broker that is down would end in a connection to itself, on its very port.
                self.end.wait(0.5)
                continue
            with suppress(pika.exceptions.AMQPError, OSError):
                while not self.end.is_set():
                    self.attack(connection, next(attacks))
            with suppress(pika.exceptions.AMQPError):
                connection.close()

    def attack(self, connection: pika.BlockingConnection, kind: Callable[[object], None]) -> None:
        channel = connection.channel()
        self.done[kind.__name__] = self.done.get(kind.__name__, 0) + 1
        with suppress(pika.exceptions.ChannelError):
            kind(channel)
            connection.process_data_events(0)
        if channel.is_open:
            channel.close()

    def say(self, channel: object, kind: str, key: str = "coordinator", **fields: object) -> None:
        told = {"type": kind, "version": VERSION, "worker": NAME, **fields}
        self.send(channel, msgpack.packb(told), key, kind)

    def send(self, channel: object, body: bytes, key: str, kind: str = "x") -> None:
        properties = pika.BasicProperties(user_id=NAME, type=kind, content_type="application/msgpack")
        channel.basic_publish(EXCHANGE, key, body, properties)  # type: ignore[attr-defined]

    def of_round(self) -> dict[str, object]:
        return {"run_id": self.run_id, "round_number": self.round_number, "attempt": self.attempt}

    def come(self, channel: object) -> None:
        """As an honest worker would: it is invited."""
        told = {"examples_per_class": [], "num_test_examples": 5, "token": "0" * 16}
        self.say(channel, "joined", classes=["no", "yes"], num_examples=100, **told)

    def lie(self, channel: object) -> None:
        """Words that would make the others unfit, or forge a line of the log; most come too often to be heard."""
        told = {"num_examples": 100, "examples_per_class": [], "num_test_examples": 5, "token": "0" * 16}
        self.say(channel, "joined", classes=["x\n12:00:00 All is well", "\x1b[2Jx"], **told)
        self.say(channel, "joined", classes=["x", "x"], **told)

    def listen(self, channel: object) -> None:
        """As a reader that stays for a moment: from a quorum queue with one nobody else gets a message."""
        channel.basic_qos(prefetch_count=1)  # type: ignore[attr-defined]
        heard = channel.consume(f"worker.{NAME}", inactivity_timeout=0.1)  # type: ignore[attr-defined]
        for method, properties, body in islice(heard, 20):
            if method is None:
                return
            channel.basic_ack(method.delivery_tag)  # type: ignore[attr-defined]
            if properties.type == "round-start":
                start = msgpack.unpackb(body)
                self.run_id, self.round_number, self.attempt = (
                    start["run_id"], start["round_number"], start["attempt"]
                )  # fmt: skip

    def announce(self, channel: object) -> None:
        """Parts that are never sent, and then a repeat of the very same."""
        for number in range(5):
            self.say(
                channel, "update-announced", upload_id=f"u{number}", num_examples=100, parts=1, digest="0", seconds=0.0,
                metrics={"loss": 1.7e308, "round": 7.0, "=1+1": 0.0, "a\nb": 1.0}, num_test_examples=2**40 - 1,
                **self.of_round(),
            )  # fmt: skip

    def junk(self, channel: object) -> None:
        for _ in range(200):
            self.send(channel, b"x", f"upload.{NAME}")

    def progress(self, channel: object) -> None:
        figures = {
            "epoch": 1,
            "epochs": 1,
            "batch": 1,
            "batches": 2,
            "run_id": self.run_id,
            "round_number": 1,
        }
        self.say(channel, "progress", metrics={"loss": float("nan")}, **figures)
        self.say(channel, "progress", metrics={"m" * 1_000_000: 1.0}, **figures)
        self.say(channel, "progress", metrics={f"m{number}": 1.0 for number in range(20_000)}, **figures)

    def decline(self, channel: object) -> None:
        for _ in range(20):
            self.say(channel, "declined", reason="\x1b]0;evil\x07" + "y" * 100_000, **self.of_round())

    def bomb(self, channel: object) -> None:
        self.send(channel, _BOMB, "coordinator")

    def noise(self, channel: object) -> None:
        for _ in range(50):
            self.send(channel, random.randbytes(random.randint(0, 2000)), "coordinator")

    def speak_for_others(self, channel: object) -> None:
        for other in ("site-1", "evil.1", "evil.2", "coordinator"):
            self.say(channel, "left", worker=other)  # type: ignore[arg-type]
        self.say(channel, "roll-call", key="workers")

    def make_queues(self, channel: object) -> None:
        arguments = {
            "x-dead-letter-exchange": EXCHANGE,
            "x-dead-letter-routing-key": "workers",
            "x-message-ttl": 0,
        }
        channel.queue_declare(f"worker.{NAME}", durable=True, arguments=arguments)  # type: ignore[attr-defined]

    def read_alone(self, channel: object) -> None:
        channel.basic_consume(f"upload.{NAME}", lambda *_: None, exclusive=True)  # type: ignore[attr-defined]

    def fill(self, channel: object) -> None:
        for _ in range(10):
            self.send(channel, bytes(2_000_000), f"upload.{NAME}")

    def claim_much(self, channel: object) -> None:
        told = {"examples_per_class": [], "token": "1" * 16, "classes": ["no", "yes"]}
        self.say(channel, "joined", num_examples=-5, **told)
        self.say(channel, "joined", num_examples=2**63, **told)

    def repeat(self, channel: object) -> None:
        for _ in range(40):
            told = {
                "num_examples": 100,
                "examples_per_class": [],
                "token": "2" * 16,
                "classes": ["no", "yes"],
            }
            self.say(channel, "joined", **told)
            self.say(channel, "left")
