"""One participant: its private data, local training, and the use of the trained model on its own images.

Contents, from the ground up; nothing imports what stands below it on this page:
    trainer       a trainer of one's own: what a class must offer
    tensorflow    Keras, loaded late and quietly
    tables/       Examples of any form: named inputs and targets, in memory or streamed, as a model takes them
    data/         A participant's examples, from any file to arrays; nothing here knows of a model or of a broker
    learning/     A model on this site: built from allowed parts, trained, measured and used
    site/         What leaves this site before a training, and what its operator says to that
    rounds/       Taking part: from a round start that comes in to an update that goes out
    processes/    Training on all cores: one process that takes part, and several behind it that train
    api           `worker.run`, which the command calls, too, and its result
    baseline      the same training with no federation
    examples/     Trainers of one's own, each with its task: scikit-learn, JAX, PyTorch
    clinic/       The doctor's page: `worker clinic`
    cli           the command `worker`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.api import WorkResult, run

__all__ = ["WorkResult", "run"]


def __getattr__(name: str) -> Any:
    """What a person imports from Python, loaded when it is first asked for: importing this package stays cheap."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)
