"""The commands `worker pause` and `worker resume`: a person at the site has the last word over a worker that runs."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.command import log_options
from broker.logs import LogContext
from broker.wire.names import check_name
from worker.site.resting import PauseSwitch, default_folder

logger = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _switch_options(function: _Function) -> _Function:
    state = click.option(
        "--state",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="As `worker run` was given it.  [default: ~/.local/state/warren/workers]",
    )
    name = click.option("--name", required=True, help="The worker's, or the swarm's.")
    return name(state(log_options(function)))


@click.command(name="pause", short_help="Have a worker take no rounds for now.")
@_switch_options
def pause_command(name: str, state: Path | None, log: LogContext) -> None:
    """Have the worker NAME of this machine take no rounds until `worker resume`, also after it is started anew.

    It stays with the federation, which is told that it is paused. What it trains at that moment ends, and is declined.

    \b
    worker pause --name hospital-1
    worker resume --name hospital-1
    """
    folder = state or default_folder()
    switch = PauseSwitch(folder, check_name(name))
    switch.set()
    if not (folder / name).exists():
        logger.warning(
            "Nothing of a worker %s is in %s: are --name and --state as it was given them?", name, folder
        )
    click.echo(f"{name} is paused ({switch.path}). It takes rounds again after: worker resume --name {name}")


@click.command(name="resume", short_help="Have a paused worker take rounds again.")
@_switch_options
def resume_command(name: str, state: Path | None, log: LogContext) -> None:
    """Have the worker NAME of this machine take rounds again; one that is not paused goes on as it does.

    \b
    worker resume --name hospital-1
    worker resume --name hospital-1 --state /var/lib/warren
    """
    PauseSwitch(state or default_folder(), check_name(name)).clear()
    click.echo(f"{name} takes rounds.")
