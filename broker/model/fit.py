"""Whether a site's arrays fit what a model needs, found out by the coordinator before a round, and by the worker."""

from collections.abc import Iterable, Sequence

from broker.wire.settings import TEXT, Held, InputSpec, Needs, Role, Shape, TargetSpec

_SHOWN = 12


def misfit(needs: Needs, holds: Sequence[Held]) -> str | None:
    """Why a site's arrays can't train a model, in a clause about the site; None if they can.

    Args:
        needs: The model's.
        holds: What the site has.
    """
    return misfit_of(needs.inputs, holds, "input") or misfit_of(needs.targets, holds, "target")


def misfit_of(specs: Sequence[InputSpec | TargetSpec], holds: Sequence[Held], role: Role) -> str | None:
    """The same of the inputs, or of the targets, alone."""
    held = [each for each in holds if each.role == role]
    places = places_of(specs, held)
    if places is None:
        several = "s" if len(held) != 1 else ""
        return f"it has the {role}{several} {_named(held)}; the model needs {_wanted(specs)}"
    for spec, place in zip(specs, places, strict=True):
        if not (_takes(spec, held[place]) if isinstance(spec, InputSpec) else _learns(spec, held[place])):
            return f"its {role} {_shown(held[place])} does not fit; the model needs {_wanted([spec])}"
    return None


def places_of(specs: Sequence[InputSpec | TargetSpec], held: Sequence[Held]) -> list[int] | None:
    """Which of a site's arrays, of one role, each part of a model takes; None where that can't be told.

    The only one goes to the only one; else names decide, and arrays without names go by their order.
    """
    if len(specs) == len(held) == 1:
        return [0]
    names = [each.name for each in held]
    if all(spec.name in names for spec in specs):
        return [names.index(spec.name) for spec in specs]
    if len(specs) == len(held) and names == [str(place) for place in range(len(held))]:
        return list(range(len(held)))
    return None


def is_same_shape(needed: Shape, held: Shape) -> bool:
    """Whether shapes of one example agree; one may have a last axis of 1 more than the other."""
    if len(needed) == len(held):
        return all(None in pair or pair[0] == pair[1] for pair in zip(needed, held, strict=True))
    longer, shorter = (needed, held) if len(needed) > len(held) else (held, needed)
    return longer[-1] == 1 and is_same_shape(longer[:-1], shorter)


def _takes(spec: InputSpec, held: Held) -> bool:
    return (spec.dtype == TEXT) == (held.dtype == TEXT) and is_same_shape(spec.shape, held.shape)


def _learns(spec: TargetSpec, held: Held) -> bool:
    if held.dtype == TEXT:
        return False
    if spec.kind == "rows" and is_same_shape(spec.shape[:-1], held.shape):
        return True
    return spec.kind == "anything" or is_same_shape(spec.shape, held.shape)


def _named(held: Iterable[Held]) -> str:
    every = list(held)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return (", ".join(map(_shown, every[:_SHOWN])) or "none") + more


def _shown(held: Held) -> str:
    name = "" if held.name.isdecimal() else f"{held.name!r} "
    return f"{name}({held.dtype}, {_form(held.shape)})"


def _wanted(specs: Sequence[InputSpec | TargetSpec]) -> str:
    return ", ".join(map(described, specs[:_SHOWN]))


def described(spec: InputSpec | TargetSpec) -> str:
    """One part of a model in words."""
    if isinstance(spec, InputSpec):
        return f"{spec.name!r} ({'texts' if spec.dtype == TEXT else spec.dtype}, {_form(spec.shape)})"
    words = {
        "classes": f"class numbers from 0 to {spec.num_classes - 1}",
        "rows": f"rows of {spec.num_classes} numbers, or class numbers",
        "binary": "numbers from 0 to 1",
        "numbers": "numbers",
        "anything": "what its loss takes",
    }[spec.kind]
    return f"{spec.name!r} ({words}, {_form(spec.shape)})"


def _form(shape: Shape) -> str:
    if not shape:
        return "one an example"
    return f"{' × '.join('any' if size is None else str(size) for size in shape)} an example"


def holds_of_classes(shape: Shape | None, dtype: str) -> tuple[Held, ...]:
    """What a site of labelled arrays, which tells its classes, has; nothing where its images are files.

    Args:
        shape: Of one example; None for files.
        dtype: Of the examples.
    """
    if shape is None:
        return ()
    roles: tuple[tuple[Role, Shape, str], ...] = (("input", shape, dtype), ("target", (), "int64"))
    return tuple(Held(name="0", role=role, shape=each, dtype=kind) for role, each, kind in roles)
