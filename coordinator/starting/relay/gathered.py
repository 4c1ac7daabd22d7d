"""What a relay says above of those who are there below: plain decisions over plain values."""

from collections import Counter
from collections.abc import Iterable, Sequence

from broker.model.likeness import common_inputs
from broker.wire.messages import Joined
from broker.wire.tensors import InputFacts
from coordinator.learning.membership import Member
from coordinator.play.log_text import listed

_Form = tuple[object, ...]


def _form(member: Member) -> _Form:
    """What all behind one relay have in common, for it can say one thing of them."""
    holds = tuple((each.name, each.role, each.dtype) for each in member.holds)
    return member.classes, holds, member.has_trainer, member.task


def alike(members: Iterable[Member]) -> tuple[list[Member], dict[str, str]]:
    """Those who are there and can be spoken for together, sorted by name; and why others can't."""
    odd: dict[str, str] = {}
    able: list[Member] = []
    for member in sorted(members, key=lambda each: each.worker):
        if member.evaluate_only or not member.num_examples:
            odd[member.worker] = "it trains on nothing; behind a relay only those take part that do"
        elif member.takes_rounds:
            able.append(member)
    if not able:
        return [], odd
    common, _ = Counter(map(_form, able)).most_common(1)[0]
    for member in able:
        if _form(member) != common:
            odd[member.worker] = (
                f"its data, or its task, is of another form than most here have: {_shown(member)}"
            )
    return [member for member in able if member.worker not in odd], odd


def _shown(member: Member) -> str:
    return listed(member.classes) or listed(each.name for each in member.holds) or "no classes"


def word_of(relay: str, members: Sequence[Member]) -> Joined:
    """What is said above of these, at least one, who are alike."""
    first, behind = members[0], tuple(number for member in members for number in member.declared)
    per_class = [member.examples_per_class for member in members]
    inputs = {member.worker: member.inputs for member in members}
    known: dict[str, InputFacts] = {worker: facts for worker, facts in inputs.items() if facts is not None}
    return Joined(
        worker=relay,
        classes=first.classes,
        num_examples=sum(behind),
        examples_per_class=tuple(map(sum, zip(*per_class, strict=True))) if all(per_class) else (),
        num_test_examples=sum(member.num_test_examples for member in members),
        task=first.task,
        inputs=common_inputs(known),
        holds=first.holds,
        trusts=tuple(part for part in first.trusts if all(part in each.trusts for each in members)),
        has_trainer=first.has_trainer,
        behind=behind,
    )
