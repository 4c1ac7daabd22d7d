"""What waiting costs: processor time of a worker and a coordinator that have nothing to do.

python -m tests.bench.idle --amqp-url URL --seconds 60
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import click
import numpy as np

_START_SECONDS = 30.0  #: imports, the model, the first messages
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def write_data(path: Path) -> Path:
    """A small data set of noise."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (100, 28, 28), dtype=np.uint8), np.arange(100) % 10
    np.savez(path, x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    return path


def shares(coordinator: list[str], worker: list[str], seconds: float) -> dict[str, float]:
    """Start both, let them settle, and measure each one's share of a core in percent."""
    bin_folder = Path(sys.executable).parent
    processes = {
        words[0] + " " + words[1]: subprocess.Popen(
            [str(bin_folder / words[0]), *words[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for words in (coordinator, worker)
    }
    pause = threading.Event()
    try:
        pause.wait(_START_SECONDS)
        begun = {name: cpu_seconds(process.pid) for name, process in processes.items()}
        pause.wait(seconds)
        return {
            name: round(100 * (cpu_seconds(process.pid) - begun[name]) / seconds, 3)
            for name, process in processes.items()
        }
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(20)


@click.command()
@click.option("--amqp-url", required=True)
@click.option("--seconds", type=float, default=60.0, show_default=True)
def main(amqp_url: str, seconds: float) -> None:
    """Measure a run that waits for more workers, then a network that waits for a launch."""
    os.environ["AMQP_URL"] = amqp_url
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data.npz")
        worker = ["worker", "run", "--name", "w1", "--data", str(data)]
        waiting = ["coordinator", "run", "mnist", "--workers", "3", "--out", f"{folder}/run"]
        serving = ["coordinator", "serve", "--port", "0", "--runs", f"{folder}/runs"]
        answer = [shares(coordinator, worker, seconds) for coordinator in (waiting, serving)]
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
