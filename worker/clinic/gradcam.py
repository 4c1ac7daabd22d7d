"""A doctor sees where a model looked, and not its prediction alone: Grad-CAM on any model, as it is."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.model.ending import ending_of
from broker.model.head import Floats
from worker.data.images import Pixels
from worker.learning.inference import Inference
from worker.tensorflow import load_keras

_WITH_SCORE = frozenset(
    {"linear", "softmax", "log_softmax", "sigmoid"}
)  # what enters these is the class score
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """What a model says about one image, and why.

    Attributes:
        probabilities: (classes,) of every class.
        heat: (rows, columns) from 0 to 1, how much each point of the whole image speaks for `heat_class`, in
            the resolution of the model's last feature maps; None if no point speaks for either class, or
            the model has no feature maps.
        heat_class: The most probable class; the next one where no point speaks for the first, as when a
            healthy lung is told by the absence of signs.
    """

    probabilities: Floats
    heat: Floats | None
    heat_class: int


class GradCam:
    """Grad-CAM of one Keras classifier.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks". The feature maps A are the last
    four-dimensional output inside the model, in the order of computing, behind its first layer with weights
    and at least 2 pixels large. The score y of a class is what enters the last softmax or sigmoid; where the
    model ends otherwise, it is the logarithm of the output. The probabilities are not of this graph, whose
    gradients make it round otherwise, but of the one that `worker predict` and `worker evaluate` ask.
    """

    def __init__(self, model: Inference) -> None:
        """Trace the model once; it is not changed.

        Args:
            model: Of one input (n, height, width, channels).
        """
        self._model = model
        self._function = _trace(model.model)

    def look(self, pixels: Pixels) -> Look:
        """Classify one image and explain the prediction.

        Args:
            pixels: (height, width, channels) as the model takes it.

        Raises:
            ModelError: The model's output isn't finite.
        """
        probabilities = self._model.probabilities(pixels[np.newaxis])[0]
        first, second = (int(index) for index in (-probabilities).argsort(kind="stable")[:2])
        maps, *gradients = self._function(pixels[np.newaxis].astype(np.float32), (first, second))
        heats = [heat_of(np.asarray(maps[0]), np.asarray(each[0])) for each in gradients]
        if heats[0] is None and heats[1] is not None:
            return Look(probabilities=probabilities, heat=heats[1], heat_class=second)
        return Look(probabilities=probabilities, heat=heats[0], heat_class=first)


def heat_of(maps: npt.NDArray[np.float32], gradient: npt.NDArray[np.float32]) -> Floats | None:
    """Equations 1 and 2 of the paper, scaled to a largest value of 1.

    Args:
        maps: (rows, columns, k) feature maps A.
        gradient: The same shape, dy/dA.

    Returns:
        (rows, columns) ReLU(Σ_k α_k A_k) with α_k the mean of dy/dA_k over all points; None where
        it is 0 everywhere.
    """
    if not maps.size:
        return None
    alpha = gradient.mean(axis=(0, 1), dtype=np.float64)
    heat: Floats = np.maximum((maps.astype(np.float64) * alpha).sum(axis=2), 0)
    largest = float(heat.max())
    return heat / largest if np.isfinite(largest) and largest > 0 else None


def _trace(model: Any) -> Callable[..., tuple[Any, ...]]:
    """One graph from an image and two classes to the feature maps, and the gradients of the two scores on them."""
    load_keras()
    import tensorflow as tf

    def explain(x: Any, classes: Any) -> tuple[Any, ...]:
        maps: list[Any] = []
        scores: list[Any] = []
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            with _listening(model, maps, scores):
                outputs = model(x, training=False)
            heard = [each for each in scores if each.shape == outputs.shape]
            score = heard[-1] if heard else tf.math.log(tf.maximum(outputs, _TINY))
            best = [_score_of(tf, score, classes[index]) for index in range(2)]
        seen = next((each for each in reversed(maps) if _is_spatial(each)), None)
        gradients = [None if seen is None else tape.gradient(score, seen) for score in best]
        if any(each is None for each in gradients):
            seen = tf.zeros((1, 0, 0, 0))
            gradients = [seen, seen]
        return seen, *gradients

    function = tf.function(explain, reduce_retracing=False, autograph=False)
    image = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    concrete = function.get_concrete_function(image, tf.TensorSpec((2,), tf.int32))
    return lambda x, classes: tuple(concrete(tf.constant(x), tf.constant(classes)))


def _score_of(tf: Any, scores: Any, index: Any) -> Any:
    """The score of one class; a single output z stands for -z and z."""
    if scores.shape[1] == 1:
        return tf.where(index == 1, scores, -scores)
    return tf.gather(scores, index, axis=1)


def _is_spatial(maps: Any) -> bool:
    shape = maps.shape
    return len(shape) == 4 and None not in shape and shape[1] * shape[2] > 1


@contextmanager
def _listening(model: Any, maps: list[Any], scores: list[Any]) -> Iterator[None]:
    """While the model runs, collect its layers' outputs and the score before its last activation.

    A layer may sit in a model inside the model, whose tensors can't be named from outside: so it is heard,
    not asked.
    """
    with ExitStack() as stack:
        for layer in _from_first_learned(model):
            stack.enter_context(_replaced(layer, "call", _recording(layer.call, maps)))
        ending = ending_of(model)
        if ending.layer is not None and ending.activation in _WITH_SCORE:
            name = "activation" if hasattr(ending.layer, "activation") else "call"
            heard = _recording_input(getattr(ending.layer, name), scores)
            stack.enter_context(_replaced(ending.layer, name, heard))
        yield


@contextmanager
def _replaced(layer: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    # Past the layer's __setattr__, with which Keras keeps track of what belongs to the model.
    attributes = vars(layer)
    missing = object()
    former = attributes.get(name, missing)
    attributes[name] = function
    try:
        yield
    finally:
        if former is missing:
            del attributes[name]
        else:
            attributes[name] = former


def _recording(function: Callable[..., Any], heard: list[Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        output = function(*arguments, **options)
        if hasattr(output, "shape"):
            heard.append(output)
        return output

    return call


def _recording_input(function: Any, heard: list[Any]) -> Callable[..., Any]:
    def call(value: Any, *arguments: Any, **options: Any) -> Any:
        heard.append(value)
        return function(value, *arguments, **options)

    return call


def _from_first_learned(model: Any) -> list[Any]:
    """The layers from the first that learned something, frozen or not; before it there is preprocessing."""
    layers = list(_leaves(model))
    first = next((index for index, layer in enumerate(layers) if _has_learned(layer)), len(layers))
    return layers[first:]


def _has_learned(layer: Any) -> bool:
    return bool(layer.weights) and type(layer).__name__ != "Normalization"


def _leaves(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from _leaves(layer) if hasattr(layer, "layers") else (layer,)
