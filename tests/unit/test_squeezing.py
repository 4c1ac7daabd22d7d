"""The way down made thin: coarse steps, which both sides follow to the bit, and what they cut off for later."""

import threading
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from broker.errors import ProtocolError
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.publisher import Publisher
from broker.link.seam import Delivery, worker_queue
from broker.wire.messages import Part, RoundStart, decode
from broker.wire.settings import Precision, TrainingSettings
from broker.wire.tensors import Layout, TensorSpec, Vector
from broker.wire.transfer import Digest, slices
from coordinator.learning.membership import RelayShare
from coordinator.learning.squeezing import Rest, Squeezing
from coordinator.play.open_round.round_start import Invitation
from tests.unit.test_checkpoint import STATE
from tests.unit.test_rounds import RECORD
from worker.rounds.round_starts import Incoming, Newest, check_start

PART_BYTES = 64 * 1024
SIZES = {"trainable": 40_000, "statistic": 10, "frozen": 20_000}
LAYOUT: Layout = tuple(
    TensorSpec(dtype="float32", shape=(size,), kind=kind)  # type: ignore[arg-type]
    for kind, size in SIZES.items()
)


def model(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(sum(SIZES.values()), np.float32)


def after(held: Vector, seed: int) -> Vector:
    """What a round may come to: trainable weights moved a little, other statistics, the frozen ones as they are."""
    wanted = held.copy()
    wanted[:40_000] += np.float32(1e-3) * model(seed)[:40_000]
    wanted[40_000:40_010] = model(seed)[40_000:40_010]
    return wanted


def digest_of(vector: Vector) -> str:
    digest = Digest()
    for index, span in enumerate(slices(vector.size, PART_BYTES)):
        digest.add(index, vector[span].tobytes())
    return digest.hex()


def squeezed(squeezing: Squeezing, wanted: Vector, held: Vector, rest: Rest | None = None) -> Rest | None:
    return squeezing.squeeze(
        wanted, held, rest, LAYOUT, held_digest=digest_of(held), part_bytes=PART_BYTES, round_number=2
    )


class Sending:
    """A coordinator that sends round 2, and what its workers a, b and c get."""

    def __init__(self, squeezing: Squeezing, vector: Vector, relays: frozenset[str] = frozenset()) -> None:
        broker = MemoryBroker()
        self.coordinator, self.worker = MemoryLink(broker, "coordinator"), MemoryLink(broker, "w")
        self.worker.declare([worker_queue(name) for name in "abc"])
        base = replace(STATE, layout=LAYOUT, vector=vector, integers=(), strategy_state=())
        self.record = record = replace(
            RECORD,
            round_number=2,
            part_bytes=PART_BYTES,
            relays=dict.fromkeys(relays, RelayShare(num_workers=1, weight=1)),
        )
        settings = TrainingSettings(epochs=1, batch_size=1, seed=0)
        self.invitation = Invitation(record, base, settings, last_round=3, squeezing=squeezing)

    def send(self, models: dict[str, str]) -> dict[str, tuple[RoundStart, list[Part]]]:
        publisher = Publisher(self.coordinator, threading.Event())
        self.invitation.send(publisher, {name: [name] for name in "abc"}, 0, self.record, models)
        return {name: self.came_to(name) for name in "abc"}

    def came_to(self, name: str) -> tuple[RoundStart, list[Part]]:
        deliveries: list[Delivery] = list(self.worker.fetch(f"worker.{name}", 100))
        start, *parts = (decode(each.body) for each in deliveries)
        assert isinstance(start, RoundStart)
        check_start(start)
        return start, [part for part in parts if isinstance(part, Part)]


def received(start: RoundStart, parts: list[Part], newest: Newest | None = None) -> Vector:
    incoming = Incoming(start, None, newest)
    for part in parts:
        assert incoming.take(part)
    assert incoming.is_complete
    return incoming.vector


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_each_worker_gets_what_it_needs_and_all_have_the_same_bits(precision: Precision) -> None:
    """Who has the last model gets the step, who has this one no weights at all, and everybody else all of them."""
    held, squeezing = model(1), Squeezing(precision, 0)
    vector = after(held, 2)
    squeezed(squeezing, vector, held)
    models = {"a": digest_of(held), "b": digest_of(vector)}
    came = Sending(squeezing, vector).send(models)
    num_bytes = {name: sum(len(part.data) for part in parts) for name, (_, parts) in came.items()}
    assert num_bytes == {"a": {"int8": 40_040, "float16": 80_040}[precision], "b": 0, "c": 240_040}
    newest = Newest(digest=digest_of(held), vector=held)
    assert newest.leads_to(came["a"][0])
    assert received(*came["a"], newest).tobytes() == vector.tobytes()
    assert received(*came["c"]).tobytes() == vector.tobytes()
    assert Newest(digest=digest_of(vector), vector=vector).is_of(came["b"][0])
    assert models == dict.fromkeys("abc", digest_of(vector)), "all of them have it, or have it before them"


@pytest.mark.parametrize("order", ["as sent", "backwards", "one of them twice"])
def test_sha256_of_the_model_is_worked_out_while_it_comes(order: str) -> None:
    """Whole or as a step, whatever the disorder: the audit log tells it before the training, which need not wait."""
    held, squeezing = model(1), Squeezing("int8", 0)
    vector = after(held, 2)
    squeezed(squeezing, vector, held)
    came = Sending(squeezing, vector).send({"a": digest_of(held)})
    for name, newest in (("a", Newest(digest=digest_of(held), vector=held)), ("b", None)):
        start, parts = came[name]
        sent = {"as sent": parts, "backwards": parts[::-1], "one of them twice": [parts[0], *parts]}[order]
        incoming = Incoming(start, None, newest, is_audited=True)
        for part in sent:
            assert incoming.take(part)
        assert (incoming.sha256 is None) == (order == "one of them twice"), "it is worked out anew then"
        assert incoming.sha256 is None or incoming.sha256() == sha256(vector).hexdigest()
        assert received(start, sent, newest).tobytes() == vector.tobytes()


def test_without_the_option_everybody_gets_all_weights() -> None:
    """Whatever is known of them: workers keep no model then."""
    held, squeezing = model(1), Squeezing("float32", 0)
    vector = after(held, 2)
    expected = vector.tobytes()
    assert squeezed(squeezing, vector, held) is None
    assert vector.tobytes() == expected
    came = Sending(squeezing, vector).send({"a": digest_of(held), "b": digest_of(vector)})
    assert [len(parts) for _, parts in came.values()] == [4, 4, 4]
    assert all(start.download_precision == "float32" and not start.base for start, _ in came.values())


def test_a_relay_is_told_the_step_as_any_worker() -> None:
    """The line between two sites is the thin one. Its own workers get whole copies of what the step leads it to."""
    held, squeezing = model(1), Squeezing("int8", 0)
    vector = after(held, 2)
    squeezed(squeezing, vector, held)
    models = dict.fromkeys("ab", digest_of(held))
    came = Sending(squeezing, vector, frozenset("ac")).send(models)
    newest = Newest(digest=digest_of(held), vector=held)
    assert received(*came["a"], newest).tobytes() == vector.tobytes()
    assert received(*came["c"]).tobytes() == vector.tobytes()
    assert [start.relay is not None for start, _ in came.values()] == [True, False, True]
    assert [len(parts) for _, parts in came.values()] == [len(came["b"][1]), len(came["b"][1]), 4]


def in_full(rest: Rest | None) -> Vector:
    """What a rest adds to each value of a model."""
    added = np.zeros(sum(SIZES.values()), np.float32)
    if rest is not None:
        rest.add_to(added, LAYOUT)
    return added


def test_a_rest_is_coarse_and_right_in_the_mean() -> None:
    """An eighth of its own steps comes to nothing seven times of eight, and to a whole one else: it is not lost."""
    left = np.full(40_010, 1e-3 / 127 / 8, np.float32)
    left[0] = 1e-3
    rest = Rest.of(left, LAYOUT, 0)
    assert rest.values.nbytes == 40_000
    assert set(np.unique(in_full(rest)[1:40_000] * 127e3).round(3)) == {0, 1}
    assert in_full(rest)[1:40_000].mean() == pytest.approx(left[1], rel=0.05)
    assert not in_full(rest)[40_000:].any()


def test_what_a_step_cuts_off_is_told_with_the_next() -> None:
    """Twenty rounds towards the same model: the one that is held comes as near as float32 tells; without the rest
    kept it would stay half a step away."""
    held, wanted, squeezing = model(1), after(model(1), 2), Squeezing("int8", 0)
    rest: Rest | None = None
    far = np.abs(wanted - held)[:40_000].max()
    for _ in range(20):
        former, held = held, wanted - in_full(rest)
        rest = squeezed(squeezing, held, former, rest)
        assert rest is not None
        assert np.abs(held + in_full(rest) - wanted)[:40_000].max() <= rest.scales[0] * 1.1 + 1e-6
    assert np.abs(held - wanted)[:40_000].max() < far * 1e-4
    assert held[40_000:].tobytes() == wanted[40_000:].tobytes(), "statistics and frozen weights are exact"


def test_the_same_round_is_squeezed_to_the_same_bits() -> None:
    """A coordinator that was killed before the checkpoint does it once more; another seed does it otherwise."""
    held = model(1)
    results = []
    for seed in (0, 0, 1):
        vector = after(held, 2)
        squeezed(Squeezing("int8", seed), vector, held)
        results.append(vector.tobytes())
    assert results[0] == results[1] != results[2]


def test_what_was_not_told_yet_is_told_when_the_run_goes_on_without_steps() -> None:
    """A run that goes on with --download-precision float32 loses nothing of its model."""
    in_float32 = Rest(values=np.concatenate([np.full(40_000, 0.5, np.float32), np.zeros(10, np.float32)]))
    for rest in (in_float32, Rest(values=np.full(40_000, 2, np.int8), scales=(0.25,))):
        held = model(1)
        vector = after(held, 2)
        expected = np.concatenate([vector[:40_000] + np.float32(0.5), vector[40_000:]])
        assert squeezed(Squeezing("float32", 0), vector, held, rest) is None
        assert vector.tobytes() == expected.tobytes()


def test_a_step_beyond_what_int8_can_tell_is_a_whole_copy() -> None:
    """Weights of 10^35 are no error: they are sent as they are."""
    held, squeezing = model(1), Squeezing("int8", 0)
    vector = after(held, 2)
    vector[0] = 1e35
    assert squeezed(squeezing, vector, held) is None
    assert vector[0] == np.float32(1e35)
    assert squeezing.step_to(vector, PART_BYTES) is None


def test_a_step_that_leads_elsewhere_is_refused() -> None:
    """Whatever was damaged on the way or in memory: the digest is that of the model, and not of the step alone."""
    held, squeezing = model(1), Squeezing("int8", 0)
    vector = after(held, 2)
    squeezed(squeezing, vector, held)
    start, parts = Sending(squeezing, vector).send({"a": digest_of(held)})["a"]
    other = held.copy()
    other[50_000] += 1
    with pytest.raises(ProtocolError, match="digest"):
        received(start, parts, Newest(digest=digest_of(held), vector=other))
    with pytest.raises(ProtocolError, match="scales"):
        Incoming(replace(start, scales=()), None, Newest(digest=digest_of(held), vector=held))
    with pytest.raises(ProtocolError, match="parts"):
        check_start(replace(start, parts=4))
