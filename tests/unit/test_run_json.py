"""run.json says what was trained, with every setting and version, and never forgets the first of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from broker.errors import UsageError
from coordinator.folder.run_json import RUN_FILE, current_settings, keep_identity
from coordinator.options import RunOptions
from coordinator.tasks import resolve


def options(out: Path) -> RunOptions:
    return RunOptions(task=resolve("mnist"), out=out)


def content(out: Path) -> dict[str, object]:
    return dict(json.loads((out / RUN_FILE).read_text(encoding="utf-8")))


def test_every_setting_and_version_is_in_it(tmp_path: Path) -> None:
    """Also those that were left to their defaults."""
    keep_identity(options(tmp_path), closed_rounds=0)
    written = content(tmp_path)
    for field in RunOptions.__dataclass_fields__.keys() - {"out", "standby", "precision"}:
        assert field in written, field
    assert written["learning_rate"] == 0.1
    assert written["upload_precision"] == "float32"
    assert {"python", "warren", "tensorflow", "keras", "numpy"} <= dict(written["versions"]).keys()  # type: ignore[call-overload]


def test_going_on_with_other_settings_adds_a_record(tmp_path: Path) -> None:
    """The first one stays to the letter; what changed is told with the round after which it did."""
    keep_identity(options(tmp_path), closed_rounds=0)
    first = content(tmp_path)
    keep_identity(replace(options(tmp_path), learning_rate=0.01, fraction=0.5, quorum=1), closed_rounds=5)
    keep_identity(replace(options(tmp_path), learning_rate=0.01, fraction=0.5, quorum=1), closed_rounds=6)
    second = content(tmp_path)
    (record,) = second.pop("continued")  # type: ignore[misc]
    assert second == first
    assert (record["after_round"], record["changed"]) == (
        5, {"learning_rate": [0.1, 0.01], "fraction": [1.0, 0.5], "quorum": [2, 1]},
    )  # fmt: skip
    assert current_settings(content(tmp_path))["learning_rate"] == 0.01


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    """And nothing is written."""
    keep_identity(options(tmp_path), closed_rounds=0)
    before = content(tmp_path)
    with pytest.raises(UsageError, match="seed"):
        keep_identity(replace(options(tmp_path), seed=1), closed_rounds=0)
    assert content(tmp_path) == before


def test_every_setting_of_a_worker_can_be_asked_for(tmp_path: Path) -> None:
    """A field that `RunOptions.settings` forgets to pass on would keep its default at every worker, in silence."""
    asked = RunOptions(
        task=resolve("mnist"), out=tmp_path, epochs=9, batch_size=9, learning_rate=0.9, class_weight="balanced",
        examples_per_class=9, seed=9, deterministic=True, precision="int8", strategy="fedprox",
        strategy_options={"mu": "0.5"},
    )  # fmt: skip
    told, usual = asked.settings(2, epochs_before=9), options(tmp_path).settings(1)
    for field in usual.__dataclass_fields__:
        assert getattr(told, field) != getattr(usual, field), field


def test_asking_for_more_rounds_is_remembered_across_restarts(tmp_path: Path) -> None:
    """After which round: patience begins anew there. Fewer rounds, and other settings, ask for nothing more."""
    asked = options(tmp_path)
    assert keep_identity(asked, closed_rounds=0) == 0
    assert keep_identity(replace(asked, learning_rate=0.01), closed_rounds=2) == 0
    assert keep_identity(replace(asked, rounds=9), closed_rounds=5) == 5
    assert keep_identity(replace(asked, rounds=9), closed_rounds=7) == 5
    assert keep_identity(replace(asked, rounds=8), closed_rounds=8) == 5


def test_a_folder_of_an_earlier_version_goes_on_without_private_weights(tmp_path: Path) -> None:
    """It did not write that there are none; with some it would be another run."""
    keep_identity(options(tmp_path), closed_rounds=0)
    written = content(tmp_path)
    del written["private"]
    (tmp_path / RUN_FILE).write_text(json.dumps(written))
    keep_identity(options(tmp_path), closed_rounds=1)
    with pytest.raises(UsageError, match="private"):
        keep_identity(replace(options(tmp_path), private=("batch_normalization*",)), closed_rounds=1)
