"""How a private broker is set up, before any process starts."""

import json
import os
import stat
from dataclasses import asdict
from pathlib import Path

import pytest

from broker.errors import BrokerError, BrokerUnreachable, UsageError
from broker.hosting import container, private, probe
from broker.hosting.container import Container
from broker.hosting.encryption import encrypted
from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker
from broker.link.address import vhost_of


def a_broker(home: Path, **fields: object) -> PrivateBroker:
    return PrivateBroker(**{"home": home, "port": 5700, "management_port": 15700, **fields})  # type: ignore[arg-type]


def test_everything_listens_on_loopback(tmp_path: Path) -> None:
    """A broker with a well-known password must not be reachable from outside."""
    broker = a_broker(tmp_path, conf=("consumer_timeout = 1000",))
    broker._prepare()
    lines = (tmp_path / "rabbitmq.conf").read_text().splitlines()
    assert "listeners.tcp.1 = 127.0.0.1:5700" in lines
    assert "management.tcp.ip = 127.0.0.1" in lines
    environment = broker._environment(epmd_port=1, node_port=2)
    assert environment["ERL_EPMD_ADDRESS"] == "127.0.0.1"
    assert "inet_dist_use_interface {127,0,0,1}" in environment["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]


def test_more_settings_come_after_the_shared_ones(tmp_path: Path) -> None:
    """A test's own line is the last, and RabbitMQ takes the last."""
    a_broker(tmp_path, conf=("cluster_name = other",))._prepare()
    text = (tmp_path / "rabbitmq.conf").read_text()
    assert text.index("cluster_name = warren") < text.index("cluster_name = other")


def test_what_somebody_put_into_the_settings_by_hand_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It moves, with a word, to a file that RabbitMQ reads last and nobody overwrites, whatever ports come later."""
    a_broker(tmp_path)._prepare()
    settings, own = tmp_path / "rabbitmq.conf", tmp_path / "conf.d" / "own.conf"
    assert not own.exists()
    edited = settings.read_text().replace("disk_free_limit.absolute = 1GB", "disk_free_limit.absolute = 5GB")
    settings.write_text(edited + "heartbeat = 20\n")
    for page in (15700, 15701):
        a_broker(tmp_path, management_port=page)._prepare()
    assert own.read_text() == "disk_free_limit.absolute = 5GB\nheartbeat = 20\n"
    assert "management.tcp.port = 15701" in settings.read_text().splitlines()
    assert caplog.text.count("edited by hand") == 1


def test_settings_of_an_earlier_version_are_not_taken_for_edits(tmp_path: Path) -> None:
    """It kept no copy of what it wrote; its ports are no person's either."""
    a_broker(tmp_path)._prepare()
    (tmp_path / "rabbitmq.conf.written").unlink()
    a_broker(tmp_path, management_port=15701)._prepare()
    assert not (tmp_path / "conf.d" / "own.conf").exists()


def test_an_encrypted_broker_listens_without_tls_nowhere(tmp_path: Path) -> None:
    """Neither AMQP nor the management page; and it is found again as it was started."""
    folder = tmp_path / "certificates"
    encryption = encrypted(folder, ("fl.example.org",), listen="0.0.0.0", takes_clients=True, is_given=False)
    broker = a_broker(tmp_path, encryption=encryption, user="me", password="secret")
    broker._prepare()
    lines = (tmp_path / "rabbitmq.conf").read_text().splitlines()
    assert "listeners.tcp = none" in lines
    assert "listeners.ssl.1 = 0.0.0.0:5700" in lines
    assert not any(line.startswith(("listeners.tcp.", "management.tcp.")) for line in lines)
    assert "rabbitmq_auth_mechanism_ssl" in (tmp_path / "enabled_plugins").read_text()
    assert broker.access.ca == (folder / "ca.pem").read_text()
    record = {"broker": {**asdict(broker), "home": str(tmp_path)}}
    (tmp_path / "broker.json").write_text(json.dumps(record))
    assert PrivateBroker.recorded(tmp_path) == broker


def test_more_arguments_reach_erlang(tmp_path: Path) -> None:
    """What no line of rabbitmq.conf can say."""
    broker = a_broker(tmp_path, erlang=("-rabbit channel_tick_interval 1000",))
    arguments = broker._environment(epmd_port=1, node_port=2)["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert arguments.endswith("-rabbit channel_tick_interval 1000")


def test_the_settings_of_another_rabbitmq_do_not_leak_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from the environment nor from /etc/rabbitmq."""
    monkeypatch.setenv("RABBITMQ_NODENAME", "rabbit@elsewhere")
    monkeypatch.setenv("RABBITMQ_PLUGINS_DIR", "/elsewhere")
    environment = a_broker(tmp_path)._environment(epmd_port=1, node_port=2)
    assert environment["RABBITMQ_NODENAME"] == "warren5700@localhost"
    assert "RABBITMQ_PLUGINS_DIR" not in environment
    own = [name for name in environment if name.startswith("RABBITMQ_CON") or "ADVANCED" in name]
    assert all(environment[name].startswith(str(tmp_path)) for name in own)


def test_its_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The cookie and the password lie in it."""
    home = tmp_path / "a" / "5700"
    a_broker(home)._prepare()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_home_is_absolute() -> None:
    """Its processes are found by it, from whatever folder one asks."""
    with pytest.raises(BrokerError, match="absolute"):
        a_broker(Path("here"))


def test_addresses_quote_the_login(tmp_path: Path) -> None:
    """A password may hold what a URL may not; both addresses read back as they were meant."""
    broker = a_broker(tmp_path, user="a@b", password="p/w:d", vhost="la/b")
    assert probe.login_of(broker.amqp_url) == ("a@b", "p/w:d")
    assert vhost_of(broker.amqp_url) == "la/b"
    assert Management(broker.management_url).address == "http://localhost:15700"


@pytest.mark.parametrize(
    ("url", "vhost"),
    [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/%2F", "/"), ("amqp://h/lab", "lab")],
)
def test_no_virtual_host_in_the_address_is_the_default_one(url: str, vhost: str) -> None:
    """As RabbitMQ's own clients read it."""
    assert vhost_of(url) == vhost


def test_a_folder_without_a_record_holds_no_broker(tmp_path: Path) -> None:
    """Also when the record is damaged."""
    assert PrivateBroker.recorded(tmp_path) is None
    (tmp_path / "broker.json").write_text("{")
    assert PrivateBroker.recorded(tmp_path) is None
    assert not a_broker(tmp_path).is_running()


def test_without_rabbitmq_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message for Debian, macOS and containers."""
    monkeypatch.setattr(private, "_PROGRAMS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerUnreachable, match="apt-get install rabbitmq-server"):
        private.find_program()
    assert not private.is_installed()


def test_a_management_url_is_a_web_address() -> None:
    """Nothing but http and https is ever opened."""
    with pytest.raises(UsageError, match="http"):
        Management("file:///etc/passwd")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that runs, and cannot start anything."""
    program = tmp_path / "docker"
    program.write_text('#!/bin/sh\ncase "$*" in *" up "*) echo "no such image" >&2; exit 1;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return program


def test_an_engine_that_cannot_says_why(engine: Path, tmp_path: Path) -> None:
    """The engine's own words are in the error, and after `stop` no running one is noted."""
    assert container.running_engine() == engine.name
    broken = Container(
        engine=engine.name, port=5700, management_port=15700, user="guest", password="guest", vhost="/"
    )
    with pytest.raises(BrokerError, match="no such image"):
        broken.start(tmp_path)
    assert Container.recorded(tmp_path) == broken
    broken.stop(tmp_path)
    assert Container.recorded(tmp_path) is None
