"""Each role on its own least-privilege account, on a real broker, with one of them an enemy."""

import re
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.hosting import accounts
from broker.hosting.management import Management
from broker.wire.messages import Declined, Left, RoundClosed, RunFinished, encode
from tests.brokers import wait_until
from tests.faults.conftest import MakeStage
from tests.faults.stage import MANY_PARTS, SMALL_PARTS, WORKERS, drained
from tests.faults.test_hostile import few, flipped, junk, refitted, replace_names
from tests.unit.test_messages import EXAMPLES

Urls = dict[str, str]


@pytest.fixture
def urls(vhost: str, management: Management) -> Iterator[Urls]:
    """The AMQP URL of each role with its own account, and of an invited enemy."""
    parts = urlsplit(vhost)
    found = {}
    for name in ("coordinator", *WORKERS, "evil"):
        invited = accounts.invite(management, unquote(parts.path[1:]), name)
        login = f"{name}:{quote(invited.password or '', safe='')}"
        found[name] = parts._replace(netloc=f"{login}@{parts.hostname}:{parts.port}").geturl()
    yield found
    for name in found:
        accounts.revoke(management, name)


def test_workers_with_accounts_of_their_own_train_large_models(
    vhost: str, make_stage: MakeStage, urls: Urls
) -> None:
    """Nothing breaks: everybody has no more rights than `broker invite` gives, and the update comes in parts."""
    stage = make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS)
    workers = [stage.worker(name, amqp_url=urls[name]) for name in WORKERS]
    coordinator = stage.coordinator(rounds=2, amqp_url=urls["coordinator"])
    assert [actor.ended() for actor in [coordinator, *workers]] == [0, 0, 0, 0], stage.story
    assert "dead=0" in coordinator.said
    stage.assert_same_bits(rounds=2)


def test_an_enemy_with_an_account_changes_nothing(vhost: str, make_stage: MakeStage, urls: Urls) -> None:
    """Hundreds of bodies under the enemy's account, some without user_id: junk, flipped bits, changed fields, and well
    made messages in the name of another worker or of the coordinator. All are in `dead` with their reason or discarded;
    the run ends with the same bits, nobody left, nobody trained twice."""
    stage = make_stage(vhost, size=MANY_PARTS, patches=SMALL_PARTS)
    held = {"w1": (stage.hold("announce"),)}  # so that all of it is judged before the round can close
    workers = [stage.worker(name, amqp_url=urls[name], breaks=held.get(name, ())) for name in WORKERS]
    coordinator = stage.coordinator(rounds=2, amqp_url=urls["coordinator"])
    stage.reached("announce")
    run_id = stage.checkpoint.run_id
    forged = [
        *(encode(Left(worker=name)) for name in WORKERS),
        *(
            encode(Declined(worker=name, run_id=run_id, round_number=1, attempt=1, reason="no"))
            for name in WORKERS
        ),
        encode(RunFinished(run_id=run_id, rounds=1, outcome="done")),
        encode(RoundClosed(run_id=run_id, round_number=1)),
    ]
    bodies = [encode(replace_names(each)) for each in EXAMPLES]
    connection = pika.BlockingConnection(pika.URLParameters(urls["evil"]))
    try:
        channel = connection.channel()

        @given(
            body=junk | flipped(bodies) | refitted(bodies) | st.sampled_from(forged), is_named=st.booleans()
        )
        @few
        def sent(body: bytes, is_named: bool) -> None:
            properties = pika.BasicProperties(user_id="evil" if is_named else None)
            channel.basic_publish("federation", "coordinator", body, properties)

        sent()
        for body in forged:
            channel.basic_publish("federation", "coordinator", body, pika.BasicProperties(user_id="evil"))
    finally:
        connection.close()
    stage.let_go("announce")
    assert [actor.ended() for actor in [coordinator, *workers]] == [0, 0, 0, 0], stage.story
    stage.assert_same_bits(rounds=2)
    stage.assert_nobody_trained_twice()
    dead = drained(stage.link(), "dead")
    assert len(dead) >= 2 * 20  # of each sender the first ones; the rest are counted
    counted = re.search(r"dead=(\d+)", coordinator.said)
    assert counted is not None
    assert int(counted[1]) > 250
    assert all(each.headers["reason"] for each in dead)
    wait_until(lambda: not stage.leftovers(), 10)
