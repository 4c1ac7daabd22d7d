"""Debian machines for the tests: each a systemd of its own over one bare Debian, and a network that only they are in.

They are containers of systemd-nspawn, which share the kernel and nothing else: own processes, services, journal and
address. A machine can be rebooted, and is gone at the end with everything that it wrote.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from broker.hosting.private import wait_until

#: What a bare Debian has beyond its smallest form: a machine that boots, and has an address.
_BARE = "systemd,systemd-sysv,dbus,iproute2,ca-certificates"
_PROGRAMS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container", "ip": "iproute2"}
_SUITE = "bookworm"
_BOOT_SECONDS = 300.0


@dataclass(kw_only=True)
class Machine:
    """One machine.

    Attributes:
        name: Its host name.
        address: Its only one; the network is that of the other machines.
        folder: Where its disk is: what it wrote, over the bare Debian.
        namespace: Its network's name.
        shared: A folder of this machine that it may read, at /srv/shared.
    """

    name: str
    address: str
    folder: Path
    namespace: str
    shared: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def disk(self) -> Path:
        """Its root, as seen from here."""
        return self.folder / "root"

    def boot(self) -> None:
        """Start it, and wait until all its services are there."""
        console = (self.folder / "console").open("ab")
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe",
                   f"--directory={self.disk}", f"--machine={self.name}", "--resolv-conf=off", "--timezone=off",
                   f"--bind-ro={self.shared}:/srv/shared",
                   f"--network-namespace-path=/run/netns/{self.namespace}"]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
        )
        console.close()
        assert wait_until(self._is_up, _BOOT_SECONDS), (self.folder / "console").read_text(errors="replace")

    def power_off(self) -> None:
        """As by its button: services are stopped in order."""
        if self._process is not None:
            if self._leader():
                self._enter("systemctl", "poweroff", "--no-block")
            self._process.wait(timeout=400)
            self._process = None

    def reboot(self) -> None:
        """Off and on again."""
        self.power_off()
        self.boot()

    def cut(self) -> None:
        """As a power cut: nothing is stopped in order, nothing is said."""
        assert self._process is not None
        leader = self._leader()
        os.kill(leader, 9)
        self._process.wait(timeout=60)
        self._process = None

    def run(self, script: str, *, user: str = "root", seconds: float = 600) -> str:
        """Run a script as a person does who logged in; its output, errors included.

        Raises:
            AssertionError: A command of it failed.
        """
        done = self.try_run(script, user=user, seconds=seconds)
        assert done.returncode == 0, (
            f"{self.name}, {user}:\n{script}\n{done.stdout}\nexit code {done.returncode}"
        )
        return done.stdout

    def try_run(
        self, script: str, *, user: str = "root", seconds: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        login = ["su", "--shell", "/bin/bash", "--login", user, "-c", "bash -euo pipefail -s"]
        return self._enter(*login, given=script, seconds=seconds)

    def has(self, line: str, unit: str) -> bool:
        """Whether the journal of a unit says this."""
        return line in self.run(f"journalctl --no-pager --output cat --unit {unit}")

    def _enter(self, *command: str, given: str = "", seconds: float = 60) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", "--target", str(self._leader()), "--all", "--wdns=/root"]
        clean = ["env", "--ignore-environment", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb"]
        return subprocess.run(
            [*inside, *clean, *command], input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip

    def _leader(self) -> int:
        """The machine's first process, as numbered here; 0: it has none."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = children.read_text().split() if children.exists() else []
        return int(found[0]) if found else 0

    def _is_up(self) -> bool:
        if not self._leader():
            return False
        said = self._enter("systemctl", "is-system-running").stdout.strip()
        return said in ("running", "degraded")


@contextmanager
def network(bare: Path, shared: Path, folder: Path, names: tuple[str, ...]) -> Iterator[dict[str, Machine]]:
    """Machines with these names, switched on, in a network of their own; all of it is gone at the end."""
    lan = f"warren-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        _add_namespace(lan, stack)
        _do("ip", "-n", lan, "link", "add", "bridge", "type", "bridge")
        _do("ip", "-n", lan, "link", "set", "bridge", "up")
        machines = {}
        for number, name in enumerate(names, start=1):
            namespace = f"{lan}-{name}"
            _add_namespace(namespace, stack)
            _plug(lan, namespace, number)
            place = folder / name
            stack.enter_context(_disk(bare, place))
            machine = Machine(
                name=name, address=f"10.77.0.{number}", folder=place, namespace=namespace, shared=shared
            )
            _name(machine)
            stack.callback(machine.power_off)
            machine.boot()
            machines[name] = machine
        yield machines


def _add_namespace(name: str, stack: ExitStack) -> None:
    _do("ip", "netns", "add", name)
    stack.callback(_do, "ip", "netns", "delete", name)


def _plug(lan: str, namespace: str, number: int) -> None:
    """A cable between the machine's only card, and the bridge; it goes with either end."""
    _do(
        "ip",
        "-n",
        lan,
        "link",
        "add",
        f"port{number}",
        "type",
        "veth",
        "peer",
        "name",
        "lan",
        "netns",
        namespace,
    )
    _do("ip", "-n", lan, "link", "set", f"port{number}", "master", "bridge", "up")
    _do("ip", "-n", namespace, "address", "add", f"10.77.0.{number}/24", "dev", "lan")
    for card in ("lo", "lan"):
        _do("ip", "-n", namespace, "link", "set", card, "up")


def _name(machine: Machine) -> None:
    """As Debian's installer does."""
    (machine.disk / "etc/hostname").write_text(f"{machine.name}\n")
    (machine.disk / "etc/hosts").write_text(f"127.0.0.1\tlocalhost\n127.0.1.1\t{machine.name}\n")


@contextmanager
def _disk(bare: Path, place: Path) -> Iterator[None]:
    """What the machine writes lies over the bare Debian, which stays as it is."""
    written, work, root = (place / each for each in ("written", "work", "root"))
    for each in (written, work, root):
        each.mkdir(parents=True)
    layers = f"lowerdir={bare},upperdir={written},workdir={work}"
    _do("mount", "-t", "overlay", "overlay", "-o", layers, str(root))
    try:
        yield
    finally:
        _do("umount", str(root))
        shutil.rmtree(place)


def bare_debian(folder: Path, packages: tuple[str, ...]) -> Path:
    """A bare Debian 12 in a folder, made unless it is there; these packages lie ready for its apt, not installed."""
    whole = folder / "whole"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _do("debootstrap", "--variant=minbase", f"--include={_BARE}", _SUITE, str(folder), *_mirror())
        apt = ["chroot", str(folder), "apt-get"]
        _do(*apt, "update")
        _do(*apt, "install", "--yes", "--no-install-recommends", "--download-only", *packages)
        whole.touch()
    return folder


def _mirror() -> list[str]:
    """Where this machine's own apt gets Debian from; nothing: debootstrap's default."""
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    ).stdout.split("\n")  # fmt: skip
    return [line.split()[1] for line in lines if line.startswith(f"{_SUITE} ")][:1]


def need_machines() -> None:
    """Skip, and say why, where none can be had."""
    if os.geteuid() != 0:
        pytest.skip("only root can start machines")
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here: apt-get install {package}")


def _do(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
