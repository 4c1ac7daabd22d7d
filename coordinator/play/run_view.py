"""A run at one moment, and what is to be told of it and of the workers: pure, with time passed in."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from broker.wire.messages import Progress
from broker.wire.settings import TrainingSettings
from broker.wire.versions import release
from coordinator.folder.history import Row
from coordinator.folder.standing import Standing
from coordinator.learning.membership import Member
from coordinator.learning.rounds import Answer, RoundRecord, Verdict
from coordinator.presence.session import Sighting
from coordinator.status import (
    BestStatus,
    PrivateStatus,
    ProgressStatus,
    RoundStatus,
    RunStatus,
    SettingsStatus,
    Status,
    WorkerStatus,
)

Phase = Literal["building", "waiting", "training", "measuring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run at one moment.

    Attributes:
        folder: The name of its folder.
        closed_rounds: The number of the last closed round.
        workers: How many must have joined before the first round.
        record: Of the open round, if one is.
        answers: To the open round.
        seconds_open: How long this attempt has been open.
        update_bytes: What the accepted updates of the open round weighed on the wire.
        present: The workers that can train in it now.
        unfit: Workers that can't take part, with the reason.
        standing: The best round so far.
        stop_when: What must go on becoming better, if anything must.
        patience: Rounds for which it may not.
        private: Patterns of weights that stay at the workers.
        num_private: How many weights these are.
    """

    folder: str
    task: str
    phase: Phase
    rounds: int
    closed_rounds: int
    workers: int
    quorum: int
    classes: tuple[str, ...]
    record: RoundRecord | None
    answers: Mapping[str, Answer]
    seconds_open: float
    update_bytes: int
    history: list[Row]
    present: list[str]
    unfit: Mapping[str, str]
    is_stopping: bool
    settings: TrainingSettings
    strategy: str
    standing: Standing = field(default_factory=Standing)
    stop_when: str | None = None
    patience: int = 1
    private: tuple[str, ...] = ()
    num_private: int = 0


def describe(members: Iterable[Member], sightings: Mapping[str, Sighting], view: RunView | None) -> Status:
    """What goes on at a coordinator: the workers, and the run under way."""
    return Status(
        workers=describe_workers(members, sightings, view),
        run=describe_run(view) if view else None,
        release=release(),
    )


def describe_workers(
    members: Iterable[Member], sightings: Mapping[str, Sighting], view: RunView | None
) -> tuple[WorkerStatus, ...]:
    """One entry a worker, in the order of their names; none of who left for good."""
    late = _late_in_last_round(view)
    invited = frozenset(view.record.invited if view and view.record else ())
    return tuple(
        _describe(
            member,
            sightings.get(member.worker),
            view,
            is_late=member.worker in late,
            is_invited=member.worker in invited,
        )
        for member in sorted(members, key=lambda member: _natural(member.worker))
        if not member.is_forgotten
    )


def _natural(name: str) -> tuple[str, int]:
    """site.2 comes before site.10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def _late_in_last_round(view: RunView | None) -> frozenset[str]:
    rows = view.history if view else []
    return frozenset(rows[-1].late) if rows else frozenset()


def _describe(
    member: Member, sighting: Sighting | None, view: RunView | None, *, is_late: bool, is_invited: bool
) -> WorkerStatus:
    progress = _current(sighting.progress if sighting else None, view)
    state, detail = _state(member, progress, view, is_late=is_late, is_invited=is_invited)
    return WorkerStatus(
        name=member.worker,
        is_present=member.is_present,
        task=member.task,
        evaluate_only=member.evaluate_only,
        num_examples=member.num_examples,
        num_test_examples=member.num_test_examples,
        examples_per_class=dict(zip(member.classes, member.examples_per_class, strict=False)),
        last_seen=round(sighting.at, 1) if sighting else None,
        state=state,
        detail=detail,
        progress=_progress(progress) if progress and state == "training" else None,
        release=member.release,
    )


def _current(progress: Progress | None, view: RunView | None) -> Progress | None:
    """The progress, if it is of the open round."""
    record = view.record if view else None
    if progress is None or record is None:
        return None
    is_same = (progress.run_id, progress.round_number) == (record.run_id, record.round_number)
    return progress if is_same else None


def _state(
    member: Member, progress: Progress | None, view: RunView | None, *, is_late: bool, is_invited: bool
) -> tuple[str, str | None]:
    """The state's name, and what is to be said about it."""
    answer = view.answers.get(member.worker) if view else None
    if member.is_present and member.pause:
        return "paused", member.pause
    if answer is not None and answer.verdict is Verdict.REJECTED:
        return ("rejected" if answer.upload_id else "declined"), answer.reason
    if not member.is_present:
        return "away", "late in the last round" if is_late else None
    if answer is not None:
        return "answered", f"after {answer.seconds:.1f} s"
    if view is not None and member.worker in view.unfit:
        return "idle", f"takes no part: {view.unfit[member.worker]}"
    if view is None or view.record is None or not is_invited:
        return ("late" if is_late else "idle"), None
    return _state_invited(view.record, member, progress)


def _state_invited(record: RoundRecord, member: Member, progress: Progress | None) -> tuple[str, str | None]:
    if record.mode == "evaluate" or member.evaluate_only:
        return "measuring", None
    if progress is None:
        return "invited", None
    return ("uploading" if _is_trained(progress) else "training"), None


def _is_trained(progress: Progress) -> bool:
    return (progress.epoch, progress.batch) == (progress.epochs, progress.batches)


def _progress(progress: Progress) -> ProgressStatus:
    done = (progress.epoch - 1) * progress.batches + progress.batch
    return ProgressStatus(
        epoch=progress.epoch,
        epochs=progress.epochs,
        batch=progress.batch,
        batches=progress.batches,
        share=round(done / max(1, progress.epochs * progress.batches), 3),
        metrics={
            name: round(value, 4) if math.isfinite(value) else None
            for name, value in progress.metrics.items()
        },
    )


def describe_run(view: RunView) -> RunStatus:
    """The run under way, without its history."""
    settings, history = view.settings, view.history
    return RunStatus(
        id=view.folder,
        task=view.task,
        phase=view.phase,
        round=view.record.round_number if view.record else view.closed_rounds,
        closed_rounds=view.closed_rounds,
        rounds=view.rounds,
        workers_wanted=view.workers,
        workers_present=len(view.present),
        quorum=view.quorum,
        is_stopping=view.is_stopping,
        strategy=view.strategy,
        settings=SettingsStatus(
            epochs=settings.epochs, batch_size=settings.batch_size, learning_rate=settings.learning_rate
        ),
        open_round=_open_round(view),
        last_round=history[-1] if view.closed_rounds else None,
        history_stamp=f"{len(history)}-{history[-1].is_measured:d}" if history else "0",
        best=_best(view.standing),
        stop_when=view.stop_when,
        patience=view.patience if view.stop_when else None,
        private=_private(view),
    )


def _private(view: RunView) -> PrivateStatus | None:
    if not view.private:
        return None
    return PrivateStatus(patterns=view.private, num_weights=view.num_private, num_sites=len(view.present))


def _best(standing: Standing) -> BestStatus | None:
    if standing.best is None or standing.measure is None:
        return None
    return BestStatus(
        round=standing.best.round, measure=standing.measure, value=round(standing.best.value, 6)
    )


def _open_round(view: RunView) -> RoundStatus | None:
    record = view.record
    if record is None:
        return None
    verdicts = [answer.verdict for answer in view.answers.values()]
    return RoundStatus(
        attempt=record.attempt - record.first_attempt + 1,
        invited=len(record.invited),
        accepted=sum(verdict is Verdict.ACCEPTED for verdict in verdicts),
        rejected=sum(verdict is Verdict.REJECTED for verdict in verdicts),
        quorum=record.quorum,
        deadline_seconds=record.deadline_seconds,
        update_bytes=view.update_bytes,
    )
