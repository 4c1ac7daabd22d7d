"""What a person asks of one run, checked once."""

from dataclasses import dataclass, field
from pathlib import Path

from broker.errors import ProtocolError, UsageError
from broker.wire.settings import ClassWeight, Precision, TrainingSettings
from coordinator.learning.membership import num_selected
from coordinator.learning.stopping import Target, target_in
from coordinator.learning.strategies import Strategy, make_strategy
from coordinator.tasks import Task

_LEAST_RATE = 2.0**-126  # that float32 holds to its full precision
_MOST_SECONDS = 1e9  # 30 years: whatever waits for it can


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSettings:
    """What run.json keeps of a run, each setting as it counts; see `RunOptions` and `TrainingSettings`."""

    task: str
    strategy: str
    strategy_options: dict[str, str]
    seed: int
    rounds: int
    workers: int
    quorum: int
    fraction: float
    max_examples: int | None
    max_share: float
    deadline_seconds: float
    grace_seconds: float
    retries: int
    epochs: int
    batch_size: int
    learning_rate: float | None
    learning_rate_decay: float
    class_weight: ClassWeight
    examples_per_class: int | None
    stop_when: str | None
    patience: int | None
    keep_every: int | None
    track: tuple[str, ...]
    private: tuple[str, ...]
    relays: tuple[str, ...]
    upload_precision: Precision
    download_precision: Precision
    deterministic: bool
    initial_model: str | None
    normalize: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """One run as asked for; None means the task's own default.

    Attributes:
        workers: How many must have joined before the first round.
        quorum: Accepted updates that may close a round; None means all workers (of those that a fraction invites).
        retries: Further attempts at a round that missed its quorum.
        fraction: Share of the present workers invited to a round (C in McMahan et al. 2017).
        max_examples: No update weighs more than so many.
        max_share: No update weighs more than this share of those invited.
        learning_rate_decay: Each round's learning rate is the former one's times this.
        stop_when: The measure that must go on becoming better; see `coordinator.learning.stopping`.
        patience: Rounds without a better one before the run ends.
        keep_every: Every so many rounds the model is kept for good.
        private: Patterns of weights that stay at the workers; see `broker.model.kinds.matches`.
        relays: Invited accounts that may speak for many workers; see `Admission`.
        track: Who is told the figures; see `coordinator.folder.tracking`.
        normalize: What `coordinator statistics` has found, for the model's Normalization layer.
        download_precision: How the step to the next global model is told; see `coordinator.learning.squeezing`.
        made_strategy: One that was made by whoever asks, and goes by the name `strategy`; None makes that of the table.
    """

    task: Task
    out: Path
    workers: int = 2
    quorum: int | None = None
    rounds: int = 5
    deadline_seconds: float = 3600.0
    grace_seconds: float = 10.0
    retries: int = 2
    strategy: str = "fedavg"
    strategy_options: dict[str, str] = field(default_factory=dict)
    fraction: float = 1.0
    max_examples: int | None = None
    max_share: float = 1.0
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    learning_rate_decay: float | None = None
    class_weight: ClassWeight | None = None
    examples_per_class: int | None = None
    stop_when: str | None = None
    patience: int = 5
    keep_every: int | None = None
    track: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    initial_model: Path | None = None
    normalize: Path | None = None
    seed: int = 0
    deterministic: bool = False
    precision: Precision = "float32"
    download_precision: Precision = "float32"
    standby: bool = False
    made_strategy: Strategy | None = None

    def __post_init__(self) -> None:
        """Check what contradicts itself, or can't be.

        Raises:
            UsageError: Something does.
        """
        if not 0 < self.fraction <= 1:
            raise UsageError(f"Expected a --fraction above 0 and up to 1, got {self.fraction:g}.")
        if not 0 < self.max_share <= 1:
            raise UsageError(f"Expected a --max-share above 0 and up to 1, got {self.max_share:g}.")
        if self.needed > self.most_invited:
            raise UsageError(
                f"A quorum of {self.needed} can't be reached: --workers {self.workers} with --fraction "
                f"{self.fraction:g} invites {self.most_invited}. Try --quorum {self.most_invited}."
            )
        if not (0 < self.deadline_seconds <= _MOST_SECONDS and 0 <= self.grace_seconds <= _MOST_SECONDS):
            raise UsageError(
                "Expected a --deadline-seconds above 0 and a --grace-seconds of at least 0, both up to "
                f"{_MOST_SECONDS:g}."
            )
        if self.learning_rate is not None and not _LEAST_RATE <= self.learning_rate < 2.0**127:
            raise UsageError(
                f"Expected a --learning-rate above 0 that float32 holds, got {self.learning_rate:g}."
            )
        if not 0 < self.decay <= 1:
            raise UsageError(f"Expected a --learning-rate-decay above 0 and up to 1, got {self.decay:g}.")
        if self.stop_when is not None:
            target_in(self.stop_when)
        if self.normalize is not None and self.initial_model is not None:
            raise UsageError(
                "A model to start from was trained with the Normalization layer that it has. Take --normalize or "
                "--initial-model; with `coordinator launch`, --from-scratch."
            )
        try:
            self.settings(1)
        except ProtocolError as exc:
            raise UsageError(f"Workers can't be told these settings. {exc}") from exc

    @property
    def most_invited(self) -> int:
        """How many of the first workers a round invites."""
        return num_selected(self.fraction, self.workers)

    @property
    def needed(self) -> int:
        """The quorum as a number."""
        return self.most_invited if self.quorum is None else self.quorum

    @property
    def decay(self) -> float:
        """What a round's learning rate is multiplied with for the next."""
        asked = self.learning_rate_decay
        return self.task.defaults.learning_rate_decay if asked is None else asked

    @property
    def target(self) -> Target | None:
        """What `stop_when` says."""
        return None if self.stop_when is None else target_in(self.stop_when)

    def make_strategy(self) -> Strategy:
        """The strategy asked for."""
        return self.made_strategy or make_strategy(self.strategy, self.strategy_options)

    def settings(
        self, round_number: int, *, epochs_before: int = 0, compiled_rate: float | None = None
    ) -> TrainingSettings:
        """The training settings of a round: the learning rate decays from round to round if that was asked for.

        Args:
            round_number: From 1.
            epochs_before: Local epochs in the rounds before.
            compiled_rate: The model's own learning rate, from which it decays where no other is given.
        """
        defaults = self.task.defaults
        learning_rate = defaults.learning_rate if self.learning_rate is None else self.learning_rate
        if learning_rate is None and self.decay < 1:
            learning_rate = compiled_rate
        if learning_rate is not None:
            learning_rate = max(learning_rate * self.decay ** (round_number - 1), _LEAST_RATE)
        return TrainingSettings(
            epochs=self.epochs or defaults.epochs,
            batch_size=self.batch_size or defaults.batch_size,
            learning_rate=learning_rate,
            class_weight=self.class_weight or defaults.class_weight,
            examples_per_class=self.examples_per_class or defaults.examples_per_class,
            seed=self.seed,
            deterministic=self.deterministic,
            precision=self.precision,
            epochs_before=epochs_before,
            # A term of 0 is none: a worker that does not know it takes part all the same.
            terms={name: value for name, value in self.make_strategy().worker_settings.items() if value},
        )

    @property
    def training(self) -> dict[str, float | str | None]:
        """The settings as the model's card tells them, so that `worker train-alone` can train the same way."""
        first = self.settings(1)
        return {
            "epochs": first.epochs,
            "batch_size": first.batch_size,
            "learning_rate": first.learning_rate,
            "learning_rate_decay": self.decay,
            "class_weight": first.class_weight,
            **({"private": ", ".join(self.private)} if self.private else {}),
        }

    @property
    def everything(self) -> RecordedSettings:
        """Every setting as it counts, for run.json: the task's own where nothing else was asked for."""
        first = self.settings(1)
        return RecordedSettings(
            task=self.task.name,
            strategy=self.strategy,
            strategy_options=self.strategy_options,
            seed=self.seed,
            rounds=self.rounds,
            workers=self.workers,
            quorum=self.needed,
            fraction=self.fraction,
            max_examples=self.max_examples,
            max_share=self.max_share,
            deadline_seconds=self.deadline_seconds,
            grace_seconds=self.grace_seconds,
            retries=self.retries,
            epochs=first.epochs,
            batch_size=first.batch_size,
            learning_rate=first.learning_rate,
            learning_rate_decay=self.decay,
            class_weight=first.class_weight,
            examples_per_class=first.examples_per_class,
            stop_when=self.stop_when,
            patience=None if self.stop_when is None else self.patience,
            keep_every=self.keep_every,
            track=self.track,
            private=self.private,
            relays=self.relays,
            upload_precision=first.precision,
            download_precision=self.download_precision,
            deterministic=self.deterministic,
            initial_model=None if self.initial_model is None else str(self.initial_model),
            normalize=None if self.normalize is None else str(self.normalize),
        )

    @property
    def identity(self) -> dict[str, object]:
        """What a folder's run may not change when it goes on."""
        return {
            "task": self.task.name,
            "strategy": self.strategy,
            "strategy_options": self.strategy_options,
            "seed": self.seed,
            "private": list(self.private),
        }
