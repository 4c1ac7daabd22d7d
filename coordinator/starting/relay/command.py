"""The command `coordinator relay`."""

from pathlib import Path
from typing import Any

import click

from broker.command import Number, Stop, access_in, access_options, log_options, management_url_option
from broker.link.access import Access
from broker.logs import LogContext
from broker.wire.names import check_name
from coordinator.starting.relay.part import RelayOptions

_FILE = click.Path(path_type=Path)


@click.command(
    name="relay", short_help="A coordinator to its own broker's workers, and one worker to the broker above."
)
@click.option(
    "--name", help="By which it was invited above, as a worker is.  [default: as the invitation says]"
)
@click.option(
    "--above", required=True, metavar="FILE|URL",
    help="The broker above: the invitation of this name, or amqps://USER:PASSWORD@HOST:PORT/VHOST.",
)  # fmt: skip
@click.option("--out", type=_FILE, required=True, help="Its folder; an interrupted round goes on there.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True,
              help="How many of its own workers must be there, or it takes no round.")  # fmt: skip
@click.option("--quorum", type=click.IntRange(1),
              help="Updates that its sum rests on at least.  [default: all of its workers]")  # fmt: skip
@click.option(
    "--deadline-seconds", type=Number(0, 1e9, min_open=True),
    help="After which it sends what it has, with a quorum.  [default: nine tenths of the deadline above]",
)  # fmt: skip
@click.option("--grace-seconds", type=Number(0, 1e9), default=10.0, show_default=True,
              help="How long others are waited for once the quorum is there.")  # fmt: skip
@click.option("--once", is_flag=True, help="Leave after one run.")
@click.option(
    "--connect-seconds",
    type=Number(0, 1e9),
    default=10.0,
    show_default=True,
    help="For the first connection.",
)
@access_options
@management_url_option
@log_options
def relay_command(
    above: str,
    once: bool,
    access: Access,
    management_url: str | None,
    connect_seconds: float,
    log: LogContext,
    **options: Any,
) -> None:
    """Pass rounds on to the workers of a broker of one's own, and send up the exact sum of what they answer.

    Above it is one worker, with the examples of all behind it; below it is the coordinator of its broker. The model of
    a federation with relays is that of the same workers at one broker, to the bit; a line between two sites carries one
    sum in place of each worker's update. For strategies of the mean: a coordinator with another refuses it by name.

    \b
    coordinator relay --name north --above north.toml --invitation coordinator.toml --workers 5 --out /srv/relay
    AMQP_URL=amqp://guest:guest@localhost:5672/%2F coordinator relay --name north --above north.toml --out relay

    \b
    Exit codes: 0 told to stop, or the run is over with --once, 2 usage, or the coordinator's place below or the name
    above is taken, 3 a broker unreachable or login refused, 5 refused by the coordinator above, or a folder that can't
    be used.
    """
    from coordinator.starting.relay.above import play_relay  # late: it is a worker, too; no other command is

    access_above = access_in(above)
    asked = RelayOptions(**options | {"name": check_name(access_above.named(options["name"]))})
    with Stop() as stop:
        play_relay(
            asked,
            access,
            access_above,
            connect_seconds,
            stop.event,
            log,
            once=once,
            management_url=management_url,
        )
