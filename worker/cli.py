"""The command `worker`: one participant's side, from a person's hands to the functions that do it."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from broker.command import CommandGroup, log_options, read_environment
from broker.errors import DataError
from broker.logs import LogContext
from worker.data import open_data
from worker.evaluation import check_classes, evaluate, format_evaluation
from worker.model_file import load_model
from worker.prediction import predict
from worker.split import format_table, split

_FILE = click.Path(path_type=Path)


@click.group(name="worker", cls=CommandGroup)
def main() -> None:
    """Take part in a federation with data that never leaves this machine, and use the trained model."""


@main.command(name="split", short_help="Cut a data set into sites.")
@click.argument("path")
@click.option("--into", type=click.IntRange(min=1), required=True, help="How many sites.")
@click.option("--out", type=_FILE, required=True, help="Where: a new or empty folder.")
@click.option(
    "--partition",
    "scheme",
    default="iid",
    show_default=True,
    metavar="iid|shards|dirichlet:ALPHA",
    help="How alike the sites are: iid alike; shards two pieces of the set sorted by class each; dirichlet "
    "any balance of classes, the smaller ALPHA the less alike.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same sites.")
@log_options
def split_command(path: str, into: int, out: Path, scheme: str, seed: int, log: LogContext) -> None:
    """Cut the data set PATH into sites: OUT/site-1, OUT/site-2 and so on.

    Patients are not divided: all X-rays of one person go to one site.

    \b
    worker split chest_xray --into 3 --out sites
    worker split mnist.npz --into 100 --out sites --partition shards
    worker split chest_xray --into 5 --out sites --partition dirichlet:0.5 --seed 1
    """
    click.echo(format_table(split(path, into=into, out=out, scheme=scheme, seed=seed)))


@main.command(name="evaluate", short_help="Measure a model on a data set.")
@click.argument("model", type=_FILE)
@click.option("--data", required=True, help="A folder of class folders, an .npz, or MODULE:FUNCTION.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@log_options
def evaluate_command(model: Path, data: str, as_json: bool, log: LogContext) -> None:
    """Measure MODEL on the test part of a data set, or on all of one that has no test part.

    \b
    worker evaluate runs/demo/model.keras --data chest_xray
    worker evaluate runs/demo/model.keras --data chest_xray/test --json
    """
    loaded = load_model(model)
    dataset = open_data(data, for_training=False, shape=loaded.shape)
    check_classes(loaded.classes if loaded.card else None, dataset.classes)
    result = evaluate(loaded.model, dataset.test(loaded.shape), dataset.classes)
    click.echo(json.dumps(asdict(result)) if as_json else format_evaluation(result, dataset.classes))


@main.command(name="predict", short_help="Classify images.")
@click.argument("model", type=_FILE)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, with every class's probability.")
@log_options
def predict_command(model: Path, images: tuple[Path, ...], as_json: bool, log: LogContext) -> None:
    """Say for each IMAGE which class MODEL sees, and how probable it finds that.

    Any size, grayscale or colour; JPEG, PNG, GIF, BMP or WebP. Not for clinical use.

    \b
    worker predict runs/demo/model.keras x-ray.jpeg
    worker predict runs/demo/model.keras ward/*.png --json
    """
    unreadable: list[DataError] = []

    def on_unreadable(exc: DataError) -> None:
        unreadable.append(exc)
        click.echo(f"Error: {exc}", err=True)

    found = predict(load_model(model), images, on_unreadable)
    if as_json:
        lines = ",\n".join(json.dumps(prediction.to_dict()) for prediction in found)
        click.echo(f"[{lines}]")
    else:
        for prediction in found:
            click.echo(f"{prediction.path}  {prediction.class_name}  {prediction.probability:.4f}")
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(images)} images can't be read; see above.")


read_environment(main)  # at the end: it goes through the commands above
