"""The command `coordinator`: drives the rounds of a federation."""

from pathlib import Path
from typing import Any

import click

from broker.command import CommandGroup, Stop, amqp_url_option, log_options, read_environment
from broker.errors import EXIT_SIGNAL, UsageError
from broker.logs import LogContext
from broker.rabbitmq import LinkSettings, RabbitLink
from coordinator import tasks
from coordinator.files import lock_folder, make_folder
from coordinator.history import Row
from coordinator.model_process import ModelProcess
from coordinator.options import RunOptions
from coordinator.run import Interrupted, Run, Summary
from coordinator.strategies import STRATEGIES

_FILE = click.Path(path_type=Path)


@click.group(name="coordinator", cls=CommandGroup)
@click.version_option(package_name="warren")
def main() -> None:
    """Drive the rounds of a federation: invite workers, average their updates, save the model."""


def _pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"expected KEY=VALUE, got {value!r}")
    return dict(value.split("=", 1) for value in values)


def run_options(function: Any) -> Any:
    """Add the options of a run, the same for every command that starts one."""
    for option in reversed(
        (
            click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True,
                         help="How many must have joined before the first round."),
            click.option("--quorum", type=click.IntRange(min=1),
                         help="Updates that may close a round.  [default: all invited workers]"),
            click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True,
                         help="In all; a higher number continues a finished run."),
            click.option("--deadline-seconds", type=float, default=3600.0, show_default=True,
                         help="A round closes on the quorum then, or is tried again."),
            click.option("--grace-seconds", type=float, default=10.0, show_default=True,
                         help="How long others are waited for once the quorum is there."),
            click.option("--retries", type=click.IntRange(min=0), default=2, show_default=True,
                         help="Further attempts at a round that missed its quorum."),
            click.option("--strategy", type=click.Choice(list(STRATEGIES)), default="fedavg", show_default=True,
                         help="How updates become the next global model."),
            click.option("--strategy-option", "strategy_options", multiple=True, metavar="KEY=VALUE", callback=_pairs,
                         help="E.g. momentum=0.9; may be repeated."),
            click.option("--fraction", type=float, default=1.0, show_default=True,
                         help="Share of the present workers invited to a round."),
            click.option("--epochs", type=click.IntRange(min=1), help="Local epochs a round.  [default: the task's]"),
            click.option("--batch-size", type=click.IntRange(min=1), help="[default: the task's]"),
            click.option("--learning-rate", type=float, help="Of the workers' optimizer.  [default: the task's]"),
            click.option("--class-weight", type=click.Choice(["none", "balanced"]),
                         help="balanced: every class weighs the same.  [default: the task's]"),
            click.option("--examples-per-class", type=click.IntRange(min=1),
                         help="Train each round on so many random examples of each class.  [default: the task's]"),
            click.option("--initial-model", type=_FILE, metavar="FILE.keras", help="Start from a trained model."),
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                         help="Of the initial weights, the selection, and the workers' shuffling."),
            click.option("--deterministic", is_flag=True, help="Same updates, same bits; slower."),
            click.option("--upload-precision", "precision", type=click.Choice(["float32", "float16", "int8"]),
                         default="float32", show_default=True, help="How an update's values travel."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


@main.command(short_help="Train a model with the workers that join.")
@click.argument("task")
@click.option("--out", type=_FILE, required=True, help="The run's folder; an interrupted run goes on there.")
@run_options
@click.option(
    "--standby", is_flag=True, help="Wait while another coordinator works, and take over when it ends."
)
@click.option(
    "--connect-seconds", type=float, default=10.0, show_default=True, help="For the first connection."
)
@amqp_url_option
@log_options
def run(task: str, out: Path, amqp_url: str, connect_seconds: float, log: LogContext, **options: Any) -> None:
    """Train TASK: chest-xray, chest-xray-lab, mnist, MODULE:FUNCTION, or a compiled FILE.keras.

    The folder OUT then holds model.keras, history.csv, curves.png, run.json and the checkpoint.

    \b
    coordinator run chest-xray --workers 3 --quorum 2 --rounds 5 --out runs/demo
    coordinator run mnist --workers 3 --out runs/mnist --epochs 1
    coordinator run my_models:build --out runs/mine --initial-model runs/old/model.keras

    \b
    Exit codes: 0 done, 2 usage or a name in use, 3 broker unreachable or login refused,
    4 quorum not reached, 5 bad data, model or checkpoint, 128 + signal interrupted.
    """
    asked = RunOptions(task=tasks.resolve(task), out=out, **options)
    if asked.initial_model is not None and not asked.initial_model.is_file():
        raise UsageError(f"There is no model {str(asked.initial_model)!r}. Try the path of a model.keras.")
    with Stop() as stop:
        try:
            summary = _play(asked, amqp_url, connect_seconds, log, stop)
        except Interrupted as exc:
            click.echo(str(exc), err=True)
            raise SystemExit(EXIT_SIGNAL + (stop.signal_number or 0)) from exc
    _print_summary(asked, summary)


def _play(options: RunOptions, amqp_url: str, connect_seconds: float, log: LogContext, stop: Stop) -> Summary:
    """Hold the folder, connect, play; everything is let go of in the reverse order."""
    link = RabbitLink(
        LinkSettings(amqp_url=amqp_url, name="coordinator", connect_seconds=connect_seconds, stop=stop.event)
    )
    make_folder(options.out)
    with lock_folder(options.out, wait=options.standby, stop=stop.event):
        link.open()
        try:
            with ModelProcess() as models:
                return Run(link, options, models, stop=stop.event, log=log).play()
        finally:
            link.close()


def _print_summary(options: RunOptions, summary: Summary) -> None:
    last: Row = summary.history[-1]
    measures = ("val_accuracy", "val_balanced_accuracy", "val_auc", "val_loss")
    shown = "  ".join(f"{name.removeprefix('val_')}={last[name]:.4f}" for name in measures if name in last)
    click.echo(f"{options.out / 'model.keras'}  rounds={summary.rounds}  {shown}".rstrip())
    if summary.num_dead:
        click.echo(f"{summary.num_dead} messages were rejected: see the queue 'dead'.", err=True)


read_environment(main)  # at the end: it goes through the commands above
