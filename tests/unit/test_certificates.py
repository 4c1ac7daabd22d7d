"""An authority of one's own, and what it signs."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker import cli
from broker.errors import UsageError
from broker.hosting.certificates import (
    Pair,
    check_not_revoked,
    end_of,
    make_authority,
    make_client,
    make_server,
    names_in,
    note_revoked,
)
from broker.hosting.commands.certs import Asked
from broker.hosting.encryption import Encryption, encrypted
from broker.link.access import common_name


def handshake(server: Pair, host: str, *, ca: Path, client: Pair | None = None) -> str | None:
    """A whole handshake in memory; whom the server saw, if anybody."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca))
    serving.load_cert_chain(server.certificate, server.key)
    serving.verify_mode = ssl.CERT_OPTIONAL
    asking = ssl.create_default_context(cafile=str(ca))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    if client is not None:
        asking.load_cert_chain(client.certificate, client.key)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = asking.wrap_bio(back, there, server_hostname=host)
    other = serving.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    seen = other.getpeercert()
    return dict(entry[0] for entry in seen["subject"])["commonName"] if seen else None  # type: ignore[misc,index]


def test_a_site_believes_the_broker_by_each_of_its_names(tmp_path: Path) -> None:
    """A host name, an address of either kind; any other name is refused. As strictly as Python 3.13 asks for."""
    server = make_server(tmp_path, ["fl.example.org", "192.0.2.7", "::1"], days=30)
    assert names_in(server.certificate) == ("fl.example.org", "192.0.2.7", "::1")
    for name in names_in(server.certificate):
        assert handshake(server, name, ca=tmp_path / "ca.pem") is None
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, "elsewhere.example.org", ca=tmp_path / "ca.pem")


def test_a_client_is_whom_its_certificate_names(tmp_path: Path) -> None:
    """The broker takes the common name as the account."""
    server, client = make_server(tmp_path, ["localhost"], days=30), make_client(tmp_path, "site-1", days=30)
    assert common_name(client.certificate.read_text()) == "site-1"
    assert handshake(server, "localhost", ca=tmp_path / "ca.pem", client=client) == "site-1"


def test_the_authority_is_never_made_anew(tmp_path: Path) -> None:
    """What was handed out goes on being trusted; a server's certificate is replaced when its name is given again."""
    authority = make_authority(tmp_path)
    before = authority.certificate.read_bytes(), make_server(tmp_path, ["a"], days=1).certificate.read_bytes()
    after = (
        make_authority(tmp_path).certificate.read_bytes(),
        make_server(tmp_path, ["a"], days=1).certificate.read_bytes(),
    )
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)
    assert handshake(Pair(tmp_path, "server"), "a", ca=authority.certificate) is None


def test_without_the_authoritys_key_nothing_is_signed(tmp_path: Path) -> None:
    """It may lie in a safe: that is said, and no other authority is made in its place."""
    authority = make_authority(tmp_path)
    authority.key.unlink()
    with pytest.raises(UsageError, match="has to sign"):
        make_client(tmp_path, "site-1", days=1)
    assert not authority.key.exists()


def test_the_command_makes_all_that_is_asked_for(tmp_path: Path) -> None:
    """The paths are printed; keys are their owner's alone."""
    words = [
        "certs",
        "--out",
        str(tmp_path),
        "--name",
        "fl.example.org",
        "--client",
        "site-1",
        "--client",
        "site-2",
    ]
    answer = CliRunner().invoke(cli.main, words)
    assert answer.exit_code == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {
        f"{name}{tail}.pem"
        for name in ("ca", "server", "client-site-1", "client-site-2")
        for tail in ("", "-key")
    }
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*-key.pem")} == {0o600}
    nothing = CliRunner().invoke(cli.main, ["certs", "--out", str(tmp_path / "nothing")])
    assert (nothing.exit_code, nothing.stderr.count("\n")) == (2, 1)


def test_what_belongs_to_tls_is_refused_without(tmp_path: Path) -> None:
    """Who says --listen, and forgets --tls, is told so before anything is started."""
    for words in (["--listen", "0.0.0.0"], ["--admin", "me"], ["--name", "x"], ["--client-certificates"]):
        answer = CliRunner().invoke(cli.main, ["up", *words, "--home", str(tmp_path)])
        assert (answer.exit_code, "--tls" in answer.stderr) == (2, True)


def test_certificates_of_ones_own_are_taken_as_they_are(tmp_path: Path) -> None:
    """None is made among them; what lacks is named. The broker's own are made anew when a name is missing."""
    with pytest.raises(UsageError, match=r"server\.pem"):
        encrypted(tmp_path, (), listen="0.0.0.0", takes_clients=False, is_given=True)
    server = make_server(tmp_path, ["fl.example.org"], days=30)
    (tmp_path / "ca.pem").unlink()
    found = encrypted(tmp_path, ("other",), listen="0.0.0.0", takes_clients=False, is_given=True)
    assert (found.names, found.local_name, found.ca) == (("fl.example.org",), "fl.example.org", None)
    assert not any("cacertfile" in line for line in found.lines(1, 2))
    with pytest.raises(UsageError, match=r"ca\.pem"):
        encrypted(tmp_path, (), listen="0.0.0.0", takes_clients=True, is_given=True)
    assert names_in(server.certificate) == ("fl.example.org",)
    own = tmp_path / "own"
    for name in ("a.example", "b.example"):
        made = encrypted(own, (name,), listen="0.0.0.0", takes_clients=False, is_given=False)
        assert (made.public_name, made.local_name) == (name, "localhost")


def certs(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(cli.main, ["certs", *words])
    return answer.exit_code, answer.output


def test_the_days_that_are_left_are_told_and_few_are_warned_of(tmp_path: Path) -> None:
    """With no more than --out: a line each, and a warning below thirty days."""
    make_server(tmp_path, ["fl.example.org"], days=20)
    make_client(tmp_path, "site-1", days=400)
    code, said = certs("--out", str(tmp_path))
    assert code == 0
    for word in ("ca.pem ", "server.pem ", "expires in 19 days", "client-site-1.pem ", "expires in 399 days"):
        assert word in said
    assert said.count("WARNING") == 1
    assert "server.pem expires in 19 days" in said


def test_the_brokers_certificate_is_renewed_with_its_names_by_its_authority(tmp_path: Path) -> None:
    """Sites that know the authority notice nothing; a folder of another authority's is left as it is."""
    server = make_server(tmp_path, ["fl.example.org", "192.0.2.7"], days=1)
    before, authority = server.certificate.read_bytes(), (tmp_path / "ca.pem").read_bytes()
    assert certs("--out", str(tmp_path), "--renew")[0] == 0
    assert server.certificate.read_bytes() != before
    assert (names_in(server.certificate), (tmp_path / "ca.pem").read_bytes()) == (
        ("fl.example.org", "192.0.2.7"), authority,
    )  # fmt: skip
    assert handshake(server, "192.0.2.7", ca=tmp_path / "ca.pem") is None
    assert (end_of(server.certificate) - datetime.now(UTC)).days == 824
    before = server.certificate.read_bytes()
    (tmp_path / "ca.pem").unlink()
    (tmp_path / "ca-key.pem").unlink()
    assert certs("--out", str(tmp_path), "--renew")[0] == 2
    assert server.certificate.read_bytes() == before
    nowhere = tmp_path / "nowhere"
    assert certs("--out", str(nowhere), "--renew")[0] == 2
    assert not nowhere.exists()


def test_a_revoked_certificate_is_not_let_in_by_another_account_of_its_name(tmp_path: Path) -> None:
    """Nothing that was signed can be called back: as long as it is valid, no account gets its name."""
    make_client(tmp_path, "site-1", days=30)
    check_not_revoked(tmp_path, "site-1")
    assert note_revoked(tmp_path, "site-1") is not None
    with pytest.raises(UsageError, match="let in again"):
        check_not_revoked(tmp_path, "site-1")
    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "ca-key.pem", "revoked-site-1.pem"}
    assert note_revoked(tmp_path, "site-2") is None
    check_not_revoked(tmp_path, "site-2")
    make_client(tmp_path, "site-3", days=0)
    note_revoked(tmp_path, "site-3")
    check_not_revoked(tmp_path, "site-3")  # it has expired


NO_HOSTS = ["", "bad name!", "https://fl.example.org", "fl.example.org:5671", "-x", "a..b", "[::1]"]


@pytest.mark.parametrize("name", NO_HOSTS)
def test_what_is_no_host_gets_no_certificate(tmp_path: Path, name: str) -> None:
    """A slip is one line, before anything is made: no site would ever reach the broker by such a name."""
    folder = tmp_path / "certs"
    code, said = certs("--out", str(folder), "--name", name)
    assert (code, said.count("\n"), "no host name" in said) == (2, 1, True)
    up = CliRunner().invoke(cli.main, ["up", "--tls", "--name", name, "--home", str(tmp_path / "home")])
    assert (up.exit_code, "no host name" in up.output) == (2, True)
    assert not folder.exists()


def test_a_folder_that_can_not_be_made_and_a_site_that_can_not_be_are_a_line(tmp_path: Path) -> None:
    """No traceback, and no authority that nobody asked for."""
    (tmp_path / "file").touch()
    for folder, words in (("file/x", ["--name", "a"]), ("y", ["--client", "A B"])):
        code, said = certs("--out", str(tmp_path / folder), *words)
        assert (code, said.count("\n")) == (2, 1), said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broker_that_can_not_listen_there_is_not_started(tmp_path: Path) -> None:
    """RabbitMQ's own words for it are fifty lines of Erlang."""
    for address in ("999.1.1.1", "192.0.2.1", "no such host"):
        asked = Asked(listen=address, admin="me", names=(), folder=None, takes_clients=False)
        with pytest.raises(UsageError, match="Nothing can listen at"):
            asked.encryption(tmp_path / "own", None)
    assert not [*tmp_path.iterdir()]


def test_what_a_running_broker_does_not_take_is_told(tmp_path: Path) -> None:
    """It keeps what it was started with: whoever types another name would wait for it in vain."""
    running = Encryption(folder=str(tmp_path), names=("a", "localhost"), listen="0.0.0.0")
    same = Asked(listen=None, admin="me", names=("a",), folder=tmp_path, takes_clients=False)
    assert not [*same.ignored_by(running)]
    other = Asked(listen="127.0.0.1", admin="me", names=("a", "b"), folder=tmp_path / "x", takes_clients=True)
    assert [*other.ignored_by(running)] == ["--listen", "--name", "--certs", "--client-certificates"]
