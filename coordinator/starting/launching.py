"""The options of a run, the same wherever it is asked for: the command line, a message, the page."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.errors import UsageError
from coordinator.files import is_file
from coordinator.folder.statistics_file import read_statistics
from coordinator.folder.tracking.kinds import KINDS, refuse_missing
from coordinator.learning.strategies import STRATEGIES
from coordinator.options import RunOptions
from coordinator.tasks import check_text, resolve

_FILE = click.Path(path_type=Path)
_MOST = 10**9  # of anything that is counted: whatever reckons with it on the way holds that
_MOST_SEED = 2**32 - 1  # NumPy's, and so Keras's
_MOST_SAID = 300
_FROM_SCRATCH = "from-scratch"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"expected KEY=VALUE, got {value!r}")
    return dict(value.split("=", 1) for value in values)


def run_options(function: _Function) -> _Function:
    """Add the options of a run, the same for every command that starts one."""
    for option in reversed(
        (
            click.option("--workers", type=click.IntRange(1, _MOST), default=2, show_default=True,
                         help="How many must have joined before the first round."),
            click.option("--quorum", type=click.IntRange(1, _MOST),
                         help="Updates that may close a round.  [default: all invited workers]"),
            click.option("--rounds", type=click.IntRange(1, _MOST), default=5, show_default=True,
                         help="In all; a higher number continues a finished run."),
            click.option("--deadline-seconds", type=float, default=3600.0, show_default=True,
                         help="A round closes on the quorum then, or is tried again."),
            click.option("--grace-seconds", type=float, default=10.0, show_default=True,
                         help="How long others are waited for once the quorum is there."),
            click.option("--retries", type=click.IntRange(0, _MOST), default=2, show_default=True,
                         help="Further attempts at a round that missed its quorum."),
            click.option("--strategy", type=click.Choice(list(STRATEGIES)), default="fedavg", show_default=True,
                         help="How updates become the next global model."),
            click.option("--strategy-option", "strategy_options", multiple=True, metavar="KEY=VALUE", callback=_pairs,
                         help="E.g. momentum=0.9; may be repeated."),
            click.option("--fraction", type=float, default=1.0, show_default=True,
                         help="Share of the present workers invited to a round."),
            click.option("--max-examples", type=click.IntRange(1, _MOST),
                         help="No update weighs more than so many examples, whatever its worker claims."),
            click.option("--max-share", type=float, default=1.0, show_default=True,
                         help="No update weighs more than this share of the round."),
            click.option("--epochs", type=click.IntRange(1, _MOST),
                         help="Local epochs a round.  [default: the task's]"),
            click.option("--batch-size", type=click.IntRange(1, _MOST), help="[default: the task's]"),
            click.option("--learning-rate", type=float, help="Of the workers' optimizer.  [default: the task's]"),
            click.option("--learning-rate-decay", type=float, metavar="F",
                         help="Each round's learning rate is the former one's times F.  [default: the task's]"),
            click.option("--class-weight", type=click.Choice(["none", "balanced"]),
                         help="balanced: every class weighs the same.  [default: the task's]"),
            click.option("--examples-per-class", type=click.IntRange(1, _MOST),
                         help="Train each round on so many random examples of each class.  [default: the task's]"),
            click.option("--stop-when", metavar="MEASURE",
                         help="End when this column of history.csv no longer becomes better, e.g. val_auc; min:NAME or "
                              "max:NAME says which way is better."),
            click.option("--patience", type=click.IntRange(1, _MOST), default=5, show_default=True,
                         help="Rounds without a better --stop-when before the run ends."),
            click.option("--keep-every", type=click.IntRange(1, _MOST), metavar="N",
                         help="Keep the model of every N-th round, as model-0010.keras."),
            click.option("--private", multiple=True, metavar="PATTERN",
                         help='Weights that stay at each worker, e.g. "batch_normalization*"; may be repeated.'),
            click.option("--relay", "relays", multiple=True, metavar="NAME",
                         help="An invited account that may be a relay, and speak for many workers; may be repeated."),
            click.option("--track", type=click.Choice(KINDS), multiple=True,
                         help="Tell the figures to TensorBoard (RUN/tensorboard) or MLflow; may be repeated."),
            click.option("--normalize", type=_FILE, metavar="FILE.json",
                         help="Set the model's Normalization layer from what `coordinator statistics` has found."),
            click.option("--initial-model", type=_FILE, metavar="FILE",
                         help="Start from a trained model: FILE.keras, or FILE.npz for a task of arrays."),
            click.option("--seed", type=click.IntRange(0, _MOST_SEED), default=0, show_default=True,
                         help="Of the initial weights, the selection, and the workers' shuffling."),
            click.option("--deterministic", is_flag=True, help="Same updates, same bits; slower."),
            click.option("--upload-precision", "precision", type=click.Choice(["float32", "float16", "int8"]),
                         default="float32", show_default=True, help="How an update's values travel."),
            click.option("--download-precision", type=click.Choice(["float32", "float16", "int8"]),
                         default="float32", show_default=True,
                         help="How the global model's change travels to workers that have the last one."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def launch_options(function: _Function) -> _Function:
    """Add the options of a run that a serving coordinator starts."""
    add = click.option(
        f"--{_FROM_SCRATCH}", is_flag=True, help="Begin with new weights, not with this task's last model."
    )
    return add(run_options(function))


@launch_options
def _asked(**options: Any) -> None:
    """Stand for the command whose options are read."""
    del options


_COMMAND = click.command(name="launch")(_asked)


def option_names() -> list[str]:
    """The names that a launch may give, as on the command line but without the dashes."""
    return [_name_of(option) for option in _COMMAND.params]


def read_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Read a launch's options as the command line reads them; what is left out has its default.

    Args:
        options: By name, with - or _. A flag is "true" or "false"; strategy-option is KEY=VALUE, several
            separated by commas.

    Raises:
        UsageError: There is no such option, or it can't have this value.
    """
    check_texts(options)
    arguments = [word for name, value in options.items() for word in _words(name, value)]
    try:
        context = _COMMAND.make_context("launch", arguments, resilient_parsing=False)
    except click.ClickException as exc:
        raise UsageError(exc.format_message()[:_MOST_SAID]) from exc
    with context:
        return dict(context.params)


def read_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Read the options of a run as Python gives them; what is None or left out has its default.

    Args:
        options: By their names on the command line, with _ for -.

    Raises:
        UsageError: A run has no such option, or it can't have this value.
    """
    known = [name.replace("-", "_") for name in option_names() if name != _FROM_SCRATCH]
    for name in options:
        if name not in known:
            raise UsageError(f"A run has no option {str(name)[:60]!r}. It has: {', '.join(known)}.")
    given = {name: value for name, value in options.items() if value is not None}
    read = read_options({name: _text(value) or str(value) for name, value in given.items()})
    del read["from_scratch"]
    return read


def check_texts(options: Mapping[str, str]) -> None:
    """Refuse names and values that can't be meant, however they were sent.

    Raises:
        UsageError: One is too long, or holds what nobody can read.
    """
    for name, value in options.items():
        check_text("an option's name", name)
        check_text(name, value)


def _words(name: str, value: str) -> list[str]:
    name = name.removeprefix("--").replace("_", "-")
    option = next((each for each in _COMMAND.params if _name_of(each) == name), None)
    if not isinstance(option, click.Option):
        raise UsageError(f"A launch has no option {name[:60]!r}. It has: {', '.join(option_names())}.")
    if option.is_flag:
        if value.lower() not in ("true", "false", ""):
            raise UsageError(f"Expected true or false for {name}, got {value[:60]!r}.")
        return [] if value.lower() == "false" else [f"--{name}"]
    if option.multiple:
        return [f"--{name}={each.strip()}" for each in value.split(",") if each.strip()]
    return [f"--{name}={value}"]


def _name_of(option: click.Parameter) -> str:
    return option.opts[0].removeprefix("--")


def as_texts(options: Mapping[str, Any]) -> dict[str, str]:
    """The same options as texts by name, for a message; what is left to its default isn't told."""
    texts = {_name_of(option): _text(options.get(str(option.name))) for option in _COMMAND.params}
    return {name: text for name, text in texts.items() if text}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, bool):
        return "true" if value else ""
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


def make_options(task: str, out: Path, options: Mapping[str, Any]) -> RunOptions:
    """The run that is asked for.

    Args:
        task: As a person writes it.
        out: The run's folder.
        options: By parameter's name, as click gives them.

    Raises:
        UsageError: No such task, model or tracker, or options that contradict each other.
        DataError: What to normalise by can't be read.
    """
    asked = RunOptions(task=resolve(task), out=out, **options)
    if asked.initial_model is not None and not is_file(asked.initial_model):
        raise UsageError(
            f"There is no model {str(asked.initial_model)!r}. Try the path of a model.keras or model.npz."
        )
    refuse_missing(asked.track)
    if asked.normalize is not None:
        read_statistics(asked.normalize)
    return asked
