"""Who is invited to a round, and to another attempt at it: plain decisions over plain values."""

from broker.wire.limits import MOST_EXAMPLES
from coordinator.folder.checkpoint import Checkpoint
from coordinator.learning.aggregation import capacity, scale_exponent
from coordinator.learning.membership import most_weight, num_selected, select
from coordinator.learning.rounds import Round, RoundRecord
from coordinator.options import RunOptions
from coordinator.play.admission import Admission


def open_record(
    state: Checkpoint, options: RunOptions, admission: Admission, *, is_training: bool, part_bytes: int
) -> RoundRecord:
    """What is fixed when the next round opens.

    Args:
        state: The committed one.
        options: Of the run.
        admission: Who may take part, and is there.
        is_training: Whether it trains, or only measures the committed model.
        part_bytes: Bytes of float32 values that one part of a transfer covers.
    """
    number = state.round_number + 1
    fraction = options.fraction if is_training else 1.0
    selected = select(admission.trainers, fraction, (options.seed, number, state.next_attempt))
    evaluators = tuple(admission.evaluators)
    num_examples = admission.num_examples(selected + evaluators)
    declared = admission.declared(selected)
    most = most_weight(declared, options.max_examples or MOST_EXAMPLES, options.max_share)
    return RoundRecord(
        run_id=state.run_id,
        round_number=number,
        first_attempt=state.next_attempt,
        attempt=state.next_attempt,
        mode="train" if is_training else "evaluate",
        selected=selected,
        evaluators=evaluators,
        num_examples=num_examples,
        scale_exponent=scale_exponent(sum(min(number, most) for number in declared)),
        part_bytes=part_bytes,
        quorum=options.needed,
        deadline_seconds=options.deadline_seconds,
        grace_seconds=options.grace_seconds,
        most_weight=most,
        relays=admission.shares(selected, most),
    )


def fewest_present(options: RunOptions) -> int:
    """The least number of present workers of which the fraction invites a quorum."""
    number = options.needed
    while num_selected(options.fraction, number) < options.needed:
        number += 1
    return number


def reinvited(the_round: Round, options: RunOptions, admission: Admission) -> dict[str, int]:
    """Who is invited to the next attempt, each with its examples.

    Present workers that have not been accepted, as many as before, and no more than the round's sum has room for.
    """
    record = the_round.record
    accepted = frozenset(the_round.accepted)
    candidates = [worker for worker in admission.trainers if worker not in accepted]
    wanted = len(record.selected) - the_round.num_accepted
    if options.fraction < 1 and len(candidates) > wanted > 0:
        seed = (options.seed, record.round_number, record.attempt + 1)
        candidates = list(select(candidates, wanted / len(candidates), seed))
    room = capacity(record.scale_exponent) - sum(map(record.reserved, record.num_examples))
    chosen: dict[str, int] = {}
    for worker, number in admission.num_examples(candidates).items():
        reserved = record.reserved(worker)
        is_counted = worker in record.relays
        extra = 0 if is_counted else admission.weight(worker, record.most_weight) - reserved
        if extra <= room:
            room -= extra
            chosen[worker] = number
    return chosen
