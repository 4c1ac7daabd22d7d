"""What a person is told of workers and runs, from plain values to a table."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from broker.errors import ProtocolError
from broker.wire.messages import Progress
from broker.wire.settings import TrainingSettings
from coordinator.folder.history import Row, WorkerRow, flat_workers
from coordinator.learning.membership import Member
from coordinator.learning.rounds import Answer, RoundRecord, Verdict
from coordinator.play.run_view import RunView, Sighting, describe
from coordinator.status import (
    BrokerStatus,
    EndedRun,
    ServingStatus,
    plain_status,
    read_status,
    status_json,
)
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
        "worker": name, "reader": name, "classes": ("ill", "well"), "num_examples": 10, "examples_per_class": (4, 6),
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


def told(members: list[Member], sightings: dict[str, Sighting], run: RunView | None) -> dict[str, Any]:
    """What the page and `coordinator status --json` are told."""
    found: dict[str, Any] = json.loads(status_json(describe(members, sightings, run)))
    return found


def serving(
    members: list[Member], sightings: dict[str, Sighting], run: RunView | None, **changes: Any
) -> ServingStatus:
    found = describe(members, sightings, run)
    given: dict[str, Any] = {
        "broker": BrokerStatus(address="amqp://h", management="http://h:15672", is_connected=True),
        "is_ready": True, "last_run": None, "num_dead": 0, "runs_stamp": 1, "tasks": (),
    }  # fmt: skip
    return ServingStatus(workers=found.workers, run=found.run, **{**given, **changes})


def states(
    members: list[Member], run: RunView | None, heard: dict[str, Progress] | None = None
) -> dict[str, str]:
    sightings = {name: Sighting(at=1.0, progress=each) for name, each in (heard or {}).items()}
    return {worker["name"]: worker["state"] for worker in told(members, sightings, run)["workers"]}


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


def test_a_paused_worker_is_told_as_such_with_and_without_a_run() -> None:
    """Also where it declined the open round for that; one that went away since is away."""
    paused = member("a", pause="paused by its operator")
    run = view(answers={"a": answer(Verdict.REJECTED, "paused by its operator", upload_id="")})
    for each in (None, run):
        (worker,) = told([paused], {}, each)["workers"]
        assert (worker["state"], worker["detail"]) == ("paused", "paused by its operator")
    assert states([replace(paused, is_present=False)], None) == {"a": "away"}


def test_progress_of_another_round_is_no_progress() -> None:
    """What was heard before belongs to the past."""
    assert states([member("a")], view(), {"a": progress("a", 1, 5, round_number=1)}) == {"a": "invited"}


def test_the_share_counts_all_epochs() -> None:
    """Epoch 2 of 2, batch 5 of 10, is three quarters."""
    state = told([member("a")], {"a": Sighting(at=1.0, progress=progress("a", 2, 5))}, view())
    assert state["workers"][0]["progress"]["share"] == 0.75


def test_late_rejected_and_unfit_workers_are_told_why() -> None:
    """A person learns what to do about it."""
    run = view(record=None, unfit={"b": "its classes are x, y"}, answers={})
    found = {worker["name"]: worker for worker in told([member("b"), member("c")], {}, run)["workers"]}
    assert "its classes are x, y" in found["b"]["detail"]
    assert found["c"]["state"] == "late"


def test_workers_are_in_the_order_that_a_person_expects() -> None:
    """site.2 before site.10."""
    workers = told([member("site.10"), member("site.2")], {}, None)["workers"]
    assert [worker["name"] for worker in workers] == ["site.2", "site.10"]


def test_the_table_says_round_worker_and_result() -> None:
    """`coordinator status` at a glance."""
    state = describe([member("a")], {"a": Sighting(at=90.0, progress=progress("a", 2, 5))}, view())
    text = status_text(read_status(status_json(state)), now=100.0)
    assert "round 2 of 5: 0 of 4 answered (quorum 2)" in text
    assert "round 1 closed in 3.0 s: loss 0.5000" in text
    assert "training" in text
    assert "75%" in text
    assert "10 s ago" in text


def test_the_table_of_an_idle_coordinator_tells_the_last_outcome() -> None:
    """And says that nobody is there."""
    last = EndedRun(id="mnist-1", task="mnist", outcome="failed", reason="no quorum")
    text = status_text(read_status(status_json(serving([], {}, None, last_run=last))), now=0.0)
    assert "mnist-1, is failed: no quorum" in text
    assert "No worker has joined" in text


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


def test_a_state_has_the_keys_that_programs_read() -> None:
    """What the page's script, `status --json` and other people's programs rest on; a new key is no flag day."""
    state = plain_status(
        serving([member("a")], {"a": Sighting(at=9.0, progress=progress("a", 2, 5))}, view())
    )
    assert state.keys() == {
        "workers", "run", "broker", "is_ready", "last_run", "num_dead", "runs_stamp", "tasks", "release",
    }  # fmt: skip
    assert state["workers"][0]["progress"] == {
        "epoch": 2, "epochs": 2, "batch": 5, "batches": 10, "share": 0.75, "metrics": {"loss": 0.25},
    }  # fmt: skip
    assert state["run"]["last_round"] == {
        "round": 1, "attempt": 0, "seconds": 3.0, "slowest_worker_seconds": 0.0, "num_examples": 0,
        "update_bytes": 0, "loss": 0.5, "accepted": (), "late": ("c",), "rejected": {},
    }  # fmt: skip
    assert state["run"]["settings"] == {"epochs": 2, "batch_size": 8, "learning_rate": 0.1}
    assert state["run"]["open_round"] == {
        "attempt": 1, "invited": 4, "accepted": 0, "rejected": 0, "quorum": 2, "deadline_seconds": 60.0,
        "update_bytes": 0,
    }  # fmt: skip


def test_weights_that_stay_at_the_workers_are_told_with_the_sites_that_keep_them() -> None:
    """Which, how many, and at how many sites; of a run that keeps none nothing is said."""
    run = view(private=("batch_normalization*", "head/*"), num_private=6)
    status = describe([member("a")], {}, run)
    assert plain_status(status)["run"]["private"] == {
        "patterns": ["batch_normalization*", "head/*"], "num_weights": 6, "num_sites": 3,
    }  # fmt: skip
    assert read_status(status_json(status)) == status
    words = "private: batch_normalization*, head/* (6 weights), its own at each of 3 sites"
    assert words in status_text(status, 10.0)
    assert "private" not in status_text(describe([member("a")], {}, view()), 10.0)


def test_a_status_is_read_back_as_it_was() -> None:
    """Whatever was measured: the row's measures find their places again."""
    row = Row(
        round=1, seconds=3.0, metrics={"loss": 0.5, "mine": 1.0}, test={"auc": 0.9}, num_test_examples=7,
        central={"loss": 2.0}, accepted=("a",), rejected={"b": "NaN"},
    )  # fmt: skip
    status = serving([member("a")], {}, view(history=[row]))
    assert read_status(status_json(status)) == status


def test_a_later_versions_status_is_read_and_no_status_is_refused() -> None:
    """Keys that this version does not know are passed over, wherever they stand."""
    state = told([member("a")], {}, view())
    state["run"]["settings"]["new"] = state["workers"][0]["new"] = state["new"] = [1]
    assert read_status(json.dumps(state)) == read_status(status_json(describe([member("a")], {}, view())))
    for text in ("[]", "{}", "no json", "[" * 30_000, '{"workers": 3, "run": null}'):
        with pytest.raises(ProtocolError):
            read_status(text)


def test_what_is_no_number_is_null() -> None:
    """NaN and infinity of a worker, of its training or of a closed round, are no JSON: no browser could read them."""
    bad = {"loss": math.nan, "more": math.inf}
    heard = replace(progress("a", 1, 5), metrics=bad)
    run = view(history=[Row(round=1, metrics=bad, test=bad)])
    text = status_json(serving([member("a")], {"a": Sighting(at=1.0, progress=heard)}, run))
    assert "NaN" not in text
    assert "Infinity" not in text
    state = json.loads(text)
    assert state["workers"][0]["progress"]["metrics"] == {"loss": None, "more": None}
    assert (state["run"]["last_round"]["loss"], state["run"]["last_round"]["val_more"]) == (None, None)
    assert "round 1 closed" in status_text(read_status(text), now=2.0)


def test_which_warren_each_worker_runs_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the terminal in a column, and the coordinator's own where they differ; of an older coordinator nothing."""
    monkeypatch.setattr("coordinator.play.run_view.release", lambda: "1.3.0")
    members = [member("a", release="1.2.0"), member("b", release="1.3.0"), member("old")]
    state = describe(members, {}, None)
    assert [worker.release for worker in state.workers] == ["1.2.0", "1.3.0", ""]
    text = status_text(read_status(status_json(state)), now=1.0)
    assert "1.2.0" in text
    assert "The coordinator runs Warren 1.3.0." in text
    assert "The coordinator runs" not in status_text(describe(members[1:], {}, None), now=1.0)
    told = json.loads(status_json(state))
    del told["release"], told["workers"][0]["release"]
    assert read_status(json.dumps(told)).workers[0].release == ""
