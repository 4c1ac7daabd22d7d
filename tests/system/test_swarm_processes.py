"""Swarms on all cores with what is not the plain case: parts of one's own, weights that stay, data without classes."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from broker.model.kinds import layout_of
from broker.model.needs import needs_of
from broker.model.trust import trust
from broker.wire.messages import RoundStart
from broker.wire.tensors import Vector, flatten
from tests.system.federation import Models
from tests.system.table import TABLE
from tests.system.test_private_parts import start_of
from worker.data.data_set import open_data
from worker.processes.pool import TrainingPool
from worker.rounds.participant import KerasTrainer, Participant, Trainer
from worker.rounds.private_parts import PrivateParts

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


def answers(trainer: Trainer, sites: Sequence[Participant], starts: Sequence[RoundStart]) -> list[Vector]:
    """What two workers give in every round, each from the same global weights."""
    found = []
    for start in starts:
        for each in sites:
            weights = np.frombuffer(start.weights or b"", np.float32)
            told = trainer.answer(each, start, weights, threading.Event(), lambda _: None)
            assert told is not None and told.vector is not None
            found.append(told.vector)
    return found


def test_a_process_behind_trains_trusted_parts_and_private_weights_on_data_without_classes(
    tmp_path: Path,
) -> None:
    """As in one process: the child trusts the same modules, has its part of a table, and keeps what stays in the same
    folder; two rounds give the same weights, and the same lie on the disk."""
    case = TABLE["trusted_parts"]()
    np.savez(tmp_path / "site.npz", **case.arrays)
    parts = open_data(str(tmp_path / "site.npz")).divide(2, "iid", 0)
    sites = [Participant(name=f"s.{number}", data=part) for number, part in enumerate(parts, start=1)]
    layout = layout_of(case.model, ("gate*",))
    vector, _ = flatten([weight.numpy() for weight in case.model.weights], layout)
    text, needs = Models(case.model, trust(case.trusted)).text, needs_of(case.model)
    starts = [
        replace(start_of(text, layout, vector, number), needs=needs, classes=(), digest="d")
        for number in (1, 2)
    ]
    one, other = tmp_path / "one", tmp_path / "other"
    make = partial(KerasTrainer, trusted_modules=case.trusted)
    with TrainingPool(sites, 1, partial(make, private=PrivateParts(one, saves_model=False))) as pool:
        behind = answers(pool, sites, starts)
    here = answers(make(private=PrivateParts(other, saves_model=False)), sites, starts)
    np.testing.assert_allclose(behind, here, rtol=1e-5, atol=1e-6)
    assert {vector.size for vector in behind} == {5}, "the gate's four weights have no place in what travels"
    kept = [{path.relative_to(each): path for path in each.rglob("*.private")} for each in (one, other)]
    assert len(kept[0]) == 2
    assert kept[0].keys() == kept[1].keys()
