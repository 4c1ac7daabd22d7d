"""Who may take part in a run: decided when a worker joins, by name, before a round opens."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from broker.wire.messages import Joined
from broker.wire.settings import Held, InputSpec, Needs, TargetSpec
from broker.wire.tensors import FLOAT32, InputFacts
from coordinator.folder.checkpoint import Checkpoint
from coordinator.folder.history import Row
from coordinator.learning.membership import Member, Roster
from coordinator.play.admission import Admission


def state_of(kind: Any, *, outputs: int = 1, **changes: Any) -> Checkpoint:
    """A run of a model with one input of three numbers and one row of outputs."""
    needs = Needs(
        inputs=(InputSpec(name="x", shape=(3,), dtype="float32"),),
        targets=(TargetSpec(name="y", shape=(outputs,), kind=kind, num_classes=outputs),),
        num_classes=max(2, outputs),
    )
    values: dict[str, Any] = {
        "run_id": "r", "task": "a-task", "classes": (), "round_number": 0, "next_attempt": 1, "model_json": "{}",
        "input_shape": (3,), "num_classes": max(2, outputs), "layout": (), "vector": np.zeros(0, FLOAT32),
        "integers": (), "strategy_state": (), "history": [Row(round=0)], "needs": needs,
    }  # fmt: skip
    return Checkpoint(**values | changes)


def member(
    *classes: str, shape: tuple[int, ...] = (3,), y: tuple[int, ...] | None = None, **more: Any
) -> Member:
    """One of classes, or (`y`) of any other form."""
    facts = None if y is not None else InputFacts(shape=shape, dtype="float32", low=0, high=1)
    holds = () if y is None else (held("input", shape), held("target", y))
    joined = Joined(
        worker="w", classes=classes, num_examples=9, examples_per_class=(), inputs=facts, holds=holds, **more
    )
    return Roster().join(joined)


def held(role: Any, shape: tuple[int, ...]) -> Held:
    return Held(name="0", role=role, shape=shape, dtype="float32")


def flaw(worker: Member, state: Checkpoint) -> str:
    return Admission(Roster(), "a-task").consider(worker, state) or ""


REGRESSION = state_of("numbers")
GENERAL = replace(REGRESSION, is_general=True)
CLASSIFIER = state_of("classes", outputs=3)


@pytest.mark.parametrize(
    ("worker", "state"),
    [
        (member("0", "1"), REGRESSION),  # as a classifier of two, or as numbers
        (member("18", "19", "20"), REGRESSION),  # ages, say
        (member(y=()), REGRESSION),
        (member(y=(3,)), state_of("binary", outputs=3)),
        (member("a", "b", "c"), CLASSIFIER),
        (member("18", "19", "20"), GENERAL),
        (member(y=(1,)), GENERAL),
    ],
)
def test_what_fits_one_way_or_the_other_takes_part(worker: Member, state: Checkpoint) -> None:
    """Until most of the first sites have decided, a model of one row of outputs can be either."""
    assert flaw(worker, state) == ""


@pytest.mark.parametrize(
    ("worker", "state", "named"),
    [
        (member("a", "b"), CLASSIFIER, "it has 2 classes; the model of a-task has 3"),
        (member(y=(2,)), CLASSIFIER, "its target (float32, 2 an example) does not fit"),
        (
            member(y=(2,)),
            replace(CLASSIFIER, classes=("a", "b", "c")),
            "its data names no classes",
        ),
        (member("a", "b", shape=(4,)), REGRESSION, "its examples have the shape (4,)"),
        (member(y=(), shape=(4,)), GENERAL, "its input (float32, 4 an example) does not fit"),
        (
            member("a", "b"),
            replace(CLASSIFIER, parts=("my>Gate",)),
            "it does not trust my>Gate: start it with",
        ),
    ],
)
def test_what_fits_neither_way_is_refused_with_what_is_needed(
    worker: Member, state: Checkpoint, named: str
) -> None:
    """In the words of the way that its data is meant for."""
    assert named in flaw(worker, state)


def test_a_general_models_inputs_are_held_against_those_of_most_sites(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a classifier's are: pictures of another scale are refused, columns are worth a word; who has several inputs
    says nothing of a range."""
    pixels = InputFacts(shape=(3,), dtype="float32", low=0, high=255)
    state = replace(GENERAL, inputs=pixels)
    unit = replace(member(y=(1,)), inputs=InputFacts(shape=(3,), dtype="float32", low=0, high=1))
    assert flaw(unit, state) == ""
    assert "takes part, but its values lie from 0 to 1" in caplog.text
    assert flaw(member(y=(1,)), state) == ""
    assert state.needs is not None
    pictures = replace(state.needs, inputs=(InputSpec(name="x", shape=(3, 3), dtype="float32"),))
    small = replace(member(shape=(3, 3), y=(1,)), inputs=replace(pixels, shape=(3, 3), high=1))
    assert "Bring them to one scale" in flaw(small, replace(state, needs=pictures))


def test_whoever_trusts_a_models_parts_takes_part() -> None:
    """By their registered names."""
    state = replace(CLASSIFIER, parts=("my>Gate",))
    assert flaw(member("a", "b", "c", trusts=("my>Gate", "my>More")), state) == ""


@pytest.mark.parametrize(("classes", "wants"), [((), True), (("0", "1"), False), (("18", "19", "20"), True)])
def test_most_sites_decide_whether_a_model_is_a_classifier(classes: tuple[str, ...], wants: bool) -> None:
    """Its number of classes is the sites', or they have none."""
    roster = Roster()
    roster.add(member(*classes) if classes else member(y=()))
    assert Admission(roster, "a-task").wants_numbers(REGRESSION) == wants


def test_who_is_paused_is_not_invited_and_named_with_the_reason() -> None:
    """It would decline; a run that needs it waits. Who has left is not paused but away."""
    roster = Roster()
    for name, pause in (("a", ""), ("b", "paused by its operator"), ("c", "paused by its operator")):
        roster.add(replace(member("x", "y", pause=pause), worker=name))
    roster.set_present("c", is_present=False)
    admission = Admission(roster, "a-task")
    assert admission.trainers == ["a"]
    assert admission.paused == {"b": "paused by its operator"}
    assert len(admission.members) == 3
