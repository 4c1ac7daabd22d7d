"""Measures Flower as it is deployed: a SuperLink with its state in memory, and one SuperNode for each client.

build/peers/flower/bin/python -m tests.bench.peers.flower.drive --weights 10000 --clients 3 --rounds 3
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.bench.peers import figures, processes

_APP = Path(__file__).parent / "app"
_BIN = Path(sys.executable).parent
_SERVER = ("flower-superlink", "flwr-serverapp")
_START_SECONDS = 60
_RUN_SECONDS = 3600
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


def deploy(job: figures.Job, port: int, node_ports: list[int]) -> None:
    """Start the SuperLink and the SuperNodes."""
    folder = job.folder
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(_CONFIG.format(port=port))
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    start(folder, "superlink", *link)
    processes.wait_for("The SuperLink", lambda: is_up(port), seconds=_START_SECONDS)
    for number, node_port in enumerate(node_ports):
        node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
        node += ["--host", "127.0.0.1", "--port", str(node_port)]
        start(folder, f"node-{number}", *node, "--node-config", f"partition-id={number}")


def submit(job: figures.Job) -> None:
    """Hand the app to the SuperLink."""
    config = f'weights={job.weights} clients={job.clients} rounds={job.rounds} folder="{job.folder}"'
    subprocess.run(
        [_BIN / "flwr", "run", _APP, "bench", "--run-config", config],
        env=environment(job.folder),
        stdout=sys.stderr,
        check=True,
    )


def main() -> None:
    """Measure one job."""
    processes.adopt_orphans()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        job = figures.asked_for(Path(folder))
        job.prepare()
        port, *node_ports = processes.free_ports(job.clients + 1)
        started = figures.now()
        try:
            with processes.PeakMemory(_SERVER) as peak:
                deploy(job, port, node_ports)
                submit(job)
                processes.wait_for("The outcome", job.outcome.exists, seconds=_RUN_SECONDS)
        except (TimeoutError, subprocess.CalledProcessError):
            sys.stderr.write((job.folder / "superlink.log").read_text()[-3000:])
            raise
        finally:
            processes.end_descendants()
        figures.tell(
            job,
            system="Flower",
            version=version("flwr"),
            started=started,
            peak_megabytes=peak.megabytes,
        )


if __name__ == "__main__":
    main()
