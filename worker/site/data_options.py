"""How a command is told what a site's data are: the options that several of them share."""

from typing import Any

import click

_DATA_HELP = (
    "A folder of class folders (optionally under train/ and test/), an .npz (x_train, y_train, ...; several inputs as "
    "x_train.NAME), or MODULE:FUNCTION (arrays, dicts of them, pandas, a Dataset, the function of a generator). Images "
    "are JPEG, PNG, GIF, BMP, WebP, TIFF or DICOM; those in one sub-folder of a class are one patient's."
)


def data_option(function: Any) -> Any:
    """Add --data and what belongs to it."""
    return click.option("--data", required=True, help=_DATA_HELP)(classes_option(function))


def trainer_option(function: Any) -> Any:
    """Add --trainer and --data, of which one at least must be given."""
    trainer = click.option(
        "--trainer",
        metavar="MODULE:CLASS",
        help="Take part in tasks of arrays with a trainer of your own, importable from the current folder; it is "
        "made as CLASS(data=..., worker=...). No TensorFlow is needed.",
    )
    data = click.option(
        "--data", help=f"{_DATA_HELP} With --trainer: whatever that makes of it; may be left out."
    )
    return trainer(data(classes_option(function)))


def classes_option(function: Any) -> Any:
    """Add --classes."""
    return click.option(
        "--classes",
        metavar="A,B,C",
        help="All classes in the model's order; this data may lack some. For arrays: the names of the labels "
        "0, 1, 2 and so on, or the labels themselves; none: y is a number to be learned. [default: as found, or "
        "as the data declares: "
        "classes.txt in the folder, `classes` in the .npz, a third value from FUNCTION]",
    )(function)


def meaning_option(function: Any) -> Any:
    """Add --classes as it is of a model alone."""
    return click.option(
        "--classes",
        metavar="A,B,C",
        help="Of a model that no run has written: the names of its classes, in its order; none: it gives numbers. "
        "[default: what its output and its loss say; one that a run has written says it itself]",
    )(function)


def trust_option(function: Any) -> Any:
    """Add --trust-module."""
    return click.option(
        "--trust-module",
        "trusted_modules",
        multiple=True,
        metavar="MODULE",
        help="A model may hold the layers, losses and metrics that this module, installed here, registers; may be "
        "repeated.  [default: only Keras's own]",
    )(function)
