"""`coordinator serve` and `worker run` as processes, with a model and data small enough for a test."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np

from tests.brokers import wait_until

TASK = "tests.servings:tiny_model"
ROOT = Path(__file__).parents[1]
_STARTED = re.compile(r"http://\S+")


def tiny_model() -> Any:
    """A compiled Keras model that tells dark images from bright ones; called in the coordinator's child."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def save_site(path: Path, count: int, seed: int) -> Path:
    """Write so many dark and bright images as an .npz."""
    rng = np.random.default_rng(seed)

    def images(number: int) -> tuple[Any, Any]:
        y = np.arange(number) % 2
        x = rng.random((number, 12, 12)) * 150 + y[:, None, None] * rng.random((number, 1, 1)) * 80
        return x.astype(np.uint8), y

    (x_train, y_train), (x_test, y_test) = images(count), images(40)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


class Process:
    """One command as a process; its output is in files.

    Args:
        path: A folder whose modules come before all others.
    """

    def __init__(
        self, package: str, arguments: list[str], folder: Path, amqp_url: str, path: Path | None = None
    ) -> None:
        paths = [str(each) for each in (path, ROOT) if each]
        name = f"{package}-{len(list(folder.glob('*.out')))}"
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        program = f"from {package}.cli import main; main(prog_name={package!r})"
        with self.out.open("w") as stdout, self.err.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                stdout=stdout,
                stderr=stderr,
                cwd=folder,
                env=os.environ | {"AMQP_URL": amqp_url, "PYTHONPATH": os.pathsep.join(paths)},
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait(20)

    def terminate(self) -> int:
        """Ask it to end; its exit code."""
        self._process.terminate()
        return self._process.wait(40)

    def ended(self, seconds: float = 40) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(seconds)

    def says(self, text: str, seconds: float = 60) -> None:
        """Wait until it has said this."""
        wait_until(lambda: text in self.said or not self.is_running, seconds, what=repr(text))
        assert text in self.said, self.said

    @property
    def said(self) -> str:
        return self.out.read_text(encoding="utf-8") + self.err.read_text(encoding="utf-8")


class Lab:
    """One federation on one broker: starts its processes, and ends them all.

    Args:
        path: A folder whose modules come before all others, in every process.
    """

    def __init__(self, folder: Path, amqp_url: str, path: Path | None = None) -> None:
        self.folder = folder
        self.amqp_url = amqp_url
        self._path = path
        self.address = ""
        self.processes: list[Process] = []

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.is_running:
                process.kill()

    def start(self, package: str, *arguments: str) -> Process:
        process = Process(package, list(arguments), self.folder, self.amqp_url, self._path)
        self.processes.append(process)
        return process

    def serve(self, *arguments: str) -> Process:
        """Start `coordinator serve` on a free port, or on the port that it had."""
        port = self.address.rpartition(":")[2] or "0"
        process = self.start("coordinator", "serve", "--port", port, *arguments)
        wait_until(lambda: "http" in process.said or not process.is_running, 60, what="the address")
        found = _STARTED.search(process.said)
        assert found, process.said
        self.address = found.group()
        return process

    def worker(self, name: str, count: int = 160) -> Process:
        data = save_site(self.folder / f"{name}.npz", count, seed=count)
        return self.start("worker", "run", "--name", name, "--data", str(data))

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run `coordinator …` to its end: its exit code, and what it said."""
        process = self.start("coordinator", *arguments)
        return process.ended(), process.said

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=10) as answer:
            return json.load(answer)

    def code(self, path: str) -> int:
        """The status of the answer alone."""
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=10) as answer:
                return int(answer.status)
        except HTTPError as exc:
            with exc:
                return exc.code

    def metrics(self) -> dict[str, float]:
        """What Prometheus reads: each series with its value."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {series: float(value) for series, value in pairs}

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        """Post JSON; the status, and the answer."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"{self.address}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **given},
        )
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, json.load(answer)
        except HTTPError as exc:
            with exc:
                return exc.code, json.load(exc)

    def wait_for(self, holds: Callable[[Any], bool], seconds: float, what: str) -> Any:
        """Wait until the state is so; the state."""
        seen: list[Any] = []

        def look() -> bool:
            seen[:] = [self.get("/api/state")]
            return bool(seen[0].get("workers") is not None and holds(seen[0]))

        wait_until(look, seconds, what=what)
        return seen[0]
