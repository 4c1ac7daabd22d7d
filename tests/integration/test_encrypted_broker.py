"""A federation of several houses, from nothing: `broker up --tls`, invitations, and what a wrong address is told."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from broker.errors import BrokerError, BrokerUnreachable, LoginRefused
from broker.hosting import probe
from broker.hosting.certificates import make_server
from broker.hosting.management import Management
from broker.hosting.private import MAIN_PID, PrivateBroker, free_ports
from broker.link.access import Access
from broker.link.invitation import read_invitation
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.seam import Connection
from broker.link.validity import shown_by_brokers, validities_of
from tests.brokers import control, need_rabbitmq, wait_until
from tests.servings import Lab, Process
from worker.site.reaching import reach

_SECONDS = 120
_PARTNER = """
import numpy as np
from worker.trainer import Fitted


def task():
    return {"w": np.zeros(3, np.float32)}


class Trainer:
    num_examples = 10

    def __init__(self, data=None, worker=""):
        self.number = float(worker[-1])

    def fit(self, weights, settings):
        return Fitted(weights={"w": weights["w"] + self.number}, num_examples=10, metrics={"loss": 1.0})

    def evaluate(self, weights):
        return None
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The broker of the university, with its invitations."""

    home: Path
    broker: PrivateBroker
    said: str

    @property
    def public_name(self) -> str:
        """What sites call its machine."""
        assert self.broker.encryption is not None
        return self.broker.encryption.public_name

    def invited(self, name: str) -> Path:
        """The file that was handed over."""
        return self.home / f"{name}.toml"


def run(home: Path, *words: str, code: int = 0, with_home: bool = True) -> str:
    """One call of `broker`; what it said on both streams."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("WARREN_", "AMQP"))
    }
    command = [sys.executable, "-m", "broker", *words, *(["--home", str(home)] if with_home else [])]
    done = subprocess.run(
        command, env=inherited, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A broker that listens everywhere, and four invitations: three passwords, one certificate."""
    need_rabbitmq()
    home = tmp_path_factory.mktemp("house")
    port, page = free_ports(2)
    up = ["up", "--tls", "--port", str(port), "--management-port", str(page), "--admin", "me"]
    try:
        said = run(home, *up, "--listen", "0.0.0.0", "--name", "localhost", "--client-certificates")
        for name, *more in (["coordinator"], ["site-1"], ["site-2", "--by-certificate"], ["north"]):
            said += run(home, "invite", name, "--invitation", str(home / f"{name}.toml"), *more)
        broker = PrivateBroker.recorded(home / str(port))
        assert broker is not None
        yield House(home=home, broker=broker, said=said)
        assert f"ended {broker.access.address}" in run(
            home, "down"
        )  # found without an address, as by `status`
    finally:
        run(home, "down", "--all")


def test_sites_join_by_invitation_and_train(house: House, tmp_path: Path) -> None:
    """Three files are all that is handed over; one site logs in by a password, one by its certificate. No secret stands
    in a command line or in what anybody said."""
    (tmp_path / "partner.py").write_text(_PARTNER)

    def start(package: str, *words: str, name: str) -> Process:
        given = [*words, "--invitation", str(house.invited(name))]
        return Process(package, given, tmp_path, "amqp://nobody:nothing@localhost:1/", tmp_path)

    workers = [
        start("worker", "run", "--trainer", "partner:Trainer", "--once", name=name)
        for name in ("site-1", "site-2")
    ]
    coordinator = start(
        "coordinator", "run", "partner:task", "--workers", "2", "--rounds", "1", "--out", "run", name="coordinator"
    )  # fmt: skip
    actors = [coordinator, *workers]
    assert [actor.ended(_SECONDS) for actor in actors] == [0, 0, 0], "\n".join(each.said for each in actors)
    assert "site-1, site-2" in coordinator.said
    for actor in actors:  # how long certificates are valid, at the start
        assert "Valid: the broker's certificate (localhost) expires in 824 days" in actor.said
    assert "this side's own certificate (site-2)" in workers[1].said
    secrets = [house.broker.password]
    secrets += [
        probe.login_of(read_invitation(house.invited(name)).amqp_url)[1] for name in ("coordinator", "site-1")
    ]
    assert not [secret for secret in secrets for each in actors if secret in each.said]
    assert not [secret for secret in secrets if secret in house.said]


def test_a_relay_reaches_the_broker_above_by_its_invitation(house: House, vhost: str, tmp_path: Path) -> None:
    """Over TLS, with the account and the authority in the file, as any site does; its region has a broker of its own.
    What the worker behind it learns comes up, and the account weighs as a relay because the run names it."""
    (tmp_path / "partner.py").write_text(_PARTNER)
    top = ["--workers", "1", "--rounds", "1", "--out", "run", "--relay", "north"]
    with Lab(tmp_path, vhost, tmp_path) as lab:
        relay = lab.start("coordinator", "relay", "--name", "north", "--above", str(house.invited("north")),
                          "--workers", "1", "--out", "relay", "--once")  # fmt: skip
        worker = lab.start("worker", "run", "--name", "n-1", "--trainer", "partner:Trainer", "--once")
        coordinator = lab.start(
            "coordinator", "run", "partner:task", *top, "--invitation", str(house.invited("coordinator"))
        )
        actors = [coordinator, relay, worker]
        ended = [actor.ended(_SECONDS) for actor in actors]
    said = "\n".join(each.said for each in actors)
    assert ended == [0, 0, 0], said
    assert "Valid: the broker's certificate (localhost) expires in 824 days" in relay.said
    assert probe.login_of(read_invitation(house.invited("north")).amqp_url)[1] not in said
    with np.load(tmp_path / "run" / "model.npz") as model:
        assert np.array_equal(model["w"], np.full(3, 1.0, np.float32))


def test_there_is_no_guest_and_nothing_without_tls(house: House) -> None:
    """Only the administrator who was asked for, and the invited; neither port answers without TLS, not even here."""
    broker, tls = house.broker, house.broker.access.tls()
    assert set(Management(broker.management_url, tls=tls).users()) == {
        "me",
        "coordinator",
        "site-1",
        "site-2",
        "north",
    }
    guest = f"guest:guest@localhost:{broker.port}/"
    assert probe.ask(f"amqps://{guest}", tls=tls) is probe.Answer.REFUSED
    assert probe.ask(f"amqp://{guest}") is probe.Answer.FOREIGN
    with pytest.raises(BrokerError):
        Management(f"http://me:{broker.password}@localhost:{broker.management_port}").overview()


def test_it_is_not_taken_for_a_broker_of_a_laptop(house: House) -> None:
    """`broker up` without --tls prints the login of what it finds: not of this one."""
    command = [
        sys.executable,
        "-m",
        "broker",
        "up",
        "--port",
        str(house.broker.port),
        "--home",
        str(house.home),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert house.broker.password not in done.stderr


def test_what_is_secret_is_its_owners_alone(house: House) -> None:
    """Keys, invitations and the administrator's login; the folder of it all lets nobody in."""
    assert stat.S_IMODE(house.broker.home.stat().st_mode) == 0o700
    secret = [*house.broker.home.glob("certificates/*-key.pem"), house.broker.home / "me.toml"]
    secret += [house.invited(name) for name in ("coordinator", "site-1", "site-2")]
    assert len(secret) >= 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_a_certificate_logs_in_as_whom_it_names_and_no_password_does(house: House) -> None:
    """Who copies the name of a site with a certificate has no password to try: there is none."""
    access = read_invitation(house.invited("site-2"))
    assert (access.account, access.is_by_certificate) == ("site-2", True)
    for password in ("", "site-2"):
        url = f"amqps://site-2:{password}@localhost:{house.broker.port}/"
        assert probe.ask(url, tls=house.broker.access.tls()) is probe.Answer.REFUSED


def test_a_password_is_changed_by_a_new_invitation(house: House) -> None:
    """The former one is refused from then on; account, queues and rights are as they were."""
    new = house.home / "site-1-new.toml"
    run(house.home, "invite", "site-1", "--new-password", "--invitation", str(new))
    former, access = read_invitation(house.invited("site-1")), read_invitation(new)
    assert probe.ask(former.amqp_url, tls=former.tls()) is probe.Answer.REFUSED
    assert probe.ask(access.amqp_url, tls=access.tls()) is probe.Answer.READY


def test_an_invitation_leads_to_the_brokers_clock(house: House) -> None:
    """Its management page is at a port that nobody can guess: the invitation says which, without a login of its own."""
    access = read_invitation(house.invited("site-2"))
    assert access.management_url == f"https://{house.public_name}:{house.broker.management_port}"
    found = reach(access, "site-2", connect_seconds=10)
    assert found.problem is None
    assert found.clock_seconds is not None
    assert abs(found.clock_seconds) < 5


def test_a_certificate_that_is_revoked_is_worth_nothing(house: House) -> None:
    """It logs in as nobody, on a connection that was open, too; no other account gets its name while it is valid."""
    invitation = house.home / "site-4.toml"
    run(house.home, "invite", "site-4", "--by-certificate", "--invitation", str(invitation))
    access = read_invitation(invitation)
    link = RabbitLink(LinkSettings(access=access, name="test", connect_seconds=10))
    link.open()
    try:
        assert "the certificate of site-4, valid until" in run(house.home, "revoke", "site-4")
        wait_until(lambda: not link.is_connected, 10)
    finally:
        link.close()
    assert "refused" in str(opened(access))
    for more in ([], ["--by-certificate"]):
        again = ["invite", "site-4", *more, "--invitation", str(house.home / "site-4-again.toml")]
        assert "would be let in again" in run(house.home, *again, code=2)
    assert isinstance(opened(access), LoginRefused)


def test_sites_go_on_when_the_brokers_certificate_is_renewed(house: House) -> None:
    """By the same authority: the broker takes it without a restart, and an invitation of before connects again."""
    access = read_invitation(house.invited("site-2"))
    (before,) = shown_by_brokers(access)
    link = RabbitLink(LinkSettings(access=access, name="test", connect_seconds=10))
    link.open()
    try:
        folder = house.broker.home / "certificates"
        said = run(house.home, "certs", "--out", str(folder), "--renew", with_home=False)
        assert "server.pem is valid until" in said
        control(house.broker, "eval", "ssl:clear_pem_cache().")  # it does so by itself within two minutes
        management = Management(house.broker.management_url, tls=house.broker.access.tls())
        wait_until(lambda: management.close_connections(user="site-2") > 0, 15)
        wait_until(lambda: link.receive(0.1) is Connection.RESTORED, 20)
    finally:
        link.close()
    (after,) = shown_by_brokers(access)
    assert before.certificate["serialNumber"] != after.certificate["serialNumber"]
    told = [(each.whose, each.days_left) for each in validities_of(access, [after])]
    assert told == [("broker", 824), ("own", 824), ("authority", 3649)]
    assert '"whose": "authority"' in run(house.home, "status", "--json")


def opened(access: Access) -> BrokerError:
    """What a role is told that connects so."""
    link = RabbitLink(LinkSettings(access=access, name="test", connect_seconds=1.5))
    with pytest.raises(BrokerError) as caught:
        link.open()
    return caught.value


def test_each_wrong_address_has_its_own_words(house: House, broker: PrivateBroker, tmp_path: Path) -> None:
    """Seven slips, seven messages; each names what is wrong, and none the password."""
    port, ca = house.broker.port, house.broker.access.ca
    login = f"me:{house.broker.password}"
    foreign = make_server(tmp_path, ["elsewhere"], days=1)
    closed = free_ports(1)[0]
    slips = [
        (f"amqps://{login}@localhost:{port}/", None, BrokerUnreachable, "is not trusted"),
        (f"amqps://{login}@localhost:{port}/", (foreign.folder / "ca.pem").read_text(), BrokerUnreachable, "trusted"),
        (f"amqps://{login}@127.0.0.2:{port}/", ca, BrokerUnreachable, "is for another name"),
        (f"amqps://{login}@localhost:{broker.port}/", ca, BrokerUnreachable, "does not speak TLS"),
        (f"amqp://{login}@localhost:{port}/", None, BrokerUnreachable, "speaks TLS, and the address begins"),
        (f"amqps://{login}@nowhere.invalid:{port}/", ca, BrokerUnreachable, "can't be resolved"),
        (f"amqps://{login}@localhost:{closed}/", ca, BrokerUnreachable, "Nothing listens at"),
        (f"amqps://{login}@localhost:{port}/lost", ca, LoginRefused, "no virtual host 'lost'"),
        (f"amqps://me:wrong@localhost:{port}/", ca, LoginRefused, "refused the user or the password"),
    ]  # fmt: skip
    for url, authority, kind, said in slips:
        told = opened(Access(amqp_url=url, ca=authority))
        assert (type(told), said in str(told)) == (kind, True), str(told)
        assert house.broker.password not in str(told)


def test_a_worker_waits_for_a_broker_and_says_why(tmp_path: Path) -> None:
    """Nobody listens when a machine boots: without being told it waits, and says what for; told to, it ends with 3."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"amqp://me:SECRET@127.0.0.1:{silent.getsockname()[1]}/"
        (tmp_path / "partner.py").write_text(_PARTNER)
        words = ["run", "--name", "site-1", "--trainer", "partner:Trainer"]
        waiting = Process("worker", words, tmp_path, address, tmp_path)
        ending = Process("worker", [*words, "--connect-seconds", "3"], tmp_path, address, tmp_path)
        try:
            assert ending.ended(_SECONDS) == 3
            assert "Nothing listens at" in ending.said
            wait_until(lambda: "Waiting for it." in waiting.said, _SECONDS)
            assert waiting.is_running
        finally:
            waiting.terminate()
        assert "Nothing listens at" in waiting.said
        assert "Waiting for it." in waiting.said
        assert "SECRET" not in waiting.said + ending.said


def test_the_one_that_was_there_starts_as_it_was(house: House) -> None:
    """`broker down`, then `broker up --tls` alone: administrator, listener, names and certificates are the former ones,
    so that every invitation holds on; it was refused for `admin`, and had listened on loopback alone. The process that
    systemd watches is noted."""
    run(house.home, "down")
    run(house.home, "up", "--tls", "--port", str(house.broker.port))
    assert PrivateBroker.recorded(house.broker.home) == house.broker
    access = read_invitation(house.invited("coordinator"))
    assert probe.ask(access.amqp_url, tls=access.tls()) is probe.Answer.READY
    noted = int((house.broker.home / MAIN_PID).read_text())
    assert str(house.broker.home).encode() in Path(f"/proc/{noted}/cmdline").read_bytes()
