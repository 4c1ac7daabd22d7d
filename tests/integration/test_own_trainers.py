"""The examples of trainers of one's own, federated by the command line over a real broker, TensorFlow shut out."""

import csv
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import EXIT_DONE, ModelError
from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import outgoing, worker_queue
from broker.model.card import read_card
from broker.wire import names
from broker.wire.messages import Joined, Refused, decode
from coordinator.keras.process import ModelProcess
from coordinator.tasks import resolve
from tests.brokers import wait_until
from tests.own_trainers import Federation, ulps_apart
from tests.servings import ROOT, Lab
from worker.examples.digits import Site, log_softmax, open_site
from worker.rounds.participant import seed_of

ROUNDS = 2
SECONDS = 240  # to import PyTorch takes long on a busy machine
EXAMPLES = {"sklearn_logistic": "sklearn", "sklearn_mlp": "sklearn", "jax_optax": "jax", "torch_mlp": "torch"}
_SHUT_OUT = """
import pathlib
pathlib.Path(__file__).with_suffix(".imported").touch()
raise ModuleNotFoundError("shut out", name=__name__)
"""


@pytest.fixture
def without_tensorflow(tmp_path: Path) -> Path:
    """A folder before which no installed TensorFlow or Keras is found."""
    folder = tmp_path / "shut-out"
    folder.mkdir()
    for name in ("tensorflow", "keras"):
        (folder / f"{name}.py").write_text(_SHUT_OUT)
    return folder


@pytest.fixture
def lab(tmp_path: Path, vhost: str, without_tensorflow: Path) -> Iterator[Lab]:
    with Lab(tmp_path, vhost, without_tensorflow) as lab:
        yield lab


def need(example: str) -> None:
    """Skip what can't be installed everywhere, and say how it can be."""
    package = EXAMPLES[example]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} isn't installed; worker/README.md says how")


def refusal_of(amqp_url: str, joined: Joined) -> str:
    """What the coordinator says to a worker that joins and does not fit."""
    link = RabbitLink(LinkSettings(access=Access(amqp_url=amqp_url), name="test"))
    link.open()
    queue = worker_queue(joined.worker)
    link.declare([queue])
    link.publish([outgoing(joined, names.COORDINATOR)])
    told: list[str] = []

    def look() -> bool:
        messages = [decode(each.body) for each in link.fetch(queue.name)]
        told.extend(each.reason for each in messages if isinstance(each, Refused))
        return bool(told)

    wait_until(look, 30, what="the refusal")
    link.close()
    return told[0]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_federated_and_ends_in_the_textbooks_average(
    lab: Lab, without_tensorflow: Path, example: str
) -> None:
    """Three workers in a swarm, two rounds: model.npz is to the bit what the same trainers give without a broker, and
    each value to one float32 ulp of it the average in float64. Neither side so much as tries to import TensorFlow."""
    need(example)
    module, workers = f"worker.examples.{example}", ("s.1", "s.2", "s.3")
    swarm = lab.start(
        "worker", "swarm", "--name", "s", "--count", "3", "--once", "--trainer", f"{module}:Trainer"
    )
    run = lab.start(
        "coordinator", "run", f"{module}:task", "--workers", "3", "--rounds", str(ROUNDS), "--epochs", "2", "--seed",
        "5", "--out", "run",
    )  # fmt: skip
    assert (run.ended(SECONDS), swarm.ended(SECONDS)) == (0, 0), run.said + swarm.said
    assert "model.npz  rounds=2" in run.said
    assert not list(without_tensorflow.glob("*.imported"))

    alone = Federation(module, workers, epochs=2, seed=5)
    for number in range(1, ROUNDS + 1):
        exact = alone.by_the_textbook(number)
        alone.play(number)
        assert ulps_apart(alone.arrays, exact) <= 1
    model = dict(np.load(lab.folder / "run" / "model.npz"))
    assert {name: its.tobytes() for name, its in model.items()} == {
        name: its.tobytes() for name, its in alone.arrays.items()
    }

    rows = list(csv.DictReader((lab.folder / "run" / "history.csv").read_text().splitlines()))
    found = alone.sites["s.1"].trainer.evaluate(alone.arrays)
    assert found is not None
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(found.metrics["accuracy"])
    card = read_card(lab.folder / "run" / "model.npz")
    assert card is not None
    assert (card.task, card.round_number) == (f"{module}:task", ROUNDS)
    assert (lab.folder / "run" / "curves.png").stat().st_size > 0


# --- one worker: what its framework gives by itself -------------------------------------------------------------

EPOCHS = 3


def one_worker(example: str) -> tuple[Federation, dict[str, Any], Site, int]:
    """A federation of one, its first arrays, its examples, and the seed of its first round."""
    need(example)
    federation = Federation(f"worker.examples.{example}", ("w",), epochs=EPOCHS, batch_size=50)
    seed = seed_of(federation.start(1), "w")
    return federation, federation.arrays, open_site(None, "w"), seed


def assert_same(federation: Federation, alone: dict[str, Any], tolerance: float) -> None:
    """Play a round of one worker, and hold its arrays against those of the framework alone."""
    federation.play(1)
    for name, value in federation.arrays.items():
        np.testing.assert_allclose(value, alone[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_one_worker_gives_what_scikit_learns_logistic_regression_gives() -> None:
    """Its plain `fit` with as many iterations, to float32."""
    from sklearn.linear_model import LogisticRegression

    federation, _, site, _ = one_worker("sklearn_logistic")
    model = LogisticRegression(max_iter=EPOCHS).fit(site.x, site.y)
    assert_same(federation, {"coef": model.coef_, "intercept": model.intercept_}, 1e-7)


def test_one_worker_gives_what_gradient_descent_on_scikit_learns_network_gives() -> None:
    """One batch of all examples a step, where nothing depends on their order: its formula written out in numpy."""
    federation, first, site, _ = one_worker("sklearn_mlp")
    federation.settings = replace(federation.settings, batch_size=10_000)
    w0, b0, w1, b1 = (first[each] for each in ("coefs_0", "intercepts_0", "coefs_1", "intercepts_1"))
    number, rate, decay = len(site.y), 0.1, 1e-4
    for _ in range(EPOCHS):
        hidden = np.maximum(site.x @ w0 + b0, 0)
        slope = np.exp(log_softmax(hidden @ w1 + b1)) - np.eye(10)[site.y]
        below = (slope @ w1.T) * (hidden > 0)
        w1, b1 = w1 - rate * (hidden.T @ slope + decay * w1) / number, b1 - rate * slope.mean(axis=0)
        w0, b0 = w0 - rate * (site.x.T @ below + decay * w0) / number, b0 - rate * below.mean(axis=0)
    assert_same(federation, {"coefs_0": w0, "intercepts_0": b0, "coefs_1": w1, "intercepts_1": b1}, 1e-6)


def test_one_worker_gives_what_jax_and_optax_give() -> None:
    """Plain optax, with a loss of optax's own."""
    federation, first, site, seed = one_worker("jax_optax")
    import jax
    import optax

    def loss(weights: Any, x: Any, y: Any) -> Any:
        hidden = jax.nn.relu(x @ weights["hidden/kernel"] + weights["hidden/bias"])
        scores = hidden @ weights["output/kernel"] + weights["output/bias"]
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    rule, weights, order = optax.sgd(0.05, momentum=0.9), first, np.random.default_rng(seed)
    state, gradient, update = rule.init(weights), jax.jit(jax.grad(loss)), jax.jit(rule.update)
    for _ in range(EPOCHS):
        mixed = order.permutation(len(site.y))
        for batch in (mixed[begin : begin + 50] for begin in range(0, len(mixed), 50)):
            step, state = update(gradient(weights, site.x[batch], site.y[batch]), state)
            weights = optax.apply_updates(weights, step)
    assert_same(federation, weights, 2e-6)


def test_one_worker_gives_what_pytorch_gives() -> None:
    """A plain loop over the same batches, the momentum written out."""
    federation, first, site, seed = one_worker("torch_mlp")
    import torch

    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    weights = [torch.tensor(first[name], requires_grad=True) for name in names]
    x, y = torch.tensor(site.x, dtype=torch.float32), torch.tensor(site.y)
    speeds = [torch.zeros_like(each) for each in weights]
    torch.manual_seed(seed)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(y)).split(50):
            scores = torch.relu(x[batch] @ weights[0].T + weights[1]) @ weights[2].T + weights[3]
            loss = torch.nn.functional.cross_entropy(scores, y[batch])
            slopes = torch.autograd.grad(loss, weights)
            speeds = [0.9 * speed + slope for speed, slope in zip(speeds, slopes, strict=True)]
            weights = [
                (each - 0.05 * speed).detach().requires_grad_()
                for each, speed in zip(weights, speeds, strict=True)
            ]
    alone = {name: each.detach().numpy() for name, each in zip(names, weights, strict=True)}
    assert_same(federation, alone, 2e-6)


def test_whoever_has_the_other_kind_is_refused_and_a_page_launches_arrays(lab: Lab) -> None:
    """A worker that has Keras is sent away from a run of arrays, and told what to do. `serve` plays the
    same task, goes on from its model.npz, and gives it away for download."""
    task, trainer = "worker.examples.sklearn_mlp:task", "worker.examples.sklearn_mlp:Trainer"
    run = lab.start("coordinator", "run", task, "--workers", "1", "--rounds", "1", "--out", "run")
    run.says("Waiting for workers")
    refused = refusal_of(
        lab.amqp_url, Joined(worker="keras", classes=("a", "b"), num_examples=5, examples_per_class=())
    )
    assert "start it with --trainer MODULE:CLASS" in refused
    assert "Refused keras" in run.said
    mine = lab.start("worker", "run", "--name", "mine", "--trainer", trainer)
    assert run.ended(SECONDS) == 0, run.said

    serve = lab.serve("--runs", "runs")
    lab.wait_for(lambda state: state["workers"] and state["is_ready"], 30, "the worker")
    for _ in range(2):
        code, said = lab.run("launch", task, "--workers", "1", "--rounds", "1")
        assert code == 0, said
        serve.says(f"The run {said.split()[0]} is done.", SECONDS)
    newest, oldest = lab.get("/api/runs")["runs"]
    assert (newest["model_file"], newest["has_model"], newest["outcome"]) == ("model.npz", True, "done")
    first, second = (
        dict(np.load(lab.folder / "runs" / each["id"] / "model.npz")) for each in (oldest, newest)
    )
    assert not np.array_equal(first["coefs_0"], second["coefs_0"])
    settings = (lab.folder / "runs" / newest["id"] / "run.json").read_text()
    assert f"{oldest['id']}/model.npz" in settings
    assert mine.terminate() == EXIT_DONE
    serve.terminate()


def test_without_tensorflow_a_keras_model_is_refused_in_a_sentence(
    without_tensorflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At both sides, and what is missing is said; a child that would have warmed up goes on with a task of arrays."""
    monkeypatch.setenv("PYTHONPATH", str(without_tensorflow))
    with ModelProcess() as models:
        with pytest.raises(ModelError, match="try pip install tensorflow"):
            models.build(resolve("mnist"), seed=0)
        built = models.build(resolve("worker.examples.sklearn_logistic:task"), seed=0)
    assert (built.num_parameters, built.num_classes, built.input_shape) == (650, 0, ())
    done = subprocess.run(
        [sys.executable, "-c", "from worker.tensorflow import load_keras; load_keras()"],
        env=os.environ | {"PYTHONPATH": f"{without_tensorflow}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert "ModelError: Keras models need TensorFlow" in done.stderr
