"""The ideal: the same processes train at once with no federation at all, so whatever a system needs more is its own.

python -m tests.bench.ideal --clients 3 --rounds 5

Each process builds its model once, and trains one epoch a round in plain Keras from where it was; a round ends when the
last has finished, and nothing is sent but a word. Nothing is measured on test images, here as in the other systems: a
site's file has a single one for that reason. Threads are TensorFlow's own default, as they are for Warren's workers.
Prints one JSON object.
"""

import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import click

from tests.bench.moments import tell
from tests.bench.workload import cnn, keras_client, write_sites

_ANSWER_SECONDS = 600


def train(site: Path, pipe: Connection) -> None:
    """Be one of the processes: an epoch for every True, until False."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    answer, weights = keras_client(site), cnn().get_weights()
    while pipe.recv():
        weights = answer(weights, 0)
        pipe.send("done")


def play(sites: list[Path], rounds: int) -> list[float]:
    """The moments the start and each round's end came, in seconds."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in sites]
    processes = [
        context.Process(target=train, args=(site, theirs))
        for site, (_, theirs) in zip(sites, pairs, strict=True)
    ]
    pipes = [ours for ours, _ in pairs]
    moments = [time.monotonic()]
    try:
        for process in processes:
            process.start()
        for _ in range(rounds):
            for pipe in pipes:
                pipe.send(True)
            for pipe in pipes:
                if not pipe.poll(_ANSWER_SECONDS):
                    raise TimeoutError(f"A process has not trained an epoch in {_ANSWER_SECONDS} s.")
                pipe.recv()
            moments.append(time.monotonic())
        for pipe in pipes:
            pipe.send(False)
        for process in processes:
            process.join(_ANSWER_SECONDS)
    finally:
        for process in processes:
            process.kill()
    return moments


@click.command()
@click.option("--clients", type=int, default=3, show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
def main(clients: int, rounds: int) -> None:
    """Measure the ideal."""
    with tempfile.TemporaryDirectory() as folder:
        moments = play(write_sites(Path(folder), clients), rounds)
    print(json.dumps(tell(moments)))


if __name__ == "__main__":
    main()
