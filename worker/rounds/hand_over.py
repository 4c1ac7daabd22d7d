"""What a worker's process is to do next, handed from the thread that receives to the one that trains."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from broker.audit import OFF, AuditLog, sha256_aside
from broker.wire.messages import RoundKey, RoundStart
from broker.wire.statistics import StatisticsAsked
from broker.wire.tensors import FLOAT32, Vector, as_bytes
from worker.rounds.uploading import KeptUpdate, told_of

_MOST_KEPT_BYTES = 2**30  #: of updates that are with the broker


@dataclass(slots=True, kw_only=True)
class RoundJob:
    """Answer one round start for one logical worker.

    Attributes:
        key: The newest attempt at this round that was received; the answer names it.
        session: The coordinator's, that sent it.
        account: The coordinator's, as the broker says.
        sha256: Of the weights, if it is known.
        stop: Set when the round has closed, or a newer one has come.
    """

    worker: str
    start: RoundStart
    weights: Vector
    key: RoundKey
    session: int = 0
    account: str = ""
    sha256: Callable[[], str] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadJob:
    """Publish a kept update once more."""

    worker: str
    update: KeptUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclineJob:
    """Tell the coordinator that a round can't be answered: its start can't be taken."""

    worker: str
    key: RoundKey
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsJob:
    """Tell the coordinator what the examples are like."""

    worker: str
    asked: StatisticsAsked


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredJob:
    """What another thread has made of a round start; the update is None when it was stopped, or failed.

    Attributes:
        error: What it raised.
    """

    job: RoundJob
    update: KeptUpdate | None
    error: Exception | None = None


Job = RoundJob | UploadJob | DeclineJob | StatisticsJob | AnsweredJob


class HandOver:
    """The one place where both threads meet.

    Attributes:
        jobs: What is to be done next; None only lets the other thread look up.
        current: The round each logical worker is busy with or has answered.
        updates: The update each keeps until its round is closed; of a swarm the newest, see `note_announced`.
        is_run_over: Whether a run has ended; the next may begin before anybody looks, and changes nothing in that.
        audit: Told of each round that is taken, and of each update that the broker has; of a swarm's together.
    """

    def __init__(self, audit_log: AuditLog = OFF, swarm: str | None = None) -> None:
        self.audit = audit_log
        self._swarm = swarm
        self._noted: RoundKey | None = None
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.current: dict[str, RoundJob] = {}
        self.updates: dict[str, KeptUpdate] = {}
        self.failure: Exception | None = None
        self.is_run_over = threading.Event()
        self._spare: Vector | None = None
        self._kept_bytes = 0
        self._let_go: dict[str, str] = {}  # whose update is with the broker alone, and its upload_id

    def take_spare(self) -> Vector | None:
        """The memory of the last update that is done with, to receive weights into: fresh pages are dear."""
        with self.lock:
            spare, self._spare = self._spare, None
            return spare

    def give_spare(self, vector: Vector) -> None:
        """Hand over memory that nobody needs any more."""
        with self.lock:
            self._spare = vector

    def held(self, worker: str) -> RoundKey | None:
        """The open round whose start this worker has whole."""
        with self.lock:
            job = self.current.get(worker)
            return job.key if job else None

    def held_in(self, worker: str) -> tuple[RoundKey | None, int]:
        """That round, and the coordinator's session in which it got it; 0 for none."""
        with self.lock:
            job = self.current.get(worker)
            return (job.key, job.session) if job else (None, 0)

    def announced(self, worker: str) -> str | None:
        """The upload_id of its kept update, once the broker has the announcement."""
        with self.lock:
            update = self.updates.get(worker)
            return update.announced if update else self._let_go.get(worker)

    def begin(self, job: RoundJob) -> None:
        """A round start is complete: train it, or answer a further attempt with what is there."""
        with self.lock:
            known = self.current.get(job.worker)
            if known is not None and _is_same_round(known, job):
                known.key, known.session = job.key, job.session
                update = self.updates.get(job.worker)
                if update is not None:
                    update.at_attempt(job.key)
                self._answer_again(job.worker)
                return
            self._drop(job.worker)
            self.current[job.worker] = job
        self._note_begun(job)
        self.jobs.put(job)

    def _note_begun(self, job: RoundJob) -> None:
        key = job.key
        if not self.audit.is_kept or (self._swarm is not None and key == self._noted):
            return
        self._noted, model = key, as_bytes(job.weights)
        self.audit.note(
            "round-received",
            worker=self._swarm or job.worker,
            run=key.run_id,
            round=key.round_number,
            attempt=key.attempt,
            mode=job.start.mode,
            task=job.start.task,
            bytes=len(model),
            sha256=job.sha256 or sha256_aside(model),
        )

    def decline(self, worker: str, key: RoundKey, reason: str) -> None:
        """A round start can't be taken: what went on for an older one ends, and the coordinator is told.

        Args:
            worker: Whose round start it is.
            key: Which attempt at which round.
            reason: What the coordinator is told.
        """
        with self.lock:
            self._drop(worker)
        self.jobs.put(DeclineJob(worker=worker, key=key, reason=reason))

    def stand_down(self, reason: str) -> None:
        """This site takes part in nothing for now: whatever is not answered yet is declined."""
        with self.lock:
            busy = [job for worker, job in self.current.items() if self._is_busy(worker)]
            for job in busy:
                self._drop(job.worker)
        for job in busy:
            self.jobs.put(DeclineJob(worker=job.worker, key=job.key, reason=reason))

    def _is_busy(self, worker: str) -> bool:
        return worker not in self.updates and worker not in self._let_go

    def close(self, worker: str, run_id: str, round_number: int | None) -> bool:
        """A round is over for this worker.

        Args:
            worker: For whom.
            run_id: Of which run.
            round_number: None: any of this run.

        Returns:
            Whether it was still busy with it.
        """
        with self.lock:
            job = self.current.get(worker)
            if (
                job is None
                or job.start.run_id != run_id
                or round_number not in (None, job.start.round_number)
            ):
                return False
            was_busy = self._is_busy(worker)
            self._drop(worker)
            if round_number is None:
                self._spare = None  # no memory is kept while nothing goes on
            return was_busy

    def end_run(self) -> None:
        """A run is over: the other thread may be waiting for the next job, and shall hear of it at once."""
        self.is_run_over.set()
        self.jobs.put(None)

    def close_older(self, run_id: str, round_number: int) -> None:
        """A round has begun: those before it are over, also for whoever of a swarm is not invited to this one."""
        with self.lock:
            for worker, job in list(self.current.items()):
                if job.start.run_id == run_id and job.start.round_number < round_number:
                    self._drop(worker)

    def fail(self, failure: Exception) -> None:
        """The receiving thread can't go on: the other one shall raise this, and train no longer for that."""
        self.failure = failure
        self.stop_all()
        self.jobs.put(None)

    def stop_all(self) -> None:
        """The process is to end: no training goes on."""
        with self.lock:
            for job in self.current.values():
                job.stop.set()

    def _drop(self, worker: str) -> None:
        job = self.current.pop(worker, None)
        if job is not None:
            job.stop.set()
        self._let_go.pop(worker, None)
        self._forget(worker)

    def _forget(self, worker: str) -> None:
        """Keep a worker's update no longer; its memory can be received into, unless it is on its way."""
        update = self.updates.pop(worker, None)
        if update is None:
            return
        self._kept_bytes -= update.num_kept_bytes
        if update.announced and update.vector is not None and update.vector.dtype == FLOAT32:
            self._spare = np.asarray(update.vector, FLOAT32)

    def keep(self, job: RoundJob, update: KeptUpdate) -> bool:
        """Keep an update until its round closes; False when that has happened already."""
        with self.lock:
            if self.current.get(job.worker) is not job:
                return False
            update.at_attempt(job.key)
            self._forget(job.worker)
            self.updates[job.worker] = update
            self._kept_bytes += update.num_kept_bytes
            return True

    def note_announced(self, updates: Sequence[KeptUpdate]) -> None:
        """The broker has these. A swarm's need not all fit into memory: what is asked for again is trained again."""
        for told in told_of(updates, self._swarm):
            self.audit.hold("update-sent", **told)
        self.audit.flush(is_synced=True)
        with self.lock:
            for update in updates:
                update.note_announced()
            while self._kept_bytes > _MOST_KEPT_BYTES and len(self.updates) > 1:
                oldest = next(
                    (each for each in self.updates.values() if each.announced and each.num_kept_bytes),
                    None,
                )
                if oldest is None:
                    return
                self._let_go[oldest.worker] = oldest.announced or ""
                self._forget(oldest.worker)

    def give_up(self, job: RoundJob) -> RoundKey | None:
        """A round start can't be answered: before that is told, for the coordinator may try again at once.

        From here on a further attempt is new to this worker, also should the word be lost.

        Returns:
            The newest attempt, which is to be declined; None if the round is over for this worker anyway.
        """
        with self.lock:
            if self.current.get(job.worker) is not job:
                return None
            self._drop(job.worker)
            return job.key

    def give_up_upload(self, update: KeptUpdate) -> RoundKey | None:
        """The same of a round whose update can't be published."""
        with self.lock:
            if self.updates.get(update.worker) is not update:
                return None
            self._drop(update.worker)
            return update.key

    def is_alone(self, update: KeptUpdate) -> bool:
        """Whether no other worker of this process has an update with the broker: nobody empties the upload queue."""
        with self.lock:
            others = (each for each in self.updates.values() if each is not update)
            return not (self._let_go or any(each.announced for each in others))

    def begin_upload(self, update: KeptUpdate) -> bool:
        """Whether this update's round is still open; its memory is then not given away before it is announced."""
        with self.lock:
            is_kept = self.updates.get(update.worker) is update
            if is_kept:
                update.note_uploading()
            return is_kept

    def upload_again(self, worker: str) -> bool:
        """Publish the kept update once more, or train it once more; False when there is none."""
        with self.lock:
            return self._answer_again(worker)

    def _answer_again(self, worker: str) -> bool:
        update = self.updates.get(worker)
        if update is not None:
            self.jobs.put(UploadJob(worker=worker, update=update))
        elif self._let_go.pop(worker, None) is not None:
            self.jobs.put(self.current[worker])
        else:
            return False
        return True


def _is_same_round(known: RoundJob, job: RoundJob) -> bool:
    a, b = known.start, job.start
    # What a relay's sum is depends on what it was counted with, and on its scale; an update does not.
    is_alike = a.relay == b.relay and (a.relay is None or a.scale_exponent == b.scale_exponent)
    known_round, round_ = ((s.run_id, s.round_number, s.mode, s.digest) for s in (a, b))
    return is_alike and known_round == round_
