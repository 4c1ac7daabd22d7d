"""The same training with no federation: what one site reaches alone, or all data in one place."""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from broker.errors import DataError
from broker.model.card import ModelCard, write_card
from broker.model.kinds import layout_of
from broker.model.trust import NOTHING, Trusted
from broker.wire.settings import ClassWeight, TrainingSettings
from broker.wire.tensors import Array
from worker.data.data_set import Dataset, Examples
from worker.learning.console import Console
from worker.learning.evaluation import Evaluation, check_classes, evaluate
from worker.learning.fresh_start import be_deterministic
from worker.learning.inference import Inference
from worker.learning.saved_model import LoadedModel
from worker.learning.training import LocalModel
from worker.learning.values import Measures, measure
from worker.tables.fitted import Rows
from worker.tables.table_set import TableSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineOptions:
    """How to train alone; None takes what the model's card says.

    Attributes:
        epochs: Each is what a round is to a worker: a fresh optimizer, and the learning rate of that round.
        from_file: Start from the file's weights, not from new ones.
    """

    epochs: int
    batch_size: int | None = None
    learning_rate: float | None = None
    class_weight: ClassWeight | None = None
    seed: int = 0
    deterministic: bool = False
    from_file: bool = False

    def settings(self, card: ModelCard | None, epoch: int) -> TrainingSettings:
        """The settings of one epoch, from 1."""
        known = dict(card.training) if card else {}
        rate = self.learning_rate if self.learning_rate is not None else known.get("learning_rate")
        if rate is not None:
            rate = float(rate) * float(known.get("learning_rate_decay") or 1.0) ** (epoch - 1)
        weight = self.class_weight or known.get("class_weight")
        return TrainingSettings(
            epochs=1,
            batch_size=self.batch_size or int(known.get("batch_size") or 32),
            learning_rate=rate,
            class_weight="balanced" if weight == "balanced" else "none",
            examples_per_class=None,
            seed=self.seed,
            deterministic=self.deterministic,
            epochs_before=epoch - 1,
        )


def train_alone(
    loaded: LoadedModel,
    data: Dataset | TableSet,
    options: BaselineOptions,
    stop: threading.Event,
    trusted: Trusted = NOTHING,
) -> Evaluation | Measures | None:
    """Train on one data set; the model in `loaded` then has the trained weights.

    Args:
        loaded: The model, as it was saved.
        data: The site's own.
        options: How.
        stop: Looked at before each batch.
        trusted: Registered names of parts of one's own that the model may hold.

    Returns:
        What the model reaches on the test subset; None when it was told to stop before the end.

    Raises:
        DataError: The data does not fit the model.
    """
    if loaded.needs is None:
        check_classes(loaded.classes if loaded.card else None, data.classes)
    weights = _first_weights(loaded, options)
    model = LocalModel(
        loaded.model.to_json(),
        layout_of(loaded.model),
        deterministic=options.deterministic,
        is_general=loaded.needs is not None,
        trusted=trusted,
    )
    train, test, console = *_examples(loaded, data), Console()
    if not len(train):
        raise DataError("There is nothing to train on. Expected a set with a training part.")
    for epoch in range(1, options.epochs + 1):
        settings = options.settings(loaded.card, epoch)
        logger.info("Epoch %d of %d.", epoch, options.epochs)
        result = model.train(
            weights, train, test, settings, seed=options.seed * 1000 + epoch, stop=stop, report=console.show
        )
        if not result.finished:
            console.end()
            return None
        weights = result.weights
    loaded.model.set_weights(weights)
    return measured_by(loaded, test, data.classes)


def _examples(
    loaded: LoadedModel, data: Dataset | TableSet
) -> tuple[Examples | Rows, Examples | Rows | None]:
    """What is trained on, and what is tested on."""
    if loaded.needs is not None:
        return data.train_rows(loaded.needs), data.test_rows(loaded.needs)
    return data.train(loaded.shape), data.test(loaded.shape)


def measured_by(
    loaded: LoadedModel, test: Examples | Rows | None, classes: tuple[str, ...]
) -> Evaluation | Measures:
    """What a model reaches on examples: figures of classes, or its own loss and metrics.

    Raises:
        DataError: There is no example.
        ModelError: It answers NaN, or tells another number of classes apart.
    """
    if isinstance(test, Examples):
        return evaluate(Inference(loaded.model), test, classes)
    assert loaded.needs is not None  # noqa: S101 - only such a model is measured on rows
    return measure(loaded.model, loaded.needs, test)


def _first_weights(loaded: LoadedModel, options: BaselineOptions) -> list[Array]:
    """New weights drawn from the seed, or the file's own; what no training moves is always the file's own."""
    own = list(loaded.model.get_weights())
    if options.from_file:
        return own
    from worker.tensorflow import load_keras

    if options.deterministic:
        be_deterministic(options.seed)
    keras = load_keras()
    keras.utils.set_random_seed(options.seed)
    new, layout = keras.models.clone_model(loaded.model).get_weights(), layout_of(loaded.model)
    stays = [spec.kind in ("frozen", "integer") for spec in layout]
    return [old if stay else fresh for old, fresh, stay in zip(own, new, stays, strict=True)]


def save_alone(loaded: LoadedModel, path: Path) -> None:
    """Save the trained model, card inside, so that it can be used like any other."""
    aside = path.with_name(f".{path.stem}.new.keras")
    loaded.model.save(aside)
    if loaded.card is not None:
        write_card(aside, loaded.card)
    aside.replace(path)
