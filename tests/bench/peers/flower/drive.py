"""Measures Flower as it is deployed: a SuperLink with its state in memory, and one SuperNode for each client.

build/peers/flower/bin/python -m tests.bench.peers.flower.drive --weights 10000 --clients 3 --rounds 3
"""

import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.bench.peers import processes
from tests.bench.peers.driving import drive, ports_to
from tests.bench.peers.job import Job

_APP = Path(__file__).parent / "app"
_BIN = Path(sys.executable).parent
_SERVER = ("flower-superlink", "flwr-serverapp")
_START_SECONDS = 300
_CONFIG = """
[superlink]
default = "bench"
[superlink.bench]
address = "127.0.0.1:{port}"
insecure = true
"""


def environment(folder: Path) -> dict[str, str]:
    """What all of Flower's processes get; nothing calls home."""
    return processes.environment(folder) | {
        "PATH": f"{_BIN}:/usr/bin:/bin",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def start(folder: Path, name: str, *words: str) -> None:
    """Start one of Flower's programs; it ends with the driver's other descendants."""
    with (folder / f"{name}.log").open("wb") as log:
        subprocess.Popen(
            [_BIN / words[0], *words[1:]], env=environment(folder), stdout=log, stderr=subprocess.STDOUT
        )


def is_up(port: int) -> bool:
    """Whether the SuperLink answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except (URLError, OSError):
        return False


def deploy(job: Job) -> None:
    """Start the SuperLink and the SuperNodes, and hand over the app."""
    folder, (port, *node_ports) = job.folder, processes.free_ports(job.clients + 1)
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(_CONFIG.format(port=port))
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    start(folder, "superlink", *link)
    processes.wait_for("The SuperLink", lambda: is_up(port), seconds=_START_SECONDS)
    for number, (node_port, by) in enumerate(zip(node_ports, ports_to(port, job), strict=True)):
        node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{by}"]
        node += ["--host", "127.0.0.1", "--port", str(node_port)]
        start(folder, f"node-{number}", *node, "--node-config", f"partition-id={number}")
    submit(job)


def submit(job: Job) -> None:
    """Hand the app to the SuperLink."""
    config = f'weights={job.weights} clients={job.clients} rounds={job.rounds} folder="{job.folder}"'
    subprocess.run(
        [_BIN / "flwr", "run", _APP, "bench", "--run-config", config],
        env=environment(job.folder),
        stdout=sys.stderr,
        check=True,
        timeout=_START_SECONDS,
    )


if __name__ == "__main__":
    drive(package="flwr", server=_SERVER, log="superlink.log", deploy=deploy)
