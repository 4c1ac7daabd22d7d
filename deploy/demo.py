"""`make demo`: three hospitals learn to see pneumonia together, from a clean clone to a prediction."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import logs
from deploy.demo_data import find_data

logger = logging.getLogger("demo")

ROUNDS = 5
HOSPITALS = ("hospital-1", "hospital-2", "hospital-3")
RUN = Path("runs/demo")
SITES = Path("sites/demo")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "warren"
_BIN = Path(sys.executable).parent
_END_SECONDS = 60


class Stopwatch:
    """Shows where each minute goes."""

    def __init__(self) -> None:
        self.laps: list[tuple[str, float]] = []

    @contextmanager
    def lap(self, what: str) -> Iterator[None]:
        """Time one step."""
        started = time.monotonic()
        yield
        self.laps.append((what, time.monotonic() - started))

    def table(self) -> str:
        """One line a step, and the sum."""
        rows = [*self.laps, ("in all", sum(seconds for _, seconds in self.laps))]
        return "\n".join(f"  {what:<42}{seconds:>7.1f} s" for what, seconds in rows)


def command(*words: str) -> list[str]:
    """One of our commands, as installed beside this Python."""
    return [str(_BIN / words[0]), *words[1:]]


def output_of(*words: str) -> str:
    """Run one of our commands and return what it prints; its story goes to the terminal."""
    print("$", " ".join(words), flush=True)
    done = subprocess.run(command(*words), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


@contextmanager
def workers(amqp_url: str, logs_folder: Path) -> Iterator[None]:
    """Three workers as processes of their own, each with its own data; ended with the block."""
    processes = []
    for number, name in enumerate(HOSPITALS, 1):
        words = ["worker", "run", "--name", name, "--data", str(SITES / f"site-{number}"), "--once"]
        print("$", " ".join(words), "&", flush=True)
        with (logs_folder / f"{name}.log").open("wb") as stream:
            environment = os.environ | {"AMQP_URL": amqp_url}
            processes.append(subprocess.Popen(command(*words), env=environment, stderr=stream))
    try:
        yield
        for process in processes:
            process.wait(_END_SECONDS)
    finally:
        for process in processes:
            process.terminate()
            process.wait(_END_SECONDS)


def train(amqp_url: str) -> None:
    """Play the rounds; the coordinator's story is shown, the workers' are kept beside the run."""
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True)
    with workers(amqp_url, RUN):
        words = ["coordinator", "run", "chest-xray", "--workers", "3", "--quorum", "2"]
        words += ["--rounds", str(ROUNDS), "--out", str(RUN)]
        print("$", " ".join(words), flush=True)
        done = subprocess.run(command(*words), env=os.environ | {"AMQP_URL": amqp_url}, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Run the demo in the current folder: data in sites/demo, the run in runs/demo."""
    logs.configure()
    watch = Stopwatch()
    was_up = subprocess.run(command("broker", "status"), capture_output=True, check=False).returncode == 0
    with watch.lap("a broker to work with"):
        amqp_url = output_of("broker", "up").split()[0]
    try:
        with watch.lap("data, cut into three hospitals by patient"):
            data = find_data("chest_xray", CACHE)
            shutil.rmtree(SITES, ignore_errors=True)
            print(output_of("worker", "split", str(data), "--into", "3", "--out", str(SITES)), flush=True)
        with watch.lap(f"{ROUNDS} rounds of training by three workers"):
            train(amqp_url)
        model = str(RUN / "model.keras")
        with watch.lap("accuracy on the test images"):
            print(output_of("worker", "evaluate", model, "--data", str(data / "test")), flush=True)
        with watch.lap("a prediction"):
            images = [str(min((data / "test" / kind).iterdir())) for kind in ("NORMAL", "PNEUMONIA")]
            print(output_of("worker", "predict", model, *images), flush=True)
    finally:
        if not was_up:
            output_of("broker", "down")
    print(
        f"Where the time went:\n{watch.table()}\n\nThe model is {model}, its history {RUN / 'history.csv'},"
    )
    print(f"its curves {RUN / 'curves.png'}; the workers' own stories are {RUN}/*.log.")


if __name__ == "__main__":
    main()
