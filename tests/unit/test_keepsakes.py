"""Models of earlier rounds that stay: which checkpoint is held, under which name, and what a restart finds."""

import errno
import os
from pathlib import Path

import pytest

from coordinator.folder.keepsakes import Keepsakes
from coordinator.folder.standing import Standing
from coordinator.learning.stopping import Best

MODEL = "model.keras"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    commit(tmp_path, 3)
    return tmp_path


def commit(folder: Path, number: int) -> None:
    """As a checkpoint is committed: written aside, renamed."""
    aside = folder / "aside"
    aside.write_text(f"weights of round {number}")
    aside.replace(folder / "checkpoint")


def keepsakes(folder: Path, every: int | None = None) -> Keepsakes:
    return Keepsakes(folder / "checkpoint", every)


def best(number: int) -> Standing:
    return Standing(measure="val_loss", best=Best(round=number, value=0.5))


def held(keeping: Keepsakes) -> list[tuple[int, str, str]]:
    """The round, the file of the model, and what its checkpoint holds."""
    return [(each.round, each.model.name, each.checkpoint.read_text()) for each in keeping.taken()]


def test_the_best_rounds_checkpoint_outlives_the_next_commit(folder: Path) -> None:
    """It is known to be the best when the next one is about to take its place; the weights are its own, not those."""
    keeping = keepsakes(folder)
    keeping.hold(folder / MODEL, 3, best(3))
    commit(folder, 4)
    assert held(keeping) == [(3, "best.keras", "weights of round 3")]
    assert held(keeping) == [], "each is saved once"


def test_a_round_that_is_not_the_best_is_not_held(folder: Path) -> None:
    """Nor is the initial model, which no round trained."""
    keeping = keepsakes(folder, every=2)
    keeping.hold(folder / MODEL, 3, best(1))
    keeping.hold(folder / MODEL, 0, Standing())
    assert held(keeping) == []


def test_every_nth_model_is_kept_under_its_round(folder: Path) -> None:
    """Also when it is the best: then there are two files."""
    keeping = keepsakes(folder, every=3)
    keeping.hold(folder / MODEL, 3, best(3))
    assert held(keeping) == [
        (3, "best.keras", "weights of round 3"), (3, "model-0003.keras", "weights of round 3"),
    ]  # fmt: skip


def test_a_restart_goes_on_with_what_was_held(folder: Path) -> None:
    """A process that is killed before the model was saved leaves the name behind."""
    keepsakes(folder, every=3).hold(folder / MODEL, 3, best(3))
    commit(folder, 4)
    after = keepsakes(folder, every=3)
    after.take_up(folder / MODEL, best(3), 4)
    assert held(after) == [
        (3, "best.keras", "weights of round 3"), (3, "model-0003.keras", "weights of round 3"),
    ]  # fmt: skip


def test_what_was_held_before_a_commit_that_did_not_happen_is_judged_anew(folder: Path) -> None:
    """Killed between the two: the round is open again, and may end so that another one is the best."""
    keepsakes(folder).hold(folder / MODEL, 3, best(3))
    after = keepsakes(folder)
    after.take_up(folder / MODEL, best(2), 3)
    assert held(after) == []
    assert list(folder.glob(".held-*")) == []


def test_a_folder_that_is_put_back_holds_the_weights_that_it_has_now(folder: Path) -> None:
    """A name that is left of a future that was lost holds other weights of the same round."""
    keepsakes(folder).hold(folder / MODEL, 3, best(3))
    commit(folder, 3)
    (folder / "checkpoint").write_text("other weights of round 3")
    after = keepsakes(folder)
    after.hold(folder / MODEL, 3, best(3))
    assert held(after) == [(3, "best.keras", "other weights of round 3")]


def test_the_last_model_is_kept_when_no_commit_follows_it(folder: Path) -> None:
    """At the end of a run, once: what waits already is not held again."""
    keeping = keepsakes(folder, every=3)
    keeping.hold_last(folder / MODEL, 3, best(1))
    assert held(keeping) == [(3, "model-0003.keras", "weights of round 3")]
    keeping.hold_last(folder / MODEL, 3, best(1))
    assert held(keeping) == []


def test_a_best_model_that_an_older_version_did_not_keep_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An old folder opens; only what is still there can be kept."""
    with caplog.at_level("INFO"):
        keepsakes(folder).take_up(folder / MODEL, best(2), 3)
    assert "round 2 is the best so far, and its model was not kept" in caplog.text
    keeping = keepsakes(folder)
    keeping.take_up(folder / MODEL, best(3), 3)
    assert held(keeping) == [(3, "best.keras", "weights of round 3")]


def test_without_second_names_there_is_a_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some shared folders know no hard links."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    keeping = keepsakes(folder)
    keeping.hold(folder / MODEL, 3, best(3))
    commit(folder, 4)
    assert held(keeping) == [(3, "best.keras", "weights of round 3")]
