"""Weights that stay at this site: put back over the global ones when a round begins, and kept on this disk.

FedPer (Arivazhagan et al. 2019, "Federated Learning with Personalization Layers") keeps the last layers private, FedBN
(Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization") batch normalization.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from broker.disk import sync
from broker.errors import DataError, ProtocolError
from broker.model.card import ModelCard, write_card
from broker.wire import codec
from broker.wire.fields import from_plain, to_plain
from broker.wire.messages import RoundStart
from broker.wire.tensors import FLOAT32, Array
from worker.learning.training import LocalModel

_UNFIT = re.compile(r"[^A-Za-z0-9-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What a file holds: the private weights before and after the last round that was trained, in Keras's order."""

    round_number: int
    before: tuple[Array, ...]
    after: tuple[Array, ...]


class PrivateParts:
    """The private weights of the workers of one process.

    Of each run there is a file with the values before and after the last round that was trained: one that is trained
    again, as after a kill, begins with the same values and gives the same bits.

    Args:
        folder: Has a folder for each worker.
        saves_model: Whether each worker's whole model is saved there, too.
    """

    def __init__(self, folder: Path, *, saves_model: bool = True) -> None:
        self._folder = folder
        self._saves_model = saves_model

    @staticmethod
    def concern(start: RoundStart) -> bool:
        """Whether a round start calls any weight private."""
        return bool(_places(start))

    def put_back(self, worker: str, start: RoundStart, weights: list[Array]) -> list[Array]:
        """The weights to begin with: this worker's own in their places; the first time the global ones.

        Args:
            worker: Whose.
            start: What its layout calls private.
            weights: The global ones, in Keras's order.

        Raises:
            DataError: What was kept can't be read, or is of another model.
        """
        places = _places(start)
        if not places or not (path := self._path(worker, start)).is_file():
            return weights
        kept = _read(path)
        own = kept.before if kept.round_number == start.round_number else kept.after
        if [value.shape for value in own] != [weights[place].shape for place in places]:
            raise DataError(f"{path} is of another model. Move it away, and this worker begins anew.")
        values = list(weights)
        for place, value in zip(places, own, strict=True):
            values[place] = value
        return values

    def keep(self, worker: str, start: RoundStart, before: list[Array], after: list[Array]) -> None:
        """Write what a training began with and what it gave: whole, or not at all.

        Raises:
            DataError: It can't be written.
        """
        places = _places(start)
        kept = _Kept(
            round_number=start.round_number,
            before=tuple(np.asarray(before[place], FLOAT32) for place in places),
            after=tuple(np.asarray(after[place], FLOAT32) for place in places),
        )
        path = self._path(worker, start)
        aside = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(codec.pack(to_plain(kept)))
            _put_in_place(aside, path)
        except OSError as exc:
            raise DataError(f"Can't keep private weights in {path}: {exc}. Try another --state.") from exc

    def save_model(self, worker: str, start: RoundStart, model: LocalModel, weights: list[Array]) -> None:
        """Save this worker's whole model, the global weights with its own in their places, as model.keras.

        Raises:
            DataError: It can't be written.
        """
        if not self._saves_model:
            return
        path = self._folder / worker / "model.keras"
        aside = path.with_name(f".aside-{path.name}")  # Keras wants the suffix .keras
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            model.save(weights, aside)
            write_card(aside, card_of(start, model))
            _put_in_place(aside, path)
        except OSError as exc:
            raise DataError(f"Can't save {path}: {exc}. Try another --state.") from exc

    def _path(self, worker: str, start: RoundStart) -> Path:
        return self._folder / worker / f"{_UNFIT.sub('-', start.run_id)[:100]}.private"


def _places(start: RoundStart) -> list[int]:
    """Where private weights stand, in Keras's order."""
    return [place for place, spec in enumerate(start.layout) if spec.kind == "private"]


def _read(path: Path) -> _Kept:
    try:
        data = path.read_bytes()
        kept: _Kept = from_plain(_Kept, codec.unpack(data, limit=len(data)), path.name)
    except (OSError, ProtocolError) as exc:
        raise DataError(f"Can't read {path}: {exc}. Move it away, and this worker begins anew.") from exc
    return kept


def _put_in_place(aside: Path, path: Path) -> None:
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def card_of(start: RoundStart, model: LocalModel | None) -> ModelCard:
    """What a model that came with a round start says of itself; the figures stay in the coordinator's."""
    return ModelCard(
        task=start.task,
        classes=start.classes,
        run_id=start.run_id,
        round_number=start.round_number - 1,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_examples=0,
        shape=() if model is None or model.is_general else model.input_shape,
        inputs=start.inputs,
        needs=start.needs,
    )
