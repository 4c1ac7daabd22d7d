"""A TCP forwarder between an actor and the broker that does what networks do: cut, swallow, crawl, half close."""

import contextlib
import socket
import threading
from typing import Self
from urllib.parse import urlsplit

_PIECE = 64 * 1024


class Forwarder:
    """Forwards connections to the broker of an AMQP URL; a context manager.

    Attributes:
        amqp_url: The same address, by way of this forwarder.
        bytes_per_second: In each direction of each connection; None: as fast as it goes.
        seconds_away: How long each piece is under way, in each direction.
    """

    def __init__(self, amqp_url: str) -> None:
        parts = urlsplit(amqp_url)
        self._target = (parts.hostname or "localhost", parts.port or 5672)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        login = f"{parts.username}:{parts.password}"
        self.amqp_url = parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
        self.bytes_per_second: float | None = None
        self.seconds_away = 0.0
        self.num_connections = 0
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._left: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._open = threading.Event()  # cleared: bytes go nowhere, and nobody is told
        self._open.set()
        self._is_cut = False
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._open.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for upstream in self._left:
            _end(upstream)
        for thread in list(self._threads):
            thread.join(5)

    # --- faults --------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """End all connections, on both sides; new ones are taken."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for each in pair:
                _end(each)

    def cut(self) -> None:
        """End all connections, and refuse new ones until `restore`."""
        self._is_cut = True
        self.drop()

    def swallow(self) -> None:
        """A black hole: nothing passes, nothing is closed; new connections are taken, and stay silent."""
        self._open.clear()

    def half_open(self) -> None:
        """The actor's side ends; the broker is not told, and takes it for connected."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            self._left += [upstream for _, upstream in pairs]
        for actor_side, _ in pairs:
            _end(actor_side)

    def restore(self) -> None:
        """The network is well again; what was swallowed is lost with its connections."""
        self._is_cut = False
        self.bytes_per_second = None
        if not self._open.is_set():
            self.drop()
            self._open.set()

    # --- forwarding ----------------------------------------------------------------------------------------

    def _run(self, function: object, *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                actor_side, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                actor_side.close()
                continue
            try:
                upstream = socket.create_connection(self._target, timeout=5)
            except OSError:
                actor_side.close()  # the broker itself is away
                continue
            upstream.settimeout(None)
            self.num_connections += 1
            with self._lock:
                self._pairs.append((actor_side, upstream))
            self._run(self._pump, actor_side, upstream)
            self._run(self._pump, upstream, actor_side)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_PIECE if self.bytes_per_second is None else 4096):
                self._open.wait()
                if self.seconds_away:
                    self._ending.wait(self.seconds_away)
                if self.bytes_per_second is not None:
                    self._ending.wait(len(data) / self.bytes_per_second)
                sink.sendall(data)
        except OSError:
            pass  # one side was ended
        if self._is_paired(source, sink):
            _end(sink)
            _end(source)

    def _is_paired(self, one: socket.socket, other: socket.socket) -> bool:
        """Whether an end on one side is passed on to the other."""
        with self._lock:
            for pair in self._pairs:
                if set(pair) == {one, other}:
                    self._pairs.remove(pair)
                    return True
        return False


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
