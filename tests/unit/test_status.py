"""What a person is told of workers and runs, from plain values to a table."""

from dataclasses import replace
from typing import Any

from broker.wire.messages import Progress
from broker.wire.settings import TrainingSettings
from coordinator.folder.history import Row, WorkerRow, flat_workers
from coordinator.learning.membership import Member
from coordinator.learning.rounds import Answer, RoundRecord, Verdict
from coordinator.page.prometheus import metrics_text
from coordinator.play.status import RunView, Sighting, describe
from coordinator.terminal.status_text import status_text

SETTINGS = TrainingSettings(
    epochs=2,
    batch_size=8,
    learning_rate=0.1,
    class_weight="none",
    examples_per_class=None,
    seed=0,
    deterministic=False,
)
RECORD = RoundRecord(
    run_id="r", round_number=2, first_attempt=1, attempt=1, mode="train", selected=("a", "b", "c"), evaluators=("t",),
    num_examples={"a": 10, "b": 10, "c": 10}, scale_exponent=40, part_bytes=4, quorum=2, deadline_seconds=60.0,
    grace_seconds=1.0,
)  # fmt: skip


def member(name: str, **changes: Any) -> Member:
    given: dict[str, Any] = {
        "worker": name, "classes": ("ill", "well"), "num_examples": 10, "examples_per_class": (4, 6),
        "num_test_examples": 5, "evaluate_only": False, "task": None, "held": None,
    }  # fmt: skip
    return Member(**{**given, **changes})


def answer(verdict: Verdict, reason: str | None = None, upload_id: str = "u") -> Answer:
    return Answer(
        upload_id=upload_id, verdict=verdict, num_examples=10, metrics={}, global_metrics={}, num_test_examples=5,
        seconds=2.5, reason=reason,
    )  # fmt: skip


def view(**changes: Any) -> RunView:
    given: dict[str, Any] = {
        "folder": "mnist-1", "task": "mnist", "phase": "training", "rounds": 5, "closed_rounds": 1, "workers": 3,
        "quorum": 2, "classes": ("ill", "well"), "record": RECORD, "answers": {}, "seconds_open": 1.0,
        "update_bytes": 0, "history": [Row(round=0), Row(round=1, metrics={"loss": 0.5}, seconds=3.0, late=("c",))],
        "present": ["a", "b", "c"], "unfit": {}, "is_stopping": False, "settings": SETTINGS, "strategy": "fedavg",
    }  # fmt: skip
    return RunView(**{**given, **changes})


def progress(worker: str, epoch: int, batch: int, round_number: int = 2) -> Progress:
    return Progress(
        worker=worker, run_id="r", round_number=round_number, epoch=epoch, epochs=2, batch=batch,
        batches=10, metrics={"loss": 0.25},
    )  # fmt: skip


def states(
    members: list[Member], run: RunView | None, heard: dict[str, Progress] | None = None
) -> dict[str, str]:
    sightings = {name: Sighting(at=1.0, progress=each) for name, each in (heard or {}).items()}
    return {worker["name"]: worker["state"] for worker in describe(members, sightings, run)["workers"]}


def test_a_worker_is_idle_without_a_round_and_away_without_a_reader() -> None:
    """With no run, presence is all there is to say."""
    assert states([member("a"), member("b", is_present=False)], None) == {"a": "idle", "b": "away"}


def test_each_state_of_an_open_round_is_told_apart() -> None:
    """Invited, training, sending, measuring, answered, rejected and declined."""
    run = view(
        record=replace(RECORD, selected=("a", "b", "c", "d", "e", "f")),
        answers={
            "d": answer(Verdict.ACCEPTED),
            "e": answer(Verdict.REJECTED, "not finite"),
            "f": answer(Verdict.REJECTED, "no memory", upload_id=""),
        },
    )
    members = [member(name) for name in "abcdefz"] + [member("t", evaluate_only=True)]
    assert states(members, run, {"b": progress("b", 1, 5), "c": progress("c", 2, 10)}) == {
        "a": "invited", "b": "training", "c": "uploading", "d": "answered", "e": "rejected", "f": "declined",
        "z": "idle", "t": "measuring",
    }  # fmt: skip


def test_progress_of_another_round_is_no_progress() -> None:
    """What was heard before belongs to the past."""
    assert states([member("a")], view(), {"a": progress("a", 1, 5, round_number=1)}) == {"a": "invited"}


def test_the_share_counts_all_epochs() -> None:
    """Epoch 2 of 2, batch 5 of 10, is three quarters."""
    told = describe([member("a")], {"a": Sighting(at=1.0, progress=progress("a", 2, 5))}, view())
    assert told["workers"][0]["progress"]["share"] == 0.75


def test_late_rejected_and_unfit_workers_are_told_why() -> None:
    """A person learns what to do about it."""
    run = view(record=None, unfit={"b": "its classes are x, y"}, answers={})
    told = {worker["name"]: worker for worker in describe([member("b"), member("c")], {}, run)["workers"]}
    assert "its classes are x, y" in told["b"]["detail"]
    assert told["c"]["state"] == "late"


def test_workers_are_in_the_order_that_a_person_expects() -> None:
    """site.2 before site.10."""
    told = describe([member("site.10"), member("site.2")], {}, None)["workers"]
    assert [worker["name"] for worker in told] == ["site.2", "site.10"]


def test_the_table_says_round_worker_and_result() -> None:
    """`coordinator status` at a glance."""
    state = describe([member("a")], {"a": Sighting(at=90.0, progress=progress("a", 2, 5))}, view())
    text = status_text(state, now=100.0)
    assert "round 2 of 5: 0 of 4 answered (quorum 2)" in text
    assert "round 1 closed in 3.0 s: loss 0.5000" in text
    assert "training" in text
    assert "75%" in text
    assert "10 s ago" in text


def test_the_table_of_an_idle_coordinator_tells_the_last_outcome() -> None:
    """And says that nobody is there."""
    last = {"id": "mnist-1", "task": "mnist", "outcome": "failed", "reason": "no quorum"}
    text = status_text({"workers": [], "run": None, "last_run": last}, now=0.0)
    assert "mnist-1, is failed: no quorum" in text
    assert "No worker has joined" in text


def test_metrics_follow_the_state() -> None:
    """What Prometheus reads is what the page shows."""
    state = {"broker": {"is_connected": True}, "num_dead": 3, **describe([member("a")], {}, view())}
    text = metrics_text(state)[0].decode()
    assert "warren_broker_connected 1.0" in text
    assert "warren_dead_messages_total 3.0" in text
    assert 'warren_workers{state="invited"} 1.0' in text
    assert "warren_run_closed_rounds 1.0" in text
    assert 'warren_model{measure="loss"} 0.5' in text
    assert b"warren_run_active 0.0" in metrics_text({})[0]


def test_each_accepted_worker_has_a_row_of_its_own() -> None:
    """workers.csv: what is drawn as thin lines."""
    workers = {
        "a": WorkerRow(num_examples=9, seconds=1.5, metrics={"loss": 0.5}),
        "b": WorkerRow(test={"loss": 0.25}, num_test_examples=3),
    }
    assert flat_workers([Row(round=1, workers=workers), Row(round=2)]) == [
        {"round": 1, "worker": "a", "num_examples": 9, "seconds": 1.5, "loss": 0.5},
        {"round": 1, "worker": "b", "num_test_examples": 3, "val_loss": 0.25},
    ]
