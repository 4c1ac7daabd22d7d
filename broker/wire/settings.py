"""What a training is: how a worker trains, as told with every round start, what its model needs, and what a site has.

A classifier of one input needs no more than class names and a shape, and its sites tell these. Any other model, of
several inputs or outputs, of numbers, of text, of sequences, is described by named inputs and targets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from broker.wire.fields import require
from broker.wire.limits import require_short

_MAX_TERMS = 16

ClassWeight = Literal["none", "balanced"]
#: How an update's trainable values travel. *local*: not as what changed, but as what they have become, float64, or
#: float32 if that is what they are; *local64* is what is asked for. Of small models alone, see `transfer.is_exact`.
Precision = Literal["float32", "float16", "int8", "local32", "local64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a worker trains: decided by the coordinator, the same for all.

    Attributes:
        epochs: Passes over the worker's own training examples in one round.
        batch_size: Examples per gradient step.
        learning_rate: Of the local optimizer; None keeps the compiled model's own.
        class_weight: "balanced" makes every class weigh the same, n / (k · n_c).
        examples_per_class: Train on so many random examples of each class; None means all.
        seed: The run's seed.
        deterministic: Same seed, same data, same bits.
        precision: How the update's values travel.
        epochs_before: Local epochs in the rounds before this one: a learning rate's schedule goes on from there.
        terms: What the strategy needs of the local gradient, by the name of the setting: `worker.learning.terms` knows
            them.
    """

    epochs: int
    batch_size: int
    learning_rate: float | None = None
    class_weight: ClassWeight = "none"
    examples_per_class: int | None = None
    seed: int
    deterministic: bool = False
    precision: Precision = "float32"
    epochs_before: int = 0
    terms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.epochs_before >= 0, "epochs_before of at least 0", self)
        require(self.epochs >= 1 and self.batch_size >= 1, "epochs and batch_size of at least 1", self)
        require(
            self.learning_rate is None or 0 < self.learning_rate < math.inf, "a learning rate above 0", self
        )
        require(len(self.terms) <= _MAX_TERMS, f"at most {_MAX_TERMS} terms", len(self.terms))
        require(all(abs(value) < 2**127 for value in self.terms.values()), "terms that float32 holds", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayTerms:
    """What a relay is told with a round start, beside what it passes on to its own workers.

    Attributes:
        num_examples, num_workers, weight: What its workers were counted with: its sum may rest on no more, and weigh no
            more.
        most_weight: In examples; what one worker's update was trained on beyond that doesn't count.
    """

    num_examples: int
    num_workers: int
    weight: int
    most_weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """What a relay says of the sum that it sends in the place of its workers' updates.

    Attributes:
        num_workers: Whose answers are in it.
        weight: Of the sum, in examples; 0 when they only measured.
        largest: The largest |value| of an update in it.
        scale_exponent: The scale that it is of: without it integers say nothing.
        is_fine: It has what the first rounding cuts off of updates in float64, too.
    """

    num_workers: int
    weight: int
    largest: float
    scale_exponent: int = 0
    is_fine: bool = False


TEXT = "string"  #: the dtype of texts
_MOST_PARTS = 256  #: inputs, or targets, of one model
_MOST_AXES = 16

Shape = tuple[int | None, ...]  #: of one example; None for an axis of any length

#: *classes*: whole numbers from 0, one a place. *rows*: one number a class, or class numbers, of which rows are made.
#: *binary*: numbers from 0 to 1. *numbers*: any. *anything*: whatever a loss of one's own takes.
TargetKind = Literal["classes", "rows", "binary", "numbers", "anything"]
Role = Literal["input", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model.

    Attributes:
        dtype: By Keras's name; "string" for texts.
    """

    name: str
    shape: Shape
    dtype: str

    def __post_init__(self) -> None:
        _require_part(self.name, self.shape)
        require_short(dtype=self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """What one output of a model is trained towards.

    Attributes:
        shape: Of one example, as the loss takes it.
        num_classes: Of *classes* and *rows*; else 0.
        ignored: A class number beyond these that the loss passes over.
    """

    name: str
    shape: Shape
    kind: TargetKind
    num_classes: int = 0
    ignored: int | None = None

    def __post_init__(self) -> None:
        _require_part(self.name, self.shape)
        require(self.num_classes >= 0, "a number of classes", self.num_classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a model needs; both in the order in which Keras counts them.

    Attributes:
        num_classes: What it tells apart if it is trained as a classifier: one input of a fixed shape, one row of
            numbers an example. 0 where it can't be.
    """

    inputs: tuple[InputSpec, ...]
    targets: tuple[TargetSpec, ...]
    num_classes: int = 0

    def __post_init__(self) -> None:
        for parts in (self.inputs, self.targets):
            require(0 < len(parts) <= _MOST_PARTS, f"from 1 to {_MOST_PARTS} inputs and outputs", len(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One array that a site has.

    Attributes:
        name: As the site calls it; a position, from "0", where it has no names.
        shape: Of one example; None for an axis that differs between batches.
        dtype: By numpy's name; "string" for texts.
    """

    name: str
    role: Role
    shape: Shape
    dtype: str

    def __post_init__(self) -> None:
        _require_part(self.name, self.shape)
        require_short(dtype=self.dtype)


def require_holds(holds: Sequence[Held]) -> None:
    """Raise a ProtocolError if a site says it has more arrays than anyone needs."""
    require(len(holds) <= 2 * _MOST_PARTS, f"at most {2 * _MOST_PARTS} arrays", len(holds))


def _require_part(name: str, shape: Shape) -> None:
    require_short(name=name)
    require(len(shape) <= _MOST_AXES, f"at most {_MOST_AXES} axes", len(shape))
    require(all(size is None or size >= 0 for size in shape), "sizes of at least 0", shape)
