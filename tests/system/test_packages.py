"""What a hospital installs: a wheel with everything in it, and a lock that fits every Python that is meant."""

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.hosting.private import free_ports
from tests.brokers import need_rabbitmq

ROOT = Path(__file__).parents[2]
_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A virtual environment with the wheel in it, outside of the source, and who uses it."""

    folder: Path
    user: str

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment, as an ordinary user in an empty folder."""
        return subprocess.run(
            [self.folder / "venv" / "bin" / words[0], *words[1:]],
            cwd=self.folder / "home",
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder / "home"), "LANG": "C.UTF-8"},
            user=self.user,
            group=pwd.getpwnam(self.user).pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    """Warren's wheel, built from a copy of the source; what it rests on is looked up where the tests have it."""
    if os.geteuid() != 0:
        pytest.skip("only root can become an ordinary user")
    folder = Path(tempfile.mkdtemp(prefix="wheel-"))  # pytest's own folders are root's alone
    try:
        folder.chmod(0o755)
        user = pwd.getpwnam("nobody")
        _install(folder, _python_of(user.pw_name))
        (folder / "home").mkdir()
        os.chown(folder / "home", user.pw_uid, user.pw_gid)
        yield Installed(folder=folder, user=user.pw_name)
    finally:
        shutil.rmtree(folder)


def _python_of(user: str) -> str:
    """An interpreter like this one that the user may run: this one may lie in root's own folders."""
    same = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, same):
        runs = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
        try:
            done = subprocess.run([python, "-c", runs], user=user, cwd="/", capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            return python
    pytest.skip("no interpreter of this version that an ordinary user may run")


def _install(folder: Path, python: str) -> None:
    unwanted = shutil.ignore_patterns(".*", "tests", "runs", "sites", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    pip = [sys.executable, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", "wheels", "./source"]
    subprocess.run(wheel, cwd=folder, check=True, timeout=_SECONDS)
    subprocess.run([python, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=_SECONDS)
    (found,) = (folder / "wheels").iterdir()
    target = [
        *pip,
        "--python",
        str(folder / "venv" / "bin" / "python"),
        "install",
        "--no-deps",
        "--force-reinstall",
        str(found),
    ]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(target, cwd=folder, env=alone, check=True, timeout=_SECONDS)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Only a path: an editable install of this very tree that stands there is not followed.
    (packages / "tested.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(folder / "source")


def test_the_wheel_has_everything_that_running_it_needs(installed: Installed) -> None:
    """The compose file, the settings, the walk through the page, the deployments and the documents."""
    script = "import deploy, pathlib; print(pathlib.Path(deploy.__file__).parent)"
    said = installed.run("python", "-c", script)
    assert said.returncode == 0, said.stderr
    folder = Path(said.stdout.strip())
    assert folder.is_relative_to(installed.folder)
    own = {str(path.relative_to(ROOT / "deploy")) for path in (ROOT / "deploy").rglob("*") if path.is_file()}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    unpacked = {name for name in own if "__pycache__" not in name}
    assert unpacked - there == set()


def test_a_broker_comes_up_from_the_wheel_for_an_ordinary_user(installed: Installed) -> None:
    """With no source beside it, and nothing written but below the user's home."""
    need_rabbitmq()
    port, management_port = free_ports(2)
    up = installed.run("broker", "up", "--port", str(port), "--management-port", str(management_port))
    try:
        assert up.returncode == 0, up.stderr
        assert f"localhost:{port}" in up.stdout
    finally:
        down = installed.run("broker", "down", "--all")
    assert down.returncode == 0, down.stderr
    for words in (("coordinator", "--help"), ("worker", "--help")):
        assert installed.run(*words).returncode == 0


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_lock_has_a_wheel_for_every_python(version: str, tmp_path: Path) -> None:
    """Nothing is built at a hospital, and every hash is one of the lock's; nothing is fetched to see that."""
    dry = ["pip", "install", "--dry-run", "--python-version", version, "--target", str(tmp_path), "--no-deps"]
    strict = ["--only-binary", ":all:", "--require-hashes", "--requirement", "requirements-runtime.lock"]
    uv = Path(sys.executable).parent / "uv"
    done = subprocess.run(
        [uv, "--no-config", *dry, *strict],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    if "error sending request" in done.stderr:
        pytest.skip("no registry of packages answers")
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stderr
