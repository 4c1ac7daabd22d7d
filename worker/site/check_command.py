"""`worker check`: what would happen if this worker were started, without starting it."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from broker.command import Number, access_options, log_options, management_url_option
from broker.errors import EXIT_BROKER, EXIT_DATA, EXIT_DONE, DataError
from broker.link.access import Access
from broker.logs import LogContext
from broker.wire.names import check_name
from worker.site import check, reaching
from worker.site.check import DataFacts, Site, facts_of
from worker.site.data_options import trainer_option
from worker.site.reaching import BrokerFacts, reach

#: Opens the data: name, data, trainer, classes; seed=, for_training=.
OpenSite = Callable[..., Site]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found.

    Attributes:
        worker: Its name.
        data: None where they can't be used.
        data_problem: Why not.
        warnings: What was said while they were opened.
    """

    worker: str
    data: DataFacts | None
    data_problem: str | None
    warnings: tuple[str, ...]
    broker: BrokerFacts

    @property
    def exit_code(self) -> int:
        """That of `worker run`; of two reasons the one that this site mends by itself."""
        if self.data_problem is not None:
            return EXIT_DATA
        return EXIT_DONE if self.broker.problem is None else EXIT_BROKER

    @property
    def plain(self) -> dict[str, Any]:
        """For a program."""
        return {**asdict(self), "exit_code": self.exit_code}

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield check.line("worker", self.worker)
        if self.data is not None:
            yield from check.lines_of(self.data)
        if self.data_problem is not None:
            yield check.line("data", f"can't be used. {self.data_problem}")
        yield from reaching.lines_of(self.broker)
        yield check.line("result", _RESULTS[self.exit_code])


_RESULTS = {
    EXIT_DONE: "ready: nothing was trained, sent or left behind",
    EXIT_BROKER: "the broker can't be used; see above (exit code 3)",
    EXIT_DATA: "the data can't be used; see above (exit code 5)",
}


class _Heard(logging.Handler):
    """Keeps the warnings that are said meanwhile."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.words.append(record.getMessage())


@contextmanager
def _hearing() -> Iterator[list[str]]:
    heard, root = _Heard(), logging.getLogger()
    root.addHandler(heard)
    try:
        yield heard.words
    finally:
        root.removeHandler(heard)


def check_command(open_site: OpenSite) -> click.Command:
    """The command.

    Args:
        open_site: How `worker run` opens its data; what a trainer of one's own is, is not known here.
    """

    @click.command(name="check", short_help="Try data and broker, and train nothing.")
    @click.option(
        "--name", help="This worker's name: a-z, 0-9 and '-'.  [default: whom the invitation is for]"
    )
    @click.option("--evaluate-only", is_flag=True, help="As for `worker run`.")
    @trainer_option
    @click.option("--seed", type=int, default=0, show_default=True, help="Of what is held out for tests.")
    @click.option(
        "--connect-seconds",
        type=Number(0, 1e9),
        default=10.0,
        show_default=True,
        help="How long the connection is tried.",
    )
    @management_url_option
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @access_options
    @log_options
    def command(
        name: str | None,
        evaluate_only: bool,
        trainer: str | None,
        data: str | None,
        classes: str | None,
        seed: int,
        connect_seconds: float,
        management_url: str | None,
        as_json: bool,
        access: Access,
        log: LogContext,
    ) -> None:
        """Open the data and try the broker as `worker run` would, say what is there, and leave: a dry run.

        Classes and how many examples each has, what was left out and why, shapes and ranges; TLS, login, whether the
        name is free, and how far this machine's clock is from the broker's, as far as its management page is reached.
        Trains nothing, joins nothing, declares nothing, and sends nothing but the login.

        \b
        worker check --name hospital-1 --data x-rays
        worker check --invitation hospital-1.toml --data x-rays --json

        \b
        Exit codes: 0 ready, 2 usage, 3 broker unreachable or login refused, 5 bad data (also where the broker is
        unreachable, too).
        """
        its = check_name(access.named(name))
        log.update(worker=its)
        at = access if management_url is None else replace(access, management_url=management_url)
        with _hearing() as warnings:
            facts, problem = None, None
            try:
                site = open_site(its, data, trainer, classes, seed=seed, for_training=not evaluate_only)
                facts = facts_of(site, trainer or str(data), looks_into_all=True)
            except DataError as exc:
                problem = str(exc)
        found = reach(at, its, connect_seconds=connect_seconds)
        checked = Checked(
            worker=its, data=facts, data_problem=problem, warnings=tuple(warnings), broker=found
        )
        click.echo(json.dumps(checked.plain) if as_json else "\n".join(checked.lines()))
        raise SystemExit(checked.exit_code)

    return command
