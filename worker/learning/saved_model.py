"""A saved model is opened here, and only after its description has been found harmless."""

import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from broker.errors import DataError, ModelError, UsageError
from broker.model.archive import read_config
from broker.model.arrays import NPZ
from broker.model.card import ModelCard, read_card
from broker.model.head import num_outputs, purpose_of
from broker.model.likeness import PIXELS, is_other_scale, scale_difference
from broker.model.needs import needs_of, num_classes_of
from broker.model.trust import NOTHING, Trusted
from broker.wire.settings import Needs
from broker.wire.tensors import InputFacts
from worker.data.classes import Declared
from worker.data.images import Shape
from worker.data.listing import first_line
from worker.tensorflow import load_keras


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready for use.

    Attributes:
        model: The Keras model, compiled as it was saved.
        card: What it says about itself; None for a model from elsewhere.
        shape: What one example must look like.
        classes: Class names; for a model without card "0", "1" and so on, whatever it is: see `as_it_says`.
        needs: What it needs of data where it is no classifier: `shape` and `classes` are empty then; else None.
    """

    model: Any
    card: ModelCard | None
    shape: Shape
    classes: tuple[str, ...]
    needs: Needs | None = None


def load_model(path: Path, trusted: Trusted = NOTHING) -> LoadedModel:
    """Open a `.keras` file.

    Args:
        path: The file.
        trusted: Registered names of parts of one's own that it may hold.

    Raises:
        ModelError: It is missing, damaged, not a Keras file, or holds what isn't built into Keras.
    """
    _check_name(path)
    read_config(path, trusted)
    card = read_card(path)
    keras = load_keras()
    try:
        with warnings.catch_warnings():
            # The optimizer's own variables may be missing: a model that is only used needs none.
            warnings.filterwarnings("ignore", category=UserWarning, module="keras")
            model = keras.saving.load_model(path, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, zipfile.BadZipFile) as exc:
        raise ModelError(
            f"Can't load the model {str(path)!r}: {first_line(exc)} Save or download it again."
        ) from exc
    needs = _needs_of(model, card, path)
    if needs is not None:
        return LoadedModel(model=model, card=card, shape=(), classes=(), needs=needs)
    shape = _input_shape(model, path)
    _check_card(card, model, shape, path)
    names = tuple(str(label) for label in range(max(2, num_outputs(model))))
    return LoadedModel(model=model, card=card, shape=shape, classes=card.classes if card else names)


def suited_to(loaded: LoadedModel, classes: tuple[str, ...], declared: Declared | None = None) -> LoadedModel:
    """The model as data are measured with it.

    One from elsewhere is no classifier where the data name no classes, and where they are nothing but whole numbers,
    and it gives one number that is none of a class.

    Args:
        loaded: With or without a card.
        classes: Those of the data.
        declared: What a person says that they are.
    """
    if loaded.card is not None or loaded.needs is not None:
        return loaded
    are_numbers = declared is None and all(map(str.isdecimal, (name.removeprefix("-") for name in classes)))
    is_number = are_numbers and num_outputs(loaded.model) == 1 and purpose_of(loaded.model) == "numbers"
    return _of_numbers(loaded) if is_number or not classes else loaded


def as_it_says(loaded: LoadedModel, declared: Declared | None, path: Path) -> LoadedModel:
    """The model as it is used without data of known classes: one from elsewhere is what its output and loss say.

    Args:
        loaded: With or without a card.
        declared: What a person says of a model without.
        path: Of the model.

    Raises:
        ModelError: It says nothing, and nobody else does.
        UsageError: It says something else than the person.
    """
    if loaded.card is not None or loaded.needs is not None:
        if declared is not None:
            raise UsageError(f"{str(path)!r} says itself what its answers are. Try without --classes.")
        return loaded
    if declared is None:
        purpose = purpose_of(loaded.model)
        if purpose == "open":
            raise ModelError(
                f"Nothing in {str(path)!r} says whether it tells classes apart or gives numbers. Try --classes A,B,... "
                "with the names of its classes, or --classes none."
            )
        return _of_numbers(loaded) if purpose == "numbers" else loaded
    if not declared.names:
        return _of_numbers(loaded)
    if len(declared.names) != len(loaded.classes):
        raise UsageError(
            f"{str(path)!r} tells {len(loaded.classes)} classes apart, and --classes names {len(declared.names)}."
        )
    return replace(loaded, classes=declared.names)


def _of_numbers(loaded: LoadedModel) -> LoadedModel:
    return replace(loaded, shape=(), classes=(), needs=needs_of(loaded.model))


def _needs_of(model: Any, card: ModelCard | None, path: Path) -> Needs | None:
    """What a model needs that is no classifier, by its card or, without one, as can be seen; None of a classifier."""
    if (card.needs is None) if card else bool(num_classes_of(model)):
        return None
    needs = needs_of(model)
    if card is not None and card.needs != needs:
        raise ModelError(
            f"The card in {str(path)!r} belongs to another model: it needs other data than the model."
        )
    return needs


def check_scale(card: ModelCard | None, inputs: InputFacts | None, shape: Shape) -> str | None:
    """How data differ from what a model was trained on, in words, or None.

    Args:
        card: The model's; None for one from elsewhere.
        inputs: What the data's examples are like.
        shape: What the model takes.

    Raises:
        DataError: They are images of another scale: the model's predictions would be as sure as they are wrong.
    """
    if card is None or card.inputs is None or inputs is None:
        return None
    difference = scale_difference(inputs, card.inputs, "the values here", "the model was trained on ones")
    if difference and inputs == PIXELS and is_other_scale(inputs, card.inputs, shape):
        raise DataError(f"Images don't fit this model: {difference}. Give it arrays of that scale.")
    return difference


def _check_name(path: Path) -> None:
    expected = "Expected a model saved by Keras as FILE.keras."
    if not path.is_file():
        raise ModelError(f"There is no model at {str(path)!r}. {expected} Check the path.")
    if path.suffix == NPZ:
        raise ModelError(
            f"{str(path)!r} holds named arrays, for a trainer of your own. Try worker evaluate MODEL{NPZ} --trainer "
            "MODULE:CLASS."
        )
    if path.suffix != ".keras":
        raise ModelError(f"Can't load the model {str(path)!r}: its name ends in {path.suffix!r}. {expected}")


def _input_shape(model: Any, path: Path) -> Shape:
    shape = model.input_shape
    if not isinstance(shape, tuple) or not shape or any(not isinstance(size, int) for size in shape[1:]):
        raise ModelError(f"The model {str(path)!r} takes {shape}. Expected one input of a fixed shape.")
    return tuple(shape[1:])


def _check_card(card: ModelCard | None, model: Any, shape: Shape, path: Path) -> None:
    if card is None:
        return
    outputs = num_outputs(model)
    if card.shape != shape or (len(card.classes) != outputs and (len(card.classes), outputs) != (2, 1)):
        raise ModelError(
            f"The card in {str(path)!r} belongs to another model: it says {card.shape} and "
            f"{list(card.classes)}, the model takes {shape} and gives {outputs} numbers."
        )
