"""Thin lines to a broker: one TCP forwarder for each participant, with a bandwidth, a delay, and losses as stalls.

    python -m tests.bench.lines --target 127.0.0.1:5672 --count 4 --megabits 50 --milliseconds 40

Prints the port of each line, as a JSON list, and forwards until it is ended. A line's two directions are apart, as on
DSL or fibre, and shared by all connections of its participant. What TCP does of its own on a long way (its slow start,
its window) is not played: a loss shows as what it costs, a stall of a retransmission.
"""

import contextlib
import json
import queue
import random
import socket
import sys
import threading
import time
from dataclasses import dataclass

import click

_PIECE = 16 * 1024
_BUFFER_BYTES = 128 * 1024  #: of a socket: what is sent waits with its sender, not in here
_STALL_SECONDS = 0.2  #: the least that TCP waits before it sends a lost piece again
_PACKET_BYTES = 1448
_BURST_SECONDS = 0.05  #: that a way makes good of what this process, waking late, did not let pass in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a line is like.

    Attributes:
        bytes_per_second: In each direction.
        seconds: That a byte is under way, in each direction.
        loss: The share of packets that are lost, each of which stalls its direction.
    """

    bytes_per_second: float
    seconds: float = 0.0
    loss: float = 0.0


class Way:
    """One direction of a line: when a piece that comes now has passed."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._shape = shape
        self._free_at = 0.0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def pass_through(self, num_bytes: int, now: float) -> float:
        """The moment when the last of these bytes has left; `Shape.seconds` later it is there."""
        with self._lock:
            self._free_at = (
                max(now - _BURST_SECONDS, self._free_at) + num_bytes / self._shape.bytes_per_second
            )
            if self._random.random() < self._shape.loss * num_bytes / _PACKET_BYTES:
                self._free_at += _STALL_SECONDS
            return self._free_at


class Line:
    """Forwards the connections of one participant to a target; as long as its process lives.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, target: tuple[str, int], shape: Shape, seed: int = 0) -> None:
        self._target, self._shape = target, shape
        self._ways = Way(shape, 2 * seed), Way(shape, 2 * seed + 1)
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._never = threading.Event()
        _run(self._accept)

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            try:
                far.connect(self._target)
            except OSError:
                near.close()
                continue
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink, way in zip((near, far), (far, near), self._ways, strict=True):
                under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                _run(self._take, source, way, under_way)
                _run(self._hand_on, sink, under_way)

    def _take(
        self, source: socket.socket, way: Way, under_way: "queue.SimpleQueue[tuple[float, bytes]]"
    ) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(_PIECE)
            except OSError:
                data = b""
            left_at = way.pass_through(len(data), time.monotonic())
            under_way.put((left_at + self._shape.seconds, data))
            self._wait_until(left_at)

    def _hand_on(self, sink: socket.socket, under_way: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
        with contextlib.suppress(OSError):
            due, data = under_way.get()
            while data:
                self._wait_until(due)
                sink.sendall(data)
                due, data = under_way.get()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def _wait_until(self, moment: float) -> None:
        left = moment - time.monotonic()
        if left > 0:
            self._never.wait(left)


def _run(function: object, *args: object) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()  # type: ignore[arg-type]


@click.command()
@click.option("--target", required=True, help="HOST:PORT that all lines lead to.")
@click.option("--count", type=int, default=1, show_default=True)
@click.option("--megabits", type=float, default=50.0, show_default=True, help="A second, in each direction.")
@click.option("--milliseconds", type=float, default=40.0, show_default=True, help="There and back.")
@click.option("--loss", type=float, default=0.0, show_default=True, help="The share of packets lost.")
def main(target: str, count: int, megabits: float, milliseconds: float, loss: float) -> None:
    """Be so many lines until standard input ends."""
    host, _, port = target.rpartition(":")
    shape = Shape(bytes_per_second=megabits * 1e6 / 8, seconds=milliseconds / 2000, loss=loss)
    lines = [Line((host, int(port)), shape, seed) for seed in range(count)]
    print(json.dumps([line.port for line in lines]), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
