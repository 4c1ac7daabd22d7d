"""Answers one round start: measures the global model, trains on the worker's own data, and gives the difference."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from broker.errors import DataError, ModelError
from broker.model.card import write_card
from broker.wire.messages import Joined, RoundKey, RoundStart
from broker.wire.tensors import Array, Values, Vector, flatten_first, sections_of, unflatten
from worker.data.data_set import Dataset, Examples
from worker.learning.results import Report
from worker.learning.terms import require_known
from worker.learning.training import LocalModel
from worker.rounds.own_site import OwnSite
from worker.rounds.private_parts import PrivateParts, card_of
from worker.rounds.site_rules import SiteRules
from worker.rounds.time_limit import TimeLimit
from worker.rounds.uploading import Measured
from worker.site.global_models import GlobalModels
from worker.site.resting import default_folder
from worker.tables.fitted import Rows
from worker.tables.table_set import TableSet
from worker.tensorflow import load_keras, trusted_by

logger = logging.getLogger(__name__)

BUILD_SECONDS = 120.0  #: that building a model may take
STEP_SECONDS = 600.0  #: that a batch may take; the first one with the tracing of the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """One logical worker: its name, its own data (or the trainer that holds it), and what its operator allows."""

    name: str
    data: Dataset | TableSet | OwnSite
    evaluate_only: bool = False
    rules: SiteRules = field(default_factory=SiteRules)
    trusts: tuple[str, ...] = ()

    @property
    def has_trainer(self) -> bool:
        """Whether it trains named arrays with a trainer of its own, and no Keras models."""
        return isinstance(self.data, OwnSite)

    @property
    def statistics_refusal(self) -> str | None:
        """Why statistics of its examples are not told; None if they are."""
        if self.has_trainer or self.evaluate_only:
            return (
                "This site trains with a trainer of its own."
                if self.has_trainer
                else "This site trains on nothing."
            )
        return self.rules.statistics_refusal

    def word(self) -> Joined:
        """What it says of itself when it joins, but for what its process knows."""
        data = self.data
        return Joined(
            worker=self.name,
            classes=data.classes,
            num_examples=0 if self.evaluate_only else data.num_train_examples,
            examples_per_class=self.rules.examples_per_class(data),
            num_test_examples=self.rules.num_test_examples(data),
            evaluate_only=self.evaluate_only,
            inputs=self.rules.inputs(data),
            holds=data.holds,
            trusts=self.trusts,
            has_trainer=self.has_trainer,
        )

    def trains_in(self, start: RoundStart) -> bool:
        """Whether a round start asks this worker for an update."""
        return start.mode == "train" and not self.evaluate_only


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A worker's answer: what travels up (see `KeptUpdate`; None when it only measured), and the measures.

    The vector is given away: once its round is over, the weights of another are received into it.
    """

    vector: Values | None
    measured: Measured


class Trainer(Protocol):
    """What turns a round start into an answer."""

    def warm_up(self) -> None:
        """Do what takes long and needs no round: import the training library."""

    def answer(
        self,
        participant: Participant,
        start: RoundStart,
        weights: Vector,
        stop: threading.Event,
        report: Report,
    ) -> Trained | None:
        """Train and measure; None when `stop` was set before the end.

        Args:
            participant: Who answers.
            start: What is asked.
            weights: The global ones, float32 of shape (P,).
            stop: Looked at while it trains.
            report: Told how far the training is.

        Raises:
            ModelError: The model is not allowed or can't be built.
            DataError: The data does not fit the model.
        """


def seed_of(start: RoundStart, worker: str) -> int:
    """The seed of one worker's training in one round: a restarted worker computes what the first one would have."""
    text = f"{start.settings.seed}/{start.round_number}/{worker}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


_Given = TypeVar("_Given")


class KerasTrainer:
    """Trains with Keras; a model is built and compiled once, and used for every round and every logical worker.

    One that takes for ever is given up, and declined from then on: TensorFlow goes on with it, and nobody waits.

    Args:
        deterministic: Same seed, same data, same bits, whatever the coordinator asks for.
        ending: Set when the process is to end: what is under way is then left behind.
        trusted_modules: A model may hold what these register.
        private: Where weights are kept that stay at this site; by default in this user's own folder.
        keeps: Where each global model is kept that comes; None keeps none.
    """

    def __init__(
        self,
        *,
        deterministic: bool = False,
        ending: threading.Event | None = None,
        trusted_modules: tuple[str, ...] = (),
        private: PrivateParts | None = None,
        keeps: GlobalModels | None = None,
    ) -> None:
        self._deterministic = deterministic
        self._trusted_modules = trusted_modules
        self._private = private or PrivateParts(default_folder())
        self._keeps = keeps
        self._time_limit = TimeLimit(ending or threading.Event())
        self._model: LocalModel | None = None
        # Its JSON, whether it is trained on whatever it needs, and whether deterministically.
        self._model_of = ("", False, False)
        self._given_up: dict[str, str] = {}  # the last model that took too long, and why
        self._refused: tuple[RoundKey, str] | None = None  # the last round whose model is refused, and why

    num_at_once = 1

    @property
    def has_left_behind(self) -> bool:
        """Whether TensorFlow is still at something that nobody waits for."""
        return self._time_limit.num_left_behind > 0

    def close(self) -> None:
        """Let its threads go."""
        self._time_limit.close()

    def warm_up(self) -> None:
        """Import TensorFlow."""
        load_keras()

    def answer(
        self,
        participant: Participant,
        start: RoundStart,
        weights: Vector,
        stop: threading.Event,
        report: Report,
    ) -> Trained | None:
        """Measure the global model, then train from it."""
        begun = time.monotonic()
        data = participant.data
        assert not isinstance(data, OwnSite)  # noqa: S101 - the participants of this process are all of one kind
        if participant.trains_in(start):
            require_known(start.settings.terms)
        if start.model in self._given_up:
            raise ModelError(self._given_up[start.model])
        if self._refused is not None and self._refused[0] == start.held:
            raise ModelError(self._refused[1])  # the same for everybody in this process
        try:
            model = self._model_for(start)
        except ModelError as exc:
            self._refused = start.held, str(exc)
            raise
        if model is None:
            return None
        seed = seed_of(start, participant.name)
        test = _test_examples(data, start, model, seed)
        values = unflatten(start.layout, weights, start.integers)
        self._keep(start, model, values)
        values = self._private.put_back(participant.name, start, values)
        found = None
        if test is not None:
            found = self._in_time(
                start, lambda gets_on: model.evaluate(values, test, stop=stop, each_step=gets_on)
            )
        if stop.is_set() or (found is None and test is not None):
            return None
        result, vector = None, None
        if participant.trains_in(start):
            examples = _examples(data, start, model, seed)
            refusal = participant.rules.refusal(start.settings, len(examples))
            if refusal is not None:
                raise DataError(refusal)
            result = self._in_time(
                start,
                lambda gets_on: model.train(
                    values,
                    examples,
                    test,
                    start.settings,
                    seed=seed,
                    stop=stop,
                    report=report,
                    each_step=gets_on,
                ),
            )
            if result is None or not result.finished:
                return None
            vector = _difference(result.weights, weights, start)
            if self._private.concern(start):
                self._private.keep(participant.name, start, values, result.weights)
        if self._private.concern(start) and not participant.evaluate_only:
            self._in_time(start, lambda _: self._private.save_model(participant.name, start, model, values))
        measured = Measured(
            num_examples=result.num_examples if result else 0,
            metrics=result.metrics if result else {},
            states=result.states if result else {},
            global_metrics=found.metrics if found else {},
            global_states=found.states if found else {},
            counts=found.counts if found else None,
            num_test_examples=0 if test is None else len(test),
            seconds=time.monotonic() - begun,
        )
        return Trained(vector=vector, measured=participant.rules.of(measured))

    def _keep(self, start: RoundStart, model: LocalModel, values: list[Array]) -> None:
        """Keep the global model as it came, if its operator wants that."""
        keeps = self._keeps
        if keeps is None:
            return

        def write(path: Path) -> None:
            model.save(values, path)
            write_card(path, card_of(start, model))

        self._in_time(start, lambda _: keeps.keep(start.run_id, start.round_number - 1, ".keras", write))

    def _model_for(self, start: RoundStart) -> LocalModel | None:
        """The model of a round start; None when the process is to end before it is built."""
        deterministic = self._deterministic or start.settings.deterministic
        wanted = start.model, start.needs is not None, deterministic
        if self._model is None or (self._model_of, self._model.layout) != (wanted, start.layout):
            self._model = None
            self._model = self._in_time(
                start,
                lambda _: LocalModel(
                    start.model,
                    start.layout,
                    deterministic=deterministic,
                    is_general=start.needs is not None,
                    trusted=trusted_by(self._trusted_modules),
                ),
                what="Building the model",
                seconds=BUILD_SECONDS,
            )
            self._model_of = wanted
        return self._model

    def _in_time(
        self,
        start: RoundStart,
        function: Callable[[Callable[[], None]], _Given],
        *,
        what: str = "One batch of examples",
        seconds: float | None = None,
    ) -> _Given | None:
        """Let TensorFlow do something; a model that was given up over it is in use, and must not be used again."""
        before = self._time_limit.num_left_behind
        try:
            return self._time_limit.keep(what, STEP_SECONDS if seconds is None else seconds, function)
        except ModelError as exc:
            if self._time_limit.num_left_behind > before:
                self._model = None
                self._given_up = {start.model: str(exc)}
            raise


def _difference(trained: list[Array], weights: Vector, start: RoundStart) -> Vector:
    """What travels up, float32 of shape (U,): statistics are no steps from a former value, and go as they are."""
    sections = sections_of(start.layout)
    vector = flatten_first(trained, start.layout, sections.num_up)
    moved = vector[: sections.num_trainable]
    np.subtract(moved, weights[: sections.num_trainable], out=moved)
    return vector


def _examples(data: Dataset | TableSet, start: RoundStart, model: LocalModel, seed: int) -> Examples | Rows:
    """What is trained on."""
    if model.is_general:
        return data.train_rows(model.needs)
    per_class = start.settings.examples_per_class
    return data.sample(model.input_shape, per_class, np.random.default_rng([seed, 3]))


def _test_examples(
    data: Dataset | TableSet, start: RoundStart, model: LocalModel, seed: int
) -> Examples | Rows | None:
    """What is measured on; None where there is nothing."""
    if model.is_general:
        return data.test_rows(model.needs)
    per_class, rng = start.settings.examples_per_class, np.random.default_rng([seed, 4])
    found = data.sample_test(model.input_shape, per_class, rng)
    return found if len(found) else None
