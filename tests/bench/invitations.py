"""What an invitation costs the broker, and whether it costs more with each one that went before.

    python -m tests.bench.invitations --accounts 1000

Prints a JSON object for each mark: processor milliseconds of the broker an invitation, of the ten (one percent, of more
than a thousand) that come after so many, and the seconds of the clock of all until then.
"""

import json
import tempfile
import time
from pathlib import Path

import click

from broker.hosting import accounts
from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker, _pids
from tests.bench.idle import cpu_seconds
from tests.brokers import started_broker

_FEW = 10  #: invitations that a mark is measured over: the kernel counts in hundredths of a second


def cpu_of(broker: PrivateBroker) -> float:
    """Processor seconds of a broker so far."""
    return sum(map(cpu_seconds, _pids(broker.home)))


@click.command()
@click.option("--accounts", "count", type=int, default=500, show_default=True)
@click.option("--mark", "marks", type=int, multiple=True, default=(20, 60, 200, 500, 1000), show_default=True)
def main(count: int, marks: tuple[int, ...]) -> None:
    """Invite so many workers, one after the other."""
    with (
        tempfile.TemporaryDirectory(prefix="warren-invitations-") as name,
        started_broker(Path(name) / "broker") as broker,
    ):
        management = Management(broker.management_url, timeout_seconds=60)
        begun, spent = time.monotonic(), [cpu_of(broker)]
        for number in range(1, count + 1):
            accounts.invite(management, "/", f"hospital-{number}")
            spent.append(cpu_of(broker))
            if number in marks:
                few = spent[-_FEW - 1 :]
                told = {
                    "accounts": number,
                    "broker_ms_each": round(1000 * (few[-1] - few[0]) / _FEW, 1),
                    "broker_seconds": round(spent[-1] - spent[0], 2),
                    "seconds": round(time.monotonic() - begun, 1),
                }
                print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
