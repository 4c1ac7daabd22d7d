"""Whatever goes wrong while a worker answers is told to the coordinator, and the worker goes on."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from broker import logs
from broker.errors import DataError, ModelError
from broker.hosting.private import wait_until
from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Delivery, coordinator_queue, upload_queue, worker_queue
from broker.wire import names
from broker.wire.messages import (
    Declined,
    Left,
    Message,
    RoundStart,
    SwarmDeclined,
    UpdateAnnounced,
    decode,
)
from broker.wire.tensors import FLOAT32
from tests.faults.actors import StandInData
from tests.unit.test_messages import EXAMPLES
from worker.learning.console import Console
from worker.learning.results import Report, TrainingProgress
from worker.rounds import failures, participant
from worker.rounds.failures import told
from worker.rounds.hand_over import AnsweredJob, RoundJob
from worker.rounds.participant import Participant, Trained
from worker.rounds.site_rules import SiteRules
from worker.rounds.uploading import KeptUpdate, Measured
from worker.rounds.worker_loop import WorkerLoop

START = next(message for message in EXAMPLES if isinstance(message, RoundStart))
PROGRESS = TrainingProgress(epoch=1, epochs=1, batch=1, batches=2, metrics={"loss": 0.5})


class Trainer:
    """In the place of Keras: raises what it is told to, or gives this update."""

    def __init__(self, vector: list[float], errors: list[BaseException]) -> None:
        self._vector = vector
        self._errors = errors

    def warm_up(self) -> None:
        """Nothing to import."""

    def answer(
        self, participant: object, start: object, weights: object, stop: object, report: Report
    ) -> Trained:
        report(PROGRESS)
        if self._errors:
            raise self._errors.pop(0)
        measured = Measured(num_examples=3, metrics={}, global_metrics={}, num_test_examples=0, seconds=1.0)
        return Trained(vector=np.array(self._vector, FLOAT32), measured=measured)


class Working:
    """A worker's process without its receiving thread, and what its coordinator hears."""

    def __init__(
        self,
        *errors: BaseException,
        vector: tuple[float, ...] = (1, 2),
        is_swarm: bool = False,
        account: str = "w",
    ):
        broker = MemoryBroker()
        self.coordinator, self.link = MemoryLink(broker, "coordinator"), MemoryLink(broker, account)
        self.coordinator.declare([coordinator_queue()])
        self.coordinator.consume([names.COORDINATOR], prefetch=0)
        self.link.declare([worker_queue("w"), *([upload_queue("w")] if account == "w" else [])])
        self.trainer = Trainer(list(vector), list(errors))
        data: Any = StandInData(10)
        self.worker_loop = WorkerLoop(
            self.link,
            [Participant(name=name, data=data) for name in (("w.1", "w.2") if is_swarm else ("w", "v"))],
            self.trainer,
            stop=threading.Event(),
            log=logs.configure(),
            console=Console(),
            is_swarm=is_swarm,
        )

    def answer(self, start: RoundStart = START, worker: str = "w") -> None:
        job = RoundJob(
            worker=worker, start=start, weights=np.zeros(2, FLOAT32), key=start.held, account="university"
        )
        self.worker_loop._hand_over.begin(job)
        self.worker_loop._turn()

    def heard(self) -> Iterator[Message]:
        """What was said, but for progress."""
        while (told := self.coordinator.receive(0)) is not None:
            assert isinstance(told, Delivery)
            message = decode(told.body)
            if message.TYPE not in ("progress", "ping", "joined"):
                yield message


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_diverged_training_is_declined_where_int8_can_not_tell_it(deterministic: bool) -> None:
    """NaN has no place among 8 bits."""
    working = Working(vector=(1, float("nan")))
    working.answer(
        replace(START, settings=replace(START.settings, precision="int8", deterministic=deterministic))
    )
    (declined,) = working.heard()
    assert isinstance(declined, Declined)
    assert "diverged" in declined.reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("You must compile.\nMore."), "ValueError: You must compile."),
        (KeyError("loss"), "KeyError: 'loss'"),
        (MemoryError(), "MemoryError"),
        (FileNotFoundError(2, "No such file or directory", "patients/Jane Doe.png"),
         "FileNotFoundError: No such file or directory"),
        (OSError("cannot identify 'patients/Jane Doe.png'"), "OSError"),
        (DataError("the images can't be read"), "the images can't be read"),
    ],
)  # fmt: skip
def test_whatever_training_raises_is_told_and_the_worker_goes_on(error: Exception, reason: str) -> None:
    """Its kind and first line, no name of a file; the next round is answered."""
    assert told(error) == reason
    working = Working(error)
    working.answer()
    (declined,) = working.heard()
    assert isinstance(declined, Declined)
    assert (declined.worker, declined.round_number, declined.reason) == ("w", 1, reason)
    working.answer()  # the same round again, for the coordinator tries it once more
    assert [type(each) for each in working.heard()] == [UpdateAnnounced]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_ends_a_process_is_not_declined(error: BaseException) -> None:
    """A person's interrupt is no bug in training."""
    working = Working(error)
    with pytest.raises(type(error)):
        working.answer()
    assert list(working.heard()) == []


def test_a_round_start_that_could_not_be_taken_is_declined() -> None:
    """The receiving thread hands it over: it must not wait for the broker itself."""
    working = Working()
    working.worker_loop._hand_over.decline("w", START.held, "There is no memory here.")
    working.worker_loop._turn()
    (declined,) = working.heard()
    assert isinstance(declined, Declined)
    assert declined.reason == "There is no memory here."


@pytest.mark.parametrize("comes", ["while the word is sent", "before it is sent"])
@pytest.mark.parametrize("fault", ["training", "publishing", "the start"])
def test_an_attempt_that_comes_while_the_one_before_is_declined_is_answered(
    monkeypatch: pytest.MonkeyPatch, comes: str, fault: str
) -> None:
    """The coordinator tries again as soon as it hears the word, which is before the worker knows that it was heard:
    the further attempt is not dropped with the one that was declined."""
    working = Working(*([DataError("the images can't be read")] if fault == "training" else []))
    hand_over = working.worker_loop._hand_over
    again = RoundJob(
        worker="w",
        start=replace(START, attempt=START.attempt + 1),
        weights=np.zeros(2, FLOAT32),
        key=replace(START.held, attempt=START.attempt + 1),
        account="university",
    )
    add, announcement = failures.Declines.add, KeptUpdate.announcement

    def heard_at_once(*told: Any) -> None:
        if comes == "before it is sent":
            hand_over.begin(again)
        add(*told)
        if comes == "while the word is sent":
            hand_over.begin(again)
        monkeypatch.undo()

    monkeypatch.setattr(failures.Declines, "add", heard_at_once)
    if fault == "publishing":
        broken = [OverflowError("too large")]
        monkeypatch.setattr(
            KeptUpdate,
            "announcement",
            lambda update: announcement(update) if not broken else _raised(broken.pop()),
        )
    if fault == "the start":
        hand_over.decline("w", START.held, "There is no memory here.")
        working.worker_loop._turn()
    else:
        working.answer()
    working.worker_loop._turn()
    declined, announced = working.heard()
    assert isinstance(declined, Declined)
    assert isinstance(announced, UpdateAnnounced)
    assert (declined.attempt, announced.attempt) == (START.attempt, START.attempt + 1)


def test_a_round_that_is_over_is_not_declined_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    """What its training raised then stays in this log, if nobody expected it."""
    for error, is_said in [(ValueError("odd"), True), (DataError("no images"), False)]:
        working = Working()
        job = RoundJob(worker="w", start=START, weights=np.zeros(2, FLOAT32), key=START.held)
        working.worker_loop._take_answer(AnsweredJob(job=job, update=None, error=error))
        assert list(working.heard()) == []
        assert ("over for w: ValueError: odd" in capsys.readouterr().err) is is_said


def _raised(error: Exception) -> Any:
    raise error


def test_one_update_that_can_not_be_sent_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A swarm publishes small updates together: the broken one is declined, the other announced."""
    working = Working(is_swarm=True)
    announcement = KeptUpdate.announcement

    def broken(update: KeptUpdate) -> object:
        if update.worker == "w.2":
            raise OverflowError("too large")
        return announcement(update)

    monkeypatch.setattr(KeptUpdate, "announcement", broken)
    working.answer(worker="w.2")
    working.answer(worker="w.1")
    working.worker_loop._turn()
    said = {type(each): each for each in working.heard()}
    assert said.keys() == {SwarmDeclined, UpdateAnnounced}
    assert said[SwarmDeclined].workers == ("w.2",)  # type: ignore[attr-defined]
    assert said[UpdateAnnounced].worker == "w.1"  # type: ignore[attr-defined]


def test_what_holds_for_many_workers_of_a_swarm_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused model is refused for all of them: one word, and one line; who has another reason has another word."""
    monkeypatch.setattr(failures, "_GATHERED_SECONDS", 60.0)
    errors = [ModelError("no Lambda"), ModelError("no Lambda"), DataError("no such class")]
    working = Working(*errors, is_swarm=True)
    for worker in ("w.1", "w.2"):
        working.answer(worker=worker)
    working.worker_loop._turn()
    (declined,) = working.heard()
    assert isinstance(declined, SwarmDeclined)
    assert (declined.worker, declined.workers, declined.reason) == ("w", ("w.1", "w.2"), "no Lambda")
    assert capsys.readouterr().err.count("no Lambda") == 1
    working.answer(worker="w.1")
    working.worker_loop._turn()
    (declined,) = working.heard()
    assert isinstance(declined, SwarmDeclined)
    assert (declined.workers, declined.reason) == (("w.1",), "no such class")


def test_progress_that_can_not_be_told_does_not_cost_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is gone, or a metric is no number: told once, and the update is sent."""
    working = Working()
    shown: list[TrainingProgress] = []

    def show(progress: TrainingProgress) -> None:
        shown.append(progress)
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(working.worker_loop._console, "show", show)
    working.answer()
    working.worker_loop._report(None, PROGRESS)  # type: ignore[arg-type]
    assert [type(each) for each in working.heard()] == [UpdateAnnounced]
    assert len(shown) == 1


def test_a_process_that_ends_by_a_bug_says_left() -> None:
    """The coordinator need not find out by itself."""
    working = Working()
    worker_loop = working.worker_loop

    def warm_up() -> None:
        assert wait_until(lambda: worker_loop._listener._single_reader.is_confirmed, 5)
        raise ZeroDivisionError("a bug")

    working.trainer.warm_up = warm_up  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        worker_loop.serve()
    said = list(working.heard())
    assert [each.worker for each in said if isinstance(each, Left)] == ["w"]
    assert isinstance(said[-1], Left)  # nothing is said after it


def told_as_sent(story: str) -> list[str]:
    """Those lines of the log, without the time."""
    return [line[line.index("Sent for round") :] for line in story.splitlines() if "Sent for round" in line]


@pytest.mark.parametrize("size", [2, 20_000])
def test_the_log_says_what_was_sent(capsys: pytest.CaptureFixture[str], size: int) -> None:
    """How many bytes really left, in how many messages, and the digest by which the coordinator knows them; and who
    asked for it."""
    working = Working(vector=(1.0,) * size)
    layout = (replace(START.layout[0], shape=(size,)),)
    working.answer(replace(START, layout=layout, part_bytes=64 * 1024, participants=3, quorum=2))
    story = capsys.readouterr().err
    parts = list(working.coordinator.fetch("upload.w", 9))
    announced = working.coordinator.receive(0)
    while isinstance(announced, Delivery) and announced.message_type != UpdateAnnounced.TYPE:
        announced = working.coordinator.receive(0)
    assert isinstance(announced, Delivery)
    message = decode(announced.body)
    assert isinstance(message, UpdateAnnounced)
    num_bytes = sum(len(each.body) for each in (*parts, announced))
    assert told_as_sent(story) == [
        "Sent for round 1, and confirmed by the broker: the update of 3 examples, no figures; "
        f"{num_bytes:,} bytes in {1 + len(parts)} messages, digest {message.digest}.  [run=r round=1]"
    ]
    assert len(parts) == (2 if size > 2 else 0)
    assert "(mnist) among 3 with a quorum of 2, launched by the account university" in story


@pytest.mark.parametrize(("size", "has_queue"), [(2, False), (20_000, True)])
def test_a_worker_without_an_account_makes_its_upload_queue_once_something_is_for_it(
    *, size: int, has_queue: bool
) -> None:
    """Ten thousand workers of small updates need ten thousand queues, and not twice as many; a large update finds its
    queue made before its first part goes out."""
    working = Working(vector=(1.0,) * size, account="guest")
    layout = (replace(START.layout[0], shape=(size,)),)
    published: list[bool] = []
    publish = working.link.publish

    def publishing(batch: Any) -> None:
        published.append(working.coordinator.consumers("upload.w") is not None)
        publish(batch)

    working.link.publish = publishing  # type: ignore[method-assign]
    working.answer(replace(START, layout=layout, part_bytes=64 * 1024))
    assert published
    assert (working.coordinator.consumers("upload.w") is not None) is has_queue
    assert len(list(working.coordinator.fetch("upload.w", 9))) == (2 if has_queue else 0)
    assert published[1:] == [has_queue] * len(published[1:])


def test_what_was_only_measured_is_told_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """An evaluation has no update, and so no digest."""
    working = Working()
    measured = Measured(
        num_examples=0, metrics={}, global_metrics={"loss": 1.0, "auc": 0.5}, num_test_examples=3, seconds=1.0
    )
    answer: Any = lambda *_: Trained(vector=None, measured=measured)  # noqa: E731 - in the place of a method
    working.trainer.answer = answer  # type: ignore[method-assign]
    working.answer(replace(START, mode="evaluate"))
    (line,) = told_as_sent(capsys.readouterr().err)
    assert "nothing trained, the figures auc, loss;" in line
    assert "digest" not in line


def test_nothing_is_said_to_be_sent_that_the_broker_has_not_confirmed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is for whoever answers for the data: it is no intention."""
    working = Working()
    monkeypatch.setattr(
        working.worker_loop._publisher, "send", lambda _batch: working.worker_loop._stop.set()
    )
    working.answer()
    assert told_as_sent(capsys.readouterr().err) == []


def test_where_no_more_than_must_is_shared_the_reason_has_no_words_of_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They may quote an example; the worker's own log has them."""
    working = Working(ValueError("could not convert 'Jane Doe'"))
    participant = working.worker_loop._participants["w"]
    working.worker_loop._participants["w"] = replace(participant, rules=SiteRules(share="weights"))
    working.answer()
    (declined,) = working.heard()
    assert isinstance(declined, Declined)
    assert declined.reason.startswith("ValueError;")
    assert "Doe" not in declined.reason
    assert "Doe" in capsys.readouterr().err


def test_a_refused_model_is_looked_at_once_a_round_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a thousand workers of a swarm it is the same; another attempt tries anew."""
    looked: list[str] = []

    def refuse(text: str, *_args: object, **_more: object) -> None:
        looked.append(text)
        raise ModelError("no Lambda")

    monkeypatch.setattr(participant, "LocalModel", refuse)
    trainer = participant.KerasTrainer()
    data: Any = StandInData(10)
    for start in (START, START, replace(START, attempt=START.attempt + 1)):
        for name in ("w.1", "w.2"):
            with pytest.raises(ModelError, match="no Lambda"):
                trainer.answer(
                    Participant(name=name, data=data), start, np.zeros(2, FLOAT32), threading.Event(), print
                )
    trainer.close()
    assert len(looked) == 2


def test_what_int8_cut_off_is_added_in_the_same_run_and_in_no_other() -> None:
    """A run that was stopped in the middle left it behind, and the next one began with it."""
    working = Working(vector=(1, 0.3))
    coarse = replace(START, settings=replace(START.settings, precision="int8"))
    exact = replace(START.settings, precision="float32")
    sent = []
    for start in (coarse, replace(coarse, run_id="another", settings=exact)):
        working.answer(start)
        sent.append([each for each in working.heard() if isinstance(each, UpdateAnnounced)][-1])
    assert np.frombuffer(sent[1].update or b"", FLOAT32).tolist() == np.array([1, 0.3], FLOAT32).tolist()
    working.answer(coarse)
    list(working.heard())
    working.answer(replace(coarse, round_number=coarse.round_number + 1, settings=exact))
    (again,) = (each for each in working.heard() if isinstance(each, UpdateAnnounced))
    assert np.frombuffer(again.update or b"", FLOAT32).tolist() != np.array([1, 0.3], FLOAT32).tolist()
