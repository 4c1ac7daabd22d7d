"""`make soak MINUTES=N`: real processes, a seeded random schedule of all faults, and the bits of an undisturbed run.

Runs of some rounds follow each other on one broker of its own: five with trainings that are plain arithmetic, which
leave no time between the faults, then one that TensorFlow trains. In two of the five a relay and a second broker stand
between the coordinator and two of its three workers. Meanwhile coordinator, workers, relay and brokers are killed,
frozen, told to stop and started again, their networks cut, their queues emptied, and junk is sent to them. Each run
must end with the bits of an undisturbed one, no process stuck, no queue with a message left; worker w3 lives through
all runs of its kind, and must not grow.
"""

import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from urllib.parse import quote, urlsplit

import click
import numpy as np

from broker.hosting import accounts
from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker
from broker.link.address import vhost_of
from tests.attacks.enemy import NAME as ENEMY
from tests.brokers import fresh_vhost, started_broker
from tests.faults.actors import undisturbed
from tests.faults.chaos import Chaos, Play
from tests.faults.chaos_behind_relay import ChaosBehindRelay
from tests.faults.stage import MANY_PARTS, WORKERS, Stage

#: Which federation plays when: plain, behind a relay, under siege, and one that TensorFlow trains.
ORDER = (0, 3, 2, 0, 3, 1)


def arithmetic() -> Play:
    """Trainings of up to 0.8 s that are some lines of numpy."""
    rounds = 8
    return Play(
        name="arithmetic",
        rounds=rounds,
        pause_seconds=(0.2, 2.0),
        longest_seconds=300,
        data={},
        expected=undisturbed(WORKERS, rounds=rounds, size=MANY_PARTS),
    )


def trained(broker: PrivateBroker, folder: Path) -> Play:
    """Keras's mnist model on noise; what an undisturbed run of it gives is found out first."""
    rng, data, rounds = np.random.default_rng(0), {}, 12
    folder.mkdir()
    for name, count in WORKERS.items():
        x = rng.integers(0, 255, (4 * count, 28, 28), dtype=np.uint8)
        y = np.arange(4 * count) % 10
        data[name] = str(folder / f"{name}.npz")
        np.savez(data[name], x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    with fresh_vhost(broker) as amqp_url:
        stage = Stage(amqp_url, folder)
        try:
            actors = [stage.worker(name, data=data[name]) for name in WORKERS]
            actors.append(stage.coordinator(rounds=rounds, data="mnist", run={"deterministic": True}))
            assert [actor.ended(300) for actor in actors] == [0] * len(actors), stage.story
            expected = stage.checkpoint.vector
        finally:
            stage.close()
    return Play(
        name="TensorFlow",
        rounds=rounds,
        pause_seconds=(2.0, 8.0),
        longest_seconds=900,
        data=data,
        expected=expected,
    )


@contextmanager
def behind_relay(play: Play, broker: PrivateBroker, folder: Path, seed: int) -> Iterator[Chaos]:
    """The same play with a region behind a relay; the region's broker is its own."""
    with (
        started_broker(folder / "region") as region,
        fresh_vhost(broker) as above,
        fresh_vhost(region) as below,
        ChaosBehindRelay(
            replace(play, name=f"{play.name}, behind a relay"), broker, above, region, below, folder, seed
        ) as chaos,
    ):
        yield chaos


@contextmanager
def invited(broker: PrivateBroker, amqp_url: str) -> Iterator[dict[str, str]]:
    """Accounts of their own for everybody, and one for an enemy: each one's address."""
    management, vhost = Management(broker.management_url), vhost_of(amqp_url)
    logins = {}
    for name in ("coordinator", *WORKERS, ENEMY):
        login = accounts.invite(management, vhost, name)
        parts = urlsplit(amqp_url)
        user = f"{login.user}:{quote(login.password or '', safe='')}"
        logins[name] = parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}").geturl()
    yield logins
    for name in logins:
        accounts.revoke(management, name)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(minutes: float, seed: int) -> None:
    """Runs under faults for so many minutes."""
    signal.signal(signal.SIGTERM, _end)  # so that what was started is ended
    end = time.monotonic() + 60 * minutes
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="warren-soak-"))
    click.echo(f"logs in {folder}", err=True)
    with started_broker(folder / "broker") as broker, ExitStack() as stack:
        federations = []
        for play in (arithmetic(), trained(broker, folder / "undisturbed")):
            amqp_url = stack.enter_context(fresh_vhost(broker))
            federations.append(stack.enter_context(Chaos(play, broker, amqp_url, folder, seed)))
        besieged = replace(federations[0].play, name="arithmetic, under siege")
        amqp_url = stack.enter_context(fresh_vhost(broker))
        logins = stack.enter_context(invited(broker, amqp_url))
        federations.append(stack.enter_context(Chaos(besieged, broker, amqp_url, folder, seed, logins)))
        federations.append(stack.enter_context(behind_relay(federations[0].play, broker, folder, seed)))
        number = 0
        while time.monotonic() < end:
            federations[ORDER[number % len(ORDER)]].run(number)
            number += 1
    click.echo(
        f"{number} runs in {(time.monotonic() - begun) / 60:.1f} minutes (seed {seed}), each with the bits of an"
    )
    click.echo("undisturbed run; no process stuck, no message left in a queue.")
    for chaos in federations:
        click.echo(chaos.report())
    survived = sum((chaos.survived for chaos in federations), Counter())
    click.echo(f"{survived.total()} faults survived:")
    for name, count in sorted(survived.items()):
        click.echo(f"{count:6}  {name}")
    if any(chaos.grows for chaos in federations):
        raise SystemExit("The worker's memory grows.")


if __name__ == "__main__":
    main()
