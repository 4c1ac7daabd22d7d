"""Parts of one's own: built where the site's operator trusts their module, by their registered names alone."""

from typing import Any

import pytest

from broker.errors import ModelError, UsageError
from broker.model.allowlist import check_config, parts_in
from broker.model.trust import NOTHING, trust

TRUSTED = frozenset({"my>Gate", "my>loss"})


def model_of(**changes: Any) -> dict[str, Any]:
    part = {"class_name": "Gate", "module": None, "registered_name": "my>Gate", "config": {"name": "gate"}}
    return {
        "class_name": "Sequential",
        "module": "keras",
        "registered_name": None,
        "config": {"name": "m", "layers": [part | changes]},
    }


def test_a_registered_part_is_allowed_by_its_name_alone() -> None:
    """Whatever module its config names: that one is never imported."""
    check_config(model_of(), TRUSTED)
    check_config(model_of(module="os"), TRUSTED)


@pytest.mark.parametrize(
    ("changes", "trusted", "named"),
    [
        ({}, NOTHING, "--trust-module"),
        ({"registered_name": "my>Other"}, TRUSTED, "--trust-module"),
        ({"registered_name": None}, TRUSTED, "Gate (module None)"),
        ({"config": "Gate"}, TRUSTED, "no map"),
        ({"config": {"units": 2**30}}, TRUSTED, "units = 1073741824"),
        (
            {"config": {"inner": {"class_name": "Lambda", "module": "keras.layers", "config": {}}}},
            TRUSTED,
            "Lambda",
        ),
        (
            {
                "class_name": "function",
                "module": "builtins",
                "registered_name": "function",
                "config": "my>other",
            },
            TRUSTED,
            "the function 'my>other'",
        ),
    ],
)
def test_nothing_else_comes_in_with_it(changes: dict[str, Any], trusted: frozenset[str], named: str) -> None:
    """Not another part of the module's package, not what its config holds, not what is too large."""
    with pytest.raises(ModelError) as refused:
        check_config(model_of(**changes), trusted)
    assert named in str(refused.value)


def test_functions_are_trusted_by_their_names_where_keras_names_them() -> None:
    """As a loss of the compile settings, as an activation."""
    loss = {
        "class_name": "function",
        "module": "builtins",
        "registered_name": "function",
        "config": "my>loss",
    }
    settings = {"optimizer": "sgd", "loss": loss, "metrics": ["my>loss"]}
    config = model_of() | {"compile_config": settings}
    check_config(config, TRUSTED)
    assert parts_in(config, TRUSTED) == ("my>Gate", "my>loss")
    with pytest.raises(ModelError, match="my>loss"):
        check_config(config, frozenset({"my>Gate"}))


def test_a_vocabulary_that_is_a_path_is_refused() -> None:
    """A worker would read a file of its own disk into the model."""
    lookup = {"class_name": "StringLookup", "module": "keras.layers", "registered_name": None}
    check_config(model_of(**lookup, config={"vocabulary": ["a", "b"]}))
    with pytest.raises(ModelError, match="a list of words"):
        check_config(model_of(**lookup, config={"vocabulary": "/etc/passwd"}))
    with pytest.raises(ModelError, match="one of"):
        check_config(model_of(**lookup, config={"vocabulary": None, "encoding": "utf-7"}))


def test_a_module_that_is_not_there_is_named() -> None:
    """Before anything is loaded for it."""
    with pytest.raises(UsageError, match="no_such_module"):
        trust(["no_such_module"])
