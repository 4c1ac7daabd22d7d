"""The answer to a question about the examples: what each worker's operator allows to be told of them."""

import logging
from collections.abc import Iterable

from broker.errors import DataError, WarrenError
from broker.wire.statistics import WORDS, StatisticsAsked, StatisticsRefused, StatisticsTold
from worker.rounds.failures import told
from worker.rounds.hand_over import StatisticsJob
from worker.rounds.participant import Participant
from worker.statistics.site import SiteStatistics

logger = logging.getLogger(__name__)

_MOST_SAID = 2_000


class OwnStatistics:
    """What the workers of this process have told of their examples, and will tell."""

    def __init__(self, participants: Iterable[Participant]) -> None:
        self._participants = {each.name: each for each in participants}
        self._sites: dict[str, SiteStatistics] = {}

    def answer(self, job: StatisticsJob) -> StatisticsTold | StatisticsRefused:
        """The figures, or why there are none; also a bug is told, and not waited for until the deadline."""
        try:
            answer = self._told(job.worker, job.asked)
        except Exception as exc:
            bug = None if isinstance(exc, WarrenError) else exc
            logger.warning("Told no statistics: %s", exc, exc_info=bug)
            return StatisticsRefused(worker=job.worker, asked=job.asked.asked, reason=told(exc)[:_MOST_SAID])
        logger.info("Told the %s of %d examples.", WORDS[job.asked.step], answer.num_examples)
        return answer

    def _told(self, worker: str, asked: StatisticsAsked) -> StatisticsTold:
        participant = self._participants[worker]
        refusal = participant.rules.statistics_refusal
        if refusal is not None:
            raise DataError(refusal)
        if participant.evaluate_only:
            raise DataError("This site trains on nothing.")
        if worker not in self._sites:
            self._sites[worker] = SiteStatistics(worker, participant.data, participant.rules.least_examples)
        return self._sites[worker].answer(asked)
