"""Weights that stay at a site (FedBN, FedPer): never sent up, put back each round, there after a kill."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import DataError, ModelError
from broker.model.card import read_card
from broker.model.kinds import layout_of, matches
from broker.wire.messages import RoundStart
from broker.wire.tensors import Array, Layout, Vector, flatten, sections_of, unflatten
from coordinator.learning.aggregation import UpdateSum, scale_exponent
from coordinator.learning.strategies.averages import FedAvg
from tests.steps import next_weights
from tests.system.test_kinds_of_weights import batch_norm, site
from tests.system.test_training import settings
from worker.data.data_set import Dataset
from worker.learning.saved_model import load_model
from worker.rounds.participant import KerasTrainer, Participant, Trained
from worker.rounds.private_parts import PrivateParts
from worker.site.global_models import GlobalModels

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs

BN = ("batch_normalization*",)


class Site(Dataset):
    """Made-up examples of one brightness."""

    def __init__(self, seed: int, brightness: float) -> None:
        self._examples = site(seed, 32, brightness)

    def sample(self, *_: object) -> Any:
        return self._examples

    def sample_test(self, *_: object) -> Any:
        return self._examples


def start_of(
    model: str, layout: Layout, vector: Vector, round_number: int, mode: Any = "train"
) -> RoundStart:
    return RoundStart(
        run_id="20260101-000000-abcd", round_number=round_number, attempt=1, mode=mode, task="t", classes=("no", "yes"),
        model=model, settings=settings(epochs=1, batch_size=8, learning_rate=None), layout=layout, scale_exponent=30,
        part_bytes=1 << 20, weights=vector.tobytes(), digest="", last_round=9, deadline_seconds=60.0,
    )  # fmt: skip


def answer(state: Path, participant: Participant, start: RoundStart, vector: Vector) -> Trained:
    """As a worker does it that has just been started: nothing is remembered but what is on its disk."""
    trainer = KerasTrainer(private=PrivateParts(state))
    told = trainer.answer(participant, start, vector.copy(), threading.Event(), lambda _: None)
    assert told is not None
    return told


def own(layout: Layout, weights: list[Array]) -> Array:
    return np.concatenate(
        [w.ravel() for w, spec in zip(weights, layout, strict=True) if spec.kind == "private"]
    )


def test_private_weights_stay_and_survive_a_restart(tmp_path: Path) -> None:
    """Two sites, three rounds, each answered by a new process: what goes up has no room for a private value, each site
    goes on with its own and saves its whole model; a round that is trained again gives the same bits; and the
    coordinator's model has the values that it began with."""
    model = batch_norm()
    text, layout = model.to_json(), layout_of(model, BN)
    vector, integers = flatten([weight.numpy() for weight in model.weights], layout)
    first = vector.copy()
    sections = sections_of(layout)
    sites = [Participant(name=f"s{i}", data=Site(i, 3.0 * i)) for i in range(2)]
    for number in (1, 2, 3):
        start, total = start_of(text, layout, vector, number), UpdateSum(layout, scale_exponent(64))
        for each in sites:
            told = answer(tmp_path, each, start, vector)
            again = answer(tmp_path, each, start, vector)
            assert told.vector is not None and again.vector is not None
            assert told.vector.shape == (sections.num_up,) == (sections.num_trainable,)
            np.testing.assert_array_equal(told.vector, again.vector)
            total.add(told.vector, 32)
        vector = next_weights(FedAvg(), vector, total, ())
    last = unflatten(layout, vector, integers)
    np.testing.assert_array_equal(own(layout, last), own(layout, unflatten(layout, first, integers)))
    for each in sites:
        answer(tmp_path, each, start_of(text, layout, vector, 4, "evaluate"), vector)
    loaded = [load_model(tmp_path / each.name / "model.keras").model for each in sites]
    values = [[weight.numpy() for weight in each.weights] for each in loaded]
    for place, spec in enumerate(layout):
        if spec.kind == "trainable":
            np.testing.assert_array_equal(values[0][place], last[place])
    assert np.abs(own(layout, values[0]) - own(layout, values[1])).max() > 0.5, (
        "the bright site's mean is another"
    )
    card = read_card(tmp_path / "s0" / "model.keras")
    assert card is not None and (card.round_number, card.classes) == (3, ("no", "yes"))


def test_what_is_kept_and_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    """A damaged file is no reason to train with something else in silence."""
    model = batch_norm()
    layout = layout_of(model, BN)
    vector, _ = flatten([weight.numpy() for weight in model.weights], layout)
    start = start_of(model.to_json(), layout, vector, 1)
    (tmp_path / "s0").mkdir()
    (tmp_path / "s0" / f"{start.run_id}.private").write_bytes(b"half a file")
    with pytest.raises(DataError, match="begins anew"):
        answer(tmp_path, Participant(name="s0", data=Site(0, 0.0)), start, vector)


def test_a_pattern_means_layers_wherever_they_are() -> None:
    """By the path from any layer on; not by the last word alone, or b* would mean every bias."""
    path = "sequential/batch_normalization_1/gamma"
    assert matches(path, "batch_normalization*")
    assert matches(path, "sequential/*")
    assert matches(path, "*/gamma")
    assert not matches(path, "gamma")
    assert not matches("sequential/dense/bias", "b*")


def test_patterns_that_can_not_be_meant_are_refused_with_the_names() -> None:
    """Before the first round: one that matches nothing, all weights, and a mean without its variance."""
    model = batch_norm()
    with pytest.raises(ModelError, match=r"There are: .*batch_normalization.*/gamma"):
        layout_of(model, ("batchnorm*",))
    with pytest.raises(ModelError, match="Leave some"):
        layout_of(model, ("*",))
    with pytest.raises(ModelError, match="parts a mean"):
        layout_of(model, ("*/moving_mean",))


def test_the_global_model_is_kept_as_it_came_and_not_with_what_is_private(tmp_path: Path) -> None:
    """Plain Keras opens it: the weights are those that the coordinator sent, before this site's own were put back."""
    import keras

    model = batch_norm()
    layout = layout_of(model, BN)
    vector, integers = flatten([weight.numpy() for weight in model.weights], layout)
    trainer = KerasTrainer(private=PrivateParts(tmp_path), keeps=GlobalModels(tmp_path / "kept", 1))
    participant = Participant(name="s1", data=Site(1, 3.0))
    for number in (1, 2):
        start = start_of(model.to_json(), layout, vector, number)
        trainer.answer(participant, start, vector.copy(), threading.Event(), lambda _: None)
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.name == "20260101-000000-abcd-round-1.keras"
    opened = keras.models.load_model(kept)
    for found, sent in zip(opened.get_weights(), unflatten(layout, vector, integers), strict=True):
        np.testing.assert_array_equal(found, sent)
    card = read_card(kept)
    assert card is not None and (card.round_number, card.classes) == (1, ("no", "yes"))
