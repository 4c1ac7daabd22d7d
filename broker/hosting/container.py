"""A broker in a container: deploy/compose.yaml, started and ended with whatever engine runs here."""

import json
import logging
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from broker.errors import BrokerError

logger = logging.getLogger(__name__)

_ENGINES = ("docker", "podman")
_RECORD = "container.json"
_LEFT = "container-data.json"  #: what the record is called while only the data are there
_UP_SECONDS = 600.0  # the first time, the image is fetched
_ASK_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The broker of deploy/compose.yaml.

    Attributes:
        engine: The program that runs it, docker or podman.
        port: Where it speaks AMQP, on loopback.
        management_port: Where its management page is, on loopback.
        user: The account that its first start creates.
        password: That account's password.
        vhost: The virtual host that its first start creates.
    """

    engine: str
    port: int
    management_port: int
    user: str
    password: str
    vhost: str

    @property
    def amqp_url(self) -> str:
        """Its address, with the login."""
        return f"amqp://{self._login}@localhost:{self.port}/{quote(self.vhost, safe='')}"

    @property
    def management_url(self) -> str:
        """Its management API's address, with the login."""
        return f"http://{self._login}@localhost:{self.management_port}"

    @property
    def _login(self) -> str:
        return f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"

    def start(self, home: Path) -> None:
        """Start it, and note in `home` that it was us; after an error, `stop` clears up.

        Raises:
            BrokerError: The engine could not; such as without a network, when the image is not here yet.
        """
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / _RECORD).write_text(json.dumps(asdict(self), indent=2))
        (home / _RECORD).chmod(0o600)  # holds the password
        (home / _LEFT).unlink(missing_ok=True)
        self._compose("up", "--detach", "--wait")

    def stop(self, home: Path, *, with_data: bool = False) -> None:
        """Take it down; its data stay in the engine's volume unless they shall go, too."""
        self._compose("down", *(["--volumes"] if with_data else []))
        with suppress(FileNotFoundError):
            (home / _RECORD).replace(home / _LEFT)
        if with_data:
            self.forget(home)

    @staticmethod
    def forget(home: Path) -> None:
        """Drop what is noted of it."""
        for name in (_RECORD, _LEFT):
            (home / name).unlink(missing_ok=True)

    @classmethod
    def recorded(cls, home: Path, *, is_stopped: bool = False) -> "Container | None":
        """The container that `start` noted in this folder, or the one that `stop` left the data of."""
        try:
            return cls(**json.loads((home / (_LEFT if is_stopped else _RECORD)).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _compose(self, *arguments: str) -> None:
        settings = {
            "WARREN_PORT": str(self.port),
            "WARREN_MANAGEMENT_PORT": str(self.management_port),
            "WARREN_USER": self.user,
            "WARREN_PASSWORD": self.password,
            "WARREN_VHOST": self.vhost,
        }
        with resources.as_file(resources.files("deploy")) as folder:
            compose = [self.engine, "compose", "--profile", "broker", "--file", str(folder / "compose.yaml")]
            _run([*compose, *arguments], {**os.environ, **settings})


def running_engine() -> str | None:
    """A container engine that runs here and knows compose files, if there is one."""
    return next((engine for engine in _ENGINES if _is_usable(engine)), None)


def _is_usable(engine: str) -> bool:
    return all(_succeeds([engine, *question]) for question in (["info"], ["compose", "version"]))


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=_ASK_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: list[str], environment: dict[str, str]) -> None:
    logger.debug("running %s", " ".join(command))
    try:
        subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_UP_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as exc:
        raise BrokerError(f"`{' '.join(command)}` failed: {exc.stderr.strip()[-500:]}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BrokerError(f"`{' '.join(command)}` failed: {exc}") from exc
