"""Bringing together those who take part: each word is looked at, and what most have in common becomes the run's."""

import logging

from broker.link.seam import outgoing
from broker.model.likeness import scale_difference
from broker.wire import names
from broker.wire.messages import Refused
from broker.wire.tensors import InputFacts
from coordinator.learning.membership import Member
from coordinator.options import RunOptions
from coordinator.play.admission import Admission
from coordinator.play.committed import Committed
from coordinator.play.log_text import described
from coordinator.presence.session import Session, WorkerCame

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

    def admit(self, member: Member) -> bool:
        """Look at a worker's word; one that can't take part is told. Whether it can."""
        reason = self._admission.consider(member, self._committed.state)
        if reason is None:
            return member.task in (None, self._options.task.name)
        if self._session.is_lasting:
            logger.info("%s takes no part in this run: %s.", member.worker, reason)
            return False
        logger.warning("Refused %s: %s.", member.worker, reason)
        told = f"The coordinator refused {member.worker}: {reason}."
        refused = Refused(worker=member.worker, reason=told, token=member.token)
        self._session.publisher.try_send([outgoing(refused, names.worker_queue(member.worker))])
        return False

    def admit_known(self) -> None:
        """Look at everyone who had joined before this run began."""
        for member in list(self._session.roster.members.values()):
            self.admit(member)

    def admit_again(self) -> None:
        """Look anew at those who take part: what they must fit has been settled."""
        for member in self._admission.members:
            self.admit(member)

    def welcome(self, event: WorkerCame) -> bool:
        """Look at a worker that says it is there, and tell of it; whether it can take part."""
        member = event.member
        if not self.admit(member):
            return False
        again = "" if self._admission.is_new(member.worker) else " again"
        if event.is_news:
            logger.info("%s joined%s: %s.", member.worker, again, described(member))
        return True

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
        if state.classes or state.is_general:
            return
        if self._admission.wants_numbers(state):
            self._committed.settle_as_general()
            self.admit_again()
            return
        self._committed.settle_classes(self._admission.commonest_classes())
        self.admit_again()
        common = self._admission.common_inputs()
        if common and trained_on:
            words = "the workers' values", "the model was trained on ones"
            difference = scale_difference(common, trained_on, *words)
            if difference:
                logger.warning("Other data than before: %s.", difference)
        self._committed.settle_inputs(common)
        self.admit_again()
