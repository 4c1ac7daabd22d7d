"""One hostile account that does everything at once, beside two honest workers."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path

from broker.hosting.private import PrivateBroker
from tests.attacks.conftest import Invite
from tests.attacks.enemy import NAME, Enemy
from tests.faults.actors import undisturbed
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, Actor, Stage

TRAIN_SECONDS, GRACE_SECONDS, ROUNDS = 3.0, 2.0, 20
HONEST = {"site-1": 100, "site-2": 110}
_GROWTH_BYTES = 100 * 2**20
_UPLOAD_BYTES = 64 * 2**20  # what may wait in each of the enemy's two queues
_SHARED_BYTES = (512 + 64) * 2**20  # of what everybody may write to: the coordinator's queue, and `dead`


def memory_of(actor: Actor) -> int:
    """Its resident set in bytes; nothing once it has ended, before anybody fetched its exit code."""
    status = Path(f"/proc/{actor.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else 0


def disk_of(broker: PrivateBroker) -> int:
    """What its data take on the disk, in bytes; what goes meanwhile counts nothing."""
    total = 0
    for path in (broker.home / "data").rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def test_an_enemy_that_does_everything_at_once_harms_nobody_else(
    vhost: str, tmp_path: Path, invite: Invite, broker: PrivateBroker
) -> None:
    """The enemy holds one invited account and uses it without a pause: junk, floods, lies, forged names, queues of its
    own making. It wants the others to end, the round to stay open, the coordinator to run out of memory or the broker
    of disk. The rounds close in their time, with the bits of a run without it, and the history says who was
    shut out."""
    stage = Stage(vhost, tmp_path, size=MANY_PARTS, patches=SMALL_PARTS)
    as_coordinator, as_enemy = invite("coordinator"), invite(NAME, upload_bytes=_UPLOAD_BYTES)
    for name, number in HONEST.items():
        stage.worker(name, num_examples=number, train_seconds=TRAIN_SECONDS, amqp_url=invite(name))
    run = {"workers": 2, "quorum": 2, "grace_seconds": GRACE_SECONDS}
    coordinator = stage.coordinator(rounds=ROUNDS, run=run, amqp_url=as_coordinator)
    stage.wait_for_round(1, 60)
    before, begun = memory_of(coordinator), time.monotonic()
    disk_before = disk_of(broker)
    enemy = Enemy(as_enemy)
    enemy.start()
    most, most_disk = before, disk_before
    while coordinator.is_running and time.monotonic() - begun < 240:
        with suppress(FileNotFoundError):
            most = max(most, memory_of(coordinator))
        most_disk = max(most_disk, disk_of(broker))
        coordinator.ended(1) if not coordinator.is_running else enemy.end.wait(0.5)
    lasted = time.monotonic() - begun
    enemy.end.set()
    enemy.join(20)
    assert [actor.ended() for actor in stage.actors] == [0, 0, 0], stage.story
    rows = stage.checkpoint.history
    seconds = [row.seconds for row in rows[1:]]
    print(json.dumps({"seconds": seconds, "lasted": lasted, "memory": [before, most], "done": enemy.done}))
    print(json.dumps({"disk": [disk_before, most_disk]}))
    assert all(row.accepted == tuple(HONEST) or set(row.accepted) == set(HONEST) for row in rows[1:]), rows
    assert max(seconds) <= 1.5 * seconds[0] + GRACE_SECONDS, seconds
    assert most - before < _GROWTH_BYTES
    assert most_disk - disk_before < 2 * _UPLOAD_BYTES + _SHARED_BYTES
    stage.assert_bits(undisturbed(HONEST, rounds=ROUNDS, size=stage.size), ROUNDS)
    assert any(NAME in row.rejected or NAME in row.late for row in rows), rows
    assert "\x1b" not in coordinator.said
    assert min(enemy.done.values()) >= 2, enemy.done
