"""What the three command lines share: addresses, environment variables, exit codes, the wish to end."""

import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from broker import errors
from broker.command import (
    CommandGroup,
    Interruptible,
    Stop,
    amqp_url_option,
    management_url_for,
    read_environment,
)


@pytest.mark.parametrize(
    ("amqp_url", "expected"),
    [
        ("amqp://me:secret@broker.example.org:5700/lab", "http://me:secret@broker.example.org:15672"),
        ("amqp://localhost/", "http://guest:guest@localhost:15672"),
        ("amqp://me:secret@[::1]:5672/", "http://me:secret@[::1]:15672"),
        ("amqps://me:secret@broker.example.org/lab", "https://me:secret@broker.example.org:15671"),
        ("AMQPS://me:secret@broker.example.org:5700/lab", "https://me:secret@broker.example.org:15671"),
    ],
)
def test_the_management_page_is_on_the_same_host(amqp_url: str, expected: str) -> None:
    """Same host, user and password, RabbitMQ's usual port; where messages are encrypted, the password is, too."""
    assert management_url_for(amqp_url) == expected


def test_a_given_management_url_wins() -> None:
    """What a person says is not guessed."""
    assert (
        management_url_for("amqp://localhost/", "https://rabbit.example.org/") == "https://rabbit.example.org"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://rabbit.example.org:99/", "https://me:se%2Fcret@rabbit.example.org:99"),
        ("https://you:other@rabbit.example.org", "https://you:other@rabbit.example.org"),
    ],
)
def test_a_management_url_without_a_login_takes_that_of_the_broker(given: str, expected: str) -> None:
    """Nobody means guest where the broker's address names somebody."""
    assert management_url_for("amqps://me:se%2Fcret@broker/", given) == expected


def fresh_group() -> click.Group:
    """A group of two commands, as each of the three command lines makes one."""

    @click.group(cls=CommandGroup, name="worker")
    def group() -> None:
        """A group."""

    @group.command()
    @click.option("--name")
    @click.option("--batch-size", type=int)
    @amqp_url_option
    def run(name: str | None, batch_size: int | None, amqp_url: str) -> None:
        click.echo(f"{name} {batch_size} {amqp_url}")

    @group.command("train-alone")
    @click.option("--batch-size", "size", type=int)
    def train_alone(size: int | None) -> None:
        click.echo(size)

    read_environment(group)
    return group


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        (
            {"WARREN_WORKER_NAME": "a", "WARREN_WORKER_BATCH_SIZE": "8", "AMQP_URL": "amqps://x/"},
            "a 8 amqps://x/",
        ),
        (
            {"WARREN_WORKER_NAME": "a", "WARREN_WORKER_RUN_NAME": "b", "AMQP_URL": "amqps://x/"},
            "b None amqps://x/",
        ),
        ({"AMQP_URL": "amqps://x/", "WARREN_WORKER_AMQP_URL": "amqps://y/"}, "None None amqps://y/"),
    ],
)
def test_every_option_reads_the_environment(environment: dict[str, str], printed: str) -> None:
    """WARREN_<COMMAND>_<OPTION>; the narrower name wins, and AMQP_URL is read too."""
    result = CliRunner().invoke(fresh_group(), ["run"], env={"AMQP_URL": None, **environment})
    assert result.output == f"{printed}\n"


def test_a_hyphen_becomes_an_underscore_in_the_environment() -> None:
    """`train-alone --batch-size` reads WARREN_WORKER_TRAIN_ALONE_BATCH_SIZE, whatever the code calls it."""
    result = CliRunner().invoke(
        fresh_group(), ["train-alone"], env={"WARREN_WORKER_TRAIN_ALONE_BATCH_SIZE": "3"}
    )
    assert result.output == "3\n"


def test_an_option_on_the_command_line_wins() -> None:
    """The environment is only a default."""
    arguments = ["run", "--name", "c", "--amqp-url", "amqps://z/"]
    result = CliRunner().invoke(
        fresh_group(), arguments, env={"WARREN_WORKER_NAME": "a", "AMQP_URL": "amqps://x/"}
    )
    assert result.output == "c None amqps://z/\n"


def raising(error: Exception) -> click.Group:
    """A group whose one command ends with this error."""

    @click.group(cls=CommandGroup, name="broker")
    def group() -> None:
        """A group."""

    @group.command()
    def fail() -> None:
        raise error

    return group


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.NameInUse, 2),
        (errors.BrokerUnreachable, 3),
        (errors.LoginRefused, 3),
        (errors.QuorumNotReached, 4),
        (errors.DataError, 5),
        (errors.ModelError, 5),
        (errors.CheckpointError, 5),
    ],
)
def test_an_expected_error_is_one_line_and_its_exit_code(kind: type[errors.WarrenError], code: int) -> None:
    """No traceback for what a user can put right; the line goes to stderr."""
    result = CliRunner().invoke(raising(kind("Nothing answers. Try `broker up`.")), ["fail"])
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "Error: Nothing answers. Try `broker up`.\n"


def test_a_bug_keeps_its_traceback() -> None:
    """What nobody expected is not dressed up as a message."""
    bug = ZeroDivisionError("a bug")
    result = CliRunner().invoke(raising(bug), ["fail"])
    assert result.exception is bug
    assert result.exit_code == errors.EXIT_BUG


def test_wrong_usage_ends_with_2() -> None:
    """Click's own code for an unknown option is the one that the contract names."""
    assert CliRunner().invoke(fresh_group(), ["run", "--nonsense"]).exit_code == errors.EXIT_USAGE


def test_the_first_signal_sets_the_wish_to_end_and_the_former_handler_comes_back() -> None:
    """The handler sets one event and nothing else; outside the block signals are as they were."""
    former = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop.event.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.event.wait(1)
        assert stop.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is former


_IN_C = """
import hashlib, sys
from broker.command import Stop
with Stop(limit_seconds={limit}) as stop:
    print("in C", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)
"""


def in_c(limit: float | None) -> subprocess.Popen[str]:
    """A process whose main thread is in a C function for many minutes, as TensorFlow's can be."""
    script = [sys.executable, "-c", _IN_C.format(limit=limit)]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in C\n"
    return process


def test_a_signal_ends_what_never_comes_back_to_python() -> None:
    """Where nothing is lost by it: after the time that an orderly end has, with exit code 0."""
    with in_c(0.5) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == errors.EXIT_DONE


def test_a_second_signal_ends_the_process_at_once_wherever_it_is() -> None:
    """128 + its number; the first one alone leaves it its time."""
    with in_c(None) as process:
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == errors.EXIT_SIGNAL + signal.SIGINT


def test_a_second_interrupt_of_a_call_does_not_wait() -> None:
    """The first one lets the call end by itself; whoever presses Ctrl-C again wants to get out."""
    with pytest.raises(KeyboardInterrupt), Interruptible() as ending:
        signal.raise_signal(signal.SIGINT)
        assert ending.is_set()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_call_leaves_a_handler_that_is_not_pythons_own() -> None:
    """A command's `Stop`, or a program's own, decides what Ctrl-C means there."""
    heard: list[int] = []
    former = signal.signal(signal.SIGINT, lambda number, _frame: heard.append(number))
    try:
        with Interruptible() as ending:
            signal.raise_signal(signal.SIGINT)
        assert (heard, ending.is_set()) == ([signal.SIGINT], False)
    finally:
        signal.signal(signal.SIGINT, former)


def test_an_error_of_ones_own_is_not_hidden_by_an_interrupt() -> None:
    """Only what the interrupt caused becomes KeyboardInterrupt."""
    with pytest.raises(errors.DataError), Interruptible():
        signal.raise_signal(signal.SIGINT)
        raise errors.DataError("unreadable")
