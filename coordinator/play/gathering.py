"""Bringing together those who take part: each word is looked at, and what most have in common becomes the run's."""

import logging
from collections.abc import Iterable

from broker.link.seam import outgoing
from broker.model.likeness import scale_difference
from broker.wire import names
from broker.wire.messages import Refused
from broker.wire.tensors import InputFacts
from coordinator.learning.membership import Member
from coordinator.options import RunOptions
from coordinator.play.admission import Admission
from coordinator.play.committed import Committed
from coordinator.play.log_text import described, described_together
from coordinator.presence.session import Session, WorkersCame

logger = logging.getLogger(__name__)


class Gathering:
    """The workers of one run.

    Args:
        session: Who is there.
        admission: Who may take part.
        committed: What they must fit.
    """

    def __init__(
        self, session: Session, admission: Admission, committed: Committed, options: RunOptions
    ) -> None:
        self._session = session
        self._admission = admission
        self._committed = committed
        self._options = options
        self._noted: dict[str, str] = {}  #: whose refusal the audit log has, and why

    def admit(self, members: Iterable[Member]) -> list[Member]:
        """Look at workers' words; those who can't take part are told, and the others returned."""
        fit: list[Member] = []
        unfit: dict[str, list[tuple[Member, str]]] = {}
        for member in members:
            reason = self._admission.consider(member, self._committed.state)
            if reason is not None:
                unfit.setdefault(member.reader, []).append((member, reason))
            elif member.task in (None, self._options.task.name):
                fit.append(member)
        for (first, reason), *others in unfit.values():
            self._turn_away(first, reason, len(others))
        return fit

    def _turn_away(self, member: Member, reason: str, num_others: int) -> None:
        """Tell a process that a worker of it, and perhaps others, can't take part."""
        others = f" and {num_others} more" if num_others else ""
        if self._noted.get(member.reader) != reason:
            self._noted[member.reader] = reason
            self._session.audit.note(
                "refused",
                worker=member.reader,
                number=num_others + 1,
                version=member.release or None,
                task=self._options.task.name,
                reason=reason,
            )
        if self._session.is_lasting:
            logger.info("%s%s takes no part in this run: %s.", member.worker, others, reason)
            return
        logger.warning("Refused %s%s: %s.", member.worker, others, reason)
        told = f"The coordinator refused {member.worker}{others}: {reason}."
        refused = Refused(worker=member.worker, reason=told, token=member.token)
        self._session.publisher.try_send([outgoing(refused, names.worker_queue(member.reader))])

    def admit_known(self) -> None:
        """Look at everyone who had joined before this run began."""
        self.admit(list(self._session.roster.members.values()))

    def admit_again(self) -> None:
        """Look anew at those who take part: what they must fit has been settled."""
        self.admit(self._admission.members)

    def welcome(self, event: WorkersCame) -> list[Member]:
        """Look at workers that say they are there, and tell of them; those who can take part."""
        fit = self.admit(event.members)
        is_new = [self._admission.is_new(member.worker) for member in fit]
        news = [member for member in fit if member.worker in event.news]
        again = "" if any(is_new) else " again"
        if len(news) == 1:
            logger.info("%s joined%s: %s.", news[0].worker, again, described(news[0]))
        elif news:
            logger.info("%s joined%s: %s.", news[0].reader, again, described_together(news))
        return fit

    def has(self, number: int) -> bool:
        """Whether so many workers that train are there, and fit."""
        return len(self._admission.trainers) >= number

    def settle(self, trained_on: InputFacts | None) -> None:
        """What most of the first workers have becomes the run's: class names, and what the examples are like.

        A model that can be trained either way is no classifier in this run if theirs are no examples of its classes.

        Args:
            trained_on: What the model to start from was trained on.
        """
        state = self._committed.present
        if state.classes or state.is_arrays or (state.is_general and state.inputs is not None):
            return
        if not state.is_general:
            if self._admission.wants_numbers(state):
                self._committed.settle_as_general()
            else:
                self._committed.settle_classes(self._admission.commonest_classes())
            self.admit_again()
        self._settle_inputs(trained_on)

    def _settle_inputs(self, trained_on: InputFacts | None) -> None:
        common = self._admission.common_inputs()
        if common is None:
            return
        if trained_on:
            words = "the workers' values", "the model was trained on ones"
            difference = scale_difference(common, trained_on, *words)
            if difference:
                logger.warning("Other data than before: %s.", difference)
        self._committed.settle_inputs(common)
        self.admit_again()
