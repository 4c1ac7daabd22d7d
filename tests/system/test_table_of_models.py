"""Whatever Keras trains with `fit` is federated here, and a worker alone computes what `fit` computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.model.trust import trust
from broker.wire.messages import RoundStart
from tests.system.federation import Models, play
from tests.system.table import NUM_EXAMPLES, TABLE, Case
from worker.data.data_set import open_data
from worker.rounds.participant import KerasTrainer, Participant, Trained, seed_of
from worker.tensorflow import load_keras

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs

BATCH = 8


class Noting(KerasTrainer):
    """Keeps the seed that the last training had."""

    seed = 0

    def answer(self, participant: Participant, start: RoundStart, *more: Any) -> Trained | None:
        if participant.trains_in(start):
            self.seed = seed_of(start, participant.name)
        return super().answer(participant, start, *more)


def taken(value: Any, order: Any) -> Any:
    if isinstance(value, dict):
        return {name: each[order] for name, each in value.items()}
    return [each[order] for each in value] if isinstance(value, list) else value[order]


def fit(case: Case, models: Models, seed: int) -> list[Any]:
    """What `fit` makes of the model in one epoch, in the order in which a worker goes through its examples."""
    keras = load_keras()
    model = keras.saving.deserialize_keras_object(json.loads(models.text), safe_mode=True)
    for variable, value in zip(model.weights, models.weights, strict=True):
        variable.assign(value)
    order = np.random.default_rng([seed, 1]).permutation(NUM_EXAMPLES)
    x, y = taken(case.x, order), taken(case.y, order)
    if isinstance(x, np.ndarray) and x.dtype.kind == "U":
        x = keras.ops.convert_to_tensor(x)
    elif isinstance(x, list):
        x = [keras.ops.convert_to_tensor(each) if each.dtype.kind == "U" else each for each in x]
    weighted = None if case.weights is None else taken(case.weights, order)
    model.fit(x, y, sample_weight=weighted, batch_size=BATCH, shuffle=False, verbose=0)
    return [variable.numpy() for variable in model.weights]


@pytest.mark.parametrize("name", TABLE)
def test_a_model_is_federated_and_a_worker_alone_computes_what_fit_computes(
    name: str, tmp_path: Path
) -> None:
    """Two workers train it for two rounds over the link, and its figures are numbers; a run of one worker and one round
    over the link gives the weights of plain Keras to 1e-5, those of every statistic included."""
    load_keras().utils.set_random_seed(1)
    case = TABLE[name]()
    site = tmp_path / "site.npz"
    tests = {key.replace("_train", "_test"): value for key, value in case.arrays.items()}
    np.savez(site, allow_pickle=False, **case.arrays, **tests)
    models = Models(case.model, trust(case.trusted))
    data = open_data(str(site))
    trainer = Noting(trusted_modules=case.trusted)
    outcome = play(models, {"w1": data, "w2": data}, tmp_path / "two", trainer=trainer, batch_size=BATCH)
    assert outcome.state.is_general == case.is_general
    assert bool(outcome.state.classes) != case.is_general
    row = outcome.state.history[2]
    assert set(row.accepted) == {"w1", "w2"}
    assert {"loss"} <= set(row.metrics) & set(row.test)
    assert np.isfinite([*row.metrics.values(), *row.test.values()]).all()
    assert ("balanced_accuracy" in row.test) != case.is_general
    alone = play(models, {"w1": data}, tmp_path / "one", trainer=trainer, batch_size=BATCH, rounds=1)
    assert set(alone.state.history[1].accepted) == {"w1"}
    for ours, theirs in zip(alone.weights, fit(case, models, trainer.seed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    changed = zip(alone.weights, models.weights, strict=True)
    assert any(not np.array_equal(ours, before) for ours, before in changed)
