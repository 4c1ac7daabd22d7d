"""What a Keras model needs of a site's data, found out from its inputs, its outputs and its losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from broker.errors import ModelError, ProtocolError
from broker.model.head import BINARY, CATEGORICAL, MARGINS
from broker.model.loss import is_builtin, loss_name, takes_class_numbers
from broker.wire.settings import TEXT, InputSpec, Needs, TargetSpec


def needs_of(model: Any) -> Needs:
    """What a compiled model needs.

    Args:
        model: A built Sequential or functional Keras model.

    Raises:
        ModelError: Its inputs or outputs are neither one nor a flat list or dict, or an output has no loss.
    """
    names, losses = output_names(model), losses_of(model)
    for name, loss in zip(names, losses, strict=True):
        if loss is None:
            raise ModelError(
                f"The model is compiled with no loss for its output {name!r}. Expected one for each output; give one "
                "that shall not count a weight of 0 in loss_weights."
            )
    outputs = zip(names, model.outputs, losses, strict=True)
    try:
        return Needs(
            inputs=tuple(_input(tensor) for tensor in model.inputs),
            targets=tuple(_target(name, _shape(tensor), loss) for name, tensor, loss in outputs),
            num_classes=num_classes_of(model),
        )
    except ProtocolError as exc:
        raise ModelError(f"The model's inputs or outputs can't be told to workers. {exc}") from exc


def _input(tensor: Any) -> InputSpec:
    return InputSpec(name=str(tensor.name), shape=_shape(tensor), dtype=str(tensor.dtype))


def _shape(tensor: Any) -> tuple[int | None, ...]:
    return tuple(None if size is None else int(size) for size in tensor.shape[1:])


def _target(name: str, shape: tuple[int | None, ...], loss: object) -> TargetSpec:
    kind = loss_name(loss)
    if not is_builtin(loss):
        return TargetSpec(name=name, shape=shape, kind="anything")
    classes = (shape[-1] if shape else None) or 0
    if takes_class_numbers(loss):
        ignored = getattr(loss, "ignore_class", None)
        return TargetSpec(name=name, shape=shape[:-1], kind="classes", num_classes=classes, ignored=ignored)
    if kind in CATEGORICAL and classes > 1:
        return TargetSpec(name=name, shape=shape, kind="rows", num_classes=classes)
    return TargetSpec(name=name, shape=shape, kind="binary" if kind in BINARY | MARGINS else "numbers")


def num_classes_of(model: Any) -> int:
    """What it tells apart as a classifier; 0 where it can't be one."""
    if len(model.inputs) != 1 or len(model.outputs) != 1 or is_nested(inputs_struct(model)):
        return 0
    taken, given = model.inputs[0], model.outputs[0]
    is_fixed = None not in _shape(taken) and str(taken.dtype) != TEXT
    is_row = (
        len(given.shape) == 2 and isinstance(given.shape[1], int) and not is_nested(outputs_struct(model))
    )
    return max(int(given.shape[1]), 2) if is_fixed and is_row else 0


# --- how a model takes and gives several of them ---------------------------------------------------------------


def inputs_struct(model: Any) -> Any:
    """One tensor, or a list or dict of them, as the model takes its inputs."""
    return _functional(model)._inputs_struct


def outputs_struct(model: Any) -> Any:
    """The same of its outputs."""
    return _functional(model)._outputs_struct


def _functional(model: Any) -> Any:
    return getattr(model, "_functional", None) or model  # a Sequential has a functional model inside


def is_nested(struct: object) -> bool:
    """Whether it is a list or dict."""
    return isinstance(struct, Mapping | Sequence)


def packed(struct: Any, values: Sequence[Any]) -> Any:
    """Values in Keras's order, in the form in which the model takes or gives them.

    Args:
        struct: From `inputs_struct` or `outputs_struct`.
        values: As many as there are tensors in it.
    """
    if isinstance(struct, Mapping):
        return dict(zip(sorted(struct), values, strict=True))
    return list(values) if isinstance(struct, Sequence) else values[0]


def unpacked(struct: Any, values: Any) -> list[Any]:
    """The reverse of `packed`: what a model gave, in Keras's order."""
    if isinstance(struct, Mapping):
        return [values[name] for name in sorted(struct)]
    return list(values) if isinstance(struct, Sequence) else [values]


def output_names(model: Any) -> list[str]:
    """What the outputs are called, in Keras's order: by the dict that the model gives, or by their layers.

    Raises:
        ModelError: They are neither one output nor a flat list or dict.
    """
    struct = outputs_struct(model)
    for what, each in (("inputs", inputs_struct(model)), ("outputs", struct)):
        leaves = list(each.values()) if isinstance(each, Mapping) else each
        if is_nested(each) and any(is_nested(leaf) for leaf in leaves):
            raise ModelError(f"The model's {what} are nested. Expected one, a list, or a dict of tensors.")
    if isinstance(struct, Mapping):
        return sorted(map(str, struct))
    return [str(name) for name in _functional(model).output_names]


def losses_of(model: Any) -> list[Any]:
    """The loss of each output, in Keras's order; None where there is none.

    Raises:
        ModelError: The compiled losses are not one, or one an output.
    """
    loss, names = (model.loss if getattr(model, "compiled", False) else None), output_names(model)
    given: list[Any]
    if isinstance(loss, Mapping):
        given = [loss.get(name) for name in names]
    elif isinstance(loss, Sequence) and not isinstance(loss, str):
        given = list(loss)
    else:
        given = [loss] * len(names)
    if len(given) != len(names) or any(isinstance(each, list | tuple | dict) for each in given):
        raise ModelError(
            f"The model is compiled with {loss!r:.200} as its loss. Expected one for each of {names}."
        )
    return given
