"""The demo of deploy/compose.yaml without containers: its command lines as plain processes, started in its order.

What a container changes is put in place: the folders of its volumes are folders of the test, the broker is a private
one with the settings that the file mounts, and its ports are free ones.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from broker.hosting.private import PrivateBroker, free_ports
from tests.brokers import wait_until

ROOT = Path(__file__).parents[1]
FILE = ROOT / "deploy" / "compose.yaml"
_SECONDS = 120


def services() -> dict[str, Any]:
    """What the file says of each, its anchors resolved."""
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"])


def demo() -> dict[str, Any]:
    """Those that `--profile demo` starts."""
    return {name: each for name, each in services().items() if "demo" in each.get("profiles", ["demo"])}


class Composed:
    """The demo's services, each with those before it that it depends on; ended with the block.

    Args:
        folder: Gets a folder for each volume, and each service's output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = demo()
        self.broker_port, self.management_port, self.page_port = free_ports(3)
        self.broker: PrivateBroker | None = None
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        #: What a person would have to give on another machine, because its addresses are not the containers'.
        self._more = {
            "accounts": [
                *("--broker", f"localhost:{self.broker_port}"),
                *("--management", f"localhost:{self.management_port}"),
            ],
            "coordinator": ["--port", str(self.page_port)],
        }

    def __enter__(self) -> "Composed":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(20)
        if self.broker:
            self.broker.kill()

    def up(self, name: str) -> None:
        """Start a service after what it depends on, which first is as it wants it."""
        if name in self.processes or (name == "demo-broker" and self.broker):
            return
        service = self.services[name]
        for other, wanted in service.get("depends_on", {}).items():
            self.up(other)
            {
                "service_completed_successfully": self._wait_for_end,
                "service_healthy": self._wait_for_health,
            }[wanted["condition"]](other)
        if name == "demo-broker":
            self._start_broker(service)
        else:
            self.processes[name] = self._start(name, service)

    def said(self, name: str) -> str:
        """What a service printed."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def volume(self, name: str) -> Path:
        """The folder in the place of a volume."""
        folder = self.folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _start(self, name: str, service: dict[str, Any]) -> subprocess.Popen[bytes]:
        words = [
            self._translated(word, service) for word in (*service.get("entrypoint", []), *service["command"])
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*words, *self._more.get(name, [])],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(service),
            )

    def _environment(self, service: dict[str, Any]) -> dict[str, str]:
        """The container's, and what lets this tree's code be found."""
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.volume("home")),
            "PYTHONPATH": str(ROOT),
        }
        return own | service.get("environment", {})

    def _translated(self, word: str, service: dict[str, Any]) -> str:
        """The folders of its volumes as they are called here, and `$$` as compose hands it on."""
        for mount in service.get("volumes", []):
            source, target = mount.split(":")[:2]
            if not source.startswith("."):
                word = re.sub(rf'(?<![\w.]){target}(?=/|"|$)', str(self.volume(source)), word)
        return word.replace("$$", "$")

    def _start_broker(self, service: dict[str, Any]) -> None:
        """A private one, with the settings that are mounted beside rabbitmq.conf; its login is of the definitions."""
        mounted = [FILE.parent / mount.split(":")[0] for mount in service["volumes"] if mount.startswith(".")]
        more = [path.read_text(encoding="utf-8") for path in mounted if path.name != "rabbitmq.conf"]
        user, _, password = (self.volume("settings") / "administrator").read_text().partition(":")
        self.broker = PrivateBroker(
            home=self.folder / "broker",
            port=self.broker_port,
            management_port=self.management_port,
            user=user,
            password=password,
            conf=tuple(self._translated(text, service) for text in more),
        )
        self.broker.start()

    def _wait_for_end(self, name: str) -> None:
        assert self.processes[name].wait(_SECONDS) == 0, self.said(name)

    def _wait_for_health(self, name: str) -> None:
        """The broker was waited for when it started; others are asked as the container asks them."""
        if name != "demo-broker":
            wait_until(lambda: self._is_healthy(name), _SECONDS, what=f"the health of {name}")

    def _is_healthy(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.said(name)
        kind, *words = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        question = [word.replace(":5000/", f":{self.page_port}/") for word in words]
        environment = self._environment(self.services[name])
        return subprocess.run(question, env=environment, capture_output=True, check=False).returncode == 0
