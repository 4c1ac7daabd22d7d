"""A rabbitmq-server of one's own: own node name, ports, data and log; nothing of the system's is touched."""

import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from broker.errors import BrokerError, BrokerUnreachable
from broker.hosting import probe
from broker.hosting.encryption import Encryption
from broker.hosting.management import Management
from broker.link.access import Access

logger = logging.getLogger(__name__)

_RECORD = "broker.json"
_SETTINGS, _OWN_SETTINGS = "rabbitmq.conf", "conf.d/own.conf"
_HEADER = f"# Written by `broker up`. Put settings of your own into {_OWN_SETTINGS}: read last, and never overwritten."
_CONSOLE = "console.log"
MAIN_PID = "main.pid"  #: whose end is the end of it: what systemd watches
_MARK = "-warren_home"  # Erlang ignores this flag; by it our processes are found again, and no others
_PROC = Path("/proc")
_PROGRAMS = (
    # Debian's scripts in /usr/sbin refuse everybody but root and the user rabbitmq; these do not.
    Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),
    Path("/opt/homebrew/sbin/rabbitmq-server"),
    Path("/usr/local/sbin/rabbitmq-server"),
    Path("/home/linuxbrew/.linuxbrew/sbin/rabbitmq-server"),
)
_LOWEST_PORT = 10_000
_PORTS = ("listeners.tcp.1 = 127.0.0.1:", "management.tcp.port = ")  #: of the settings that are ours
_TAKEN = re.compile(r'could_not_start_listener,"[^"]*",(\d+),[^\n]*eaddrinuse')
_KILL_EPMD = b"\x00\x01k"  # epmd's own protocol: KILL_REQ; it refuses while a node is registered


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateBroker:
    """One rabbitmq-server of our own, on loopback or encrypted; it outlives the process that starts it.

    Attributes:
        home: Absolute folder of its data, log, settings, cookie and record.
        port: Where it speaks AMQP.
        management_port: Where its management page is.
        user: The account that its first start creates, an administrator.
        password: That account's password.
        vhost: The virtual host that its first start creates.
        conf: More lines for rabbitmq.conf, such as "consumer_timeout = 1000".
        erlang: More arguments for Erlang, such as "-rabbit channel_tick_interval 1000".
        encryption: TLS and what it listens on; None: loopback alone, without.
        cluster: The ports of all nodes of its cluster, this one's among them; empty: it is alone.
        epmd_port: Where the nodes of its cluster share Erlang's name server; None: it has one of its own.
    """

    home: Path
    port: int
    management_port: int
    user: str = "guest"
    password: str = "guest"  # noqa: S105 - RabbitMQ's own default, which it accepts from loopback alone
    vhost: str = "/"
    conf: tuple[str, ...] = ()
    erlang: tuple[str, ...] = ()
    encryption: Encryption | None = None
    cluster: tuple[int, ...] = ()
    epmd_port: int | None = None

    def __post_init__(self) -> None:
        if not self.home.is_absolute():
            raise BrokerError(f"A broker's home is an absolute folder. Received {self.home}.")

    @property
    def node(self) -> str:
        """Erlang's name for it; the data belong to this name."""
        return f"warren{self.port}@localhost"

    @property
    def amqp_url(self) -> str:
        """Its address, with the login."""
        scheme = "amqps" if self.encryption else "amqp"
        return f"{scheme}://{self.login}@{self._host}:{self.port}/{quote(self.vhost, safe='')}"

    @property
    def management_url(self) -> str:
        """Its management API's address, with the login."""
        scheme = "https" if self.encryption else "http"
        return f"{scheme}://{self.login}@{self._host}:{self.management_port}"

    @property
    def access(self) -> Access:
        """How its administrator reaches it from this machine."""
        ca = self.encryption.ca if self.encryption else None
        return Access(amqp_url=self.amqp_url, ca=ca, management_url=self.management_url)

    @property
    def _host(self) -> str:
        name = self.encryption.local_name if self.encryption else "localhost"
        return f"[{name}]" if ":" in name else name

    @property
    def login(self) -> str:
        """Its administrator's, percent-encoded, as an address has it."""
        return f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"

    def start(self, *, seconds: float = 60) -> None:
        """Start it on the data that are there, unless it runs, and wait until it is ready.

        Raises:
            BrokerUnreachable: No rabbitmq-server is installed, or it was not ready in time.
        """
        self.launch()
        self.await_ready(seconds)

    def launch(self) -> None:
        """Start it unless it runs, and don't wait.

        Raises:
            BrokerUnreachable: No rabbitmq-server is installed.
        """
        if not self.is_running():
            program = find_program()
            self._end_own_epmd()  # left behind by a broker that was killed
            self._prepare()
            self._launch(program)

    def stop(self, *, seconds: float = 30) -> None:
        """End it as RabbitMQ wants to be ended, by force after `seconds`; nothing is left behind."""
        self._signal(signal.SIGTERM)
        if wait_until(lambda: not self.is_running(), seconds):
            self._end_own_epmd()
        else:
            self.kill()

    def kill(self) -> None:
        """End it at once, as a power cut would; the data stay as they are."""
        self._signal(signal.SIGKILL)
        wait_until(lambda: not self.is_running(), 10)
        self._end_own_epmd()

    @property
    def has_data(self) -> bool:
        """Whether it ever ran, so that there are queues and accounts of it."""
        return (self.home / "data").is_dir()

    def is_running(self) -> bool:
        """Whether a process of this broker is there, ready or not."""
        return bool(_pids(self.home))

    def is_ready(self) -> bool:
        """Whether it takes the login, and its management API answers."""
        tls = self.access.tls()
        if probe.ask(self.amqp_url, seconds=2, tls=tls) is not probe.Answer.READY:
            return False
        return Management(self.management_url, timeout_seconds=2, tls=tls).is_ready()

    def last_lines(self, count: int = 15) -> str:
        """The end of what it said, for an error message."""
        logs = [self.home / _CONSOLE, *sorted((self.home / "log").glob("*.log"))]
        lines = [
            line for log in logs if log.exists() for line in log.read_text(errors="replace").splitlines()
        ]
        return "\n".join(lines[-count:])

    @classmethod
    def recorded(cls, home: Path) -> "PrivateBroker | None":
        """The broker that was started in this folder, whether it still runs or not."""
        fields = _read_record(home).get("broker")
        if fields is None:
            return None
        lists = {name: tuple(fields.get(name, ())) for name in ("conf", "erlang", "cluster")}
        if given := fields.get("encryption"):
            given = Encryption(**{**given, "names": tuple(given["names"])})
        return cls(**{**fields, "home": home, **lists, "encryption": given})

    def _prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)  # the cookie and the record are secrets
        shared = resources.files("deploy").joinpath("rabbitmq.conf").read_text()
        self._write_settings("\n".join([_HEADER, shared, *self._listeners(), *self.conf, ""]))
        plugins = ["rabbitmq_management", *(self.encryption.plugins if self.encryption else [])]
        self._write("enabled_plugins", f"[{','.join(plugins)}].\n")
        self._write("env.conf", "")
        self._write(_CONSOLE, "")  # each start has its own

    def _listeners(self) -> list[str]:
        if self.encryption is not None:
            return self.encryption.lines(self.port, self.management_port)
        return [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {self.management_port}",
        ]

    def _write_settings(self, text: str) -> None:
        """Write rabbitmq.conf; lines that somebody put there by hand move to a file that counts more, and stays."""
        path, copy, own = self.home / _SETTINGS, self.home / f"{_SETTINGS}.written", self.home / _OWN_SETTINGS
        own.parent.mkdir(exist_ok=True)
        ours = copy.read_text() if copy.exists() else text
        if path.exists() and (edits := _added(path.read_text(), ours)):
            with own.open("a") as file:
                file.writelines(f"{line}\n" for line in edits)
            logger.warning("%s was edited by hand: what was added is kept in %s", path, own)
        for each in (path, copy):
            each.write_text(text)

    def _write(self, name: str, text: str) -> None:
        (self.home / name).write_text(text)

    def _launch(self, program: Path) -> None:
        epmd_port, node_port = free_ports(2)
        epmd_port = self.epmd_port or epmd_port
        record = {"broker": {**asdict(self), "home": str(self.home)}, "epmd_port": epmd_port}
        self._write(_RECORD, json.dumps(record, indent=2))
        # The shell lets go of it: no child of this process, no terminal, no open pipe.
        detached = f'"$@" >>{_CONSOLE} 2>&1 </dev/null & echo $! >{MAIN_PID}'
        subprocess.run(
            ["/bin/sh", "-c", detached, "sh", program, _MARK, self.home],
            cwd=self.home,
            env=self._environment(epmd_port, node_port),
            start_new_session=True,
            check=True,
        )

    def _environment(self, epmd_port: int, node_port: int) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))
        }
        home = self.home
        own = {
            "HOME": home,
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_CONF_ENV_FILE": home / "env.conf",
            "RABBITMQ_CONFIG_FILE": home / "rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": home / "conf.d/*.conf",  # otherwise those under /etc are read
            "RABBITMQ_ADVANCED_CONFIG_FILE": home / "advanced.config",  # the same
            "RABBITMQ_ENABLED_PLUGINS_FILE": home / "enabled_plugins",
            "RABBITMQ_MNESIA_BASE": home / "data",
            "RABBITMQ_LOG_BASE": home / "log",
            "RABBITMQ_GENERATED_CONFIG_DIR": home / "generated",
            "RABBITMQ_PID_FILE": home / "pid",
            "RABBITMQ_DEFAULT_USER": self.user,
            "RABBITMQ_DEFAULT_PASS": self.password,
            "RABBITMQ_DEFAULT_VHOST": self.vhost,
            "RABBITMQ_DIST_PORT": node_port,
            "ERL_EPMD_PORT": epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
                ["-kernel inet_dist_use_interface {127,0,0,1}", *self.erlang]
            ),
        }
        return inherited | {name: str(value) for name, value in own.items()}

    def await_ready(self, seconds: float) -> None:
        """Wait until it is ready.

        Raises:
            BrokerUnreachable: It was not in time, and is ended.
        """
        ended = wait_until(lambda: self.is_ready() or self._has_ended(), seconds)
        if ended and self.is_running():
            return
        self.kill()
        happened = "ended while it started" if ended else f"was not ready after {seconds:.0f} seconds"
        if taken := _TAKEN.search((self.home / _CONSOLE).read_text(errors="replace")):
            raise BrokerUnreachable(
                f"The private rabbitmq-server on port {self.port} {happened}: port {taken[1]} is in use. "
                "Try `broker up --port` or `--management-port` with another one."
            )
        raise BrokerUnreachable(
            f"The private rabbitmq-server on port {self.port} {happened}. "
            f"Its last words:\n{self.last_lines()}\n"
            f"More is in {self.home / 'log'}. Try `broker up --port` with another port."
        )

    def _has_ended(self) -> bool:
        """Whether no process is there for a while: one that is just exec'ing has no command line."""
        return not wait_until(self.is_running, 0.5)

    def _signal(self, number: int) -> None:
        for pid in _pids(self.home):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # gone in between

    def _end_own_epmd(self) -> None:
        if self.epmd_port is None:
            self.end_epmd()

    def end_epmd(self) -> None:
        """End Erlang's name server, which every node starts and none ends."""
        record = _read_record(self.home)
        port = record.pop("epmd_port", None)
        if port is not None:
            wait_until(lambda: not _asked_to_end(port), 5)
            self._write(_RECORD, json.dumps(record, indent=2))


def _added(text: str, ours: str) -> list[str]:
    """The lines of settings that are not ours; where Warren wrote them without a copy, ports are."""
    known = set(ours.splitlines())
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [line for line in lines if line not in known and not line.startswith(_PORTS)]


def find_program() -> Path:
    """The rabbitmq-server to start.

    Raises:
        BrokerUnreachable: None is installed.
    """
    for program in _PROGRAMS:
        if program.exists():
            return program
    found = shutil.which("rabbitmq-server")
    if found is None:
        raise BrokerUnreachable(
            "There is no broker: nothing usable at the AMQP URL, no container engine, no rabbitmq-server. "
            "Try `apt-get install rabbitmq-server` (Debian, Ubuntu) or "
            "`brew install rabbitmq` (macOS); or start Docker; or set AMQP_URL to a broker that runs."
        )
    return Path(found)


def is_installed() -> bool:
    """Whether there is a rabbitmq-server to start."""
    try:
        find_program()
    except BrokerUnreachable:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing uses now.

    They are below those that the system gives to outgoing connections: one of these would be gone again before a server
    listens there, and while a server that was killed is started anew.
    """
    candidates = random.sample(range(_LOWEST_PORT, _first_outgoing_port()), k=100 * count)
    with ExitStack() as held:
        free: list[int] = []
        while len(free) < count:
            each = held.enter_context(socket.socket())
            try:
                each.bind(("127.0.0.1", candidates.pop()))
            except OSError:
                continue
            free.append(each.getsockname()[1])
        return free


def _first_outgoing_port() -> int:
    try:
        return int((_PROC / "sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768


def wait_until(condition: Callable[[], bool], seconds: float, *, pause_seconds: float = 0.05) -> bool:
    """Whether the condition came true within this many seconds."""
    pause = threading.Event()
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        pause.wait(pause_seconds)
    return True


def _read_record(home: Path) -> dict[str, Any]:
    try:
        record = json.loads((home / _RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _asked_to_end(epmd_port: int) -> bool:
    """Whether an epmd was still there to be asked to end."""
    try:
        with socket.create_connection(("127.0.0.1", epmd_port), timeout=2) as stream:
            stream.sendall(_KILL_EPMD)
            stream.recv(2)
    except OSError:
        return False
    return True


def _pids(home: Path) -> list[int]:
    """The processes of the broker in this folder; a finished one that nobody fetched does not count."""
    if (_PROC / "self" / "cmdline").exists():
        wanted = f"\0{_MARK}\0{home}\0".encode()
        return [int(entry.name) for entry in _PROC.glob("[0-9]*") if wanted in _command(entry)]
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,command="], capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in listed.stdout.splitlines()]
    return [int(line.split()[0]) for line in lines if f" {_MARK} {home} " in f"{line} "]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""  # gone in between
