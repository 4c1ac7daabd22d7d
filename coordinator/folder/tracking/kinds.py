"""Which trackers there are, and whether they are installed; imports none of them."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal, get_args

from broker.errors import UsageError

Kind = Literal["tensorboard", "mlflow"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def refuse_missing(kinds: Iterable[str]) -> None:
    """Refuse a tracker that could not be told anything.

    Raises:
        UsageError: It isn't installed here.
    """
    for kind in kinds:
        if find_spec(kind) is None:
            raise UsageError(
                f"--track {kind} needs the package {kind}, and the coordinator's Python has none. "
                f"Try pip install {kind}."
            )
