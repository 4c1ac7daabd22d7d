"""What the three command lines share: options, environment variables, errors as one line and an exit code."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from broker import logs
from broker.errors import EXIT_DONE, EXIT_SIGNAL, WarrenError
from broker.link.address import check_amqp_url, check_management_url

DEFAULT_AMQP_URL = "amqp://guest:guest@localhost:5672/%2F"
_MANAGEMENT_PORT = 15672
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_Function = TypeVar("_Function", bound=Callable[..., Any])


class CommandGroup(click.Group):
    """A click group that shows an expected error as one line; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; an error of ours ends the process with its own exit code."""
        try:
            return super().invoke(ctx)
        except WarrenError as exc:
            click.echo(f"Error: {exc}", err=True)
            ctx.exit(exc.exit_code)


def read_environment(group: click.Group) -> None:
    """Let every option of every subcommand read WARREN_<COMMAND>_<OPTION>.

    `worker run --name` reads WARREN_WORKER_NAME, or the narrower WARREN_WORKER_RUN_NAME.
    """
    for command in group.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                names = _environment_names(str(group.name), str(command.name), str(option.name))
                given = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
                option.envvar = [*names, *given]


def _environment_names(group: str, command: str, option: str) -> list[str]:
    tail = f"{command}_{option}".replace("-", "_")
    return [f"WARREN_{group}_{tail}".upper(), f"WARREN_{group}_{option}".upper()]


def amqp_url_option(function: _Function) -> _Function:
    """Add --amqp-url."""
    return click.option(
        "--amqp-url",
        envvar="AMQP_URL",
        default=DEFAULT_AMQP_URL,
        show_default=True,
        callback=lambda _ctx, _param, url: check_amqp_url(url),
        help="The broker's address: amqp://USER:PASSWORD@HOST:PORT/VHOST (amqps:// for TLS), each part "
        "percent-encoded.",
    )(function)


def management_url_option(function: _Function) -> _Function:
    """Add --management-url."""
    return click.option(
        "--management-url",
        callback=lambda _ctx, _param, url: check_management_url(url) if url else None,
        help="RabbitMQ's management page, as http://USER:PASSWORD@HOST:PORT.  "
        "[default: the broker's host and login, port 15672]",
    )(function)


def log_options(function: _Function) -> _Function:
    """Add --verbose and --log-format; the command then takes a LogContext named `log`."""

    def start_log(ctx: click.Context, _param: click.Parameter, log_format: logs.LogFormat) -> logs.LogContext:
        return logs.configure(verbose=bool(ctx.params.pop("verbose", False)), log_format=log_format)

    function = click.option(
        "--log-format",
        "log",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        callback=start_log,
        help="How the story on stderr is written.",
    )(function)
    return click.option(
        "--verbose", is_flag=True, is_eager=True, expose_value=True, help="Tell each message, too."
    )(function)


def management_url_for(amqp_url: str, management_url: str | None = None) -> str:
    """The management API's address with the same user and password as the AMQP URL, unless given."""
    if management_url:
        return management_url.rstrip("/")
    parts = urlsplit(amqp_url)
    login = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
    host = parts.hostname or "localhost"
    return f"http://{login}@{f'[{host}]' if ':' in host else host}:{_MANAGEMENT_PORT}"


class Stop:
    """The wish to end, set by SIGINT or SIGTERM; a second signal ends the process at once.

    A thread hears them: the main one may be in C code that comes back to Python late, or never.

    Args:
        limit_seconds: The process ends so long after the first signal, whatever still goes on; None: it takes its
            time. Only for what loses nothing by it.

    Attributes:
        event: Set by the first signal; whoever waits, waits on it.
        signal_number: The first signal's number, or None.
    """

    def __init__(self, *, limit_seconds: float | None = None) -> None:
        self.event = threading.Event()
        self.signal_number: int | None = None
        self._limit_seconds = limit_seconds

    def __enter__(self) -> "Stop":
        heard, self._said = socket.socketpair()
        self._said.setblocking(False)  # as Python asks: a signal never waits
        self._former_fd = signal.set_wakeup_fd(self._said.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, _leave_to_the_thread) for number in _SIGNALS}
        threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_fd)
        self._said.close()

    def _listen(self, heard: socket.socket) -> None:
        """Take each signal's number as Python writes it, until the block is left."""
        with heard:
            try:
                while number := heard.recv(1):
                    if number[0] in _SIGNALS:
                        self._on_signal(number[0])
                        heard.settimeout(self._limit_seconds)
            except TimeoutError:
                os._exit(EXIT_DONE)

    def _on_signal(self, number: int) -> None:
        if self.signal_number is not None:
            os._exit(EXIT_SIGNAL + number)
        self.signal_number = number
        self.event.set()


def _leave_to_the_thread(_number: int, _frame: object) -> None:
    """Python writes signals to a file descriptor only where it has something to call besides."""
