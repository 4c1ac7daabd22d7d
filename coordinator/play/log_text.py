"""How the coordinator's logs say things: names, reasons, measures; no list floods a line."""

from collections.abc import Iterable, Mapping, Sequence

from coordinator.learning.measure_names import best_known_first
from coordinator.learning.membership import Member
from coordinator.learning.rounds import RoundRecord

_MOST_NAMES = 8
_MOST_CLASSES = 10


def listed(names: Iterable[str]) -> str:
    """At most eight names, and how many more."""
    every = list(names)
    more = f" and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else ""
    return ", ".join(every[:_MOST_NAMES]) + more


def reasons(rejected: Mapping[str, str]) -> str:
    """Who was rejected, and why."""
    return "; ".join(f"{worker}: {reason}" for worker, reason in rejected.items())


def told_of(record: RoundRecord) -> dict[str, object]:
    """Which round this is, to the audit log."""
    return {"run": record.run_id, "round": record.round_number, "attempt": record.attempt}


def described(member: Member) -> str:
    """What a worker brings."""
    if member.evaluate_only:
        return f"evaluates on {member.num_test_examples} examples"
    if member.behind:
        return f"a relay of {len(member.behind)} workers with {member.num_examples} examples"
    if len(member.classes) > _MOST_CLASSES or not member.examples_per_class:
        return f"{member.num_examples} examples"
    per_class = zip(member.classes, member.examples_per_class, strict=False)
    return f"{member.num_examples} examples ({', '.join(f'{name} {count}' for name, count in per_class)})"


def described_together(members: Sequence[Member]) -> str:
    """What the workers of one process bring."""
    if members[0].evaluate_only:
        return (
            f"{len(members)} workers evaluate on {sum(each.num_test_examples for each in members)} examples"
        )
    return f"{len(members)} workers with {sum(each.num_examples for each in members)} examples"


def measured(figures: Mapping[str, float]) -> str:
    """A clause with all measures, the best known first; nothing where there is none."""
    shown = [f"{name.replace('_', ' ')} {figures[name]:.4f}" for name in best_known_first(figures)]
    return f": {', '.join(shown)}" if shown else ""
