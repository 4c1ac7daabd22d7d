"""The process that holds Keras and its three pipes: started here, asked and answered, ended."""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from broker.errors import ModelError
from broker.logs import is_chatter

log = logging.getLogger(__name__)

CLOSE_SECONDS = 15  #: that ending may take, before it is by force
REQUEST_SECONDS = (
    1800.0  #: that building, saving or trying a model may take; a person's own code may fetch weights
)
LATER = frozenset({"save", "draw-workers"})  #: what no round waits for, beside which others are answered

Answer = dict[str, Any]


class Child:
    """The process itself and its three pipes; it is at one request of each kind at most, now and later.

    Args:
        trusted_modules: What these register may occur in a model.
        is_warm: Whether TensorFlow is imported at once.
    """

    def __init__(self, trusted_modules: Sequence[str], *, is_warm: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "coordinator.keras.child", *trusted_modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=_environment(),
        )
        self._last_lines: deque[str] = deque(maxlen=5)
        self._relay = threading.Thread(target=self._relay_stderr, name="model-stderr", daemon=True)
        self._relay.start()
        self._lock = threading.Lock()  # guards the two below, and who writes
        self._number = 0
        self._asked: dict[int, tuple[str, queue.SimpleQueue[Answer | None]]] = {}  # what is under way
        self._is_too_slow = self._has_ended = False
        self._reader = threading.Thread(target=self._read_answers, name="model-answers", daemon=True)
        self._reader.start()
        if is_warm:
            self._send({"op": "warm"})

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def operations(self) -> set[str]:
        """What it is at."""
        with self._lock:
            return {operation for operation, _ in self._asked.values()}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            ModelError: The process died over it, or took too long and was ended.
        """
        limit = threading.Timer(REQUEST_SECONDS, self._give_up)
        limit.daemon = True
        limit.start()
        answer = self._send(request).get()
        limit.cancel()
        if answer is None:
            raise ModelError(self._how_it_died())
        return answer

    def _give_up(self) -> None:
        self._is_too_slow = True
        self._process.kill()

    def end_request(self, but: str) -> None:
        """Kill the process if it is at requests of other kinds alone; who waits for answers then hears that it died."""
        if self.operations and but not in self.operations:
            self._process.kill()

    def close(self) -> None:
        """End its stdin, and it ends; one that doesn't is killed."""
        try:
            _pipe(self._process.stdin).close()
        except BrokenPipeError:
            log.debug("the model process had ended already")
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(CLOSE_SECONDS)
        self._relay.join(CLOSE_SECONDS)
        self._reader.join(CLOSE_SECONDS)
        _pipe(self._process.stdout).close()
        _pipe(self._process.stderr).close()

    def _send(self, request: dict[str, Any]) -> "queue.SimpleQueue[Answer | None]":
        """Let it have a request; its answer comes by the queue, None if there will be none."""
        stdin, answers = _pipe(self._process.stdin), queue.SimpleQueue[Answer | None]()
        with self._lock:
            self._number += 1
            self._asked[self._number] = request["op"], answers
            try:
                stdin.write(json.dumps({"number": self._number, **request}) + "\n")
                stdin.flush()
            except (BrokenPipeError, ValueError):
                log.debug("the model process has ended")  # the missing answer tells the rest
            if self._has_ended:
                answers.put(None)
        return answers

    def _read_answers(self) -> None:
        for line in _pipe(self._process.stdout):
            if line.endswith("\n"):
                answer = json.loads(line)
                with self._lock:
                    _, answers = self._asked.pop(answer.pop("number"))
                answers.put(answer)
        with self._lock:
            self._has_ended = True
            for _, answers in self._asked.values():
                answers.put(None)

    def _relay_stderr(self) -> None:
        """Show what the child says, except TensorFlow's chatter."""
        for line in _pipe(self._process.stderr):
            if not is_chatter(line):
                self._last_lines.append(line.strip())
                sys.stderr.write(line)

    def _how_it_died(self) -> str:
        self._relay.join(1)
        code = self._process.wait(CLOSE_SECONDS)
        if self._is_too_slow:
            return f"Building, saving or trying the model took more than {REQUEST_SECONDS:g} s, and was given up."
        reason = f"killed by signal {-code}, perhaps for want of memory" if code < 0 else f"exit code {code}"
        words = " ".join(self._last_lines)[-400:]
        return f"The process that builds and saves the model ended ({reason}). {words}".strip()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # noqa: S101 - Popen was asked for all three
    return stream


def _environment() -> dict[str, str]:
    """This process's own, with a quiet TensorFlow, and with this very package to be found.

    An empty entry of PYTHONPATH would put the current folder before everything.
    """
    root = str(Path(__file__).resolve().parents[2])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([root, *filter(None, given)])
    return os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path}
