"""What the coordinator's log tells of a run: about three lines a round, and why something failed."""

import logging
from collections.abc import Mapping, Sequence

from coordinator.folder.history import Row
from coordinator.folder.standing import Standing
from coordinator.learning.rounds import Answer, Round
from coordinator.play.log_text import listed, measured, reasons

logger = logging.getLogger(__name__)


def tell_waiting(present: Sequence[str], number: int, paused: Mapping[str, str]) -> None:
    """Workers are awaited."""
    names_of = f" ({listed(present)})" if present else ""
    names_of += f"; paused: {listed(paused)}" if paused else ""
    logger.info("Waiting for workers: %d of %d joined%s.", len(present), number, names_of)


def too_few(present: Sequence[str], number: int, paused: Mapping[str, str], seconds: float) -> str:
    """They did not come."""
    are_paused = f" Paused: {listed(paused)}." if paused else ""
    return (
        f"Only {len(present)} of {number} workers joined within {seconds:g} s: {listed(present) or 'nobody'}."
        f"{are_paused} Start more workers, or lower --workers."
    )


def tell_opened(the_round: Round, rounds: int) -> None:
    """An attempt begins; the evaluation of model N is no round N + 1 to a person."""
    record, invited = the_round.record, listed(the_round.unanswered)
    again = f", attempt {record.attempt}" if record.attempt > record.first_attempt else ""
    if record.mode == "train":
        logger.info("Round %d of %d%s: %s invited.", record.round_number, rounds, again, invited)
    else:
        logger.info("Measuring the model of round %d: %s invited.", record.round_number - 1, invited)


def tell_retried(the_round: Round) -> None:
    """An attempt has missed the quorum."""
    logger.warning(
        "Round %d has %d of %d updates; trying again without waiting for %s.",
        the_round.record.round_number,
        the_round.num_accepted,
        the_round.record.quorum,
        listed(the_round.unanswered) or "anyone",
    )


def tell_closed(the_round: Round, history: list[Row], seconds: float, *, is_general: bool = False) -> None:
    """A round is committed; what its workers measured is of the model before."""
    record = the_round.record
    is_training = record.mode == "train"
    if is_training:
        if the_round.unanswered:
            logger.warning("Late in round %d: %s.", record.round_number, listed(the_round.unanswered))
        logger.info(
            "Round %d closed after %.1f s with %d of %d updates%s.",
            record.round_number,
            seconds,
            the_round.num_accepted,
            len(record.selected),
            measured(history[-1].metrics),
        )
    last = history[-2] if is_training else history[-1]
    examples = "examples" if is_general else "images"
    for figures, whose in ((last.test, "the workers'"), (last.central, "the central")):
        if figures:
            logger.info(
                "The model of round %d on %s test %s%s.", last.round, whose, examples, measured(figures)
            )


def tell_enough(standing: Standing, closed_rounds: int, rounds: int) -> None:
    """A run ends before its last round, because its models no longer become better."""
    if standing.enough and closed_rounds < rounds:
        logger.info("Enough after round %d of %d: %s.", closed_rounds, rounds, standing.enough)


def why_not_reached(the_round: Round) -> str:
    """No attempt is left."""
    record = the_round.record
    return (
        f"Round {record.round_number} has {the_round.num_accepted} of {record.quorum} updates after "
        f"{record.attempt - record.first_attempt + 1} attempts. No answer: "
        f"{listed(the_round.unanswered) or 'none'}; rejected: {reasons(the_round.rejected) or 'none'}. "
        f"The model of round {record.round_number - 1} is saved; the same command goes on from there."
    )


def sizes_of(accepted: dict[str, Answer]) -> str:
    """How large each worker's largest change of a weight is."""
    sizes = ", ".join(f"{worker} {answer.largest:.3g}" for worker, answer in accepted.items())
    return sizes[:500]
