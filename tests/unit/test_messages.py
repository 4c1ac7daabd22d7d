"""Every message comes back as it was, looks as it always did, and is refused when a field is wrong or unknown."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import OtherVersion, ProtocolError
from broker.wire import codec, messages
from broker.wire.fields import to_plain
from broker.wire.messages import Message, RoundKey, decode, encode
from broker.wire.scores import AnswerCounts
from broker.wire.settings import TrainingSettings
from broker.wire.statistics import StatisticsAsked, StatisticsRefused, StatisticsTold
from broker.wire.tensors import InputFacts, TensorSpec
from broker.wire.versions import VERSION

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = TrainingSettings(
    epochs=1, batch_size=2, learning_rate=0.5, class_weight="none", examples_per_class=None, seed=0,
    deterministic=False, terms={"prox_mu": 0.25},
)  # fmt: skip

EXAMPLES: list[Message] = [
    messages.RollCall(),
    messages.Ping(token="t"),
    messages.RoundStart(
        run_id="r", round_number=1, attempt=1, mode="train", task="mnist", classes=("a", "b"), model="{}",
        settings=SETTINGS, layout=(TensorSpec(dtype="float32", shape=(2,), kind="trainable"),),
        inputs=InputFacts(shape=(2, 2), dtype="uint8", low=0.0, high=255.0), integers=(np.array([3]),),
        scale_exponent=40, part_bytes=65536, parts=0, weights=bytes(8), digest="d", last_round=5,
        deadline_seconds=60.0,
    ),
    messages.Part(
        run_id="r", round_number=1, transfer_id="u", index=0, count=2, precision="int8", data=b"ab"
    ),
    messages.RoundClosed(run_id="r", round_number=1),
    messages.UploadAgain(run_id="r", round_number=1, worker="w", upload_id="u"),
    messages.Refused(worker="w", reason="classes", token="t"),
    messages.RunFinished(run_id="r", rounds=5, outcome="done"),
    messages.Joined(
        worker="w", classes=("a", "b"), num_examples=3, examples_per_class=(1, 2), num_test_examples=1,
        evaluate_only=False, task=None, held=RoundKey(run_id="r", round_number=1, attempt=1), token="t",
    ),
    messages.SwarmJoined(
        worker="s",
        groups=(
            messages.JoinedAlike(
                common=messages.Joined(
                    worker="s", classes=("a", "b"), num_examples=0, examples_per_class=(), token="t"
                ),
                numbers=b"\x05", num_examples=np.array([3, 4]), num_test_examples=np.array([0, 1]),
                examples_per_class=np.zeros((2, 0), np.int64), announced=("u1", "u3"),
            ),
        ),
    ),
    messages.Left(worker="w"),
    messages.SwarmLeft(worker="s"),
    messages.Progress(
        worker="w", run_id="r", round_number=1, epoch=1, epochs=2, batch=3, batches=4,
        metrics={"loss": 0.5},
    ),
    messages.UpdateAnnounced(
        worker="w", run_id="r", round_number=1, attempt=1, upload_id="u", num_examples=3, metrics={"loss": 0.5},
        states={"auc": np.array([0.5, 2.0])}, global_metrics={}, global_states={},
        counts=AnswerCounts(per_class=np.array([[1, 0], [1, 0]]), bins=np.array([[9], [1], [0]], np.int32)),
        num_test_examples=1, precision="float32", scales=(), parts=2, update=None, digest="d",
        seconds=1.5,
    ),
    messages.Declined(worker="w", run_id="r", round_number=1, attempt=1, reason="no"),
    messages.SwarmDeclined(
        worker="s", numbers=b"\x05", run_id="r", round_number=1, attempt=1, reason="no"
    ),
    messages.Launch(task="mnist", options={"rounds": "3"}, reply_to="reply.0123456789abcdef"),
    messages.LaunchAnswered(run="mnist-1", reason=None),
    messages.StatusAsked(reply_to="reply.0123456789abcdef"),
    messages.StatusTold(state="{}"),
    StatisticsAsked(asked="q", session=1, step="range", shape=(2,), floor=12, bins=2, lows=(0.0,), highs=(1.5,)),
    StatisticsTold(
        worker="w", asked="q", step="range", shape=(1,), num_examples=10, lows=(-1.0,), highs=(1.5,),
        sums=(b"\xff",), squares=(b"\x01",), counts=np.array([[3, 0]]),
    ),
    StatisticsRefused(worker="w", asked="q", reason="no"),
]  # fmt: skip

each_message = pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: message.TYPE)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


@each_message
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    """Encoding and decoding lose nothing."""
    assert same(decode(encode(message)), message)


@each_message
def test_a_message_has_the_bytes_it_always_had(message: Message) -> None:
    """A change of the wire is a decision, seen in a golden file, and wants another version."""
    golden = GOLDEN / f"{message.TYPE}.hex"
    assert encode(message).hex() == golden.read_text(encoding="ascii").strip()


def test_the_two_messages_between_a_launcher_and_a_coordinator_may_be_json() -> None:
    """A run can be launched by hand from the management page."""
    body = json.dumps({"type": "launch", "version": 1, "task": "mnist", "options": {"rounds": "3"}}).encode()
    launch = decode(body, "application/json")
    assert isinstance(launch, messages.Launch)
    assert (launch.task, launch.options) == ("mnist", {"rounds": "3"})


def test_json_is_taken_for_a_launch_alone() -> None:
    """Nobody joins, and no round starts, by JSON."""
    with pytest.raises(ProtocolError, match="launch"):
        decode(json.dumps({"type": "left", "version": 2, "worker": "w"}).encode(), "application/json")


def fields_of(message: Message) -> dict[str, Any]:
    """Every field as it would travel, those too that have their default's value."""
    body = codec.pack({"type": message.TYPE, "version": VERSION, **to_plain(message)})
    value: dict[str, Any] = codec.unpack(body)
    return value


#: What a message can't do without. All else has a default: a new field must have one, or another version of the wire.
NEEDED: dict[str, set[str]] = {
    "roll-call": set(),
    "ping": {"token"},
    "round-start": {
        "run_id", "round_number", "attempt", "mode", "task", "classes", "model", "settings", "layout", "scale_exponent",
        "part_bytes", "digest", "last_round", "deadline_seconds",
    },
    "part": {"run_id", "round_number", "transfer_id", "index", "count", "data"},
    "round-closed": {"run_id", "round_number"},
    "upload-again": {"run_id", "round_number", "worker", "upload_id"},
    "refused": {"worker", "reason"},
    "run-finished": {"run_id", "rounds", "outcome"},
    "joined": {"worker", "classes", "num_examples", "examples_per_class"},
    "swarm-joined": {"worker", "groups"},
    "left": {"worker"},
    "swarm-left": {"worker"},
    "progress": {"worker", "run_id", "round_number", "epoch", "epochs", "batch", "batches"},
    "update-announced": {
        "worker", "run_id", "round_number", "attempt", "upload_id", "num_examples", "digest", "seconds",
    },
    "declined": {"worker", "run_id", "round_number", "attempt", "reason"},
    "swarm-declined": {"worker", "numbers", "run_id", "round_number", "attempt", "reason"},
    "launch": {"task"},
    "launch-answered": {"run"},
    "status-asked": {"reply_to"},
    "status-told": {"state"},
    "statistics-asked": {"asked", "step"},
    "statistics-told": {"worker", "asked", "step", "shape", "num_examples"},
    "statistics-refused": {"worker", "asked", "reason"},
}  # fmt: skip


SPOILERS: dict[str, Callable[[dict[str, Any], str], None]] = {
    "mistyped": lambda value, name: value.update({name: ["no", {"such": 1}]}),
    "boolean": lambda value, name: value.update({name: 3.5 if isinstance(value[name], bool) else True}),
}


@each_message
def test_a_field_may_be_missing_where_it_has_a_default(message: Message) -> None:
    """Then it is as if it had been sent with that; one without a default is named. So a new field is no flag day."""
    for name in fields_of(message).keys() - {"type", "version"}:
        value = fields_of(message)
        del value[name]
        if name in NEEDED[message.TYPE]:
            with pytest.raises(ProtocolError, match=name):
                decode(codec.pack(value))
        else:
            changed: Any = message
            assert same(
                decode(codec.pack(value)), dataclasses.replace(changed, **{name: default_of(changed, name)})
            )


def default_of(message: Any, name: str) -> Any:
    field: Any = next(field for field in dataclasses.fields(message) if field.name == name)
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def test_a_setting_that_is_left_out_is_its_default() -> None:
    """Also inside a message: what an older coordinator doesn't know of, a newer worker does without."""
    start = next(example for example in EXAMPLES if isinstance(example, messages.RoundStart))
    value = fields_of(start)
    value["settings"] = {"epochs": 1, "batch_size": 2, "seed": 0}
    decoded = decode(codec.pack(value))
    assert isinstance(decoded, messages.RoundStart)
    assert decoded.settings == TrainingSettings(
        epochs=1, batch_size=2, learning_rate=None, class_weight="none", examples_per_class=None, seed=0,
        deterministic=False, precision="float32", epochs_before=0,
    )  # fmt: skip


@each_message
def test_what_has_its_defaults_value_does_not_travel(message: Message) -> None:
    """So an older reader, which refuses fields that it doesn't know, takes a newer message that uses none of them."""
    needed = NEEDED[message.TYPE]
    kept = {name: getattr(message, name) for name in needed}
    sent = codec.unpack(encode(type(message)(**kept)))
    assert sent.keys() == needed | {"type", "version"}
    if "settings" in sent:
        assert sent["settings"].keys() == {"epochs", "batch_size", "seed", "learning_rate", "terms"}


@each_message
@pytest.mark.parametrize("how", SPOILERS)
def test_a_mistyped_field_is_refused(message: Message, how: str) -> None:
    """Whether it has a default or not: a wrong value is never replaced."""
    for name in fields_of(message):
        value = fields_of(message)
        SPOILERS[how](value, name)
        with pytest.raises(ProtocolError):
            decode(codec.pack(value))


@each_message
def test_an_extra_field_is_refused(message: Message) -> None:
    """What we don't know we don't read; it is named, and however many there are, the reason is short."""
    with pytest.raises(ProtocolError, match="knows no 'extra'"):
        decode(codec.pack({**fields_of(message), "extra": 1}))
    many = {f"{number:0100}": number for number in range(1000)}
    with pytest.raises(ProtocolError) as refused:
        decode(codec.pack({**fields_of(message), **many}))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, True])
def test_another_version_is_refused_and_said_so(version: object) -> None:
    """The reason tells what was expected; only what can be a version is taken for one."""
    with pytest.raises(ProtocolError, match="version") as refused:
        decode(codec.pack({"type": "left", "version": version, "worker": "w"}))
    assert isinstance(refused.value, OtherVersion) == (version in (1, 3) and version is not True)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_protocol_error_and_nothing_else(body: bytes) -> None:
    """Whatever arrives, decoding gives a message or a ProtocolError."""
    for content_type in ("application/msgpack", "application/json", None):
        with pytest.raises(ProtocolError):
            decode(body, content_type)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_flipped_bit_gives_a_message_or_a_protocol_error(message: Message, data: st.DataObject) -> None:
    """A damaged real message never crashes the reader."""
    body = bytearray(encode(message))
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ProtocolError):
        decode(bytes(body))


@pytest.mark.parametrize(
    "terms",
    [{f"term_{number}": 1.0 for number in range(17)}, {"mu": math.inf}, {"mu": math.nan}, {"mu": -1e39}],
)
def test_terms_without_bounds_are_refused(terms: dict[str, float]) -> None:
    """At most 16, each a number that the workers' float32 holds."""
    value = fields_of(next(each for each in EXAMPLES if isinstance(each, messages.RoundStart)))
    value["settings"]["terms"] = terms
    with pytest.raises(ProtocolError, match="terms"):
        decode(codec.pack(value))


@pytest.mark.parametrize("ends", [(0.0, math.nan), (-math.inf, 1.0), (2.0, 1.0)])
def test_a_range_of_examples_that_is_none_is_refused(ends: tuple[float, float]) -> None:
    """Taken for what the examples are like, NaN would be what every new model is tried with."""
    low, high = ends
    joined = next(each for each in EXAMPLES if isinstance(each, messages.Joined))
    inputs = InputFacts(shape=(2,), dtype="float32", low=low, high=high)
    with pytest.raises(ProtocolError, match="range"):
        dataclasses.replace(joined, inputs=inputs)


def test_deep_nesting_and_huge_lengths_are_refused_without_allocating() -> None:
    """A header that promises 4 GB, and a thousand lists in each other."""
    for body in (
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        bytes(16 * 1024 * 1024),
    ):
        with pytest.raises(ProtocolError):
            decode(body)


def test_every_message_type_is_among_the_examples() -> None:
    """A new message gets its golden file."""
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)}
    told = {type(example) for example in EXAMPLES}
    named = {kind.__name__ for kind in kinds - told - {Message}}
    assert named == set()
    assert all(dataclasses.is_dataclass(kind) for kind in told)
