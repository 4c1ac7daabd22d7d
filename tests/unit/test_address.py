"""The addresses that a person gives: understood in one way or told in one line, never with any part of a password."""

import socket
from pathlib import Path
from urllib.parse import quote

import click
import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from broker import cli as broker_cli
from broker.command import (
    CommandGroup,
    amqp_url_option,
    management_url_for,
    management_url_option,
    read_environment,
)
from broker.errors import UsageError
from broker.hosting.management import Management
from broker.hosting.probe import login_of
from broker.link.access import Access
from broker.link.address import (
    check_amqp_url,
    check_management_url,
    check_not_in_clear,
    without_password,
)
from broker.link.rabbitmq.settings import LinkSettings
from coordinator import cli as coordinator_cli
from worker import cli as worker_cli

#: A password with one of these written as it is can't be told from the rest of the address.
AWKWARD = ["[", "]", "/", "#", "?", "@", "%", " ", "%zz", "\n", "\t", "\u2100", "\uff0f", "\udc80"]

#: Every command that takes an address, with what it needs besides.
COMMANDS: list[tuple[click.Group, list[str]]] = [
    (broker_cli.main, ["up"]),
    (broker_cli.main, ["down"]),
    (broker_cli.main, ["status"]),
    (broker_cli.main, ["invite", "a"]),
    (broker_cli.main, ["revoke", "a"]),
    (broker_cli.main, ["forget", "a"]),
    (coordinator_cli.main, ["run", "mnist", "--out", "out"]),
    (coordinator_cli.main, ["serve"]),
    (coordinator_cli.main, ["launch", "mnist"]),
    (coordinator_cli.main, ["status"]),
    (coordinator_cli.main, ["statistics"]),
    (coordinator_cli.main, ["relay", "--name", "a", "--above", "amqp://a:b@localhost/%2F", "--out", "out"]),
    (worker_cli.main, ["run", "--name", "a", "--data", "data"]),
    (worker_cli.main, ["check", "--name", "a", "--data", "data"]),
    (worker_cli.main, ["swarm", "--count", "2", "--data", "data"]),
]
each_command = pytest.mark.parametrize(("group", "words"), COMMANDS, ids=lambda value: str(value)[:40])


def parameters_of(url: str) -> object:
    return LinkSettings(access=Access(amqp_url=url), name="").parameters("consume")[url.strip()]


def has_option(command: click.Command, name: str) -> bool:
    return any(parameter.name == name for parameter in command.params)


def test_every_command_with_an_address_is_among_these() -> None:
    """A new command that takes an address is tried here, too."""
    told = {(str(group.name), words[0]) for group, words in COMMANDS}
    groups = (broker_cli.main, coordinator_cli.main, worker_cli.main)
    taking = {
        (str(group.name), name)
        for group in groups
        for name, command in group.commands.items()
        if has_option(command, "amqp_url")
    }
    assert told == taking


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://guest:guest@localhost:5672/%2F", "amqp://guest@localhost:5672/%2F"),
        ("amqps://me:s%40cret@broker.example.org/lab", "amqps://me@broker.example.org/lab"),
        ("amqp://localhost/", "amqp://localhost/"),
        ("amqp://me:secret@[::1]:5672/?heartbeat=1", "amqp://me@[::1]:5672/"),
        ("http://a%40b:secret@host:15672", "http://a%40b@host:15672"),
        ("amqp://me:se/cr@et@host/lab", "amqp://me@host/lab"),
        ("amqp://me:secret", "amqp://me:..."),
        ("me:secret@host", "me@host"),
        ("me:se://cret@host", "me@host"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    """Logs and errors name the address and the user, and nothing that lets anybody in."""
    assert without_password(url) == shown


#: Passwords of which every piece can be recognized, with everything between the pieces that has a meaning in a URL.
passwords = st.lists(
    st.sampled_from(["SECRET", ":", "://", *AWKWARD]) | st.text("!\"$&'()*+,-.;<=>\\^_`{|}~äß", max_size=3),
    max_size=6,
).map(lambda pieces: "".join(["SECRET", *pieces, "SECRET"]))
frames = st.sampled_from(
    [
        "amqp://me:{}@host:5672/%2F", "amqps://me:{}@host", "http://me:{}@host:15672", "amqp://me:{}@", "amqp://:{}@h",
        "amqp://me:{}", "me:{}@host/", "amqp:/me:{}@host", "amqp:{}@host", "ftp://me:{}@host:99999/", "amqp://me:{}@h:x",
        " amqp://me:{}@[::1/", "amqp://me:{}@ho st/", "amqp://me:{}@h/a/b", "amqp://me:{}@h/?heartbeat=x", "//me:{}@h",
    ]
)  # fmt: skip


@given(frame=frames, password=passwords)
def test_no_part_of_a_password_is_ever_shown(frame: str, password: str) -> None:
    """Whatever the address is, and however wrong: what may be shown of it, and what is said of it, hold no part of
    what stands between the first ':' after the scheme and the last '@'. What follows the last '@' is the host: where
    that was forgotten, a password with an '@' can't be told from one with a host."""
    assume("@" in frame or "@" not in password)
    url = frame.format(password)
    assert "SECRET" not in without_password(url)
    for check in (check_amqp_url, check_management_url, parameters_of):
        try:
            check(url)
        except UsageError as exc:
            assert "SECRET" not in str(exc)
            assert "\n" not in str(exc)


@given(password=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_percent_encoded_password_arrives_as_it_is(password: str) -> None:
    """Every password can be written: encoded, it is what the broker and the management API are given."""
    url = f"amqp://me:{quote(password, safe='')}@host:5672/lab"
    assert check_amqp_url(url) == url
    assert (
        LinkSettings(access=Access(amqp_url=url), name="").parameters("consume")[url].credentials.password
        == password
    )
    assert login_of(url) == ("me", password)
    assert login_of(management_url_for(url)) == ("me", password)
    assert Management(management_url_for(url)).address == "http://host:15672"


@pytest.mark.parametrize("awkward", AWKWARD)
@pytest.mark.parametrize("where", ["amqp://me:{}@host/", "amqp://{}:x@host/", "amqp://me:x@host/{}"])
def test_what_must_be_percent_encoded_is_said_to_be(awkward: str, where: str) -> None:
    """In a user, a password or a virtual host such a character would be taken for the end of it, or be lost."""
    is_harmless = (
        where.endswith("{}") and awkward in "? \n\t\u2100\uff0f"
    )  # the options begin, or a blank at the end
    if is_harmless:
        return
    with pytest.raises(UsageError, match="percent-encode it"):
        check_amqp_url(where.format(f"SEC{awkward}RET"))


@pytest.mark.parametrize(
    ("url", "flaw"),
    [
        ("http://me:x@host/", "does not begin with amqp:// or amqps://"),
        ("localhost:5672", "does not begin with amqp:// or amqps://"),
        ("", "does not begin with amqp:// or amqps://"),
        ("amqp://", "has no host"),
        ("amqp:///lab", "has no host"),
        ("amqp://me:x@:5672/", "has no host"),
        ("amqp://host:notaport/", "has a port that is no number from 1 to 65535"),
        ("amqp://host:99999/", "has a port that is no number from 1 to 65535"),
        ("amqp://host:0/", "has a port that is no number from 1 to 65535"),
        ("amqp://host:-1/", "has a port that is no number from 1 to 65535"),
        ("amqp://me@host/", "has a user without a password"),
        ("amqp://a..b/", "has a host that can't be one"),
        ("amqp://[::1/", "has a host that can't be one"),
        ("amqp://host//", "percent-encode it"),
    ],
)
def test_an_address_that_can_not_be_understood_is_told(url: str, flaw: str) -> None:
    """One line: what is wrong, what is expected, which option to look at."""
    with pytest.raises(UsageError) as caught:
        check_amqp_url(url)
    assert flaw in str(caught.value)
    assert "Check --amqp-url or AMQP_URL." in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://guest:guest@localhost:5672/%2F", "amqps://me:s%40cret@broker.example.org/lab", "amqp://localhost",
        "amqp://me:p:w@[::1]:5672/?heartbeat=1", "AMQP://me:äöü!$&'()*+,;=~@host:/", "amqp://me:@host/",
    ],
)  # fmt: skip
def test_a_right_address_is_taken_as_it_is(url: str) -> None:
    """A blank or a line's end around it, as files have, does not count."""
    assert check_amqp_url(f" {url}\n") == url


CLEAR = [
    "amqp://me:SECRET@broker.example.org/lab", "AMQP://me:SECRET@10.0.0.1:5672/", "amqp://me:SECRET@[fe80::1]/",
    "amqp://me:SECRET@localhost.example.org/", "amqp://broker/", "http://me:SECRET@broker.example.org:15672",
]  # fmt: skip
SAFE = [
    "amqps://me:SECRET@broker.example.org/lab", "AMQPS://me:SECRET@10.0.0.1/", "amqp://me:SECRET@localhost:5672/",
    "amqp://me:SECRET@LocalHost/", "amqp://me:SECRET@127.0.0.1/", "amqp://me:SECRET@127.1.2.3/", "amqp://me:SECRET@[::1]/",
    "https://me:SECRET@broker.example.org", "http://me:SECRET@localhost:15672",
]  # fmt: skip


@pytest.mark.parametrize("url", CLEAR)
def test_a_password_is_not_sent_in_the_clear_beyond_this_machine(url: str) -> None:
    """The line says what is expected, what to do where the network is private, and nothing of the password."""
    with pytest.raises(
        UsageError, match=r"Expected (amqps|https)://.*--insecure, or WARREN_INSECURE=1"
    ) as caught:
        check_not_in_clear(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("url", SAFE)
def test_a_safe_address_is_taken_as_it_is(url: str) -> None:
    """Encrypted, or on this machine alone, whatever its own name for itself is."""
    assert check_not_in_clear(url) == url


@each_command
@pytest.mark.parametrize("given_by", ["--amqp-url", "AMQP_URL", "--management-url"])
def test_every_command_refuses_an_address_in_the_clear(
    group: click.Group, words: list[str], given_by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    """Exit code 2 and one line; nothing is tried: the host's name is never looked up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("an address was tried"))
    is_management = given_by == "--management-url"
    if is_management and not has_option(group.commands[words[0]], "management_url"):
        return
    url = f"{'http' if is_management else 'amqp'}://me:SECRET@broker.example.org/"
    by_option = given_by.startswith("--")
    result = CliRunner().invoke(
        group, [*words, given_by, url] if by_option else words, env={"AMQP_URL": None if by_option else url}
    )
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "--insecure" in result.stderr
    assert "SECRET" not in result.stderr


@pytest.mark.parametrize(
    "by", ["--insecure", "WARREN_INSECURE", "WARREN_WORKER_INSECURE", "WARREN_WORKER_RUN_INSECURE"]
)
def test_a_private_network_is_named_by_hand(by: str) -> None:
    """Between containers there may be no TLS: then somebody says so, by option or environment, as with any other."""

    @click.group(name="worker")
    def group() -> None:
        """A group."""

    @group.command()
    @amqp_url_option
    @management_url_option
    def run(amqp_url: str, management_url: str) -> None:
        click.echo(f"{amqp_url} {management_url}")

    read_environment(group)
    given = ["--amqp-url", "amqp://broker/", "--management-url", "http://broker/"]
    is_option = by.startswith("--")
    words = ["run", *given, *([by] if is_option else [])]
    result = CliRunner().invoke(group, words, env={} if is_option else {by: "1"})
    assert result.output == "amqp://broker/ http://broker/\n"


@each_command
@pytest.mark.parametrize("awkward", AWKWARD)
@pytest.mark.parametrize("given_by", ["--amqp-url", "AMQP_URL", "--management-url"])
def test_every_command_ends_with_2_and_one_line(
    group: click.Group, words: list[str], awkward: str, given_by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    """No traceback, nothing tried, nothing of the password; also by the environment, also for the management page."""
    monkeypatch.chdir(tmp_path)
    is_management = given_by == "--management-url"
    if is_management and not has_option(group.commands[words[0]], "management_url"):
        return
    url = f"{'http' if is_management else 'amqp'}://me:SEC{awkward}RET@host:5672/"
    by_option = given_by.startswith("--")
    result = CliRunner().invoke(
        group,
        [*words, given_by, url] if by_option else words,
        env={"AMQP_URL": None if by_option else url},
    )
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "percent-encode it" in result.stderr
    assert "SEC" not in result.stderr
    assert "RET" not in result.stderr
    assert not any(tmp_path.iterdir())


#: A cluster's three nodes, as they are given.
NODES = [
    "amqps://me:s%2Cx@a.example/lab",
    "amqps://me:s%2Cx@b.example:5673/lab",
    "amqps://me:s%2Cx@[::1]/lab",
]


def address_taken(*words: str, **environment: str | None) -> str:
    """What a command gets of several addresses, or what it says of them."""

    @click.group(name="worker", cls=CommandGroup)
    def group() -> None:
        """A group."""

    @group.command(name="run")
    @amqp_url_option
    def command(amqp_url: str) -> None:
        click.echo(amqp_url)

    read_environment(group)
    return CliRunner().invoke(group, ["run", *words], env={"AMQP_URL": None, **environment}).output.strip()


@pytest.mark.parametrize("between", [",", ", ", " ,\n "])
def test_several_addresses_are_a_list_or_an_option_each(between: str) -> None:
    """By option, repeated or not, and by the environment; a comma in a password ends none of them."""
    for urls in (NODES, [each.replace("%2C", ",") for each in NODES]):
        expected, listed = ",".join(urls), between.join(urls)
        assert address_taken("--amqp-url", listed) == expected
        assert address_taken(*(word for url in urls for word in ("--amqp-url", url))) == expected
        assert address_taken(AMQP_URL=f" {listed} ") == expected
        assert address_taken(WARREN_WORKER_AMQP_URL=listed) == expected
        assert Access(amqp_url=listed).amqp_urls == tuple(urls)


def test_several_addresses_are_shown_without_any_password() -> None:
    """Each of them, in what a person reads."""
    shown = "amqps://me@a.example/lab, amqps://me@b.example:5673/lab, amqps://me@[::1]/lab"
    assert without_password(",".join(NODES)) == shown
    assert Access(amqp_url=",".join(NODES)).address == shown
    assert "s%2Cx" not in repr(Access(amqp_url=",".join(NODES)))


@pytest.mark.parametrize(
    ("urls", "flaw"),
    [
        ("amqp://localhost/a,localhost/b", "has a comma in it"),
        ("amqp://localhost/a,", "has a comma in it"),
        ("amqp://localhost,::1/a", "has a comma in it"),
        ("amqp://localhost:5672,localhost:5673/a", "has a comma in it"),
        ("amqp://localhost/a, amqp://localhost:5673/b", "differ in more than host and port"),
        ("amqp://me:SECRET@localhost/a,amqp://you:SECRET@localhost:5673/a", "differ in more than host and port"),
        ("amqp://me:SECRET@localhost/a,amqp://me:SECRETS@localhost:1/a", "differ in more than host and port"),
        ("amqp://localhost/a,amqps://localhost/a", "differ in more than host and port"),
        ("amqp://localhost/a,amqp://me:SECRET", "has a port that is no number"),
        ("amqp://localhost/a,amqp://far.example/a", "in the clear"),
        ("amqps://far.example/a,http://far.example/a", "does not begin with amqp:// or amqps://"),
    ],
)  # fmt: skip
def test_a_list_that_is_none_is_refused_before_anything_is_tried(urls: str, flaw: str) -> None:
    """Half a list was taken for a virtual host, and failed later; of what belongs to no cluster it is said."""
    for said in (address_taken("--amqp-url", urls), address_taken(AMQP_URL=urls)):
        assert flaw in said
        assert "SECRET" not in said


@pytest.mark.parametrize(
    "pages",
    ["https://me:a@n1.example,https://you:b@n2.example", "http://localhost:1,https://localhost:2",
     "https://n1.example,https://me:SECRET@n2.example"],
)  # fmt: skip
def test_management_pages_with_several_logins_are_refused(pages: str) -> None:
    """The first one's login was used for all, and the others' dropped without a word."""
    with pytest.raises(UsageError, match="differ in more than host and port") as caught:
        check_management_url(pages)
    assert "SECRET" not in str(caught.value)


def test_the_management_pages_of_a_cluster_follow_from_its_addresses() -> None:
    """One for each node; or those that are given, as a list."""
    login = "me:s%2Cx"
    urls = management_url_for(",".join(NODES))
    assert (
        urls == f"https://{login}@a.example:15671,https://{login}@b.example:15671,https://{login}@[::1]:15671"
    )
    assert check_management_url(urls) == urls
    given = management_url_for(NODES[0], "https://a.example:1/, https://b.example:2")
    assert given == f"https://{login}@a.example:1,https://{login}@b.example:2"
    assert Management(urls).address == "https://a.example:15671"
