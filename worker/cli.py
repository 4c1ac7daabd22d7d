"""The command `worker`: one participant's side, from a person's hands to the functions that do it."""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from broker.command import CommandGroup, Number, Stop, access_options, log_options, read_environment
from broker.errors import EXIT_DONE, DataError, UsageError
from broker.link.access import Access
from broker.logs import LogContext
from broker.wire.names import check_name
from worker.api import run, site_of
from worker.baseline import BaselineOptions, measured_by, save_alone, train_alone
from worker.data.classes import parse_classes
from worker.data.data_set import DEFAULT_SHAPE, Dataset, open_data
from worker.data.partition import parse_share
from worker.data.split import format_table, split
from worker.learning.evaluation import Evaluation, check_classes, format_evaluation
from worker.learning.prediction import predict
from worker.learning.saved_model import LoadedModel, as_it_says, check_scale, load_model, suited_to
from worker.learning.values import Measures, format_answer, format_measures, predict_rows
from worker.processes.pool import TrainingPool
from worker.rounds.own_site import OwnSite, open_trainer
from worker.rounds.own_trainer import OwnTraining, measured_with
from worker.rounds.participant import KerasTrainer, Participant
from worker.rounds.private_parts import PrivateParts
from worker.rounds.site_rules import SHARES, SiteRules
from worker.rounds.start import LAST_SECONDS, LinkTo, audit_file, end_process_if_left, take_part
from worker.site.check_command import check_command
from worker.site.data_options import classes_option, data_option, meaning_option, trainer_option, trust_option
from worker.site.options import common_say_options, say_options
from worker.site.pausing import pause_command, resume_command
from worker.site.resting import PauseSwitch, Resting, default_folder, parse_hours
from worker.tables.rows import SUFFIXES
from worker.tables.table_set import TableSet
from worker.tensorflow import trusted_by

logger = logging.getLogger(__name__)

_FILE = click.Path(path_type=Path)
_LAST_SECONDS = 10.0  # what a training that is told to stop may still take


@click.group(name="worker", cls=CommandGroup)
@click.version_option(package_name="warren")
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
@classes_option
@log_options
def split_command(
    path: str, into: int, out: Path, scheme: str, seed: int, classes: str | None, log: LogContext
) -> None:
    """Cut the data set PATH into sites: OUT/site-1, OUT/site-2 and so on.

    Patients are not divided: all X-rays of one person go to one site. Who that is, DICOM's PatientID tells,
    else the sub-folder of the class, else a name like person7_2.jpeg or IM-0042-0001.jpeg.

    \b
    worker split chest_xray --into 3 --out sites
    worker split mnist.npz --into 100 --out sites --partition shards
    worker split chest_xray --into 5 --out sites --partition dirichlet:0.5 --seed 1
    """
    declared = parse_classes(classes)
    click.echo(format_table(split(path, into=into, out=out, scheme=scheme, seed=seed, classes=declared)))


@main.command(name="evaluate", short_help="Measure a model on a data set.")
@click.argument("model", type=_FILE)
@trainer_option
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@log_options
def evaluate_command(
    model: Path,
    trainer: str | None,
    data: str | None,
    classes: str | None,
    trusted_modules: tuple[str, ...],
    as_json: bool,
    log: LogContext,
) -> None:
    """Measure MODEL on the test part of a data set, or on all of one that has no test part.

    With --trainer, MODEL is the model.npz of a run of named arrays, and the trainer measures it; it is made with the
    worker's name "evaluate".

    \b
    worker evaluate runs/demo/model.keras --data chest_xray
    worker evaluate runs/demo/model.keras --data chest_xray/test --json
    worker evaluate runs/mine/model.npz --trainer my_trainer:Trainer --data ward-7
    """
    for site in _own_sites(trainer, data, classes, ["evaluate"]):
        own = measured_with(site, model)
        measures = Measures(num_examples=own.num_examples, metrics=dict(own.metrics))
        click.echo(json.dumps(measures.to_dict()) if as_json else format_measures(measures))
        return
    if data is None:
        raise UsageError("Expected --data, or --trainer MODULE:CLASS.")
    declared = parse_classes(classes)
    loaded = load_model(model, trusted_by(trusted_modules))
    dataset = open_data(data, for_training=False, shape=loaded.shape or DEFAULT_SHAPE, classes=declared)
    loaded = suited_to(loaded, dataset.classes, declared)
    if loaded.needs is not None:
        result = measured_by(loaded, dataset.test_rows(loaded.needs), ())
    else:
        check_classes(loaded.classes if loaded.card else None, dataset.classes)
        _warn_of_scale(loaded, dataset)
        result = measured_by(loaded, dataset.test(loaded.shape), dataset.classes)
    click.echo(json.dumps(result.to_dict()) if as_json else _formatted(result, dataset.classes))


def _formatted(result: Evaluation | Measures, classes: tuple[str, ...]) -> str:
    return format_measures(result) if isinstance(result, Measures) else format_evaluation(result, classes)


def _warn_of_scale(loaded: LoadedModel, dataset: Dataset | TableSet) -> None:
    """Say where data lie outside what the model was trained on: its figures would mislead."""
    difference = check_scale(loaded.card, dataset.inputs, loaded.shape)
    if difference:
        logger.warning("Other data than the model knows: %s.", difference)


@main.command(name="predict", short_help="Classify images.")
@click.argument("model", type=_FILE)
@click.argument("images", metavar="IMAGE...|ROWS", nargs=-1, required=True, type=_FILE)
@meaning_option
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, with every class's probability.")
@log_options
def predict_command(
    model: Path,
    images: tuple[Path, ...],
    classes: str | None,
    trusted_modules: tuple[str, ...],
    as_json: bool,
    log: LogContext,
) -> None:
    """Say for each IMAGE which class MODEL sees, and how probable it finds that; or what it says of each row of ROWS.

    Any size, grayscale or colour; JPEG, PNG, GIF, BMP, WebP, TIFF (its first page) or DICOM (of one frame).
    Not for clinical use.

    ROWS is an .npz with x (several inputs: x.NAME), or a .csv with a line of names, for models of any kind.

    \b
    worker predict runs/demo/model.keras x-ray.jpeg
    worker predict runs/demo/model.keras ward/*.png --json
    worker predict runs/price/model.keras houses.csv
    """
    declared = parse_classes(classes)
    loaded = as_it_says(load_model(model, trusted_by(trusted_modules)), declared, model)
    if images[0].suffix in SUFFIXES:
        _predict_rows(loaded, images, as_json=as_json)
        return
    unreadable: list[DataError] = []

    def on_unreadable(exc: DataError) -> None:
        unreadable.append(exc)
        click.echo(f"Error: {exc}", err=True)

    found = predict(loaded, images, on_unreadable)
    if as_json:
        lines = ",\n".join(json.dumps(prediction.to_dict()) for prediction in found)
        click.echo(f"[{lines}]")
    else:
        for prediction in found:
            click.echo(f"{prediction.path}  {prediction.class_name}  {prediction.probability:.4f}")
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(images)} images can't be read; see above.")


def _predict_rows(loaded: LoadedModel, paths: tuple[Path, ...], *, as_json: bool) -> None:
    if len(paths) > 1:
        raise UsageError(f"Expected one file of rows, got {len(paths)}.")
    found = predict_rows(loaded, paths[0])
    if as_json:
        click.echo("[" + ",\n".join(map(json.dumps, found)) + "]")
    else:
        for answer in found:
            click.echo(format_answer(answer))


@main.command(name="clinic", short_help="The doctor's page.")
@click.option("--model", type=_FILE, required=True, help="A FILE.keras; taken anew whenever it changes.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5001,
    show_default=True,
    help="Where to listen; 0 takes any free port.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; 0.0.0.0 lets other machines in.",
)
@meaning_option
@log_options
def clinic_command(model: Path, port: int, host: str, classes: str | None, log: LogContext) -> None:
    """Show a page that reads X-rays: class, probability, and where the model looked. Not for clinical use.

    Images are read on this machine only and never stored. Programs send them to /predict.

    \b
    worker clinic --model runs/demo/model.keras
    worker clinic --model runs/demo/model.keras --port 8080
    curl -F image=@x-ray.png http://127.0.0.1:5001/predict
    """
    from worker.clinic.app import run_clinic  # late: Flask comes with it, and no other command needs that

    run_clinic(model, host, port, click.echo, parse_classes(classes))


def participation_options(function: Any) -> Any:
    """Add what `run` and `swarm` have in common."""
    for option in reversed(
        (
            trainer_option,
            trust_option,
            click.option(
                "--audit",
                metavar="FILE|none",
                help="Gets a line for each round that is taken and each update that leaves, with bytes and SHA-256 (of "
                "a swarm's together, with bytes).  [default: audit.jsonl in this worker's folder in --state]",
            ),
            click.option("--task", help="Take part in runs of this task only.  [default: any]"),
            click.option("--once", is_flag=True, help="Leave after one run."),
            click.option("--seed", type=int, default=0, show_default=True, help="Of what is held out for tests."),
            click.option("--deterministic", is_flag=True, help="Same seed, same bits; slower."),
            click.option("--state", type=_FILE, metavar="DIR",
                         help="Keeps the weights that stay here when a run has --private, this worker's own "
                              "model.keras, and whether it is paused.  [default: ~/.local/state/warren/workers]"),
            click.option("--connect-seconds", type=Number(0, 1e9),
                         help="End with 3 unless a broker answers within so long.  [default: wait for it]"),
        )
    ):  # fmt: skip
        function = option(function)
    return function


@main.command(name="run", short_help="Take part with this machine's data.")
@click.option("--name", help="This worker's name: a-z, 0-9 and '-'.  [default: whom the invitation is for]")
@click.option("--evaluate-only", is_flag=True, help="Measure each model on this data, and train nothing.")
@click.option(
    "--share",
    type=click.Choice(SHARES),
    default="metrics",
    show_default=True,
    help="What leaves besides the update; weights: nothing that can be kept back; metrics: how good models are here; "
    "counts: also how many examples of each class; statistics: also mean, spread, range and histogram of each feature, "
    "and of numbers to be learned, when a coordinator asks.",
)
@click.option(
    "--least-examples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Decline a round that would train on fewer, and statistics that would rest on fewer (or on fewer than 10).",
)
@click.option("--least-steps", type=click.IntRange(min=1), default=1, show_default=True,
              help="Decline a round that would take fewer steps.")  # fmt: skip
@say_options
@participation_options
@access_options
@log_options
def run_command(
    name: str | None, access: Access, trainer: str | None, data: str | None, log: LogContext, **options: Any
) -> None:
    """Take part in federated training. The data stays here.

    What leaves: what the training changed in the weights, on how many examples, class names, shape and range of the
    inputs, progress; by default also loss, metrics and how the test examples were answered class by class: --share
    weights keeps these back. The coordinator reads each update by itself, and one of few examples tells much about
    them: --least-examples is your say. deploy/what-leaves.md lists every field and who reads it; the log says each
    round what was sent.

    A round outside your rules is declined with its reason, before its weights are taken; the worker stays joined.
    `worker pause` has it take none for now.

    Of DICOM files no tag leaves this machine or gets into a log. A FUNCTION returns (x_train, y_train),
    (x_test, y_test), and after them, if you like, the classes. It waits for a coordinator, serves one run
    after the other, and comes back by itself when the broker does.

    \b
    worker run --name hospital-1 --data sites/site-1
    worker run --name hospital-1 --data mnist.npz --once
    worker run --name hospital-2 --data archive --classes NORMAL,PNEUMONIA
    worker run --name test-set --data chest_xray --evaluate-only
    worker run --name hospital-1 --data x-rays --allow-task 'chest-*' --least-participants 3 --hours 20-6
    worker run --name hospital-1 --data x-rays --threads 4 --max-memory 8G --keep-models received
    worker run --name hospital-1 --trainer my_trainer:Trainer --data ward-7
    worker run --invitation hospital-1.toml --data x-rays

    \b
    Exit codes: 0 done or stopped, 2 usage or the name is in use, 3 broker unreachable or login refused,
    5 bad data, or refused by the coordinator.
    """
    its = access.named(name)
    log.update(worker=check_name(its))
    options["audit"] = audit_file(options["audit"], options["state"], its)
    with Stop(limit_seconds=LAST_SECONDS) as stop:
        result = run(its, data, trainer=trainer, access=access, stop=stop.event, log=log, **options)
    end_process_if_left(stop, has_left_behind=result.has_left_behind)


def _open_data(
    data: str | None, classes: str | None, *, seed: int, worker: str, for_training: bool = True
) -> Dataset | TableSet:
    if data is None:
        raise UsageError("Expected --data, or --trainer MODULE:CLASS.")
    declared = parse_classes(classes)
    return open_data(data, for_training=for_training, seed=seed, classes=declared, worker=worker)


def _own_sites(trainer: str | None, data: str | None, classes: str | None, names: list[str]) -> list[OwnSite]:
    """One site with a trainer of its own for each name; none without --trainer."""
    if trainer is None:
        return []
    if classes is not None:
        raise UsageError("--classes are of data that Warren reads; with --trainer the trainer reads its own.")
    return [open_trainer(trainer, data=data, worker=name) for name in names]


@main.command(name="swarm", short_help="Many logical workers in one process.")
@click.option("--count", type=click.IntRange(min=1, max=100_000), required=True, help="How many.")
@click.option(
    "--name", help="They are NAME.1 to NAME.COUNT.  [default: whom the invitation is for, or swarm]"
)
@click.option("--partition", "scheme", default="iid", show_default=True, metavar="iid|shards|dirichlet:ALPHA",
              help="How alike their parts of the data are.")  # fmt: skip
@click.option("--part", metavar="I/K", default="1/1",
              help="This process is the I-th of K that share the COUNT workers.  [default: 1/1]")  # fmt: skip
@click.option("--processes", type=click.IntRange(min=0), default=1, show_default=True, metavar="N",
              help="Train in N processes behind this one, on one partition; 0: one for each core.")  # fmt: skip
@common_say_options
@participation_options
@access_options
@log_options
def swarm_command(
    count: int,
    name: str | None,
    scheme: str,
    part: str,
    processes: int,
    allow_tasks: tuple[str, ...],
    least_participants: int,
    hours: str | None,
    threads: int | None,
    trainer: str | None,
    data: str | None,
    classes: str | None,
    seed: int,
    trusted_modules: tuple[str, ...],
    access: Access,
    log: LogContext,
    **options: Any,
) -> None:
    """Study many workers on one machine: each has its own identity, part of the data and seed.

    They are trained one after the other with one compiled model, on one connection, and share two queues: the
    weights come once a round, however many they are. With --processes N, so many are trained at the same time,
    each with a model and its share of the cores, on the same data in memory. A second command on the same data
    without --part would train the very same parts of it once more; with --part, and the same COUNT, partition and
    seed, each has other workers with other data. With --trainer each worker has a trainer of its own, made with
    its name, and cuts its data itself.

    \b
    worker swarm --count 100 --data mnist.npz
    worker swarm --count 1000 --data mnist.npz --partition shards
    worker swarm --count 100 --data mnist.npz --processes 0
    worker swarm --count 100 --part 1/2 --data mnist.npz    and    --part 2/2 in another terminal
    """
    name = check_name(access.named(name or (None if access.name else "swarm")))
    log.update(worker=name)
    state = options["state"] or default_folder()
    resting = Resting(PauseSwitch(state, name), parse_hours(hours) if hours else None)
    mine = parse_share(part, count)
    trusted = trusted_by(trusted_modules)
    names = [f"{name}.{i + 1}" for i in mine]
    sites: Sequence[Dataset | TableSet | OwnSite] = _own_sites(trainer, data, classes, names)
    if not sites:
        every = _open_data(data, classes, seed=seed, worker=name).divide(count, scheme, seed)
        sites = [every[i] for i in mine]
    rules = SiteRules(allow_tasks=allow_tasks, least_participants=least_participants)
    participants = [
        Participant(name=its, data=site, rules=rules, trusts=tuple(sorted(trusted)))
        for its, site in zip(names, sites, strict=True)
    ]
    part_number, _, parts = part.partition("/")
    reader = name if int(parts) == 1 else f"{name}.{int(part_number)}"
    link_to = LinkTo(access, f"swarm {reader}")
    options["audit"] = audit_file(options["audit"], options["state"], reader)
    private = PrivateParts(state, saves_model=False)
    keras = partial(
        KerasTrainer,
        deterministic=options["deterministic"],
        trusted_modules=trusted_modules,
        private=private,
    )
    make_pool = None
    if processes != 1 or threads is not None:
        make_pool = partial(
            TrainingPool, participants, processes, OwnTraining if trainer else keras, threads=threads
        )
    take_part(
        participants,
        link_to,
        log,
        is_swarm=True,
        reader=reader,
        make_pool=make_pool,
        trusted_modules=trusted_modules,
        resting=resting,
        **options,
    )


main.add_command(pause_command)
main.add_command(resume_command)


@main.command(name="train-alone", short_help="The same training with no federation.")
@click.argument("model", type=_FILE)
@data_option
@trust_option
@click.option("--out", type=_FILE, help="Save the trained model as FILE.keras.", metavar="FILE.keras")
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True, help="In all.")
@click.option("--batch-size", type=click.IntRange(min=1), help="[default: as the model was trained]")
@click.option("--learning-rate", type=Number(0, min_open=True), help="[default: as the model was trained]")
@click.option(
    "--class-weight", type=click.Choice(["none", "balanced"]), help="[default: as the model was trained]"
)
@click.option("--from-file", is_flag=True, help="Start from the file's weights, not from new ones.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of weights and shuffling."
)
@click.option("--deterministic", is_flag=True, help="Same seed, same bits; slower.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@log_options
def train_alone_command(
    model: Path,
    data: str,
    classes: str | None,
    trusted_modules: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    log: LogContext,
    **options: Any,
) -> None:
    """Train the architecture of MODEL on one data set alone: the baseline that a federation has to beat.

    Each epoch is what a round is to a worker: a fresh optimizer, and the learning rate of that round.

    \b
    worker train-alone runs/demo/model.keras --data sites/site-1
    worker train-alone runs/demo/model.keras --data chest_xray --epochs 10 --json
    """
    if out is not None and out.suffix != ".keras":
        raise UsageError(f"Expected a name that ends in .keras, got {str(out)!r}.")
    declared = parse_classes(classes)
    trusted = trusted_by(trusted_modules)
    loaded = load_model(model, trusted)
    dataset = open_data(data, shape=loaded.shape or DEFAULT_SHAPE, classes=declared)
    loaded = suited_to(loaded, dataset.classes, declared)
    _warn_of_scale(loaded, dataset)
    with Stop(limit_seconds=_LAST_SECONDS) as stop:
        result = train_alone(loaded, dataset, BaselineOptions(**options), stop.event, trusted)
    if result is None:
        raise SystemExit(EXIT_DONE)
    if out is not None:
        save_alone(loaded, out)
    click.echo(json.dumps(result.to_dict()) if as_json else _formatted(result, dataset.classes))


main.add_command(check_command(site_of))

read_environment(main)  # at the end: it goes through the commands above
