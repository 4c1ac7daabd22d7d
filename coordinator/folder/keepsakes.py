"""Models of earlier rounds that stay beside the newest one: the best, and every n-th.

How good a round's model is, the next round's workers tell: then its checkpoint is about to be replaced. So that file
is held under a second name, which costs nothing whatever its size. The child saves the model in its own time, and gives
the name up once the model is in its place; a process that is killed in between finds the name, and goes on from there.
"""

import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from broker.disk import sync
from broker.errors import CheckpointError, ModelError
from broker.model.card import read_card
from coordinator.folder.standing import Standing

logger = logging.getLogger(__name__)

BEST = re.compile(r"best\.(keras|npz)")
KEPT = re.compile(r"model-[0-9]{4,}\.(keras|npz)")  #: a round's model that was kept
_HELD = re.compile(r"\.held-([0-9]{1,10})-(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A round's checkpoint that is still to become a model.

    Attributes:
        checkpoint: Given up once the model is saved.
        model: Where it is to be saved.
    """

    round: int
    checkpoint: Path
    model: Path


class Keepsakes:
    """What is kept of one run.

    Args:
        checkpoint: The committed state's file.
        every: Each so many rounds the model is kept; None keeps the best alone.
    """

    def __init__(self, checkpoint: Path, every: int | None) -> None:
        self._checkpoint = checkpoint
        self._every = every
        self._new: list[Held] = []

    def take_up(self, model: Path, standing: Standing, committed_round: int) -> None:
        """After a restart: go on with what an earlier process held, and find out whether the best model is there.

        Args:
            model: The newest model's file.
            standing: Of the run.
            committed_round: Whose checkpoint there is.
        """
        best, best_round = best_beside(model), standing.best.round if standing.best else 0
        for held in self._held():
            if held.model == best and held.round != best_round:
                held.checkpoint.unlink()
            else:
                self._new.append(held)
        if not best_round or self._is_there(best_round, best):
            return
        if best_round == committed_round:
            self._hold(best_round, best)
        else:
            logger.info(
                "By %s round %d is the best so far, and its model was not kept; a better one will be.",
                standing.measure,
                best_round,
            )

    def hold(self, model: Path, number: int, standing: Standing) -> None:
        """Hold the checkpoint, which is this round's, if its model is to stay; called before another replaces it.

        Args:
            model: The newest model's file.
            number: The round.
            standing: With what was measured of its model.

        Raises:
            CheckpointError: It can't be held.
        """
        for kept in self._wanted(model, number, standing):
            self._hold(number, kept)

    def hold_last(self, model: Path, number: int, standing: Standing) -> None:
        """The same at the end of a run, whose last checkpoint nothing replaces; what is saved already stays."""
        for kept in self._wanted(model, number, standing):
            if not self._is_there(number, kept):
                self._hold(number, kept)

    def _wanted(self, model: Path, number: int, standing: Standing) -> list[Path]:
        best = standing.best.round if standing.best else 0
        is_nth = self._every is not None and number % self._every == 0
        nth = model.with_stem(f"{model.stem}-{number:04d}")
        kept = ((best_beside(model), number == best), (nth, is_nth))
        return [each for each, is_wanted in kept if is_wanted and number]

    def taken(self) -> list[Held]:
        """What has been held since this was asked for the last time."""
        new, self._new = self._new, []
        return new

    def _is_there(self, number: int, model: Path) -> bool:
        """Whether this round's model is saved, or will be."""
        return self._name(number, model).exists() or round_of(model) == number

    def _hold(self, number: int, model: Path) -> None:
        name = self._name(number, model)
        try:
            if name.exists() and name.samefile(self._checkpoint):
                return
            name.unlink(missing_ok=True)  # of a folder that was put back as it had been
            _give_second_name(self._checkpoint, name)
        except OSError as exc:
            raise CheckpointError(f"Can't keep the model of round {number} in {name.parent}: {exc}.") from exc
        self._new.append(Held(round=number, checkpoint=name, model=model))

    def _name(self, number: int, model: Path) -> Path:
        return self._checkpoint.with_name(f".held-{number}-{model.name}")

    def _held(self) -> list[Held]:
        found = []
        for path in sorted(self._checkpoint.parent.glob(".held-*")):
            if match := _HELD.fullmatch(path.name):
                held = Held(round=int(match[1]), checkpoint=path, model=path.with_name(match[2]))
                found.append(held)
        return found


def best_beside(model: Path) -> Path:
    """The file of the best model, beside the newest one's."""
    return model.with_stem("best")


def _give_second_name(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # not every file system has second names
        shutil.copyfile(file, name)
        sync(name)


def round_of(model: Path) -> int | None:
    """Which round's model a file holds; None where it is not there, or doesn't tell."""
    try:
        card = read_card(model) if model.is_file() else None
    except ModelError:
        return None
    return card.round_number if card else None
