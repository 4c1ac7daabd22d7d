"""Sides of different versions tell each other so, by name and at once; over the in-memory link."""

import logging
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import DataError, NobodyServes, OtherVersion, ProtocolError
from broker.link.memory import MemoryLink
from broker.link.seam import Outgoing, dead_queue, reply_queue
from broker.wire import codec, messages
from broker.wire.fields import to_plain
from broker.wire.messages import (
    Launch,
    LaunchAnswered,
    Message,
    Refused,
    RollCall,
    StatusAsked,
    StatusTold,
    decode,
)
from broker.wire.versions import (
    VERSION,
    Envelope,
    difference,
    encode_not_launched,
    encode_refused,
    read_envelope,
)
from coordinator.terminal.client import asking
from tests.unit.test_listener import START, Hearing
from tests.unit.test_session import Place, joined
from worker.rounds.hand_over import DeclineJob

OLDER, NEWER = VERSION - 1, VERSION + 1
REPLY = "reply.0123456789abcdef"


def of_version(version: int, message: Message, **changes: Any) -> bytes:
    """A message as another version would send it: with a field more, without a field, or of a type of its own."""
    fields = {"type": message.TYPE, "version": version, **to_plain(message), **changes}
    return codec.pack({name: value for name, value in fields.items() if value is not ...})


def say(link: MemoryLink, key: str, body: bytes) -> None:
    link.publish([Outgoing(key=key, body=body, message_type="?")])


def told(link: MemoryLink, queue: str) -> list[dict[str, Any]]:
    return [codec.unpack(delivery.body) for delivery in link.fetch(queue, 100)]


# What can be read


def test_a_version_and_who_speaks_it_can_be_read_of_whatever_else_is_in_it() -> None:
    """The fields that every version has; also of a type that this version doesn't know."""
    body = codec.pack({"type": "sealed", "version": 7, "worker": "hospital-2", "token": "t", "seal": [b"?"]})
    with pytest.raises(OtherVersion, match=r"Expected version 2 of sealed, got 7") as refused:
        decode(body)
    assert refused.value.envelope == Envelope(type="sealed", version=7, worker="hospital-2", token="t")


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "left"}, {"version": 3}, {"type": "left", "version": 0}, {"type": "left", "version": 65536},
        {"type": "x" * 101, "version": 3}, {"type": "left", "version": 3.0}, {"type": ["left"], "version": 3},
    ],
)  # fmt: skip
def test_what_is_no_message_of_any_version_has_no_envelope(fields: dict[str, Any]) -> None:
    """No type, no version, or one that can't be meant."""
    assert read_envelope(fields) is None


_OPTIONAL = ("worker", "token", "reply_to", "run_id", "round_number", "attempt")
_anything = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.text())


_OPTIONAL = ("worker", "token", "reply_to", "run_id", "round_number", "attempt")
_anything = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from(_OPTIONAL), _anything))
def test_an_envelope_holds_what_is_as_it_should_be_and_no_more(fields: dict[str, Any]) -> None:
    """A name that is none, a number that is none, or a queue that isn't for answers is left out."""
    envelope = read_envelope({"type": "left", "version": 3, **fields})
    assert envelope is not None
    assert envelope.worker is None or envelope.worker == fields["worker"]
    assert envelope.reply_to is None
    assert all(type(count) in (int, type(None)) for count in (envelope.round_number, envelope.attempt))
    assert all(len(text or "") <= 100 for text in (envelope.token, envelope.run_id))


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (1, "w speaks version 1 of the wire, this coordinator 2: upgrade w"),
        (3, "w speaks version 3 of the wire, this coordinator 2: upgrade this coordinator"),
    ],
)
def test_it_is_said_which_side_to_upgrade(version: int, text: str) -> None:
    """Always the older one."""
    assert difference("w", version, "this coordinator") == text


def test_a_refusal_to_the_first_version_is_to_the_byte_what_that_reads() -> None:
    """It refused every field that it didn't know: `worker` and `reason`, and nothing else."""
    body = encode_refused(Envelope(type="joined", version=1, worker="w", token="t"), "w", "other")
    assert codec.unpack(body) == {"type": "refused", "version": 1, "worker": "w", "reason": "other"}


def test_a_later_coordinators_refusal_can_be_read_here() -> None:
    """What it makes of three fields for a worker of this version is a `refused` of this version."""
    to = Envelope(type="joined", version=VERSION, worker="w", token="t")
    assert decode(encode_refused(to, "w", "other")) == Refused(worker="w", reason="other", token="t")
    assert decode(encode_not_launched(to, "other")) == LaunchAnswered(run="", reason="other")


# The coordinator


@pytest.fixture
def place() -> Place:
    made = Place()
    made.link.declare([dead_queue()])
    made.begin()
    return made


@pytest.mark.parametrize(("version", "older"), [(OLDER, "w"), (NEWER, "this coordinator")])
def test_a_worker_of_another_version_is_refused_by_name_when_it_joins(
    place: Place, caplog: pytest.LogCaptureFixture, version: int, older: str
) -> None:
    """The log says it once, the worker reads it each time, nobody counts it as present, and `dead` stays empty."""
    worker = place.worker("w")
    worker.cancel(["worker.w"])
    for _ in range(2):
        say(worker, "coordinator", of_version(version, joined("w"), classes=..., sealed=True))
        place.take_all()
    (line,) = caplog.messages
    assert line == (
        f"Refused w: w speaks version {version} of the wire, this coordinator 2: upgrade {older}."
    )
    first, second = told(worker, "worker.w")
    side = "this worker" if older == "w" else "the coordinator"
    assert first == second == {
        "type": "refused", "version": version, "worker": "w",
        "reason": f"The coordinator refused w: this worker speaks version {version} of the wire, the coordinator 2: "
        f"upgrade {side}.",
        **({"token": "t"} if version > 1 else {}),
    }  # fmt: skip
    assert (place.present, place.broker.depth("dead"), place.broker.depth("coordinator")) == ([], 0, 0)


def test_a_worker_that_joined_an_earlier_coordinator_is_refused_by_what_is_heard_first(place: Place) -> None:
    """This coordinator was upgraded while it ran; what it says then, once more, is of no use to it."""
    worker = place.worker("w")
    worker.cancel(["worker.w"])
    for _ in range(3):
        say(worker, "coordinator", of_version(OLDER, messages.Left(worker="w")))
    place.take_all()
    assert [message["type"] for message in told(worker, "worker.w")] == ["refused"]


def test_nobody_is_refused_by_another_accounts_word(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """What a forged sender says in another version goes to `dead` like any other word of its."""
    place.worker("w")
    enemy = place.worker("x")
    say(enemy, "coordinator", of_version(NEWER, joined("w")))
    place.take_all()
    assert place.broker.depth("dead") == 1
    assert "Refused" not in caplog.text


def test_a_joined_with_a_field_too_many_is_refused_by_name_and_kept_in_dead(place: Place) -> None:
    """Within a version nobody waits in vain either: the worker is told which field, and a person finds its message."""
    worker = place.worker("w")
    worker.cancel(["worker.w"])
    say(worker, "coordinator", of_version(VERSION, joined("w"), sealed=True))
    place.take_all()
    (refused,) = told(worker, "worker.w")
    assert "'sealed'" in refused["reason"]
    assert place.broker.depth("dead") == 1


def test_once_upgraded_a_worker_is_taken(place: Place) -> None:
    """That it was refused is not held against it."""
    worker = place.worker("w")
    say(worker, "coordinator", of_version(OLDER, joined("w")))
    place.say(joined("w"))
    place.take_all()
    assert place.present == ["w"]


# Whoever asks a coordinator


@pytest.mark.parametrize("version", [OLDER, NEWER])
def test_a_launch_of_another_version_is_refused_so_that_it_can_be_read(place: Place, version: int) -> None:
    """The answer comes in the version of the question, made of the two fields that every version has."""
    visitor = MemoryLink(place.broker, "coordinator")
    visitor.declare([reply_queue(REPLY)])
    say(visitor, "coordinator", of_version(version, Launch(task="mnist", reply_to=REPLY), more=1))
    place.take_all()
    (answer,) = told(visitor, REPLY)
    assert answer.keys() == {"type", "version", "run", "reason"}
    assert (answer["type"], answer["version"], answer["run"]) == ("launch-answered", version, "")
    assert answer["reason"].startswith(
        f"this command speaks version {version} of the wire, the coordinator 2: "
    )


@pytest.mark.parametrize("version", [OLDER, NEWER])
def test_who_asks_for_the_status_in_another_version_learns_which_one_is_spoken(
    place: Place, version: int
) -> None:
    """The answer is of the coordinator's own version, and says it on its envelope."""
    visitor = MemoryLink(place.broker, "coordinator")
    visitor.declare([reply_queue(REPLY)])
    say(visitor, "coordinator", of_version(version, StatusAsked(reply_to=REPLY)))
    place.take_all()
    (answer,) = told(visitor, REPLY)
    assert (answer["type"], answer["version"]) == ("status-told", VERSION)


@pytest.mark.parametrize(
    ("version", "older"), [(OLDER, "upgrade the coordinator"), (NEWER, "upgrade this command")]
)
def test_an_answer_of_another_version_is_one_clear_line(place: Place, version: int, older: str) -> None:
    """`coordinator status` and `launch` say at once which side to upgrade, and don't wait for another answer."""
    visitor = MemoryLink(place.broker, "coordinator")
    with asking(visitor, threading.Event()) as asker:
        answer = of_version(version, StatusTold(state="{}"), more=1)
        say(place.link, asker._queue, answer)
        with pytest.raises(NobodyServes, match=f"the coordinator speaks version {version} .*: {older}"):
            asker.status()


def test_a_launch_typed_by_hand_in_another_version_is_in_dead(place: Place) -> None:
    """Nobody waits for its answer: a person looks there for the reason."""
    say(place.link, "coordinator", of_version(NEWER, Launch(task="mnist"), reply_to=...))
    place.take_all()
    assert place.broker.depth("dead") == 1


# The worker


@pytest.fixture
def hearing() -> Hearing:
    return Hearing()


def test_a_worker_tells_once_of_a_version_that_it_can_not_speak(
    hearing: Hearing, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever comes in it is acknowledged and left unread; `dead` does not fill with another version's parts."""
    for version in (OLDER, NEWER):
        for message in (START, RollCall(), START):
            say(hearing.coordinator, "worker.w", of_version(version, message, more=1))
    hearing.take_all()
    assert hearing.is_all_acknowledged
    assert hearing.broker.depth("dead") == 0
    older, newer = caplog.messages
    assert older.startswith(
        "Left unread, a round-start: the coordinator speaks version 1 of the wire, this worker 2: "
    )
    assert "upgrade the coordinator" in older
    assert "upgrade this worker" in newer


def test_a_newer_coordinator_is_told_who_is_there_and_refuses_by_name(hearing: Hearing) -> None:
    """Its roll call can't be read, but what it is can: the worker joins, is refused in its own version, and ends."""
    token = hearing.joined().token
    say(hearing.coordinator, "worker.w", of_version(NEWER, RollCall(), more=1))
    hearing.take_all()
    hearing.listener._join()
    (said,) = told(hearing.coordinator, "coordinator")
    assert (said["type"], said["version"], said["token"]) == ("joined", VERSION, token)
    envelope = Envelope(type="joined", version=VERSION, worker="w", token=said["token"])
    say(hearing.coordinator, "worker.w", encode_refused(envelope, "w", "upgrade this worker"))
    with pytest.raises(DataError, match="upgrade this worker"):
        hearing.take_all()


def test_a_refusal_of_before_an_upgrade_is_ignored(
    hearing: Hearing, caplog: pytest.LogCaptureFixture
) -> None:
    """It was for the process of the version before, which never took it; nor does it tell what is spoken now."""
    caplog.set_level(logging.INFO)
    say(hearing.coordinator, "worker.w", of_version(OLDER, Refused(worker="w", reason="old"), token=...))
    hearing.take_all()
    assert hearing.is_all_acknowledged
    assert caplog.messages == []


def test_a_round_start_with_a_field_too_many_is_declined(hearing: Hearing) -> None:
    """A setting that this worker doesn't know: it says so by name, and the round doesn't wait for its deadline."""
    settings = {**to_plain(START.settings), "mu": 0.01}
    say(hearing.coordinator, "worker.w", of_version(VERSION, START, settings=settings))
    hearing.take_all()
    assert hearing.is_all_acknowledged
    job = hearing.hand_over.jobs.get_nowait()
    assert isinstance(job, DeclineJob)
    assert (job.worker, job.key) == ("w", replace(START.held, digest=""))  # which the envelope lacks
    assert "knows no 'mu'" in job.reason


def test_a_refusal_without_the_process_s_token_ends_nobody(hearing: Hearing) -> None:
    """Whoever speaks this version echoes the token; without one it answers nobody."""
    hearing.say(Refused(worker="w", reason="other classes"))
    hearing.take_all()
    assert hearing.is_all_acknowledged


def test_junk_has_no_version() -> None:
    """It goes to `dead` like all junk: nobody is told to upgrade for it."""
    with pytest.raises(ProtocolError) as refused:
        decode(codec.pack({"type": "joined", "version": "new"}))
    assert not isinstance(refused.value, OtherVersion)
