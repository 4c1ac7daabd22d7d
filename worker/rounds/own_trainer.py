"""Answers a round start with a trainer of the site's own: the vector becomes named arrays, and these a difference."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from broker.errors import DataError, ModelError, ProtocolError, WarrenError
from broker.model.arrays import NPZ, array_names, check_names, is_arrays
from broker.model.card import write_card
from broker.wire.limits import require_measures
from broker.wire.messages import RoundStart
from broker.wire.tensors import FLOAT32, Array, Values, Vector, sections_of, unflatten
from broker.wire.transfer import is_local
from worker.learning.results import Report, TrainingProgress
from worker.rounds.failures import told
from worker.rounds.own_site import OwnSite
from worker.rounds.participant import STEP_SECONDS, Participant, Trained, seed_of
from worker.rounds.private_parts import card_of
from worker.rounds.time_limit import TimeLimit
from worker.rounds.uploading import Measured
from worker.site.global_models import GlobalModels
from worker.trainer import Evaluated, FitSettings, Fitted, Weights

logger = logging.getLogger(__name__)

_Given = TypeVar("_Given")


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[_Given]):
    """What a trainer gave, be it nothing."""

    value: _Given


class OwnTraining:
    """Trains with each participant's own trainer, beside `KerasTrainer` and in its place.

    Args:
        ending: Set when the process is to end: what is under way is then left behind.
        keeps: Where each global model is kept that comes; None keeps none.
    """

    def __init__(self, *, ending: threading.Event | None = None, keeps: GlobalModels | None = None) -> None:
        self._keeps = keeps
        self._time_limit = TimeLimit(ending or threading.Event())

    num_at_once = 1

    @property
    def has_left_behind(self) -> bool:
        """Whether a trainer is still at something that nobody waits for."""
        return self._time_limit.num_left_behind > 0

    def close(self) -> None:
        """Let its threads go."""
        self._time_limit.close()

    def warm_up(self) -> None:
        """Nothing: its module is imported already."""

    def answer(
        self,
        participant: Participant,
        start: RoundStart,
        weights: Vector,
        stop: threading.Event,
        report: Report,
    ) -> Trained | None:
        """Measure the global arrays, then train from them."""
        begun = time.monotonic()
        site = participant.data
        assert isinstance(site, OwnSite)  # noqa: S101 - the participants of this process are all of one kind
        if not is_arrays(start.model):
            raise ModelError(f"{site.called} trains named arrays, and the run's model is Keras's.")
        if self.has_left_behind:
            raise ModelError(f"{site.called} is still at what it was given up over. Start the worker anew.")
        if self._keeps is not None:
            _keep(self._keeps, start, named(start, weights))
        fits = participant.trains_in(start)
        if fits:
            _check_terms(site, start)
            _check_rules(participant, start, site.num_train_examples)
        found = self._evaluated(site, start, weights)
        if stop.is_set() or found is None:
            return None
        fitted = self._fitted(participant, site, start, weights, stop, report) if fits else None
        if stop.is_set() or (fits and fitted is None):
            return None
        measured = Measured(
            num_examples=fitted.num_examples if fitted else 0,
            metrics=_read_metrics(site, fitted.metrics) if fitted else {},
            global_metrics=_read_metrics(site, found.metrics) if found.num_examples else {},
            num_test_examples=found.num_examples,
            seconds=time.monotonic() - begun,
        )
        vector = _what_travels(site, fitted, start, weights) if fitted else None
        return Trained(vector=vector, measured=participant.rules.of(measured))

    def _evaluated(self, site: OwnSite, start: RoundStart, weights: Vector) -> Evaluated | None:
        """What its trainer measures; None when the process is to end before that."""
        given = self._in_time(
            f"{site.called}.evaluate", lambda _: site.trainer.evaluate(named(start, weights))
        )
        if given is None:
            return None
        return _require_evaluated(site, given.value)

    def _fitted(
        self,
        participant: Participant,
        site: OwnSite,
        start: RoundStart,
        weights: Vector,
        stop: threading.Event,
        report: Report,
    ) -> Fitted | None:
        """What its trainer gives; None when the process is to end before that, or the round is over."""
        given = self._in_time(
            f"{site.called}.fit",
            lambda gets_on: site.trainer.fit(
                named(start, weights), _settings(participant, start, stop, report, gets_on)
            ),
        )
        if given is None or stop.is_set():
            return None
        fitted = given.value
        if not isinstance(fitted, Fitted) or not _is_count(fitted.num_examples):
            raise DataError(f"Expected a Fitted from {site.called}.fit, got {fitted!r:.80}.")
        if not 1 <= fitted.num_examples <= site.num_train_examples:
            raise DataError(
                f"{site.called}.fit says that it trained on {fitted.num_examples} examples; its num_examples are "
                f"{site.num_train_examples}."
            )
        _check_rules(participant, start, fitted.num_examples)
        return fitted

    def _in_time(
        self, what: str, function: Callable[[Callable[[], None]], _Given]
    ) -> _Outcome[_Given] | None:
        """Let the trainer do something; what it raises is told with its name, and its traceback is in the log.

        Returns:
            What it gave, be that None; None when the process is to end before that.
        """
        too_long = f"{what}, without a word of its settings.report,"
        try:
            return self._time_limit.keep(too_long, STEP_SECONDS, lambda gets_on: _Outcome(function(gets_on)))
        except WarrenError:
            raise
        except Exception as exc:  # a person's own code may raise anything
            logger.error("%s failed.", what, exc_info=exc)
            raise DataError(f"{what} failed. {told(exc)}") from exc


def measured_with(site: OwnSite, path: Path) -> Evaluated:
    """What a site's trainer measures of a run's saved arrays.

    Args:
        site: With the trainer.
        path: A model.npz.

    Raises:
        ModelError: The file is missing, or holds no named arrays.
        DataError: The trainer raised, or there is nothing to measure on.
    """
    try:
        found = site.trainer.evaluate(_read_saved(path))
    except WarrenError:
        raise
    except Exception as exc:  # a person's own code may raise anything
        logger.error("%s.evaluate failed.", site.called, exc_info=exc)
        raise DataError(f"{site.called}.evaluate failed. {told(exc)}") from exc
    found = _require_evaluated(site, found)
    if not found.num_examples:
        raise DataError(f"{site.called}.evaluate has no test examples to measure on.")
    return Evaluated(num_examples=found.num_examples, metrics=_read_metrics(site, found.metrics))


def _read_saved(path: Path) -> Weights:
    expected = f"Expected the model{NPZ} of a run of named arrays."
    if not path.is_file() or path.suffix != NPZ:
        raise ModelError(f"There is no such model at {str(path)!r}. {expected}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as exc:  # whatever a damaged or foreign archive makes numpy raise
        raise ModelError(f"Can't read {str(path)!r}: {exc!s:.200} {expected}") from exc
    check_names(list(arrays))
    return arrays


def _require_evaluated(site: OwnSite, given: Evaluated | None) -> Evaluated:
    found = Evaluated(num_examples=0, metrics={}) if given is None else given
    if not isinstance(found, Evaluated) or not _is_count(found.num_examples):
        raise DataError(f"Expected an Evaluated or None from {site.called}.evaluate, got {found!r:.80}.")
    return found


def _keep(keeps: GlobalModels, start: RoundStart, arrays: Weights) -> None:
    """Keep the global arrays as they came, as the coordinator's model.npz has them."""

    def write(path: Path) -> None:
        named_arrays: dict[str, Any] = dict(arrays)
        np.savez(path, **named_arrays)
        write_card(path, card_of(start, None))

    keeps.keep(start.run_id, start.round_number - 1, NPZ, write)


def named(start: RoundStart, weights: Vector) -> Weights:
    """A round start's weights by name: copies, which a trainer may change in place.

    Raises:
        ModelError: The names are not those of the layout, or that isn't one of arrays.
    """
    names = array_names(start.model)
    if len(names) != len(start.layout):
        raise ModelError(f"Expected a name for each of {len(start.layout)} arrays, got {len(names)}.")
    if not {spec.kind for spec in start.layout} <= {"trainable", "integer"}:
        raise ModelError(
            "Expected arrays that are trained, and integers; a task of arrays has no other kinds."
        )
    values = unflatten(start.layout, weights, start.integers)
    return {name: np.array(value) for name, value in zip(names, values, strict=True)}


def _settings(
    participant: Participant,
    start: RoundStart,
    stop: threading.Event,
    report: Report,
    gets_on: Callable[[], None],
) -> FitSettings:
    asked = start.settings

    def tell(
        epoch: int, metrics: Mapping[str, float] | None = None, *, batch: int = 1, batches: int = 1
    ) -> None:
        gets_on()
        figures = {name: float(value) for name, value in (metrics or {}).items()}
        report(
            TrainingProgress(epoch=epoch, epochs=asked.epochs, batch=batch, batches=batches, metrics=figures)
        )

    return FitSettings(
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        seed=seed_of(start, participant.name),
        round_number=start.round_number,
        terms=dict(asked.terms),
        stop=stop,
        report=tell,
    )


def _check_terms(site: OwnSite, start: RoundStart) -> None:
    """Refuse a strategy's term that this trainer doesn't know: training without it would be another strategy's."""
    for name in start.settings.terms:
        if name not in getattr(site.trainer, "terms", ()):
            raise ModelError(
                f"{site.called} doesn't know the setting {name!r} that the strategy needs: it isn't in its `terms`."
            )


def _check_rules(participant: Participant, start: RoundStart, num_examples: int) -> None:
    refusal = participant.rules.refusal(start.settings, num_examples)
    if refusal is not None:
        raise DataError(refusal)


def _is_count(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and bool(number >= 0)


def _read_metrics(site: OwnSite, given: Mapping[str, Any]) -> dict[str, float]:
    """A trainer's metrics as they can travel."""
    try:
        metrics = {str(name): float(value) for name, value in given.items()}
        require_measures(metrics)
    except (AttributeError, TypeError, ValueError, ProtocolError) as exc:
        raise DataError(f"Expected metrics of {site.called} by name, a number each. {exc}") from exc
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DataError(f"The metric {name} of {site.called} is {value}: its training may have diverged.")
    return metrics


def _what_travels(site: OwnSite, fitted: Fitted, start: RoundStart, weights: Vector) -> Values:
    """What travels up, shape (U,): the arrays as they are, or of large ones the difference, rounded to float32."""
    names, sections = array_names(start.model), sections_of(start.layout)
    if set(fitted.weights) != set(names):
        raise DataError(
            f"Expected the arrays {', '.join(names)} from {site.called}.fit, got {', '.join(map(str, fitted.weights))}."
        )
    is_whole = is_local(start.settings.precision)
    vector: Values = np.empty(sections.num_up, np.float64 if is_whole else FLOAT32)
    begin = 0
    for position in sections.order:
        name, shape = names[position], start.layout[position].shape
        values = _checked(site, name, fitted.weights[name], shape).ravel()
        end = begin + values.size
        vector[begin:end] = values if is_whole else values - weights[begin:end]
        begin = end
    with np.errstate(over="ignore"):
        narrow = vector.astype(FLOAT32, copy=False)
    if not np.isfinite(narrow).all():
        raise DataError(f"{site.called}.fit gave more than float32 holds. Try a lower --learning-rate.")
    return narrow if np.array_equal(narrow, vector) else vector


def _checked(site: OwnSite, name: str, given: Any, shape: tuple[int, ...]) -> Array:
    try:
        values = np.asarray(given, np.float64)
    except Exception as exc:  # a tensor of another library may raise anything
        raise DataError(
            f"{site.called}.fit gave {name!r} as what can't become an array. {told(exc)}"
        ) from exc
    if values.shape != shape:
        raise DataError(f"{site.called}.fit gave {name!r} of the shape {values.shape}. Expected {shape}.")
    if not np.isfinite(values).all():
        raise DataError(
            f"{site.called}.fit gave NaN or infinity in {name!r}: it has diverged. Try a lower --learning-rate."
        )
    return values
