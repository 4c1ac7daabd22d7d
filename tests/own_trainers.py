"""Trainers of one's own without a run around them: their federated average by the textbook, and to the bit."""

import importlib
import random
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from broker.model.arrays import arrays_text
from broker.wire.messages import RoundStart
from broker.wire.settings import TrainingSettings
from broker.wire.tensors import Layout, Vector, flatten, unflatten
from coordinator.keras.arrays import layout_of_arrays, read_arrays
from coordinator.learning.aggregation import UpdateSum, scale_exponent
from coordinator.learning.strategies.averages import FedAvg
from tests.steps import next_weights
from worker.rounds.own_site import OwnSite, open_trainer
from worker.rounds.own_trainer import OwnTraining, named
from worker.rounds.participant import Participant, seed_of
from worker.trainer import FitSettings, Fitted

Arrays = dict[str, Any]


class Federation:
    """Some workers of one example, and the global arrays that they have reached.

    Args:
        example: The module with `task` and `Trainer`, e.g. worker.examples.sklearn_mlp.
        workers: Their names.
        settings: Of every round.
    """

    def __init__(self, example: str, workers: tuple[str, ...], **settings: Any) -> None:
        given = {"epochs": 1, "batch_size": 32, "seed": 0} | settings
        self.settings = TrainingSettings(**given)
        module = importlib.import_module(example)
        random.seed(self.settings.seed)
        np.random.seed(self.settings.seed)
        arrays = read_arrays(module.task())
        self.names = list(arrays)
        self.layout: Layout = layout_of_arrays(arrays)
        self.vector, self.integers = flatten(list(arrays.values()), self.layout)
        self.sites = {each: open_trainer(f"{example}:Trainer", data=None, worker=each) for each in workers}

    @property
    def arrays(self) -> Arrays:
        """The global ones, by name."""
        values = unflatten(self.layout, self.vector, self.integers)
        return {name: np.array(value) for name, value in zip(self.names, values, strict=True)}

    def start(self, round_number: int) -> RoundStart:
        """What the workers are asked."""
        return RoundStart(
            run_id="run", round_number=round_number, attempt=1, mode="train", task="a:b", classes=(),
            model=arrays_text(self.names), settings=self.settings, layout=self.layout, scale_exponent=30,
            integers=tuple(self.integers), part_bytes=65536, digest="", last_round=9, deadline_seconds=60.0,
        )  # fmt: skip

    def fitted(self, worker: str, round_number: int) -> Fitted:
        """What one worker's trainer gives by itself, with nothing of ours in between."""
        start = self.start(round_number)
        settings = FitSettings(
            epochs=self.settings.epochs,
            batch_size=self.settings.batch_size,
            learning_rate=self.settings.learning_rate,
            seed=seed_of(start, worker),
            round_number=round_number,
            terms=self.settings.terms,
            stop=threading.Event(),
            report=lambda *_args, **_more: None,
        )
        return self.sites[worker].trainer.fit(named(start, self.vector), settings)

    def by_the_textbook(self, round_number: int) -> "tuple[Arrays, Arrays]":
        """Σ nₖ wₖ / Σ nₖ in float64 (McMahan et al. 2017, algorithm 1), and the largest |number| in each sum."""
        every = [self.fitted(worker, round_number) for worker in self.sites]
        total = sum(each.num_examples for each in every)
        exact, largest = {}, {}
        for name, before in self.arrays.items():
            values = [np.asarray(each.weights[name], np.float64) for each in every]
            exact[name] = (
                sum(each.num_examples * its for each, its in zip(every, values, strict=True)) / total
            )
            largest[name] = np.abs([before, *values, *(its - before for its in values)]).max(axis=0)
        return exact, largest

    def play(self, round_number: int) -> None:
        """One round with the product's own adapter and sum."""
        examples = {worker: site.num_train_examples for worker, site in self.sites.items()}
        total = UpdateSum(self.layout, scale_exponent(sum(examples.values())))
        for worker, site in self.sites.items():
            total.add(self.update(worker, site, round_number), examples[worker])
        self.vector = next_weights(FedAvg(), self.vector, total, ())

    def update(self, worker: str, site: OwnSite, round_number: int) -> Vector:
        """What travels up."""
        trained = OwnTraining().answer(
            Participant(name=worker, data=site),
            self.start(round_number),
            self.vector,
            threading.Event(),
            lambda _progress: None,
        )
        assert trained is not None
        assert trained.vector is not None
        return trained.vector


def ulps_apart(ours: Mapping[str, Any], exact: Mapping[str, Any], largest: Mapping[str, Any]) -> float:
    """The largest distance from the exact values, in units of float32's last place of what was added up."""
    return max(
        float((np.abs(ours[name] - exact[name]) / np.spacing(largest[name].astype(np.float32))).max())
        for name in exact
    )
