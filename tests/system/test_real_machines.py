"""deploy/README.md on bare Debian machines: its blocks for root as they stand, and the services as systemd runs them.

A university, a hospital with two sites and a machine to move to; each chapter goes on from the one before. What is
fetched once, the bare Debian and the folder of wheels, is kept in build/walk.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.brokers import wait_until
from tests.machines import Machine, bare_debian, need_machines, network

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "walk"
NAME = "fl.example.org"
HOME = "/var/lib/warren"
_INSTALL_SECONDS = 1800
_SECONDS = 600
#: What is asked of the page through nginx, by a machine with the authority's certificate and the token.
_ASK = """
import ssl, sys, urllib.error, urllib.request
path, *token = sys.argv[1:]
asked = urllib.request.Request(f"https://fl.example.org{path}", headers={"X-Warren-Token": each for each in token})
try:
    context = ssl.create_default_context(cafile="/srv/shared/page-ca.pem")
    print(urllib.request.urlopen(asked, context=context).status)
except urllib.error.HTTPError as exc:
    print(exc.code)
"""

pytestmark = pytest.mark.soak


def blocks() -> list[str]:
    """All blocks of shell in the guide, in their order."""
    text = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def marked() -> dict[str, str]:
    """The blocks for root on one of these machines, by their first line."""
    return {block.partition("\n")[0]: block for block in blocks() if block.startswith("# as root, at ")}


@dataclass(kw_only=True)
class Walk:
    """Who walks through the guide, and what was done so far."""

    machines: dict[str, Machine]
    shared: Path
    newer: Path
    done: set[str] = field(default_factory=set)
    university: str = "university"

    def as_root(self, machine: str, mark: str, **changed: str) -> None:
        """Do the block with this mark, as it stands but for the names that are changed."""
        (first,) = (line for line in marked() if line == f"# as root, at the {mark}")
        script = marked()[first]
        for old, new in changed.items():
            script = script.replace(old.replace("_", "-"), new)
        self.machines[machine].run(script, seconds=_INSTALL_SECONDS)
        self.done.add(first)

    def as_warren(self, machine: str, words: str) -> str:
        """Do the first block without a mark that has these words."""
        script = next(block for block in blocks() if words in block and not block.startswith("#"))
        return self.say(machine, script)

    def say(self, machine: str, script: str) -> str:
        """Commands of the account `warren`."""
        return self.machines[machine].run(script, user="warren", seconds=_SECONDS)

    def carry(self, file: str) -> None:
        """Hand a file of the university's over to the hospital: on a safe way."""
        hospital = self.machines["hospital"]
        shutil.copy(self.machines[self.university].disk / f"{HOME[1:]}/{file}", hospital.disk / HOME[1:])
        hospital.run(f"chown warren: {HOME}/{file}")

    def move(self, file: str) -> None:
        """Bring a file of root's from the old machine to the new one."""
        shutil.copy(self.machines["university"].disk / "root" / file, self.machines["archive"].disk / "root")

    def lead_name_to(self, machine: str) -> None:
        """What DNS does for the others."""
        address = self.machines[machine].address
        for each in self.machines.values():
            each.run(f"sed -i /{NAME}/d /etc/hosts; echo {address} {NAME} >>/etc/hosts")

    def status(self) -> str:
        """What `coordinator status` says; nothing while there is no answer."""
        words = "/opt/warren/bin/coordinator status --invitation /etc/warren/coordinator.toml"
        asked = self.machines[self.university].try_run(words)
        return asked.stdout if asked.returncode == 0 else ""

    def last_round(self) -> int:
        """The last round of the newest run that is closed; 0: none."""
        script = f"cat $(ls -td {HOME}/runs/*/ | head -1)/history.csv 2>/dev/null || true"
        rows = self.machines[self.university].run(script).split("\n")[1:-1]
        return int(rows[-1].partition(",")[0]) if rows else 0

    def goes_on(self) -> None:
        """Two more rounds close, from here on."""
        now = self.last_round()
        wait_until(lambda: self.last_round() >= now + 2, _SECONDS, what=f"round {now + 2}")

    def is_present(self, site: str) -> bool:
        """Whether a site is there, and not away."""
        return bool(re.search(rf"^{site} +(?!away)", self.status(), re.MULTILINE))

    def services(self, machine: str, *units: str) -> list[str]:
        """How these are."""
        said = self.machines[machine].try_run(f"systemctl is-active {' '.join(units)}").stdout
        return said.split()


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    """Three bare machines; wheels are carried to them, and one name leads to the university."""
    need_machines()
    bare = bare_debian(KEPT / "debian", ("python3-venv", "rabbitmq-server", "nginx-light"))
    shared = KEPT / "shared"
    _fetch(shared / "wheels")
    with TemporaryDirectory(prefix="machines-") as made:  # pytest's own are cleared by other sessions, too
        folder = Path(made)
        _build(folder, shared / "wheels")
        newer = folder / "newer"
        newer.mkdir()
        _build(folder, newer, release=".9")
        with network(bare, shared, folder, ("university", "hospital", "archive")) as machines:
            for machine in machines.values():
                machine.run("mkdir build && ln -s /srv/shared/wheels build/wheels")
            walker = Walk(machines=machines, shared=shared, newer=newer)
            walker.lead_name_to("university")
            yield walker


def _fetch(wheels: Path) -> None:
    """What Warren runs on, as `make wheelhouse` fetches it; the lock beside it says that all of it is there."""
    lock = ROOT / "requirements-runtime.lock"
    if (wheels / lock.name).exists() and (wheels / lock.name).read_bytes() == lock.read_bytes():
        return
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    strict = ["--only-binary", ":all:", "--require-hashes", "--requirement", str(lock), "--dest", str(wheels)]
    done = subprocess.run([*pip, *strict], capture_output=True, text=True, check=False, cwd="/")
    if done.returncode != 0:
        pytest.skip(f"the packages can't be had: {done.stderr[-500:]}")
    shutil.copy(lock, wheels)


def _build(folder: Path, wheels: Path, *, release: str = "") -> None:
    """Warren's own wheel, of a copy of the source; with another release's number if need be."""
    for former in wheels.glob("warren-*.whl"):
        former.unlink()
    source = folder / "source"
    unwanted = shutil.ignore_patterns(".*", "tests", "runs", "sites", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=unwanted)
    project = source / "pyproject.toml"
    version = re.compile(r'^version = "(\d+\.\d+\.\d+)[^"]*"', re.MULTILINE)
    if release:
        project.write_text(version.sub(rf'version = "\g<1>{release}"', project.read_text()))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    made = [*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", str(wheels), "./source"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    shutil.rmtree(source)


def test_a_university_is_set_up_and_others_reach_nothing_but_tls(walk: Walk) -> None:
    """Packages, account, wheels; broker and coordinator are started by systemd; invitations. Erlang's name server,
    which the distribution opens to everybody, is closed, too."""
    with ThreadPoolExecutor() as pool:  # the machine to move to does step 1, and waits
        list(pool.map(lambda name: walk.as_root(name, "university: install"), ("university", "archive")))
    walk.as_root("university", "university: the broker")
    walk.as_warren("university", "broker invite coordinator --invitation")
    walk.as_root("university", "university: the coordinator")
    walk.as_warren("university", "until coordinator status")
    assert "No run is under way" in walk.status()
    listening = walk.machines["university"].run("ss --no-header --listening --tcp --numeric")
    ports = re.findall(r"(?:0\.0\.0\.0|\*|\[::\]):(\d+)", listening)
    assert set(ports) == {"5671", "15671"}, listening


def test_the_page_is_reached_through_nginx_with_a_token_alone(walk: Walk) -> None:
    """The proxy of the guide, a certificate in its place, and the tokens from the service's file."""
    place = f"/etc/letsencrypt/live/{NAME}"
    university, hospital = walk.machines["university"], walk.machines["hospital"]
    university.run(
        f"mkdir -p {place} && cd {place} && /opt/warren/bin/broker certs --out . --name {NAME} &&"
        " mv server.pem fullchain.pem && mv server-key.pem privkey.pem"
    )
    walk.as_root("university", "university: the page")
    shutil.copy(university.disk / place[1:] / "ca.pem", walk.shared / "page-ca.pem")
    (walk.shared / "ask.py").write_text(_ASK)
    settings = (university.disk / "etc/warren/coordinator.env").read_text().split()
    token = dict(line.split("=") for line in settings)["WARREN_COORDINATOR_READ_TOKEN"]
    python = walk.machines["archive"].run  # the one that has a Python, as yet
    wait_until(lambda: python("python3 /srv/shared/ask.py /livez") == "200\n", 60, what="the page")
    assert python("python3 /srv/shared/ask.py /api/state") == "401\n"
    assert python(f"python3 /srv/shared/ask.py /api/state {token}") == "200\n"
    assert hospital.try_run("command -v python3").returncode != 0, "the hospital's machine is bare"


def test_a_hospital_registers_from_bare_debian(walk: Walk) -> None:
    """Install, check, service, until the worker says `registered`; how long that took is printed, as it depends on what
    else the machine does. Two sites on one machine are two instances."""
    begun = time.monotonic()
    walk.as_root("hospital", "hospital: install")
    for site in ("hospital-1", "hospital-2"):
        walk.carry(f"{site}.toml")
    walk.as_warren("hospital", "deploy.synthetic")
    assert "result         ready" in walk.as_warren("hospital", "worker check")
    for site in ("hospital-1", "hospital-2"):
        walk.as_root("hospital", "hospital: the worker", hospital_1=site)
        unit = f"warren-worker@{site}"
        hospital = walk.machines["hospital"]
        wait_until(lambda: hospital.has("Registered with", unit), _SECONDS, what=unit)  # noqa: B023 - at once
    print(f"a hospital, from bare Debian to registered: {time.monotonic() - begun:.0f} s")
    assert walk.is_present("hospital-1")
    assert walk.is_present("hospital-2")


def test_a_run_leaves_its_model_where_only_the_service_reads(walk: Walk) -> None:
    """No hardening stands in the way of TensorFlow, of the runs' folder or of a worker's; the journal has levels."""
    walk.as_warren("university", "coordinator launch mnist")
    wait_until(lambda: "No run is under way" in walk.status(), _SECONDS, what="the run's end")
    found = walk.machines["university"].run(f"stat -c '%U %a' {HOME}/runs/*/model.keras")
    assert found == "warren 600\n"
    kept = walk.machines["hospital"].run(f"stat -c '%U %a' {HOME}/workers/hospital-1/audit.jsonl")
    assert kept == "warren 600\n"
    levels = walk.machines["university"].run(
        "journalctl -u warren-coordinator -o json --output-fields PRIORITY"
    )
    assert '"PRIORITY":"6"' in levels


def test_what_is_stopped_has_not_failed_and_what_was_killed_is_started_again(walk: Walk) -> None:
    """A coordinator in mid-run ends with 143, a worker with 0, and both go on at the next start. A broker that is
    killed is there again without a hand."""
    university, hospital = walk.machines["university"], walk.machines["hospital"]
    launched = "coordinator launch mnist --invitation coordinator.toml --workers 2 --quorum 1 --rounds 1000"
    walk.say("university", launched)
    wait_until(lambda: walk.last_round() >= 1, _SECONDS, what="a round")
    for machine, unit, code in (
        (university, "warren-coordinator", 143),
        (hospital, "warren-worker@hospital-2", 0),
    ):
        machine.run(f"systemctl stop {unit}")
        shown = machine.run(f"systemctl show {unit} --property Result,ExecMainStatus,ActiveState")
        assert shown.split() == ["Result=success", f"ExecMainStatus={code}", "ActiveState=inactive"]
        machine.run(f"systemctl start {unit}")
    walk.goes_on()
    university.run("kill -9 $(pgrep beam.smp)")
    wait_until(lambda: university.has("Scheduled restart job", "warren-broker"), _SECONDS, what="a restart")
    walk.goes_on()


def test_a_backup_is_restored_while_the_workers_live_on(walk: Walk) -> None:
    """The broker's is taken while it is down, the runs' while they go on; rounds later both are put back, and the run
    goes on from there with both sites."""
    university = walk.machines["university"]

    def beginnings() -> list[str]:
        return re.findall(r"Going on after round (\d+)", university.run("journalctl -u warren-coordinator"))

    walk.as_root("university", "university: back up")
    backed_up, former = walk.last_round(), beginnings()
    walk.goes_on()
    later = walk.last_round()
    walk.as_root("university", "university: restore")
    wait_until(lambda: len(beginnings()) > len(former), _SECONDS, what="the run goes on")
    assert int(beginnings()[-1]) <= backed_up < later
    walk.goes_on()
    last = f"tail -n 1 {HOME}/runs/*-2/history.csv"
    both = "hospital-1 hospital-2"
    wait_until(lambda: both in university.run(last), _SECONDS, what="a round with both sites")


def test_a_reboot_and_a_power_cut_need_no_hand(walk: Walk) -> None:
    """The university's machine is rebooted in mid-run, the hospital's loses its power."""
    walk.machines["university"].reboot()
    walk.machines["hospital"].cut()
    walk.machines["hospital"].boot()
    walk.goes_on()
    units = ("warren-broker", "warren-coordinator", "nginx")
    assert walk.services("university", *units) == ["active"] * 3
    assert walk.services("hospital", "warren-worker@hospital-1", "warren-worker@hospital-2") == ["active"] * 2


def test_a_password_is_rotated(walk: Walk) -> None:
    """Revoked, invited again, put in place; the former login is refused, by exit code 3."""
    former = walk.machines["hospital"].run("cat /etc/warren/hospital-1.toml")
    walk.as_warren("university", "broker invite hospital-1 --invitation hospital-1-new.toml")
    walk.carry("hospital-1-new.toml")
    walk.as_root("hospital", "hospital: another password")
    wait_until(lambda: walk.is_present("hospital-1"), _SECONDS, what="hospital-1")
    walk.goes_on()
    assert former != walk.machines["hospital"].run("cat /etc/warren/hospital-1.toml")
    asked = "worker check --invitation hospital-1.toml --data digits.npz"
    refused = walk.machines["hospital"].try_run(asked, user="warren")
    assert (refused.returncode, "refused" in refused.stdout) == (3, True), refused.stdout


def test_a_site_is_removed_for_good(walk: Walk) -> None:
    """Gone from the status at once, and so are its account and queues; the run goes on without it."""
    row = re.compile("^hospital-2 ", re.MULTILINE)
    assert row.search(walk.status())
    walk.as_warren("university", "broker revoke hospital-2")
    wait_until(lambda: bool(said := walk.status()) and not row.search(said), 30, what="hospital-2 is gone")
    walk.as_root("hospital", "hospital: a site that goes")
    walk.goes_on()
    assert "hospital-2" not in walk.say("university", "broker status --json")


def test_coordinator_and_broker_move_to_another_machine(walk: Walk) -> None:
    """One after the other, in mid-run; the hospital's machine is not touched, and its name leads to the new one."""
    walk.as_root("university", "old machine: the coordinator")
    walk.move("coordinator.tgz")
    walk.as_root("archive", "new machine: the coordinator")
    walk.university = "archive"
    walk.goes_on()
    walk.as_root("university", "old machine: the broker")
    walk.move("broker.tgz")
    walk.as_root("archive", "new machine: the broker")
    walk.lead_name_to("archive")
    walk.goes_on()
    assert walk.services("university", "warren-broker", "warren-coordinator") == ["inactive"] * 2
    assert "hospital-1" in walk.say("archive", "broker status --json")


def test_both_sides_are_upgraded_in_a_run(walk: Walk) -> None:
    """First the university, then the hospital; each shows its new version, and no round is lost."""
    (new,) = walk.newer.iterdir()
    (former,) = (walk.shared / "wheels").glob("warren-*.whl")
    former.unlink()
    shutil.copy(new, walk.shared / "wheels")
    version = new.name.split("-")[1]
    walk.as_root("archive", "university: upgrade")
    walk.goes_on()
    row = re.compile(rf"^hospital-1 .*{re.escape(version)}(\s|$)", re.MULTILINE)
    assert not row.search(walk.status())  # a line below tells that the coordinator's is another one
    walk.as_root("hospital", "hospital: upgrade")
    wait_until(lambda: bool(row.search(walk.status())), _SECONDS, what=version)
    walk.goes_on()
    assert version in walk.machines["archive"].run("/opt/warren/bin/coordinator --version")


def test_every_block_for_root_was_walked(walk: Walk) -> None:
    """None stands in the guide that nobody tried."""
    assert walk.done == set(marked())
