"""Drives the rounds; owns the global model, its architecture and its training settings; reads no training data.

Contents, from the ground up; nothing imports what stands below it on this page:
    files        files that are whole or not there
    learning/    One round without a broker or a disk: who answered, what counts, and how weights are put together
    tasks        the table of named tasks
    options      what a person asks of one run, checked once
    folder/      What is on disk: checkpoints, histories, and which run a folder holds
    status       what is told of workers and runs, and its JSON
    keras/       Keras, in a child process: the models of the named tasks, saving, and trying before a commit
    presence/    The coordinator's place at the broker: its queue, who is there, and who can't be understood
    play/        A run as it is played over the broker: from the next event to the next model
    terminal/    What a person at a terminal sees: the bar of a run, and what comes back of `launch` and `status`
    starting/    A run asked for: its options wherever that is, and what a person calls from Python
    page/        `coordinator serve`: one run after the other, and the pages that show them
    cli          the command `coordinator`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.learning import strategies
    from coordinator.starting.api import RunResult, run
    from coordinator.starting.simulation import simulate

__all__ = ["RunResult", "run", "simulate", "strategies"]

#: Where each name is: loaded when it is first asked for, so that importing this package stays cheap.
_MODULES = {
    "RunResult": "starting.api",
    "run": "starting.api",
    "simulate": "starting.simulation",
    "strategies": "learning.strategies",
}


def __getattr__(name: str) -> Any:
    """What a person imports from Python."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name]}")
    return getattr(module, name, module)
