"""The command `broker` as a person uses it, against RabbitMQ processes that it starts itself."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.errors import BrokerUnreachable
from broker.hosting import probe
from broker.hosting.management import Management
from broker.hosting.private import PrivateBroker, free_ports
from broker.hosting.probe import Answer
from broker.link.address import without_password
from tests.brokers import need_rabbitmq

_SECONDS = 100

# Everything is imported as root, since the ordinary user may be unable to read this interpreter's folders.
_AS_ORDINARY_USER = textwrap.dedent(
    """
    import encodings.idna, os, sys
    from importlib import resources
    from broker.cli import main
    resources.files("deploy").joinpath("rabbitmq.conf").read_text()
    os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[2]))
    main(sys.argv[3:], prog_name="broker")
    """
)


@pytest.fixture(autouse=True)
def _rabbitmq() -> None:
    need_rabbitmq()


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What one `broker up` printed, and where its files are."""

    home: Path
    port: int
    lines: list[str]

    @property
    def broker(self) -> PrivateBroker:
        recorded = PrivateBroker.recorded(self.home / str(self.port))
        assert recorded is not None
        return recorded


def run(
    *arguments: str, home: Path, answer: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """One call of the command, in an environment that names no broker unless told."""
    command = [sys.executable, "-m", "broker", *arguments, "--home", str(home)]
    return subprocess.run(
        command,
        env=_environment(environment),
        input=answer,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def _environment(more: dict[str, str]) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("WARREN_", "AMQP"))
    }
    return inherited | {"PYTHONPATH": str(Path(__file__).parents[2])} | more


def traces_of(home: Path) -> list[str]:
    """The command lines of living processes that belong to this home."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "command="], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if f"{home}/" in line and "-m broker" not in line]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    need_rabbitmq()
    home = tmp_path_factory.mktemp("home")
    port, management_port = free_ports(2)
    first = run("up", "--port", str(port), "--management-port", str(management_port), home=home)
    try:
        assert first.returncode == 0, first.stderr
        yield Started(home=home, port=port, lines=first.stdout.splitlines())
    finally:
        run("down", "--all", home=home)


def test_up_prints_the_amqp_url_and_the_management_page(started: Started) -> None:
    """Stdout is exactly two lines, and both work."""
    amqp_url, page = started.lines
    assert probe.ask(amqp_url) is Answer.READY
    assert page == Management(started.broker.management_url).address


def test_a_second_up_finds_the_first(started: Started) -> None:
    """Twice in a row is one broker, by its port and by its address."""
    by_port = run("up", "--port", str(started.port), home=started.home)
    by_address = run("up", home=started.home, AMQP_URL=started.lines[0])
    assert by_port.stdout.splitlines() == by_address.stdout.splitlines() == started.lines


def test_workers_queues_get_an_expiry(started: Started) -> None:
    """`up` sets a policy whose name a person understands; what a worker left behind does not stay for ever."""
    management = Management(started.broker.management_url)
    policies = {each["name"]: each for each in management.api.get("policies", "/")}
    policy = policies["warren: deleted when nobody reads it for 14 days"]
    assert policy["pattern"].startswith(r"^(worker|upload)\.")
    assert policy["definition"] == {"expires": 14 * 24 * 3600 * 1000}


def test_what_everybody_may_write_to_is_bounded(started: Started) -> None:
    """The coordinator's queue and `dead`; the one says so when it is full, as what it took is relied on."""
    management = Management(started.broker.management_url)
    policies = {each["pattern"]: each["definition"] for each in management.api.get("policies", "/")}
    assert policies["^coordinator$"]["overflow"] == "reject-publish"
    assert policies["^coordinator$"]["max-length-bytes"] == 512 * 2**20
    assert policies["^dead$"] == {"max-length-bytes": 64 * 2**20}


def test_a_port_that_another_broker_has_is_an_error_that_says_so(started: Started, tmp_path: Path) -> None:
    """An explicit port is never swapped for another, nor is a stranger's broker on it taken for ours."""
    refused = run("up", "--port", str(started.port), home=tmp_path)
    assert refused.returncode == 3
    assert refused.stdout == ""
    assert f"Port {started.port} is taken by another broker" in refused.stderr


def test_a_port_that_something_else_has_is_an_error_that_says_so(tmp_path: Path) -> None:
    """What does not speak AMQP is named as such."""
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        port = foreign.getsockname()[1]
        refused = run("up", "--port", str(port), home=tmp_path)
    assert refused.returncode == 3
    assert "something else than RabbitMQ" in refused.stderr


def test_a_broker_that_died_starts_again_on_its_data(started: Started) -> None:
    """After a power cut `up` brings the same queues and accounts back, and no name server is left over."""
    management = Management(started.broker.management_url)
    management.create_vhost("kept")
    started.broker.kill()
    assert traces_of(started.home) == []
    again = run("up", "--port", str(started.port), home=started.home)
    assert again.stdout.splitlines() == started.lines
    assert management.queues("kept") == []
    management.delete_vhost("kept")


def test_status_without_a_broker_ends_with_3(tmp_path: Path) -> None:
    """One line that says what to try."""
    port, management_port = free_ports(2)
    url = f"http://localhost:{management_port}"
    answer = run("status", "--management-url", url, home=tmp_path, AMQP_URL=f"amqp://localhost:{port}/")
    assert answer.returncode == 3
    assert "Try `broker up`" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_status_with_a_wrong_password_ends_with_3(started: Started) -> None:
    """The password itself is not shown."""
    answer = run("status", home=started.home, AMQP_URL=started.lines[0])
    assert answer.returncode == 0, answer.stderr
    url = f"http://guest:sesame@localhost:{started.broker.management_port}"
    answer = run("status", "--management-url", url, home=started.home)
    assert answer.returncode == 3
    assert "refused" in answer.stderr
    assert "sesame" not in answer.stderr


def test_status_finds_the_management_page_of_what_up_started(started: Started) -> None:
    """Whoever has the AMQP URL needs no second address."""
    answer = run("status", "--json", home=started.home, AMQP_URL=started.lines[0])
    found = json.loads(answer.stdout)
    assert found["version"]
    assert found["queues"] == found["alarms"] == []


def test_a_broker_that_was_found_is_left_alone(vhost: str, broker: PrivateBroker, tmp_path: Path) -> None:
    """`up` uses it as it is, and `down` says that it is not ours to end."""
    url = broker.management_url
    found = run("up", "--management-url", url, home=tmp_path, AMQP_URL=vhost)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [vhost, Management(url).address]
    ended = run("down", home=tmp_path, AMQP_URL=vhost)
    assert ended.returncode == 0
    assert "left alone" in ended.stdout
    assert broker.is_ready()


def test_beside_another_broker_up_takes_another_port_and_down_leaves_nothing(
    broker: PrivateBroker, tmp_path: Path
) -> None:
    """Where the address has a broker that refuses our login, ours goes elsewhere and is found there again."""
    taken = f"amqp://mine:secret@localhost:{broker.port}/"
    first = run("up", home=tmp_path, AMQP_URL=taken, PATH=_path_without_engines(tmp_path))
    assert first.returncode == 0, first.stderr
    again = run("up", home=tmp_path, AMQP_URL=taken, PATH=_path_without_engines(tmp_path))
    assert again.stdout == first.stdout
    amqp_url = first.stdout.splitlines()[0]
    assert probe.host_and_port(amqp_url)[1] != broker.port
    assert probe.ask(amqp_url) is Answer.READY

    folder = tmp_path / str(probe.host_and_port(amqp_url)[1])
    name_server = json.loads((folder / "broker.json").read_text())["epmd_port"]  # outlives its node, if let
    assert not probe.is_free(name_server)
    other = run("down", home=tmp_path, AMQP_URL=taken)
    assert other.returncode == 0, other.stderr
    assert "Nothing to end" in other.stdout
    assert f"Still running: {without_password(amqp_url)}" in other.stdout
    ended = run("down", "--delete-data", "--yes", home=tmp_path, AMQP_URL=amqp_url)
    assert ended.returncode == 0, ended.stderr
    assert "secret" not in ended.stdout
    assert traces_of(tmp_path) == []
    assert probe.is_free(name_server)
    assert not folder.exists()
    assert run("down", home=tmp_path, AMQP_URL=taken).stdout.startswith("Nothing to end")
    assert broker.is_ready()


def test_down_ends_the_one_at_the_address_and_deletes_on_a_persons_word(tmp_path: Path) -> None:
    """Of two brokers of one home the other goes on, with its data; what can't be had back is asked for first, and where
    nobody can be asked it stays."""
    ports = free_ports(4)
    urls = []
    try:
        for port, management_port in (ports[:2], ports[2:]):
            up = run("up", "--port", str(port), "--management-port", str(management_port), home=tmp_path)
            assert up.returncode == 0, up.stderr
            urls.append(up.stdout.splitlines()[0])
        first, second = urls
        unasked = run("down", "--delete-data", home=tmp_path, AMQP_URL=first)
        assert unasked.returncode == 2
        assert f"localhost:{ports[0]}" in unasked.stderr
        assert f"localhost:{ports[2]}" not in unasked.stderr
        assert "--yes" in unasked.stderr
        assert [probe.ask(url) for url in urls] == [Answer.READY, Answer.READY]
        answered = run("down", "--delete-data", home=tmp_path, AMQP_URL=first, answer="y\n")
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout.splitlines() == [
            f"ended {without_password(first)}",
            f"Still running: {without_password(second)} (--amqp-url ends one, --all ends every one)",
        ]
        assert not (tmp_path / str(ports[0])).exists()
        assert probe.ask(second) is Answer.READY
    finally:
        everything = run("down", "--all", home=tmp_path)
    assert everything.stdout == f"ended {without_password(second)}\n"
    assert (tmp_path / str(ports[2]) / "data").is_dir()
    assert traces_of(tmp_path) == []


def test_an_ordinary_user_starts_one_too() -> None:
    """No root, no sudo, nothing under /etc or /var."""
    if os.geteuid() != 0:
        pytest.skip("every other test here already runs as an ordinary user")
    if "ON_RABBITMQ_4" in os.environ:
        pytest.skip("a broker in a chroot is for root alone to start: tests/on-rabbitmq-4")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="warren-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        for package in ("broker", "deploy"):  # the checkout itself may be closed to others
            shutil.copytree(Path(__file__).parents[2] / package, home / "source" / package)
        port, management_port = free_ports(2)
        ports = ["--port", str(port), "--management-port", str(management_port)]
        up = _run_as(nobody, "up", *ports, home=home)
        try:
            assert up.returncode == 0, up.stderr
            assert probe.ask(up.stdout.splitlines()[0]) is Answer.READY
            assert (home / str(port)).stat().st_uid == nobody.pw_uid
        finally:
            down = _run_as(nobody, "down", "--all", home=home)
        assert down.returncode == 0, down.stderr
        assert traces_of(home) == []


def _run_as(user: pwd.struct_passwd, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    own = [str(user.pw_gid), str(user.pw_uid), *arguments, "--home", str(home)]
    return subprocess.run(
        [sys.executable, "-c", _AS_ORDINARY_USER, *own],
        env=_environment({"HOME": str(home)}) | {"PYTHONPATH": str(home / "source")},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def test_a_port_that_an_outgoing_connection_holds_is_named(tmp_path: Path) -> None:
    """Nobody listens there, so that no probe sees it; RabbitMQ's hundred last lines would not say what was wrong."""
    port, management_port = free_ports(2)
    with socket.socket() as mine, socket.create_server(("127.0.0.1", 0)) as server:
        mine.bind(("127.0.0.1", port))
        mine.connect(server.getsockname())
        broker = PrivateBroker(home=tmp_path, port=port, management_port=management_port)
        with pytest.raises(BrokerUnreachable, match=f"port {port} is in use"):
            broker.start()
    assert not broker.is_running()


def test_a_free_port_is_none_of_those_for_outgoing_connections() -> None:
    """One of those would be taken by any client before a server listens there, or between its death and its restart."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(10_000 <= port < lowest for port in free_ports(50))


def test_a_container_is_preferred_and_taken_down_again(tmp_path: Path) -> None:
    """Where an engine runs, `up` starts the compose file with it, and `down` ends it."""
    port, _ = free_ports(2)
    url = f"amqp://guest:guest@localhost:{port}/%2F"
    path = _path_with_fake_engine(tmp_path, broker_home=tmp_path / "inside")
    home = tmp_path / "home"
    up = run("up", home=home, AMQP_URL=url, PATH=path)
    assert up.returncode == 0, up.stderr
    assert up.stdout.splitlines()[0] == url
    assert "container" in up.stderr
    down = run("down", home=home, AMQP_URL=url, PATH=path)
    assert down.stdout == f"ended amqp://guest@localhost:{port}/%2F\n"
    assert traces_of(tmp_path) == []
    calls = (tmp_path / "calls").read_text()
    assert "compose.yaml up --detach --wait" in calls
    assert "compose.yaml down" in calls
    assert "--volumes" not in calls
    assert run("down", "--delete-data", "--yes", home=home, AMQP_URL=url, PATH=path).returncode == 0
    assert (tmp_path / "calls").read_text().endswith("compose.yaml down --volumes\n")
    assert not list(home.glob("container*"))


def test_a_container_with_another_login_in_its_data_is_named(tmp_path: Path) -> None:
    """No other broker is started in its place: the queues and accounts that are wanted are in that one."""
    (port,) = free_ports(1)
    path = _path_with_fake_engine(tmp_path, broker_home=tmp_path / "inside")
    home = tmp_path / "home"
    url = f"amqp://alice:secret@localhost:{port}/%2F"
    up = run("up", home=home, AMQP_URL=url, PATH=path)
    assert up.returncode == 3
    assert "refused the login" in up.stderr
    assert "broker down --delete-data" in up.stderr
    assert "secret" not in up.stderr
    assert traces_of(tmp_path) == []
    assert run("down", "--delete-data", "--yes", home=home, AMQP_URL=url, PATH=path).returncode == 0
    assert (tmp_path / "calls").read_text().endswith("compose.yaml down --volumes\n")


def test_a_container_in_use_and_a_private_brokers_data_are_left_as_they_are(tmp_path: Path) -> None:
    """The engine runs one broker: a second address gets a private one, and that one stays private later on."""
    first, second = (f"amqp://guest:guest@localhost:{port}/%2F" for port in free_ports(2))
    path = _path_with_fake_engine(tmp_path, broker_home=tmp_path / "inside")
    home = tmp_path / "home"
    try:
        assert "our container's broker" in run("up", home=home, AMQP_URL=first, PATH=path).stderr
        assert "our private broker" in run("up", home=home, AMQP_URL=second, PATH=path).stderr
        assert [probe.ask(url) for url in (first, second)] == [Answer.READY, Answer.READY]
        assert run("down", home=home, AMQP_URL=first, PATH=path).returncode == 0
        assert "our private broker" in run("up", home=home, AMQP_URL=second, PATH=path).stderr
    finally:
        run("down", home=home, AMQP_URL=second, PATH=path)
    assert traces_of(tmp_path) == []


def _path_with_fake_engine(folder: Path, *, broker_home: Path) -> str:
    """A `docker` that knows compose files, but runs the broker as a process."""
    engine = folder / "bin" / "docker"
    engine.parent.mkdir()
    python = f"{sys.executable} -m broker"
    engine.write_text(
        textwrap.dedent(
            f"""\
            #!/bin/sh
            echo "$@" >>{folder}/calls
            unset AMQP_URL
            ports="--port $WARREN_PORT --management-port $WARREN_MANAGEMENT_PORT"
            case "$*" in
              *" up "*) exec {python} up $ports --home {broker_home} ;;
              *" down") exec {python} down --all --home {broker_home} ;;
            esac
            """
        )
    )
    engine.chmod(0o755)
    return f"{engine.parent}:{os.environ['PATH']}"


def _path_without_engines(folder: Path) -> str:
    """A PATH on which docker and podman say that they do not run."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name in ("docker", "podman"):
        (bin_folder / name).write_text("#!/bin/sh\nexit 1\n")
        (bin_folder / name).chmod(0o755)
    return f"{bin_folder}:{os.environ['PATH']}"


def test_without_anything_up_says_what_to_install(tmp_path: Path) -> None:
    """One clear message, exit code 3, and nothing half-written."""
    script = (
        "import broker.hosting.private as private; private._PROGRAMS = (); "
        "from broker.cli import main; main(prog_name='broker')"
    )
    port, _ = free_ports(2)
    answer = subprocess.run(
        [sys.executable, "-c", script, "up", "--port", str(port), "--home", str(tmp_path)],
        env=_environment({"PATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert answer.returncode == 3
    assert "apt-get install rabbitmq-server" in answer.stderr
    assert not (tmp_path / str(port)).exists()


def test_an_address_elsewhere_that_does_not_answer_is_no_reason_to_start_one_here(tmp_path: Path) -> None:
    """Whoever names another machine's broker wants that one."""
    answer = run("up", home=tmp_path, AMQP_URL="amqps://me:secret@broker.invalid/lab")
    assert answer.returncode == 3
    assert "broker.invalid" in answer.stderr
    assert "secret" not in answer.stderr


def test_the_probe_tells_four_answers_apart(broker: PrivateBroker) -> None:
    """READY needs login and virtual host; a web server is FOREIGN; a closed port is NOTHING."""
    ready = broker.amqp_url
    (closed,) = free_ports(1)
    assert probe.ask(ready) is Answer.READY
    assert probe.ask(ready.replace("guest@", "wrong@")) is Answer.REFUSED
    assert probe.ask(ready.replace("%2F", "no-such-vhost")) is Answer.REFUSED
    assert probe.ask(f"amqp://localhost:{broker.management_port}/") is Answer.FOREIGN
    assert probe.ask(f"amqp://localhost:{closed}/") is Answer.NOTHING
