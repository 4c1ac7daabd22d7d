"""The coordinator's child process, for the coordinator never imports TensorFlow: builds and saves the model.

`coordinator.keras.process` starts it and talks to it: one JSON line a request on stdin, one JSON line a reply
on stdout, with the request's number. What no round waits for, saving and drawing, is done by a thread of its own with
a model of its own: a trial meanwhile answers at once. The process ends when its stdin does, so it never outlives a
coordinator, even a killed one.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from broker.errors import ModelError, WarrenError
from coordinator.folder.history import flat_workers
from coordinator.keras.building import describe, given_by, keras_here, trust_modules
from coordinator.keras.curves import draw_workers
from coordinator.keras.keeper import Keeper
from coordinator.keras.pipes import LATER

_LAST_SECONDS = 10  # what a request under way may still take once stdin has ended

Request = dict[str, Any]
Requests = queue.SimpleQueue[Request | None]


def main() -> None:
    """Serve requests until stdin ends."""
    trust_modules(sys.argv[1:])
    # Last, so that a person's json.py or broker.py here stands in for nobody else's; "" is where this process works.
    sys.path.append("")
    # Ctrl-C and a stop of the whole group are the coordinator's to handle; the end of stdin is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    replies = Replies(_claim_stdout())
    now, later = Requests(), Requests()
    done = threading.Event()
    threading.Thread(target=_read, args=(now, later, done), daemon=True).start()
    saving = threading.Thread(target=_serve_or_end, args=(later, replies), daemon=True)
    saving.start()
    _serve(now, replies)
    saving.join()
    done.set()


class Replies:
    """The way back, on which a line is written whole.

    Args:
        stream: Where the coordinator reads.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, reply: Mapping[str, Any]) -> None:
        """Send one."""
        with self._lock:
            self._stream.write(json.dumps(reply) + "\n")
            self._stream.flush()


def _serve(requests: "Requests", replies: Replies) -> None:
    while (request := requests.get()) is not None:
        replies.write({"number": request["number"], **_answer_in_turn(request)})


def _serve_or_end(requests: "Requests", replies: Replies) -> None:
    """In a thread of its own, whose end alone nobody would notice: code of a model's that ends it ends the process."""
    try:
        _serve(requests, replies)
    except BaseException:  # noqa: BLE001 - SystemExit, too: a thread would swallow it
        traceback.print_exc()
        os._exit(1)


def _answer_in_turn(request: Request) -> dict[str, Any]:
    """Beside another once Keras is there: two threads that import it at once may each find half of it."""
    with _LOADING:
        if "keras" not in sys.modules:
            return _answer(request)
    return _answer(request)


def _claim_stdout() -> TextIO:
    """Keep stdout for replies; what a person's model code prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _read(now: "Requests", later: "Requests", done: threading.Event) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        (later if request["op"] in LATER else now).put(request)
    now.put(None)
    later.put(None)
    if not done.wait(_LAST_SECONDS):
        os._exit(1)  # the coordinator is gone, and a request hangs


def _answer(request: Request) -> dict[str, Any]:
    try:
        return {"result": _OPERATIONS[request["op"]](request)}
    except WarrenError as exc:
        return {"error": type(exc).__name__, "text": str(exc)}
    except Exception as exc:  # noqa: BLE001 - a bug: its traceback is shown here, and its text there
        traceback.print_exc()
        return {"error": "bug", "text": f"{type(exc).__name__}: {exc}"}


def _warm(_request: Request) -> dict[str, Any]:
    """Import TensorFlow while the coordinator connects; where there is none, a task of arrays can still be trained."""
    try:
        return {"keras": keras_here().__version__}
    except ModelError:
        return {"keras": None}


def _build(request: Request) -> dict[str, Any]:
    """Make the model of a task and its initial weights."""
    given = given_by(request["kind"], request["source"], request["seed"])
    answer, weights = describe(given, request["initial_model"], request["normalization"], request["private"])
    np.savez(request["weights_path"], *weights)
    return answer


def _draw_workers(request: Request) -> dict[str, Any]:
    """Each worker's own curves: many lines take seconds, so this is asked for when a run ends."""
    from coordinator.folder.checkpoint import read_checkpoint

    draw_workers(flat_workers(read_checkpoint(Path(request["checkpoint"])).history), Path(request["picture"]))
    return {}


_LOADING = threading.Lock()
_KEEPER, _SAVING = Keeper(), Keeper()
_OPERATIONS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "warm": _warm,
    "build": _build,
    "save": _SAVING.save,
    "check": _KEEPER.check,
    "work-out": _KEEPER.work_out,
    "draw-workers": _draw_workers,
}

if __name__ == "__main__":
    main()
