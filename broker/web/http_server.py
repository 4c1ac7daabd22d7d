"""The server under the pages: waitress, with caps on connections, threads, bytes and time; nothing goes to the disk."""

import io
import json
import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import Error

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

HEADER_BYTES = 32 * 1024  #: of the address and all headers together
_HEARD_OUT_BYTES = 1 << 30  # a client that is cut off while it sends shows no answer at all
_SILENT_SECONDS = 60  # who sends or takes nothing for as long is cut off
_CROWDED_SECONDS = 5.0  # while there is no room for more connections
_HEADER_SECONDS = 20.0
_BODY_SECONDS = 300.0
_LOOK_SECONDS = 5
_UNSENT_BYTES = 1 << 20  # of one answer: whoever makes more of it waits for the client
_IN_MEMORY_BYTES = 1 << 40  # an answer may show a patient, and is never written to a temporary file
_STOP_SECONDS = 1.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """The most that one server takes.

    Attributes:
        threads: Requests that are answered at once.
        connections: Further ones wait in the system's queue.
        body_bytes: Of one request. A larger body is heard out and dropped: the application says so.
        bodies_bytes: Of all requests together. Whoever comes above that is told to try again.
    """

    threads: int
    connections: int
    body_bytes: int
    bodies_bytes: int


class PageServer(threading.Thread):
    """Answers requests as long as the process's work goes on.

    Args:
        app: What answers.
        listener: Where; whoever made it closes it.
        caps: The most that is taken.
    """

    def __init__(self, app: "WSGIApplication", listener: socket.socket, caps: Caps) -> None:
        super().__init__(name="page", daemon=True)
        self._is_ending = threading.Event()
        self._threads = ThreadedTaskDispatcher()
        self._server = _Server(app, listener, caps, self._threads)
        self._threads.set_thread_count(caps.threads)

    def __enter__(self) -> "PageServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more, give those that are being answered a moment, and hang up."""
        self._server.accepting = False
        self._threads.shutdown(timeout=_STOP_SECONDS)
        self._is_ending.set()
        self._server.pull_trigger()
        self.join(_STOP_SECONDS)
        wasyncore.close_all(self._server.channels, ignore_all=True)

    def run(self) -> None:
        """Answer until the end."""
        while not self._is_ending.is_set():
            wasyncore.loop(timeout=1, use_poll=True, map=self._server.channels, count=1)
            self._server.hang_up(time.time())


class _Body:
    """A request's body in memory; what is too large is counted, and dropped.

    Attributes:
        held: How many bytes of it are kept.
        is_without_room: There is too much of the other requests.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = 0
        self._file = io.BytesIO()
        self.held = 0
        self.is_without_room = False

    def __len__(self) -> int:
        return self._length

    def append(self, data: bytes) -> None:
        self._length += len(data)
        if self._length > self._most or self.is_without_room:
            self._file, self.held = io.BytesIO(), 0
        else:
            self._file.write(data)
            self.held = self._length

    def getfile(self) -> io.BytesIO:
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        self._file.close()
        self.held = 0


class _Busy(Error):  # type: ignore[misc]  # waitress ships no types
    code = 503
    reason = "Service Unavailable"


class _Parser(HTTPRequestParser):  # type: ignore[misc]  # waitress ships no types
    """Keeps a request's body in memory, and no more of it than may be."""

    body: _Body | None = None

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as exc:  # of an address such as http://[
            raise ParsingError(str(exc)) from exc
        if self.body_rcv is not None:
            self.body = self.body_rcv.buf = _Body(self.adj.inbuf_overflow)

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if self.completed and self.body is not None and self.body.is_without_room:
            self.error = _Busy("Too much is sent here at once. Try again in a moment.")
        return consumed


class _Answer(WSGITask):  # type: ignore[misc]  # waitress ships no types
    """Requests are no part of the story."""

    def finish(self) -> None:
        super().finish()
        logger.debug("%s %s %s", self.request.command, self.request.path, self.status)


class _Refusal(ErrorTask):  # type: ignore[misc]  # waitress ships no types
    """What the server itself refuses, as JSON like every other error."""

    def execute(self) -> None:
        error = self.request.error
        body = json.dumps({"error": f"{error.reason}: {error.body}"}).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers += [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress ships no types
    """One connection; whoever is slow on purpose loses it."""

    parser_class = _Parser
    task_class = _Answer
    error_task_class = _Refusal
    begun_at = 0.0  #: when the request that is coming in began

    def received(self, data: bytes) -> bool:
        if self.request is None:
            self.begun_at = time.time()
        elif self.request.body is not None and not self.server.has_room(len(data)):
            self.request.body.is_without_room = True
        return bool(super().received(data))

    @property
    def held(self) -> int:
        """How many bytes of bodies it keeps in memory."""
        requests = [*self.requests, self.request]
        return sum(each.body.held for each in requests if each is not None and each.body is not None)

    def is_idle(self, now: float) -> bool:
        """Whether it has asked for nothing, and others may want its place."""
        return not (self.requests or self.request) and now - self.last_activity > _CROWDED_SECONDS

    def is_stuck(self, now: float) -> bool:
        """Whether the client dawdles with its request, or takes nothing of the answer."""
        request = self.request
        patience = _BODY_SECONDS if request is not None and request.headers_finished else _HEADER_SECONDS
        is_dawdling = request is not None and now - self.begun_at > patience
        return is_dawdling or (self.total_outbufs_len > 0 and now - self.last_activity > _SILENT_SECONDS)


class _Server(TcpWSGIServer):  # type: ignore[misc]  # waitress ships no types
    """Listens, and looks after its connections."""

    channel_class = _Channel

    def __init__(
        self, app: "WSGIApplication", listener: socket.socket, caps: Caps, threads: ThreadedTaskDispatcher
    ) -> None:
        self.channels: dict[int, Any] = {}
        self._bodies_bytes = caps.bodies_bytes
        super().__init__(
            app,
            self.channels,
            _sock=listener,
            dispatcher=threads,
            adj=_adjustments(listener, caps),
            bind_socket=False,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
        )

    def has_room(self, more: int) -> bool:
        """Whether so many more bytes of bodies may be kept."""
        held: int = sum(channel.held for channel in self.active_channels.values())
        return held + more <= self._bodies_bytes

    def hang_up(self, now: float) -> None:
        """Let go of those that are slow on purpose. Waitress would wait until they take what is left for them."""
        is_crowded = len(self.channels) >= self.adj.connection_limit
        for channel in list(self.active_channels.values()):
            if channel.is_stuck(now) or (is_crowded and channel.is_idle(now)):
                channel.handle_close()


def _adjustments(listener: socket.socket, caps: Caps) -> Adjustments:
    return Adjustments(
        sockets=[listener],
        ident="Warren",
        backlog=128,
        recv_bytes=64 * 1024,
        connection_limit=caps.connections,
        max_request_header_size=HEADER_BYTES,
        max_request_body_size=_HEARD_OUT_BYTES,
        inbuf_overflow=caps.body_bytes,
        outbuf_overflow=_IN_MEMORY_BYTES,
        outbuf_high_watermark=_UNSENT_BYTES,
        channel_timeout=_SILENT_SECONDS,
        cleanup_interval=_LOOK_SECONDS,
        channel_request_lookahead=1,  # so that a client that hangs up is noticed while it is answered
        clear_untrusted_proxy_headers=False,  # who comes through a proxy is told from this machine by them
        log_socket_errors=False,
    )
