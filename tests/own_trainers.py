"""Trainers of one's own without a run around them: their federated average by the textbook, and to the bit."""

import importlib
import random
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from broker.model.arrays import arrays_text
from broker.wire.messages import RoundStart
from broker.wire.settings import Precision, TrainingSettings
from broker.wire.tensors import FLOAT32, Layout, Values, flatten, unflatten
from broker.wire.transfer import Encoding
from coordinator.keras.arrays import asked_exactly, layout_of_arrays, read_arrays
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
        self.settings = asked_exactly(self.settings, arrays_text(self.names), self.layout)
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

    def by_the_textbook(self, round_number: int) -> Arrays:
        """Σ nₖ wₖ / Σ nₖ in float64 (McMahan et al. 2017, algorithm 1)."""
        every = [self.fitted(worker, round_number) for worker in self.sites]
        total = sum(each.num_examples for each in every)
        return {
            name: sum(each.num_examples * np.asarray(each.weights[name], np.float64) for each in every)
            / total
            for name in self.names
        }

    def play(self, round_number: int) -> None:
        """One round with the product's own adapter and sum."""
        examples = {worker: site.num_train_examples for worker, site in self.sites.items()}
        total = UpdateSum(self.layout, scale_exponent(sum(examples.values())))
        for worker, site in self.sites.items():
            total.add(self._fetched(self.update(worker, site, round_number)), examples[worker])
        self.vector = next_weights(FedAvg(), self.vector, total, ())

    def _fetched(self, vector: Values) -> Values:
        """An update as the coordinator has it, once it has travelled."""
        precision: Precision = "local32" if vector.dtype == FLOAT32 else "local64"
        span, out = slice(0, vector.size), np.empty(vector.size)
        data = Encoding.of(vector, self.layout, precision).encode(vector, span, [0])
        Encoding.told(self.layout, precision, (), self.vector).decode(data, span, out)
        return out

    def update(self, worker: str, site: OwnSite, round_number: int) -> Values:
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


def ulps_apart(ours: Mapping[str, Any], exact: Mapping[str, Any]) -> float:
    """The largest distance of any value from the exact one, in units of that one's last place in float32."""
    return max(
        float((np.abs(ours[name] - exact[name]) / np.spacing(np.abs(exact[name]).astype(np.float32))).max())
        for name in exact
    )
