"""Whatever Keras trains with `fit` is federated here, and a worker alone computes what `fit` computes."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.model.trust import trust
from broker.wire.settings import TrainingSettings
from tests.system.federation import Models, play
from tests.system.table import NUM_EXAMPLES, TABLE, Case
from worker.data.data_set import open_data
from worker.rounds.participant import KerasTrainer
from worker.tensorflow import load_keras

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs

BATCH = 8
SEED = 5
SETTINGS = TrainingSettings(epochs=1, batch_size=BATCH, seed=0)


def taken(value: Any, order: Any) -> Any:
    if isinstance(value, dict):
        return {name: each[order] for name, each in value.items()}
    return [each[order] for each in value] if isinstance(value, list) else value[order]


def fit(case: Case, models: Models, weights: list[Any]) -> list[Any]:
    """What `fit` makes of these weights in one epoch, in the order in which a worker goes through its examples."""
    keras = load_keras()
    model = keras.saving.deserialize_keras_object(json.loads(models.text), safe_mode=True)
    for variable, value in zip(model.weights, weights, strict=True):
        variable.assign(value)
    order = np.random.default_rng([SEED, 1]).permutation(NUM_EXAMPLES)
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
    """Two workers train it for two rounds over the link, and its figures are numbers; with one worker an epoch gives
    the weights of plain Keras to 1e-5, those of every statistic included."""
    load_keras().utils.set_random_seed(1)
    case = TABLE[name]()
    site = tmp_path / "site.npz"
    tests = {key.replace("_train", "_test"): value for key, value in case.arrays.items()}
    np.savez(site, allow_pickle=False, **case.arrays, **tests)
    trusted = trust(case.trusted)
    models = Models(case.model, trusted)
    data = open_data(str(site))
    trainer = KerasTrainer(trusted_modules=case.trusted)
    outcome = play(models, {"w1": data, "w2": data}, tmp_path / "run", trainer=trainer, batch_size=BATCH)
    assert outcome.state.is_general == case.is_general
    assert bool(outcome.state.classes) != case.is_general
    row = outcome.state.history[2]
    assert set(row.accepted) == {"w1", "w2"}
    assert {"loss"} <= set(row.metrics) & set(row.test)
    assert np.isfinite([*row.metrics.values(), *row.test.values()]).all()
    assert ("balanced_accuracy" in row.test) != case.is_general
    local, begin = trainer._model, outcome.weights
    assert local is not None
    rows: Any = data.train_rows(local.needs) if local.is_general else data.train(local.input_shape)
    found = local.train(begin, rows, None, SETTINGS, seed=SEED, stop=threading.Event(), report=lambda _: None)
    for ours, theirs in zip(found.weights, fit(case, models, begin), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert any(not np.array_equal(ours, before) for ours, before in zip(found.weights, begin, strict=True))
