"""What a process is told about reaching its broker: by options, by the environment, or by one file."""

import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from broker.command import CommandGroup, access_options, read_environment
from broker.errors import UsageError
from broker.link.access import Access
from broker.link.invitation import read_invitation, write_invitation

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
INVITED = Access(amqp_url="amqps://site-1:s%22e%5Ccret@broker.example/lab", name="site-1", ca=PEM)


@pytest.fixture
def invitation(tmp_path: Path) -> Path:
    path = tmp_path / "site-1.toml"
    write_invitation(path, INVITED)
    return path


def run(*words: str, **environment: str) -> Result:
    """What a command with these options gets of them."""

    @click.group(cls=CommandGroup, name="worker")
    def group() -> None:
        """A group."""

    @group.command(name="run")
    @click.option("--name")
    @access_options
    def command(name: str | None, access: Access) -> None:
        click.echo(f"{access.named(name)} {access.amqp_url} {access.ca!r}")

    read_environment(group)
    return CliRunner().invoke(group, ["run", *words], env={"AMQP_URL": None, **environment})


def test_an_invitation_is_read_as_it_was_written(invitation: Path) -> None:
    """Address, login, authority and name are all that a site is handed."""
    assert read_invitation(invitation) == INVITED


def test_an_invitation_holds_all_addresses_of_a_cluster(tmp_path: Path) -> None:
    """As one list, with those of its management pages; it is read as it was written."""
    access = Access(
        amqp_url="amqps://w:x@a/lab,amqps://w:x@b/lab", name="w", management_url="https://a:1,https://b:1"
    )
    path = tmp_path / "w.toml"
    write_invitation(path, access)
    assert read_invitation(path) == access
    assert read_invitation(path).amqp_urls == ("amqps://w:x@a/lab", "amqps://w:x@b/lab")
    assert 'amqp_url = "amqps://w:x@a/lab,amqps://w:x@b/lab"' in path.read_text()


def test_the_management_page_of_an_invitation_is_an_address_that_is_safe(invitation: Path) -> None:
    """A login is sent there: no file, and nothing in the clear beyond this machine."""
    whole = invitation.read_text()
    for address, code in (
        ("https://broker.example:9", 0),
        ("http://broker.example:9", 2),
        ("file:///etc/passwd", 2),
    ):
        invitation.write_text(f'{whole}management_url = "{address}"\n')
        answer = run("--invitation", str(invitation))
        assert answer.exit_code == code, answer.output
    assert run("--invitation", str(invitation), WARREN_INSECURE="1").exit_code == 2


def test_an_invitation_is_its_owners_alone(invitation: Path) -> None:
    """It holds a password: nobody else on the machine can read it, and what is there already is kept."""
    assert stat.S_IMODE(invitation.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="exists"):
        write_invitation(invitation, INVITED)


def test_a_command_takes_all_from_an_invitation(invitation: Path) -> None:
    """Name, address and authority; by option or by the environment."""
    expected = f"site-1 {INVITED.amqp_url} {PEM!r}\n"
    assert run("--invitation", str(invitation)).output == expected
    assert run(WARREN_INVITATION=str(invitation), AMQP_URL="amqps://x/").output == expected


def test_what_stands_on_the_command_line_counts(invitation: Path) -> None:
    """An address there wins over an invitation in the environment; both there contradict each other."""
    address = ["--amqp-url", "amqps://a:b@x/", "--name", "me"]
    assert run(*address, WARREN_INVITATION=str(invitation)).output == "me amqps://a:b@x/ None\n"
    both = run(*address, "--invitation", str(invitation))
    assert (both.exit_code, "got both" in both.stderr) == (2, True)


def test_an_invitation_for_somebody_else_is_named(invitation: Path) -> None:
    """The account may speak for its own name alone: that is said before anything is tried."""
    answer = run("--invitation", str(invitation), "--name", "site-2")
    assert (answer.exit_code, "'site-1'" in answer.stderr, "'site-2'" in answer.stderr) == (2, True, True)


def test_an_invitation_that_others_can_read_is_warned_of(
    invitation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy that came by mail is often open to everybody on the machine."""
    invitation.chmod(0o644)
    assert run("--invitation", str(invitation)).exit_code == 0
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "", "[broker]", "amqp_url = 'amqps://x/'", "[broker]\namqp_url = 5", "[broker\n", "\x00",
        "[broker]\namqp_url = 'amqps://x/'\nkay = 'x'", "[broker]\namqp_url = 'amqps://x/'\nkey = 'x'",
        "[broker]\namqp_url = 'https://me:SECRET@x/'", "[broker]\namqp_url = 'amqp://me:SECRET@elsewhere/'",
    ],
)  # fmt: skip
def test_what_is_no_invitation_is_told_in_one_line(text: str, tmp_path: Path) -> None:
    """Usage, with the file's name or what is wrong in it, and nothing of a password."""
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    answer = run("--invitation", str(path))
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    assert "SECRET" not in answer.output


def test_a_missing_file_is_told_in_one_line(tmp_path: Path) -> None:
    """Of an invitation, and of a certificate."""
    for option in ("--invitation", "--ca"):
        answer = run(option, str(tmp_path / "none"))
        assert (answer.exit_code, answer.stderr.count("\n"), "No such file" in answer.stderr) == (2, 1, True)


def test_a_certificate_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    """Before anything is connected."""
    (tmp_path / "ca.pem").write_text("hello")
    answer = run("--ca", str(tmp_path / "ca.pem"))
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    with pytest.raises(UsageError, match="can't be used"):
        INVITED.tls()


def test_no_secret_is_shown_by_accident() -> None:
    """What is printed of the object, such as in a traceback, holds neither password nor key."""
    access = Access(amqp_url="amqps://me:SECRET@x/", certificate="SECRET", key="SECRET")
    assert "SECRET" not in f"{access} {access!r} {access.address}"
