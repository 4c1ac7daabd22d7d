"""`make bench`: the transport's cost, paired with the floor of the same bytes, as a table.

Each case runs on a broker of its own; a case and its floor run one after the other, so that their ratio holds on a
noisy machine. A benchmark reports; nothing here asserts a time.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.brokers import started_broker

CASES: dict[str, list[str]] = {
    "10,000 weights, 3 processes": ["--weights", "10000", "--workers", "3", "--rounds", "30"],
    "10,000 weights, 30 processes": ["--weights", "10000", "--workers", "30", "--rounds", "20"],
    "10,000 weights, swarm of 100": ["--weights", "10000", "--swarm", "100", "--rounds", "10"],
    "10,000 weights, swarm of 1,000": ["--weights", "10000", "--swarm", "1000", "--rounds", "5"],
    "100 MB, 4 processes": ["--weights", "25000000", "--workers", "4", "--rounds", "3"],
    "100 MB, 8 processes": ["--weights", "25000000", "--workers", "8", "--rounds", "3"],
    "100 MB, 8 processes, int8": [
        "--weights",
        "25000000",
        "--workers",
        "8",
        "--rounds",
        "3",
        "--precision",
        "int8",
    ],
    "100 MB, 16 processes": ["--weights", "25000000", "--workers", "16", "--rounds", "3"],
}
FLOORS: dict[str, list[str]] = {
    f"100 MB, {number} processes": ["--megabytes", "100", "--workers", str(number), "--rounds", "3"]
    for number in (4, 8, 16)
}


def measured(module: str, words: list[str]) -> dict[str, Any]:
    """Run one script on a broker of its own."""
    with tempfile.TemporaryDirectory() as home, started_broker(Path(home)) as broker:
        command = [sys.executable, "-m", module, "--amqp-url", broker.amqp_url, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Run every case whose name contains one of the words given, or all."""
    wanted = sys.argv[1:] or [""]
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| case | median s/round | floor s/round | ratio | coordinator peak MB | result / exact |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, words in CASES.items():
        if not any(word in name for word in wanted):
            continue
        ours = measured("tests.bench.fleet", words)
        floor = measured("tests.bench.floor", FLOORS[name])["median_seconds"] if name in FLOORS else None
        ratio = f"{ours['median_seconds'] / floor:.2f}" if floor else "–"
        print(
            f"| {name} | {ours['median_seconds']:.3f} | {floor or '–'} | {ratio} | "
            f"{ours['coordinator_peak_mb']:.0f} | {ours['result_over_expected']:.7f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
