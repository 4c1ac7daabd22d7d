"""The command `coordinator`: drives the rounds of a federation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from broker.audit import AUDIT_FILE, AuditLog, sha256_of_file, user
from broker.command import (
    CommandGroup,
    Number,
    Stop,
    access_options,
    log_options,
    management_url_option,
    read_environment,
)
from broker.errors import EXIT_SIGNAL, Interrupted, UsageError
from broker.hosting import server
from broker.hosting.management import Management
from broker.link.access import Access
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.validity import CertificateWatch
from broker.logs import LogContext
from broker.wire.fields import to_plain
from broker.wire.plain_json import json_text
from broker.wire.statistics import LEAST_FLOOR, MOST_BINS
from broker.wire.versions import release
from coordinator.folder.pruning import OldRun, delete_old, find_old
from coordinator.folder.run_index import RunIndex
from coordinator.folder.statistics_file import check_out, read_shape, read_statistics, write_statistics
from coordinator.learning.measure_names import ALL_RESULTS
from coordinator.page.serve_options import ServeOptions, serve_options
from coordinator.play.run_view import describe
from coordinator.presence.broker_room import room_at
from coordinator.presence.session import Session
from coordinator.presence.survey import Survey, SurveyOptions
from coordinator.starting.api import RunResult, opened, play
from coordinator.starting.launching import as_texts, check_texts, launch_options, make_options, run_options
from coordinator.starting.relay.command import relay_command
from coordinator.status import BrokerStatus, read_status, status_json
from coordinator.terminal.client import Asker, asking
from coordinator.terminal.compare import compare, compared_text, read_runs
from coordinator.terminal.statistics_picture import draw_statistics
from coordinator.terminal.statistics_text import statistics_text
from coordinator.terminal.status_text import status_text

_FILE = click.Path(path_type=Path)
_CONNECT = click.option(
    "--connect-seconds",
    type=Number(0, 1e9),
    default=10.0,
    show_default=True,
    help="For the first connection.",
)


@click.group(name="coordinator", cls=CommandGroup)
@click.version_option(package_name="warren")
def main() -> None:
    """Drive the rounds of a federation: invite workers, average their updates, save the model."""


@main.command(short_help="Train a model with the workers that join.")
@click.argument("task")
@click.option("--out", type=_FILE, required=True, help="The run's folder; an interrupted run goes on there.")
@run_options
@click.option(
    "--standby", is_flag=True, help="Wait while another coordinator works, and take over when it ends."
)
@click.option(
    "--trust-module", "trusted_modules", multiple=True, metavar="MODULE",
    help="The model may hold the layers, losses and metrics that this module registers; workers must trust it, too. "
    "May be repeated.",
)  # fmt: skip
@_CONNECT
@access_options
@management_url_option
@log_options
def run(
    task: str,
    out: Path,
    trusted_modules: tuple[str, ...],
    access: Access,
    management_url: str | None,
    connect_seconds: float,
    log: LogContext,
    **options: Any,
) -> None:
    """Train TASK: chest-xray, chest-xray-lab, mnist, MODULE:FUNCTION, or a compiled FILE.keras.

    A FUNCTION returns a compiled Keras model, of any inputs and outputs, or a mapping of names to arrays for workers
    that have a --trainer.
    The folder OUT then holds model.keras (of arrays: model.npz), best.keras (of the round with the lowest val_loss, or
    the best --stop-when), history.csv, curves.png, run.json and the checkpoint.

    \b
    coordinator run chest-xray --workers 3 --quorum 2 --rounds 5 --out runs/demo
    coordinator run mnist --workers 3 --out runs/mnist --epochs 1
    coordinator run my_models:build --out runs/mine --initial-model runs/old/model.keras

    With the account `coordinator` it asks RabbitMQ's management page to have room for what this model's rounds move.

    \b
    Exit codes: 0 done, 2 usage or a name in use, 3 broker unreachable or login refused,
    4 quorum not reached, 5 bad data, model or checkpoint, 128 + signal interrupted.
    """
    asked = make_options(task, out, options)
    with Stop() as stop:
        try:
            result = play(
                asked,
                access,
                connect_seconds,
                stop.event,
                log,
                trusted_modules=trusted_modules,
                management_url=management_url,
            )
        except Interrupted as exc:
            click.echo(str(exc), err=True)
            raise SystemExit(EXIT_SIGNAL + (stop.signal_number or 0)) from exc
    _print_result(result)


def _link(access: Access, name: str, connect_seconds: float, stop: Stop) -> RabbitLink:
    return RabbitLink(
        LinkSettings(access=access, name=name, connect_seconds=connect_seconds, stop=stop.event)
    )


def _print_result(result: RunResult) -> None:
    test = result.state.history[-1].test
    first = [name for name in ALL_RESULTS if name in test]
    shown = "  ".join(f"{name}={test[name]:.4f}" for name in dict.fromkeys([*first, *test]))
    click.echo(f"{result.path}  rounds={result.rounds}  {shown}".rstrip())
    if result.num_dead:
        click.echo(f"{result.num_dead} messages were rejected: see the queue 'dead'.", err=True)


@main.command(name="statistics", short_help="What the sites' data are like, before any training.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="How many must answer.")
@click.option("--out", type=_FILE, default=Path("statistics.json"), show_default=True, metavar="FILE.json",
              help="The figures; two pictures and audit.jsonl are put beside it.")  # fmt: skip
@click.option(
    "--bins", type=click.IntRange(1, MOST_BINS), default=20, show_default=True, help="Of each histogram."
)
@click.option("--shape", callback=lambda _ctx, _param, text: read_shape(text), metavar="H,W,C",
              help="Of one example: what images are decoded for.  [default: as the sites have them]")  # fmt: skip
@click.option("--like", "earlier", type=_FILE, metavar="FILE.json",
              help="Count by the edges of an earlier result: a site tells by no others.")  # fmt: skip
@click.option("--floor", type=click.IntRange(LEAST_FLOOR), default=LEAST_FLOOR, show_default=True,
              help="Examples of a site that each told count rests on; a site may ask for more.")  # fmt: skip
@click.option("--deadline-seconds", type=Number(0, 1e9, min_open=True), default=600.0, show_default=True,
              help="For the workers to come, and for each of their two answers.")  # fmt: skip
@_CONNECT
@access_options
@log_options
def statistics_command(
    out: Path, earlier: Path | None, access: Access, connect_seconds: float, log: LogContext, **options: Any
) -> None:
    """Ask the workers that are there for counts, mean, spread, range and a histogram of each feature or channel.

    Nothing is trained, and no example leaves its site: what travels is sums as whole numbers, so that the result is
    the same to the bit in whatever order they come. Sites answer that run with --share statistics. A Normalization
    layer is set from the result by `coordinator run TASK --normalize FILE.json`.

    \b
    coordinator statistics --workers 3
    coordinator statistics --workers 3 --shape 224,224,1 --out runs/x-rays.json
    coordinator statistics --workers 4 --like statistics.json --out with-a-fourth.json

    \b
    Exit codes: 0 done, 2 usage, or another coordinator works here, 3 broker unreachable or login refused,
    4 too few sites answered (each is named, with its reason), 5 the result can't be written, 128 + signal interrupted.
    """
    check_out(out)
    asked = SurveyOptions(**options, like=None if earlier is None else read_statistics(earlier))
    audit_log = AuditLog(out.parent / AUDIT_FILE)
    with Stop() as stop:
        try:
            with opened(None, access, "coordinator", connect_seconds, stop.event) as link:
                audit_log.note("statistics-started", file=out.name, user=user(), version=release())
                session = Session(link, stop=stop.event, audit_log=audit_log)
                session.tell = lambda: status_json(
                    describe(session.roster.members.values(), session.sightings, None)
                )
                found = Survey(session, asked).take()
        except Interrupted as exc:
            click.echo("Stopped before all sites had answered.", err=True)
            raise SystemExit(EXIT_SIGNAL + (stop.signal_number or 0)) from exc
    write_statistics(out, found)
    audit_log.note("statistics-written", file=out.name, sha256=sha256_of_file(out))
    draw_statistics(found, out)
    click.echo(statistics_text(found))


@main.command(short_help="The network's page: workers, Launch training, live rounds.")
@serve_options
@_CONNECT
@access_options
@management_url_option
@log_options
def serve(
    connect_seconds: float, access: Access, management_url: str | None, log: LogContext, **where: Any
) -> None:
    """Show the network's page, and start the runs that are launched there or with `coordinator launch`.

    A launch goes on from the task's last model under RUNS, unless it is to begin from scratch. After a restart
    an unfinished run goes on. From other machines looking, launching and stopping need a token: a browser asks for it,
    and programs send it in a header.

    \b
    coordinator serve
    coordinator serve --port 8080 --runs /srv/warren
    WARREN_COORDINATOR_TOKEN=SECRET coordinator serve --public-name fl.example.org    behind a proxy

    \b
    For programs:
    GET  /api/state             what goes on (/events: the same, whenever it changes)
    GET  /api/runs[/ID]         every run; one with its rounds
    POST /api/launch            {"task": "mnist", "options": {"rounds": 3}}
    POST /api/stop              {"now": false}
    GET  /runs/ID/model.keras   also model.npz, best.keras, history.csv, workers.csv, curves.png, workers.png
    GET  /metrics               for Prometheus
    GET  /livez, /readyz, /healthz   200, or 503 and what is wrong; no token is asked
    curl -H 'Content-Type: application/json' -d '{"task": "mnist"}' http://127.0.0.1:5000/api/launch
    curl -H 'X-Warren-Token: SECRET' https://fl.example.org/api/state     or Authorization: Bearer SECRET

    \b
    Exit codes: 0 stopped, 2 usage, or the port or the coordinator's place is taken, 3 broker unreachable or
    login refused, 128 + signal interrupted in the middle of a run.
    """
    from coordinator.page.server import serve_page  # late: Flask comes with it; no other command needs that

    asked = ServeOptions(**where)
    url = server.known_management_url(access, management_url, server.default_home())
    at = BrokerStatus(address=access.address, management=Management(url).address)
    with Stop() as stop:
        link = _link(access, "coordinator", connect_seconds, stop)
        try:
            room, watch = room_at(access, management_url), CertificateWatch(access)
            serve_page(link, asked, at, stop.event, log, click.echo, room, watch)
        except Interrupted as exc:
            click.echo(
                "Stopped in the middle of a run; the next `coordinator serve` goes on with it.", err=True
            )
            raise SystemExit(EXIT_SIGNAL + (stop.signal_number or 0)) from exc


@main.command(short_help="Ask the serving coordinator to train a model.")
@click.argument("task")
@launch_options
@_CONNECT
@access_options
@log_options
def launch(task: str, access: Access, connect_seconds: float, log: LogContext, **options: Any) -> None:
    """Ask the coordinator that serves this virtual host to train TASK, and say whether it does.

    It goes on from the task's last model, unless --from-scratch. Prints the name of the run's folder.

    \b
    coordinator launch chest-xray --workers 3 --quorum 2 --rounds 5
    coordinator launch mnist --from-scratch

    \b
    Exit codes: 0 launched, 2 refused (another run is under way, or these options are impossible),
    3 no coordinator or no broker.
    """
    texts = as_texts(_absolute(options))
    check_texts({"task": task, **texts})
    with _asker(access, connect_seconds) as (asker, _stop):
        reply = asker.launch(task, texts)
    if reply.reason is not None:
        raise UsageError(f"Not launched: {reply.reason}")
    click.echo(reply.run)


def _absolute(options: dict[str, Any]) -> dict[str, Any]:
    """The coordinator may work in another folder than the person who launches."""
    files = {name: options[name] for name in ("initial_model", "normalize")}
    return options | {name: path.absolute() for name, path in files.items() if path is not None}


@main.command(short_help="What goes on: workers, rounds, results.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.option(
    "--json", "as_json", is_flag=True, help="For programs: one JSON object (a line each with --watch)."
)
@_CONNECT
@access_options
@log_options
def status(watch: bool, as_json: bool, access: Access, connect_seconds: float, log: LogContext) -> None:
    """Show what the coordinator on this virtual host is doing, `serve` and `run` alike.

    \b
    coordinator status
    coordinator status --watch
    coordinator status --json

    \b
    Exit codes: 0 shown, 3 no coordinator or no broker.
    """
    with _asker(access, connect_seconds) as (asker, stop):
        _show_status(asker, as_json=as_json, is_watched=watch)
        while watch and not stop.event.wait(1.0):
            _show_status(asker, as_json=as_json, is_watched=watch)


def _show_status(asker: Asker, *, as_json: bool, is_watched: bool) -> None:
    state = asker.status()
    if is_watched and not as_json:
        click.clear()
    click.echo(state if as_json else status_text(read_status(state), time.time()))


@main.command(name="compare", short_help="Several runs beside each other: a table and a picture.")
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--measure", help="A column of history.csv.  [default: a run's --stop-when, else val_loss]")
@click.option("--out", type=_FILE, default=Path("compare.png"), show_default=True, help="The picture.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a JSON list, an object a run.")
def compare_runs(runs: tuple[Path, ...], measure: str | None, out: Path, as_json: bool) -> None:
    """Compare RUNS, folders of `coordinator run`: how far each came, when it was best, what it cost.

    The table is printed; the curves of all runs go into one picture, a panel a measure. Seconds and examples are
    those of all rounds together.

    \b
    coordinator compare runs/a runs/b
    coordinator compare runs/* --measure val_auc --out aucs.png

    \b
    Exit codes: 0 shown, 2 no such folder, 5 a folder without a run, or a measure that no round tells.
    """
    from coordinator.keras.curves import draw_runs  # late: matplotlib comes with it

    histories = read_runs(runs)
    found = compare(histories, measure)
    draw_runs(histories, out)
    click.echo(json_text([to_plain(each) for each in found], indent=2) if as_json else compared_text(found))
    click.echo(f"The curves are in {out}.", err=True)


@main.command(short_help="Delete old runs.")
@click.option(
    "--runs", type=_FILE, default=Path("runs"), show_default=True, help="The folder of `coordinator serve`."
)
@click.option(
    "--keep", type=click.IntRange(1), default=20, show_default=True, help="So many of the newest stay."
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
def prune(runs: Path, keep: int, yes: bool) -> None:
    """Delete all but the newest runs under RUNS, also while a coordinator serves there.

    Never deleted: a run that is open or unfinished, and the one whose model a task goes on from. What is to go is
    listed with its size, and asked about. No later run gets the name of one that is gone; audit.jsonl says which.

    \b
    coordinator prune
    coordinator prune --keep 100 --runs /srv/warren --yes

    \b
    Exit codes: 0 done, or there was nothing to delete, 2 nobody said yes, 5 a folder can't be read or deleted.
    """
    if not runs.is_dir():
        raise UsageError(f"There is no folder {runs}. Try --runs.")
    index = RunIndex(runs)
    old = find_old(index, keep)
    if not old:
        click.echo(f"Nothing to delete in {runs}.")
        return
    for each in old:
        click.echo(f"{each.folder.name}  {each.started_at[:19]}  {_megabytes([each])}", err=True)
    if not (yes or _is_confirmed(f"Delete these {len(old)} runs for good ({_megabytes(old)})?")):
        raise UsageError("Nothing is deleted: nobody said yes. With --yes nobody is asked.")
    gone = delete_old(index, old)
    click.echo(f"{len(gone)} runs deleted, {_megabytes(gone)} freed")
    for each in old:
        if each not in gone:
            click.echo(f"{each.folder.name} is left: a coordinator works on it", err=True)


def _megabytes(runs: list[OldRun]) -> str:
    return f"{sum(each.num_bytes for each in runs) / 1e6:.1f} MB"


def _is_confirmed(question: str) -> bool:
    """Ask; where nobody can be asked, nobody said yes."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        return False


@contextmanager
def _asker(access: Access, connect_seconds: float) -> Iterator[tuple[Asker, Stop]]:
    """A connection that asks the coordinator, and ends."""
    with Stop() as stop:
        link = _link(access, "coordinator's visitor", connect_seconds, stop)
        link.open()
        try:
            with asking(link, stop.event) as asker:
                yield asker, stop
        finally:
            link.close()


main.add_command(relay_command)
read_environment(main)  # at the end: it goes through the commands above
