"""Words that a layer has learned stand in the model's JSON; Keras keeps those that `adapt` found in files beside it."""

from collections.abc import Iterator
from typing import Any

_WITH_WORDS = frozenset({"IntegerLookup", "StringLookup", "TextVectorization"})


def carry_vocabularies(model: Any, config: dict[str, Any]) -> bool:
    """Write the words of a model's layers into its description.

    Args:
        model: The Keras model.
        config: What `model.to_json()` gave, parsed; changed in place.

    Returns:
        Whether there were any to write.
    """
    pairs = list(_pairs(model, config))
    for layer, inner in pairs:
        inner["vocabulary"] = [_plain(word) for word in layer.get_vocabulary(include_special_tokens=False)]
        if inner.get("output_mode") == "tf_idf":
            lookup = getattr(layer, "_lookup_layer", layer)
            inner["idf_weights"] = [float(each) for each in lookup.idf_weights.numpy()][
                -len(inner["vocabulary"]) :
            ]
    return bool(pairs)


def _pairs(model: Any, config: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each layer that has words of its own, and its part of the description; also in models inside of models."""
    layers = {layer.name: layer for layer in model.layers}
    for part in config["config"].get("layers", ()):
        inner = part["config"]
        layer = layers.get(inner.get("name"))
        if layer is None:
            continue
        if "layers" in inner:
            yield from _pairs(layer, part)
        elif part["class_name"] in _WITH_WORDS and inner.get("vocabulary") is None:
            yield layer, inner


def _plain(word: Any) -> Any:
    return word.item() if hasattr(word, "item") else word
