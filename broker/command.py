"""What the three command lines share: options, environment variables, errors as one line and an exit code.

And what ends a call from Python, where no command line is.
"""

import logging
import math
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from broker import logs
from broker.errors import EXIT_DONE, EXIT_SIGNAL, Interrupted, UsageError, WarrenError
from broker.link.access import Access, login_in, read_pem, with_login
from broker.link.address import addresses_in, check_amqp_url, check_management_url, check_not_in_clear
from broker.link.invitation import is_open_to_others, read_invitation

logger = logging.getLogger(__name__)

DEFAULT_AMQP_URL = "amqp://guest:guest@localhost:5672/%2F"
_MANAGEMENT = {"amqp": ("http", 15672), "amqps": ("https", 15671)}  #: RabbitMQ's own ports
_INSECURE = f"{__name__}.insecure"
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


class Number(click.FloatRange):
    """A number within bounds; what is none (NaN) and infinity are within no bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class ByteSize(click.ParamType):  # type: ignore[type-arg] # generic from click 8.3 on
    """A number of bytes as people write it: 500M, 1G."""

    name = "bytes"
    _UNITS = MappingProxyType({"": 1, "K": 2**10, "M": 2**20, "G": 2**30})

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        found = re.fullmatch(r"([1-9][0-9]{0,14})([KMG]?)", str(value).upper())
        if found is None:
            self.fail(f"{value!r} is no size. Expected a number with K, M or G, such as 500M.", param, ctx)
        return int(found[1]) * self._UNITS[found[2]]


class _Address(click.ParamType):  # type: ignore[type-arg] # generic from click 8.3 on
    """An address, which may be one of several; a variable is one text, whatever blanks are in a password."""

    name = "text"

    def split_envvar_value(self, rv: str) -> list[str]:
        """The variable as it is: it may hold a list with commas."""
        return [rv]


def read_environment(group: click.Group) -> None:
    """Let every option of every subcommand read WARREN_<COMMAND>_<OPTION>.

    `worker run --name` reads WARREN_WORKER_NAME, or the narrower WARREN_WORKER_RUN_NAME.
    """
    for command in group.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                # As it is typed (--allow-task), and as the code calls it, by which it was read before.
                called = dict.fromkeys(
                    (max(option.opts, key=len).lstrip("-").replace("-", "_"), str(option.name))
                )
                names = [
                    each
                    for its in called
                    for each in _environment_names(str(group.name), str(command.name), its)
                ]
                given = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
                option.envvar = [*names, *given]


def _environment_names(group: str, command: str, option: str) -> list[str]:
    tail = f"{command}_{option}".replace("-", "_")
    return [f"WARREN_{group}_{tail}".upper(), f"WARREN_{group}_{option}".upper()]


def amqp_url_option(function: _Function) -> _Function:
    """Add --amqp-url, and --insecure: without it no address is taken that sends a password in the clear."""

    def note(ctx: click.Context, _param: click.Parameter, is_insecure: bool) -> None:
        ctx.meta[_INSECURE] = is_insecure

    function = click.option(
        "--insecure",
        is_flag=True,
        is_eager=True,  # known before the addresses are judged
        expose_value=False,
        envvar="WARREN_INSECURE",
        callback=note,
        help="Take amqp:// and http:// beyond this machine, too: password and messages travel in the clear.",
    )(function)
    return click.option(
        "--amqp-url",
        envvar="AMQP_URL",
        type=_Address(),
        multiple=True,
        default=(DEFAULT_AMQP_URL,),
        show_default=DEFAULT_AMQP_URL,
        callback=lambda ctx, _param, urls: _safe(ctx, check_amqp_url(",".join(urls))),
        help="The broker's address: amqps://USER:PASSWORD@HOST:PORT/VHOST (amqp:// without TLS, on this machine), "
        "each part percent-encoded. Others on this machine see what a command line holds: a password is better in "
        "the variable AMQP_URL. Of a cluster's nodes give several, or a list with commas: they are tried in turn.",
    )(function)


def access_options(function: _Function) -> _Function:
    """Add all that says how the broker is reached; the command then takes an `Access` named `access`."""

    @wraps(function)
    def with_access(*args: Any, invitation: Path | None, **given: Any) -> Any:
        access = _given_access(given)
        if invitation is not None and not _overrides("amqp_url", "invitation"):
            access = _invited(invitation, access)
        return function(*args, access=access, **given)

    invited = click.option(
        "--invitation",
        type=click.Path(path_type=Path),
        envvar="WARREN_INVITATION",
        metavar="FILE",
        help="Address, login and authority in one file, as `broker invite` writes it; in the place of --amqp-url.",
    )(cast(_Function, with_access))
    return amqp_url_option(_trust_options(invited))


def admin_access_options(function: _Function) -> _Function:
    """The same for whoever writes invitations."""

    @wraps(function)
    def with_access(*args: Any, **given: Any) -> Any:
        access = _given_access(given)
        return function(*args, access=access, **given)

    return amqp_url_option(_trust_options(cast(_Function, with_access)))


def _trust_options(function: _Function) -> _Function:
    a_file = click.Path(path_type=Path)
    function = click.option(
        "--key",
        type=a_file,
        envvar="WARREN_KEY",
        metavar="FILE",
        help="The certificate's private key, as PEM.",
    )(function)
    function = click.option(
        "--certificate",
        type=a_file,
        envvar="WARREN_CERTIFICATE",
        metavar="FILE",
        help="This side's own certificate, as PEM, where the broker asks for one. With an address that names no user "
        "it is the login.",
    )(function)
    return click.option(
        "--ca",
        type=a_file,
        envvar="WARREN_CA",
        metavar="FILE",
        help="The authority that signed the broker's certificate, as PEM.  [default: those that this machine knows]",
    )(function)


def _given_access(given: dict[str, Any]) -> Access:
    """What the options say; they are taken out of what the command gets."""
    pems = {name: given.pop(name) for name in ("ca", "certificate", "key")}
    texts: dict[str, Any] = {name: None if path is None else read_pem(path) for name, path in pems.items()}
    return Access(amqp_url=given.pop("amqp_url"), **texts)


def _invited(path: Path, given: Access) -> Access:
    """What an invitation says, but for what was given beside it."""
    access = read_invitation(path)
    for url in filter(None, (*access.amqp_urls, access.management_url)):
        _safe(click.get_current_context(), url)
    if is_open_to_others(path):
        logger.warning("Others on this machine can read %s, which holds a password: chmod 600 %s", path, path)
    beside = {name: value for name in ("ca", "certificate", "key") if (value := getattr(given, name))}
    return replace(access, **beside)


def access_in(text: str) -> Access:
    """How another broker is reached: by an address as --amqp-url takes it, or by the file of an invitation.

    Raises:
        UsageError: It is neither, or sends a password in the clear beyond this machine without --insecure.
    """
    if "://" in text:
        return Access(amqp_url=_safe(click.get_current_context(), check_amqp_url(text)))
    return _invited(Path(text), Access(amqp_url=DEFAULT_AMQP_URL))


def _overrides(name: str, other: str) -> bool:
    """Whether an option stands on the command line, and what contradicts it in the environment alone.

    Raises:
        UsageError: Both stand there.
    """
    ctx = click.get_current_context()
    stands = [ctx.get_parameter_source(each) is ParameterSource.COMMANDLINE for each in (name, other)]
    if all(stands):
        raise UsageError("Expected --amqp-url or --invitation, got both.")
    return stands[0]


def checked_amqp_url(url: str, *, insecure: bool = False) -> str:
    """An address as --amqp-url takes it.

    Raises:
        UsageError: It is none, or sends a password in the clear beyond this machine and is not said to be `insecure`.
    """
    return check_amqp_url(url) if insecure else check_not_in_clear(check_amqp_url(url))


def management_url_option(function: _Function) -> _Function:
    """Add --management-url; `access_options` must stand beside it."""
    return click.option(
        "--management-url",
        callback=lambda ctx, _param, url: _safe(ctx, check_management_url(url)) if url else None,
        help="RabbitMQ's management page, as https://HOST:PORT, or with another login than the broker's; of a cluster "
        "a list with commas.  "
        "[default: the broker's host and login; with amqps:// by https, port 15671, else by http, port 15672]",
    )(function)


def _safe(ctx: click.Context, url: str) -> str:
    return url if ctx.meta.get(_INSECURE) else check_not_in_clear(url)


def log_options(function: _Function) -> _Function:
    """Add --verbose and --log-format; the command then takes a LogContext named `log`."""

    def start_log(ctx: click.Context, _param: click.Parameter, log_format: logs.LogFormat) -> logs.LogContext:
        context = logs.configure(verbose=bool(ctx.params.pop("verbose", False)), log_format=log_format)
        if log_format == "json":
            logs.take_over_stderr()
        return context

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
    """The management API's address, as safe as the AMQP URL and with its user and password, unless given.

    Of several addresses, each with a comma between, there are several.
    """
    amqp_urls = addresses_in(amqp_url)
    if not management_url:
        return ",".join(_usual_management_url(each) for each in amqp_urls)
    login = login_in(amqp_urls[0])
    urls = [each.rstrip("/") for each in addresses_in(management_url)]
    return ",".join(url if login is None or login_in(url) else with_login(url, login) for url in urls)


def _usual_management_url(amqp_url: str) -> str:
    login = login_in(amqp_url)
    parts = urlsplit(amqp_url)
    host = parts.hostname or "localhost"
    scheme, port = _MANAGEMENT[parts.scheme]
    return f"{scheme}://{login or 'guest:guest'}@{f'[{host}]' if ':' in host else host}:{port}"


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


class Interruptible:
    """Ctrl-C in a call from Python: sets an event, so that what goes on ends cleanly; then KeyboardInterrupt is raised.

    A second Ctrl-C raises it at once. Only where Python's own handler would: in the main thread, and where nobody else
    hears the signal, as a command's `Stop` does. From another thread the event alone ends the call.

    Args:
        event: Set by whoever wants the call to end; None makes one.

    Attributes:
        event: Whoever waits, waits on it.
    """

    def __init__(self, event: threading.Event | None = None) -> None:
        self.event = event or threading.Event()
        self._is_interrupted = False
        self._hears = False

    def __enter__(self) -> threading.Event:
        is_main = threading.current_thread() is threading.main_thread()
        self._hears = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._hears:
            signal.signal(signal.SIGINT, self._hear)
        return self.event

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _trace: object) -> None:
        if self._hears:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._is_interrupted and (kind is None or issubclass(kind, Interrupted)):
            raise KeyboardInterrupt from exc

    def _hear(self, _number: int, _frame: object) -> None:
        if self._is_interrupted:
            raise KeyboardInterrupt
        self._is_interrupted = True
        self.event.set()
