"""A worker's process over the broker: the main thread trains and uploads, the listener hears."""

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from broker.audit import OFF, AuditLog
from broker.errors import BrokerError, DataError, LinkLost, WarrenError
from broker.link.publisher import Publisher
from broker.link.seam import Link, Queue, outgoing, upload_queue, worker_queue
from broker.logs import LogContext
from broker.model.likeness import scale_difference
from broker.wire import names
from broker.wire.messages import Left, Progress, RoundKey, RoundStart, RunFinished, SwarmLeft
from broker.wire.statistics import WORDS, StatisticsRefused, StatisticsTold
from broker.wire.tensors import Vector
from worker.learning.console import Console
from worker.learning.results import TrainingProgress
from worker.rounds.failures import Declines, told
from worker.rounds.hand_over import (
    AnsweredJob,
    DeclineJob,
    HandOver,
    Job,
    RoundJob,
    StatisticsJob,
    UploadJob,
)
from worker.rounds.listener import Listener
from worker.rounds.own_site import OwnSite
from worker.rounds.participant import Participant, Trained, Trainer, seed_of
from worker.rounds.round_starts import described
from worker.rounds.uploading import KeptUpdate, Refusals
from worker.site.resting import Resting
from worker.site.telling import SiteStatistics

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0
_PROGRESS_SECONDS = 1.0
_OUTBOX_SECONDS = 0.2
_MOST_SAID = 2000


class WorkerLoop:
    """All logical workers of one process, on one link.

    Args:
        link: To the broker, open.
        participants: One for `worker run`; a swarm has many, which answer one after the other.
        trainer: What turns a round start into an answer.
        stop: The wish to end.
        log: Told which run and round the story is about.
        console: Where a person sees how far a training is.
        task: The only one to take part in; None takes part in any.
        once: Leave after the first run.
        is_swarm: Many workers on little data: updates are gathered, and the queues deleted at the end.
        reader: The name by which a swarm's queues are called; its own by default, NAME of NAME.i.
        at_once: How many answers the trainer may be asked for at the same time.
        resting: When no rounds are taken.
        audit_log: Told what this site takes part in, and what leaves it.
        on_finished: Told of a run's end before that is acknowledged.
    """

    def __init__(
        self,
        link: Link,
        participants: Iterable[Participant],
        trainer: Trainer,
        *,
        stop: threading.Event,
        log: LogContext,
        console: Console,
        task: str | None = None,
        once: bool = False,
        is_swarm: bool = False,
        reader: str | None = None,
        at_once: int = 1,
        resting: Resting | None = None,
        audit_log: AuditLog = OFF,
        on_finished: Callable[[RunFinished], None] = lambda _finished: None,
    ) -> None:
        self._audit = audit_log
        self._link = link
        self._participants = {participant.name: participant for participant in participants}
        self._trainer = trainer
        self._stop = stop
        self._log = log
        self._console = console
        self._once = once
        self._is_swarm = is_swarm
        self._resting = resting or Resting()
        first = next(iter(self._participants))
        self._reader = reader or (names.swarm_of(first) if is_swarm else first)
        self._publisher = Publisher(link, stop)
        self._declines = Declines(self._publisher, audit_log, self._reader if is_swarm else None)
        self._hand_over = HandOver(audit_log, self._reader if is_swarm else None)
        self._listener = Listener(
            link,
            self._participants,
            self._hand_over,
            stop,
            task=task,
            swarm=self._reader if is_swarm else None,
            resting=self._resting,
            on_finished=on_finished,
        )
        self._sites: dict[str, SiteStatistics] = {}
        self._progress_at = float("-inf")
        self._told_odd: set[tuple[str, str]] = set()
        self._is_progress_off = False
        self._residuals: dict[str, tuple[str, Vector]] = {}  # of the run of this id
        self._threads = ThreadPoolExecutor(at_once, "answer") if at_once > 1 else None
        self._outbox: list[KeptUpdate] = []
        self._outbox_at = float("-inf")
        self._has_upload_queue = False

    def serve(self) -> None:
        """Take part until told to stop (or, with `once`, until a run is over); then, or after a bug, say so and leave.

        Raises:
            NameInUse: Another process reads this name's queue.
            DataError: The coordinator refused this worker.
        """
        self._link.declare([worker_queue(self._reader)])
        if names.is_own_queue(self._link.account, names.upload_queue(self._reader)):
            self._have_upload_queue()  # made at the invitation: it is told at once that it isn't there
        self._link.consume([names.worker_queue(self._reader)], prefetch=0)
        self._listener.start()
        try:
            self._trainer.warm_up()
            while not self._is_over():
                self._turn()
        finally:
            if self._threads is not None:
                self._hand_over.stop_all()
                self._threads.shutdown(wait=False, cancel_futures=True)
            # Nothing is said after Left; a process that waits behind another of its name has nothing to take back.
            if self._listener.end():
                self._leave()
            if self._is_swarm:
                self._delete_queues(names.worker_queue(self._reader), names.upload_queue(self._reader))

    def say_joined(self) -> None:
        """What is told of who takes part has changed: say it again, from any thread."""
        self._listener.say_joined()

    def _is_over(self) -> bool:
        if self._hand_over.failure is not None:
            raise self._hand_over.failure
        return self._stop.is_set() or (self._once and self._hand_over.is_run_over.is_set())

    def _turn(self) -> None:
        try:
            job = self._hand_over.jobs.get(timeout=self._patience())
        except queue.Empty:
            job = None
        try:
            self._do(job)
        except LinkLost as exc:
            logger.debug("Left unsent: %s", exc)

    def _patience(self) -> float:
        if self._outbox:
            return 0
        return _OUTBOX_SECONDS if self._declines else _WAIT_SECONDS

    def _do(self, job: Job | None) -> None:
        if isinstance(job, UploadJob):
            self._upload([job.update])
        elif isinstance(job, DeclineJob):
            self._declines.add(job.worker, job.key, job.reason)
        elif isinstance(job, StatisticsJob):
            self._publisher.send([outgoing(self._statistics(job), names.COORDINATOR)])
        elif isinstance(job, AnsweredJob):
            self._take_answer(job)
        elif job is not None and not job.stop.is_set():
            self._answer(job)
        if self._outbox and (job is None or time.monotonic() - self._outbox_at > _OUTBOX_SECONDS):
            updates, self._outbox = self._outbox, []
            self._upload(updates)
        if self._declines:
            self._declines.send(is_idle=job is None)

    def _leave(self) -> None:
        left = SwarmLeft(worker=self._reader) if self._is_swarm else Left(worker=self._reader)
        if self._publisher.try_send([outgoing(left, names.COORDINATOR)]):
            logger.info("Left.")
        self._audit.note("left", worker=self._reader)

    def _delete_queues(self, read: str, uploads: str) -> None:
        """Leave nothing behind, unless another swarm of this name waits to read it; an exit code says nothing of it.

        An invited swarm's queues were made for it, and wait for it to come back.
        """
        if names.is_own_queue(self._link.account, read):
            return
        try:
            self._link.cancel([read])
            if not self._link.consumers(read):
                self._link.delete([read, uploads])
        except BrokerError as exc:
            logger.warning("The queues of this swarm may be left at the broker: %s", exc)

    # --- one round -----------------------------------------------------------------------------------------

    def _answer(self, job: RoundJob) -> None:
        """Train, keep the update, upload it; where several are trained at once, train elsewhere, and the rest here."""
        if self._threads is not None:
            self._threads.submit(lambda: self._hand_over.jobs.put(self._worked_out(job)))
        else:
            self._take_answer(self._worked_out(job))

    def _worked_out(self, job: RoundJob) -> AnsweredJob:
        try:
            update = None if job.stop.is_set() else self._trained(job)
        except Exception as exc:  # noqa: BLE001 - also a bug is told, and not waited for until the deadline
            return AnsweredJob(job=job, update=None, error=exc)
        finally:
            self._console.end()
        return AnsweredJob(job=job, update=update)

    def _take_answer(self, answered: AnsweredJob) -> None:
        job, update, error = answered.job, answered.update, answered.error
        if error is not None:
            self._decline(job.worker, self._hand_over.give_up(job), error)
        elif update is not None:
            if self._hand_over.keep(job, update):
                self._upload_first(update)  # each part is written down when its turn comes
            self._keep_rest(update)

    def _trained(self, job: RoundJob) -> KeptUpdate | None:
        participant = self._participants[job.worker]
        self._tell_start(participant, job)
        trained = self._trainer.answer(
            participant, job.start, job.weights, job.stop, lambda progress: self._report(job, progress)
        )
        if trained is None:
            logger.info("Stopped training round %d.", job.start.round_number)
            return None
        update = self._updated(job, trained)
        self._tell_end(job.start, trained)
        return update

    def _updated(self, job: RoundJob, trained: Trained) -> KeptUpdate:
        settings = job.start.settings
        update = KeptUpdate(
            job.worker,
            job.key,
            trained.measured,
            self._with_residual(job.worker, job.key.run_id, trained.vector),
            layout=job.start.layout,
            part_bytes=job.start.part_bytes,
            precision=settings.precision if trained.measured.summed is None else "float32",
            seed=seed_of(job.start, job.worker) if settings.deterministic else secrets.randbits(32),
            reader=self._reader,
            keeps_rest=not settings.deterministic,
            is_audited=self._audit.is_kept and not self._is_swarm,
        )
        if self._threads is not None:
            self._keep_rest(update)  # its next round may be trained before this update is published
        return update

    def _keep_rest(self, update: KeptUpdate) -> None:
        try:
            residual = update.take_rest()
        except MemoryError:  # it could not be written down, and was declined
            return
        if residual is not None:
            self._residuals[update.worker] = update.key.run_id, residual

    def _with_residual(self, worker: str, run_id: str, vector: Vector | None) -> Vector | None:
        """Add what the precision cut off the last update of the same run (error feedback)."""
        of_run, residual = self._residuals.pop(worker, ("", None))
        if vector is None or residual is None or of_run != run_id or residual.shape != vector.shape:
            return vector
        vector += residual  # given away by the trainer
        self._hand_over.give_spare(residual)
        return vector

    def _upload_first(self, update: KeptUpdate) -> None:
        """Upload at once; a swarm's small updates are gathered for a moment and published together."""
        if not self._is_swarm or update.num_parts:
            self._upload([update])
            return
        if not self._outbox:
            self._outbox_at = time.monotonic()
        self._outbox.append(update)

    def _upload(self, updates: list[KeptUpdate]) -> None:
        """Publish updates; one that can't be, for it can't be encoded, is declined, and holds up no other."""
        try:
            self._publish(updates)
        except BrokerError:
            raise
        except Exception as exc:  # noqa: BLE001 - also a bug is told, and not waited for until the deadline
            if len(updates) > 1:
                for update in updates:
                    self._upload([update])
            else:
                self._decline(updates[0].worker, self._hand_over.give_up_upload(updates[0]), exc)

    def _publish(self, updates: list[KeptUpdate]) -> None:
        """Publish the parts, then announce them; an upload queue that is gone is made again.

        A full one is tried again with growing pauses: the coordinator may empty it.

        Raises:
            ModelError: It stays full.
        """
        pause, refusals = _WAIT_SECONDS, Refusals(self._link.account)
        while not self._stop.is_set():
            updates = [update for update in updates if self._hand_over.begin_upload(update)]
            if not updates:
                return
            if any(update.num_parts for update in updates) and not self._has_upload_queue:
                self._have_upload_queue()
            if not self._publisher.send([part for update in updates for part in update.parts()]):
                is_refused, is_alone = self._publisher.is_refused, self._hand_over.is_alone(updates[0])
                refusals.note(updates[0], is_refused=is_refused, is_alone=is_alone, now=time.monotonic())
                self._redeclare([upload_queue(self._reader)])
            elif self._publisher.send([update.announcement() for update in updates]):
                self._hand_over.note_announced(updates)
                self._tell_sent(updates)
                return
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _have_upload_queue(self) -> None:
        """Make it once there is something for it: small updates need none, and each costs the broker memory."""
        self._link.declare([upload_queue(self._reader)])
        self._has_upload_queue = True

    def _redeclare(self, queues: list[Queue]) -> None:
        try:
            self._link.declare(queues)
        except BrokerError as exc:
            logger.debug("Declared again in a moment: %s", exc)

    def _decline(self, worker: str, key: RoundKey | None, error: Exception) -> None:
        """Tell the coordinator what may be told of an error; a traceback of the unexpected stays in this log."""
        bug = None if isinstance(error, WarrenError) else error
        if key is not None:
            reason = self._participants[worker].rules.reason(error)
            self._declines.add(worker, key, reason, told(error), bug)
        elif bug is not None:
            logger.error("Of a round that is over for %s: %s", worker, told(error), exc_info=bug)

    def _statistics(self, job: StatisticsJob) -> StatisticsTold | StatisticsRefused:
        """What is told of a worker's examples, or why nothing is."""
        participant, asked = self._participants[job.worker], job.asked
        refusal = self._resting.reason or participant.statistics_refusal
        try:
            if refusal is not None or isinstance(participant.data, OwnSite):
                raise DataError(refusal or "")
            if job.worker not in self._sites:
                least = participant.rules.least_examples
                self._sites[job.worker] = SiteStatistics(job.worker, participant.data, least)
            answer = self._sites[job.worker].answer(asked)
        except Exception as exc:  # also a bug is told, and not waited for until the deadline
            logger.warning("Told no statistics: %s", exc, exc_info=not isinstance(exc, WarrenError))
            reason = participant.rules.reason(exc)[:_MOST_SAID]
            self._audit.note("statistics-refused", worker=job.worker, step=asked.step, reason=reason)
            return StatisticsRefused(worker=job.worker, asked=asked.asked, reason=reason)
        logger.info("Told the %s of %d examples.", WORDS[asked.step], answer.num_examples)
        number = answer.num_examples
        self._audit.note("statistics-told", worker=job.worker, step=asked.step, num_examples=number)
        return answer

    # --- the story -----------------------------------------------------------------------------------------

    def _tell_start(self, participant: Participant, job: RoundJob) -> None:
        start = job.start
        self._log.update(run=start.run_id, round=start.round_number)
        self._tell_oddity(participant, start)
        if self._is_swarm:
            return
        if not participant.trains_in(start):
            logger.info("Measuring the model of round %d.", start.round_number - 1)
            return
        logger.info("%s", described(start, job.account))

    def _tell_oddity(self, participant: Participant, start: RoundStart) -> None:
        """Say once a run where this site's values are of another scale than those of most sites."""
        if start.inputs is None or (participant.name, start.run_id) in self._told_odd:
            return
        self._told_odd.add((participant.name, start.run_id))
        difference = (
            scale_difference(participant.data.inputs, start.inputs) if participant.data.inputs else None
        )
        if difference:
            logger.warning("%s: %s. Bring them to one scale at every site.", participant.name, difference)

    def _tell_end(self, start: RoundStart, trained: Trained) -> None:
        if self._is_swarm or trained.vector is None:
            return
        logger.info(
            "Round %d trained in %.1f s on %d examples; sending the update.",
            start.round_number,
            trained.measured.seconds,
            trained.measured.num_examples,
        )

    def _tell_sent(self, updates: list[KeptUpdate]) -> None:
        """What has left this site, for whoever answers for it; of a swarm in the detailed log alone."""
        for update in updates:
            logger.log(logging.DEBUG if self._is_swarm else logging.INFO, "%s", update.sent)

    def _report(self, job: RoundJob, progress: TrainingProgress) -> None:
        """Tell how far a training is; that this fails is no reason to lose the training."""
        if self._is_progress_off:
            return
        try:
            self._tell_progress(job, progress)
        except Exception as exc:
            self._is_progress_off = True
            logger.warning("Can't tell how far the training is; no longer tried.", exc_info=exc)

    def _tell_progress(self, job: RoundJob, progress: TrainingProgress) -> None:
        is_news = not self._is_swarm and progress.batch == progress.batches
        if not self._is_swarm:
            self._console.show(progress)
        if time.monotonic() - self._progress_at < _PROGRESS_SECONDS and not is_news:
            return
        self._progress_at = time.monotonic()
        message = Progress(
            worker=job.worker,
            run_id=job.start.run_id,
            round_number=job.start.round_number,
            epoch=progress.epoch,
            epochs=progress.epochs,
            batch=progress.batch,
            batches=progress.batches,
            metrics=self._participants[job.worker].rules.progress(progress.metrics),
        )
        self._publisher.try_send([outgoing(message, names.COORDINATOR, is_transient=True)])
