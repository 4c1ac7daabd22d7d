"""What an operator may say of the rounds that a site takes part in: the options of `worker run` and `worker swarm`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.command import ByteSize

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ALLOW_TASK = click.option(
    "--allow-task",
    "allow_tasks",
    multiple=True,
    metavar="PATTERN",
    help="Decline rounds of tasks whose name fits none of these, as in 'chest-*'; may be repeated.  [default: any]",
)
_LEAST_PARTICIPANTS = click.option(
    "--least-participants",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Decline a round whose model may rest on fewer workers' updates, by the numbers that the coordinator tells: "
    "how many are invited, and the quorum.",
)
_HOURS = click.option(
    "--hours",
    metavar="FROM-TO",
    help="Take rounds that begin in these hours of this machine's own time alone: 20-6, 20:30-6:15.  [default: always]",
)
_THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train with so many threads, in a process of its own: TensorFlow's, and those of numpy and other libraries.  "
    "[default: as many as there are cores]",
)
_MAX_MEMORY = click.option(
    "--max-memory",
    type=ByteSize(),
    metavar="SIZE",
    help="Train in a process of its own; a round with which both take more than SIZE, such as 4G, is declined.  "
    "[default: no limit]",
)
_KEEP_MODELS = click.option(
    "--keep-models",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep each global model that comes, as DIR/RUN-round-N.keras (or .npz).",
)
_KEEP_LAST = click.option(
    "--keep-last",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="K",
    help="How many models --keep-models keeps, the newest.",
)


def say_options(function: _Function) -> _Function:
    """Add what one site's operator says."""
    for option in (_KEEP_LAST, _KEEP_MODELS, _MAX_MEMORY):
        function = option(function)
    return common_say_options(function)


def common_say_options(function: _Function) -> _Function:
    """Add what an operator says of a swarm, too."""
    for option in (_THREADS, _HOURS, _LEAST_PARTICIPANTS, _ALLOW_TASK):
        function = option(function)
    return function
