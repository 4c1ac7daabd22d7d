"""Who may take part in one run: decided in one place, for whoever is on the roster."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable

from broker.model.fit import holds_of_classes, misfit
from broker.model.likeness import common_inputs, is_other_scale, scale_difference, shape_difference
from broker.wire.settings import Needs
from broker.wire.tensors import InputFacts
from coordinator.folder.checkpoint import Checkpoint
from coordinator.learning.membership import Member, RelayShare, Roster
from coordinator.play.log_text import listed

logger = logging.getLogger(__name__)


class Admission:
    """Looks at the roster with one run's eyes; the roster itself is the session's.

    Args:
        roster: Everyone who joined.
        task: The run's.
        takes_sums: Whether its strategy needs no single update, so that a relay may send its workers' sum.
        relays: Who may be one: whoever is it weighs as much as all that it says to be behind it. None: anybody, where
            all share one account.

    Attributes:
        unfit: Workers that can't take part, with the reason.
    """

    def __init__(
        self, roster: Roster, task: str, *, takes_sums: bool = True, relays: Collection[str] | None = None
    ) -> None:
        self.unfit: dict[str, str] = {}
        self._roster = roster
        self._task = task
        self._takes_sums = takes_sums
        self._relays = relays
        self._known: set[str] = set()
        self._odd: set[str] = set()

    @property
    def members(self) -> list[Member]:
        """Everyone who may take part, present or not."""
        return [each for each in self._roster.members.values() if self._may_take_part(each)]

    @property
    def trainers(self) -> list[str]:
        """Present workers that train and take rounds, sorted."""
        return self._present(evaluate_only=False)

    @property
    def evaluators(self) -> list[str]:
        """Present workers that only evaluate and take rounds, sorted."""
        return self._present(evaluate_only=True)

    def _present(self, *, evaluate_only: bool) -> list[str]:
        return sorted(
            each.worker for each in self.members if each.takes_rounds and each.evaluate_only == evaluate_only
        )

    @property
    def paused(self) -> dict[str, str]:
        """Present workers that take no rounds for now, with the reason."""
        return {each.worker: each.pause for each in self.members if each.is_present and each.pause}

    def _may_take_part(self, member: Member) -> bool:
        return member.task in (None, self._task) and member.worker not in self.unfit

    def num_examples(self, workers: Iterable[str]) -> dict[str, int]:
        """What each of these declared."""
        return {worker: self._roster.members[worker].num_examples for worker in workers}

    def declared(self, workers: Iterable[str]) -> list[int]:
        """The examples of each worker behind these: their own, or those of a relay's workers."""
        return [number for worker in workers for number in self._roster.members[worker].declared]

    def weight(self, worker: str, most: int) -> int:
        """What the update of a worker would weigh."""
        return self._roster.members[worker].weight(most)

    def shares(self, workers: Iterable[str], most: int) -> dict[str, RelayShare]:
        """What each relay among these is counted with, where no worker's update weighs more than `most`."""
        shares = {worker: self._roster.members[worker].share(most) for worker in workers}
        return {worker: share for worker, share in shares.items() if share is not None}

    def consider(self, member: Member, state: Checkpoint | None) -> str | None:
        """Look at a worker's newest word; why it can't take part, or None.

        Args:
            member: The worker.
            state: The run's, once there is one.
        """
        self.unfit.pop(member.worker, None)
        if not self._may_take_part(member) or state is None:
            return None
        reason = self._flaw_in(member, state)
        if reason is not None:
            self.unfit[member.worker] = reason
        return reason

    def is_new(self, worker: str) -> bool:
        """Whether a worker takes part for the first time; it doesn't the next time."""
        is_new = worker not in self._known
        self._known.add(worker)
        return is_new

    def _flaw_in(self, member: Member, state: Checkpoint) -> str | None:
        if member.behind and not self._takes_sums:
            return (
                "it is a relay, which sends the sum of its workers' updates, and this run's strategy needs each update "
                "by itself: choose a strategy of the mean, such as fedavg"
            )
        if member.behind and self._relays is not None and member.worker not in self._relays:
            return (
                f"it says to be a relay with {len(member.behind)} workers behind it, which a run allows by name: "
                f"--relay {member.worker}"
            )
        if state.is_arrays and not member.has_trainer:
            return f"it trains Keras models, and {state.task} is a task of arrays: start it with --trainer MODULE:CLASS"
        if member.has_trainer and not state.is_arrays:
            return (
                f"it has a trainer, for tasks of arrays, and {state.task} is a Keras model: "
                "start it without --trainer"
            )
        missing = [part for part in state.parts if part not in member.trusts]
        if missing:
            return (
                f"it does not trust {listed(missing)}: start it with --trust-module and the module of these"
            )
        if state.is_general:
            return _general_flaw(member, state) or self._scale_flaw(member, state)
        flaw = self._flaw_as_classes(member, state)
        if flaw is None or state.classes or state.is_arrays:
            return flaw
        # Not settled: the model can be trained as a classifier or otherwise, as most sites' data wants it.
        in_general = _general_flaw(member, state)
        if in_general is None and (not member.classes or learns_numbers(state.needs)):
            return None
        return in_general if not member.classes and in_general else flaw

    def _flaw_as_classes(self, member: Member, state: Checkpoint) -> str | None:
        if not (member.classes or state.is_arrays):
            return _unnamed(state)
        if state.classes and member.classes != state.classes:
            return f"its classes are {listed(member.classes)}; this run's are {listed(state.classes)}"
        if len(member.classes) != state.num_classes:
            return f"it has {len(member.classes)} classes; the model of {state.task} has {state.num_classes}"
        if not (member.num_examples or member.evaluate_only):
            return "it has no examples to train on"
        if member.inputs is None:
            return None
        return shape_difference(member.inputs, state.input_shape) or self._scale_flaw(member, state)

    def _scale_flaw(self, member: Member, state: Checkpoint) -> str | None:
        """Why its values can't be of this run; what is merely odd about them is said once."""
        if member.inputs is None or state.inputs is None:
            return None
        difference = scale_difference(member.inputs, state.inputs)
        if difference and is_other_scale(member.inputs, state.inputs, _shape_taken(state)):
            return f"{difference}. Bring them to one scale at every site"
        if difference and member.worker not in self._odd:
            self._odd.add(member.worker)
            logger.warning("%s takes part, but %s.", member.worker, difference)
        return None

    def wants_numbers(self, state: Checkpoint) -> bool:
        """Whether most present workers' data is not of the classes that a model, which is open to both, tells apart."""
        classes = self.commonest_classes()
        return not classes or len(classes) != state.num_classes

    def commonest_classes(self) -> tuple[str, ...]:
        """The class names that most present workers have."""
        counts = Counter(self._roster.members[worker].classes for worker in self.trainers)
        return counts.most_common(1)[0][0]

    def common_inputs(self) -> InputFacts | None:
        """What most present workers' examples are like."""
        members = self._roster.members
        facts = {worker: members[worker].inputs for worker in self.trainers}
        return common_inputs({worker: each for worker, each in facts.items() if each is not None})


def learns_numbers(needs: Needs | None) -> bool:
    """Whether a model has one target of any numbers: whole ones at a site need be no classes then."""
    return needs is not None and [target.kind for target in needs.targets] == ["numbers"]


def _shape_taken(state: Checkpoint) -> tuple[int | None, ...]:
    """Of an example, where the run's model has one input."""
    if not state.is_general or state.needs is None:
        return state.input_shape
    return state.needs.inputs[0].shape if len(state.needs.inputs) == 1 else ()


def _general_flaw(member: Member, state: Checkpoint) -> str | None:
    """Why a worker's data can't train a model on what it needs."""
    if not (member.num_examples or member.evaluate_only):
        return "it has no examples to train on"
    if state.needs is None:
        return None
    holds = member.holds
    if not holds and member.inputs is not None:
        holds = holds_of_classes(member.inputs.shape, member.inputs.dtype)
    if not holds:
        return f"it has images in class folders; the model of {state.task} needs arrays, as in an .npz"
    flaw = misfit(state.needs, holds)
    return flaw and f"{flaw}. Give it data of that form"


def _unnamed(state: Checkpoint) -> str:
    wanted = f"one array of shape {state.input_shape} and class numbers, one an example"
    return f"its data names no classes; the model of {state.task} tells {state.num_classes} apart, and needs {wanted}"
