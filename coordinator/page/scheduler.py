"""One coordinator that stays: it knows who is there, starts runs one after the other, and goes on after a restart."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from broker.audit import AUDIT_FILE, AuditLog, user
from broker.errors import CheckpointError, Interrupted, LinkLost, NobodyServes, UsageError, WarrenError
from broker.link.seam import Link
from broker.logs import LogContext
from broker.wire.messages import Launch, LaunchAnswered
from broker.wire.versions import release
from coordinator.files import lock_folder
from coordinator.folder.run_index import LaunchRecord, RunIndex, time_text, write_launch
from coordinator.folder.tracking.process import tracked
from coordinator.keras.process import ModelProcess
from coordinator.learning.membership import Member
from coordinator.options import RunOptions
from coordinator.page.snapshot import LatestSnapshot
from coordinator.page.tally import Tally
from coordinator.play.run import Run
from coordinator.play.run_view import RunView, describe
from coordinator.presence.broker_room import BrokerRoom
from coordinator.presence.session import Session
from coordinator.starting.launching import as_texts, make_options, read_options
from coordinator.status import BrokerStatus, EndedRun, ServingStatus, TaskStatus, status_json
from coordinator.tasks import BUILT_IN, Task, TaskDefaults, resolve

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.1
_SHOW_SECONDS = 0.5
_PRESENCE_SECONDS = 2.0
_RUNS_SECONDS = 2.0
_ERRAND_SECONDS = 5.0
_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launched:
    """A run that was taken, and what is written down about it; a former process may have begun it."""

    options: RunOptions
    record: LaunchRecord
    is_resumed: bool = False


@dataclass(frozen=True, slots=True)
class _Errand:
    act: Callable[[], str]
    done: "Future[str]"


class Scheduler:
    """Owns the session, and what is played on it.

    Args:
        at: The broker, as the page shows it.
        room: What it has room for, where workers were invited.
    """

    def __init__(
        self,
        link: Link,
        run_index: RunIndex,
        at: BrokerStatus,
        *,
        stop: threading.Event,
        log: LogContext,
        room: BrokerRoom | None = None,
    ) -> None:
        self.run_index = run_index
        self.latest = LatestSnapshot()
        self.tally = Tally()
        self._link = link
        self._at = at
        self._stop = stop
        self._log = log
        self._room = room
        self.audit = AuditLog(run_index.folder / AUDIT_FILE)
        self._session = Session(link, stop=stop, is_lasting=True, audit_log=self.audit)
        self._session.errand = self._between
        self._session.on_launch = self._on_launch
        self._session.tell = self._tell
        self._errands: queue.SimpleQueue[_Errand] = queue.SimpleQueue()
        self._run: Run | None = None
        self._next: _Launched | None = None
        self._last: EndedRun | None = None
        self._last_models: dict[str, str] = {}
        self._runs_stamp = 0
        self._shown_at = self._presence_at = self._looked_at = float("-inf")

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached now."""
        return self._link.is_connected

    @property
    def takes_messages(self) -> bool:
        """Whether the broker takes messages now: not while it is away, nor during an alarm."""
        return self._link.takes_messages

    @property
    def num_dead(self) -> int:
        """How many messages were copied to `dead` since this process started."""
        return self._session.validator.num_dead

    # --- the course of things ------------------------------------------------------------------------------

    def serve(self) -> None:
        """Play what is unfinished, then whatever is launched, until told to stop.

        Raises:
            Interrupted: Told to stop in the middle of a run; the next `serve` goes on with it.
            NameInUse: Another coordinator works on this virtual host.
        """
        self.audit.note("serving", user=user(), version=release(), broker=self._at.address)
        self._next = self._unfinished()
        models = ModelProcess()
        try:
            while True:
                self._await_launch()
                if self._next is None:
                    return
                self._play(self._next, models)
                models.close()
                models = ModelProcess()  # with the person's own code as it is then
        finally:
            models.close()

    def _await_launch(self) -> None:
        with suppress(Interrupted):
            if self._next is None:
                self._session.begin()
                logger.info("Scheduler: launch a training at the page, or with `coordinator launch`.")
            while self._next is None:
                self._session.forget(self._session.next_event(_IDLE_SECONDS))

    def _unfinished(self) -> _Launched | None:
        found = self.run_index.unfinished()
        if found is None:
            return None
        folder, record = found
        logger.info("The run %s is unfinished: it goes on.", folder.name)
        try:
            return _Launched(options=_options_of(record, folder), record=record, is_resumed=True)
        except Exception as exc:  # noqa: BLE001 - what was launched once may not end every later start
            self._end(folder, record, "failed", _told(exc))
            return None

    def _play(self, launched: _Launched, models: ModelProcess) -> None:
        """Play one run to its end; a failure, a bug's too, is told and ends the run alone.

        Raises:
            Interrupted: `stop` was set.
        """
        folder = launched.options.out
        try:
            outcome, reason = self._outcome_of(launched, models)
        except Interrupted:
            raise
        except WarrenError as exc:
            if not self._session.single_reader.is_confirmed:
                raise
            outcome, reason = "failed", _told(exc)
        except Exception as exc:  # noqa: BLE001 - the next run may be launched, whatever this one was
            outcome, reason = "failed", _told(exc)
        finally:
            self._view()  # so that its last rounds are counted
            self._run = None
            self._log.update(run=None, round=None)
        self._next = None
        self._end(folder, launched.record, outcome, reason)

    def _outcome_of(self, launched: _Launched, models: ModelProcess) -> tuple[str, str | None]:
        options = launched.options
        self.tally.begin(is_resumed=launched.is_resumed)
        with (
            lock_folder(options.out, wait=False, stop=self._stop),
            tracked(options.out, options.track),
        ):
            while True:
                self._run = Run(
                    self._link,
                    options,
                    models,
                    stop=self._stop,
                    log=self._log,
                    session=self._session,
                    room=self._room,
                )
                try:
                    summary = self._run.play()
                    return ("stopped" if summary.is_stopped else "done"), summary.reason
                except LinkLost as exc:
                    logger.warning("%s The run goes on from its folder.", exc)
                    self._stop.wait(_AGAIN_SECONDS)

    def _end(self, folder: Path, record: LaunchRecord, outcome: str, reason: str | None) -> None:
        self.tally.end(outcome)
        if outcome == "failed":
            logger.error("The run %s failed: %s", folder.name, reason)
            self.audit.note("run-failed", folder=folder.name, task=record.task, reason=reason)
        try:
            write_launch(folder, replace(record, outcome=outcome, reason=reason, ended_at=time_text()))
        except CheckpointError as exc:
            logger.error("That the run %s is over could not be written down: %s", folder.name, exc)
        self._last = EndedRun(id=folder.name, task=record.task, outcome=outcome, reason=reason)
        logger.info("The run %s is %s.", folder.name, outcome)

    # --- what is asked for ---------------------------------------------------------------------------------

    def launch(self, task: str, options: Mapping[str, str]) -> str:
        """Start a run; from any thread. The present workers must be able to reach its quorum.

        Args:
            task: As `coordinator launch` takes it.
            options: By option name; see `coordinator.starting.launching.read_options`.

        Returns:
            The name of the run's folder.

        Raises:
            UsageError: It can't be started now, or not so.
            NobodyServes: The coordinator did not get to it in time; nothing was started.
        """
        return self._ask(lambda: self._take(task, options, must_reach_quorum=True))

    def stop_run(self, *, now: bool) -> str:
        """Let the run end after the round under way, or at once; from any thread. Returns its folder's name.

        Raises:
            UsageError: There is no run under way.
            NobodyServes: The coordinator did not get to it in time.
        """
        return self._ask(lambda: self._stop_run(now=now))

    def _ask(self, act: Callable[[], str]) -> str:
        errand = _Errand(act, Future())
        self._errands.put(errand)
        try:
            return errand.done.result(_ERRAND_SECONDS)
        except TimeoutError as exc:
            if not errand.done.cancel():
                return errand.done.result(_ERRAND_SECONDS)
            raise NobodyServes("The coordinator waits for the broker. Try again in a moment.") from exc

    def _stop_run(self, *, now: bool) -> str:
        if self._run is None:
            raise UsageError("There is no run under way.")
        self._run.stop_after_round(now=now)
        return self._run.view().folder

    def _on_launch(self, launch: Launch) -> LaunchAnswered:
        """A launch by message may come before its workers: the run then waits for them."""
        try:
            return LaunchAnswered(
                run=self._take(launch.task, launch.options, must_reach_quorum=False), reason=None
            )
        except Exception as exc:  # noqa: BLE001 - a launch that can't be taken is refused, whatever is wrong with it
            return LaunchAnswered(run="", reason=_told(exc))

    def _take(self, task: str, options: Mapping[str, str], *, must_reach_quorum: bool) -> str:
        """Write down a run that is to be started next.

        Raises:
            UsageError: It can't be started now, or not so.
            CheckpointError: Its folder can't be made.
        """
        if self._next is not None:
            raise UsageError(
                f"The run {self._next.options.out.name} is under way. Wait for its end, or stop it."
            )
        asked, found = read_options(options), resolve(task)
        if must_reach_quorum and "workers" not in options:
            asked["workers"] = max(1, len(self._able(found)))
        is_from_scratch = asked.pop("from_scratch")
        if asked["initial_model"] is None and not is_from_scratch:
            asked["initial_model"] = self.run_index.last_model(task)
        now = datetime.now(UTC)
        made = make_options(task, self.run_index.folder_for(task, now), asked)
        if must_reach_quorum:
            self._check_quorum(made)
        record = LaunchRecord(task=task, options=as_texts(asked), launched_at=time_text(now))
        self.run_index.claim(made.out)
        write_launch(made.out, record)
        self._next = _Launched(options=made, record=record)
        logger.info("Launched %s as %s.", task, made.out.name)
        return made.out.name

    def _check_quorum(self, asked: RunOptions) -> None:
        num_able = len(self._able(asked.task))
        wanted = max(asked.needed, asked.workers)
        if num_able < wanted:
            raise UsageError(
                f"This needs {wanted} workers, and {num_able} that can train {asked.task.name} "
                f"{'is' if num_able == 1 else 'are'} present."
            )

    def _able(self, task: Task) -> list[Member]:
        """The present workers that can train a task, as far as is known before its model is built."""
        return [member for member in self._session.roster.members.values() if _is_able(member, task)]

    # --- what is shown -------------------------------------------------------------------------------------

    def _between(self) -> None:
        """Between two events: do what was asked, look who went away, show what has changed."""
        with suppress(queue.Empty):
            while True:
                _perform(self._errands.get_nowait())
        now = time.monotonic()
        if now - self._presence_at >= _PRESENCE_SECONDS and self.is_connected:
            self._presence_at = now
            self._session.look_after_present()
        if now - self._looked_at >= _RUNS_SECONDS:
            self._looked_at = now
            self._look_at_run_index()
        if now - self._shown_at >= _SHOW_SECONDS:
            self._show()
            # With ten thousand workers this takes long: it never takes more than a tenth of the time.
            self._shown_at = time.monotonic() + 9 * (time.monotonic() - now)

    def _look_at_run_index(self) -> None:
        """Find each task's last model, and note when a run's files have changed."""
        summaries = self.run_index.summaries()
        self._last_models = {
            each.task: each.id for each in reversed(summaries) if each.has_model and each.closed_rounds > 0
        }
        self._runs_stamp = hash(repr(summaries)) % 2**32

    def _show(self) -> None:
        view = self._view()
        self.latest.show(self._status(view), view.folder if view else None, view.history if view else [])

    def _view(self) -> RunView | None:
        view = self._run.view() if self._run else None
        self.tally.look(view.history if view else ())
        return view

    def _status(self, view: RunView | None) -> ServingStatus:
        told = describe(self._session.roster.members.values(), self._session.sightings, view)
        return ServingStatus(
            broker=replace(self._at, is_connected=self.is_connected),
            is_ready=self._session.single_reader.is_confirmed,
            workers=told.workers,
            run=told.run,
            release=told.release,
            last_run=self._last,
            num_dead=self.num_dead,
            runs_stamp=self._runs_stamp,
            tasks=tuple(self._describe_task(task) for task in self._tasks()),
        )

    def _tasks(self) -> list[Task]:
        """The built-in tasks, and those that present workers name."""
        named = {member.task for member in self._session.roster.members.values() if member.task}
        named |= self._last_models.keys()
        own = [
            Task(name=name, kind="builder", source=name, defaults=_DEFAULTS)
            for name in named - BUILT_IN.keys()
        ]
        return [*BUILT_IN.values(), *sorted(own, key=lambda task: task.name)]

    def _describe_task(self, task: Task) -> TaskStatus:
        defaults = task.defaults
        return TaskStatus(
            name=task.name,
            num_able=len(self._able(task)),
            epochs=defaults.epochs,
            batch_size=defaults.batch_size,
            learning_rate=defaults.learning_rate,
            last_model=self._last_models.get(task.name),
        )

    def _tell(self) -> str:
        return status_json(self._status(self._view()))


_DEFAULTS = TaskDefaults()


def _is_able(member: Member, task: Task) -> bool:
    fits_task = member.task is None or member.task == task.name
    fits_classes = task.num_classes is None or task.num_classes == len(member.classes)
    return member.takes_rounds and not member.evaluate_only and fits_task and fits_classes


def _options_of(record: LaunchRecord, folder: Path) -> RunOptions:
    asked = read_options(record.options)
    asked.pop("from_scratch")
    return make_options(record.task, folder, asked)


def _perform(errand: _Errand) -> None:
    if not errand.done.set_running_or_notify_cancel():
        return
    try:
        errand.done.set_result(errand.act())
    except Exception as exc:  # noqa: BLE001 - carried to the thread that asked
        errand.done.set_exception(exc)


def _told(exc: Exception) -> str:
    """Why something failed, for a person; a bug's traceback is in the log."""
    if isinstance(exc, WarrenError):
        return str(exc)
    logger.error("A fault in the coordinator.", exc_info=exc)
    return f"A fault in the coordinator ({type(exc).__name__}: {exc!s:.200}). Its log tells more."
