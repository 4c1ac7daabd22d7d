"""The benchmark's work as a Flower app; Flower copies this folder, the work itself is imported from the repository."""

from pathlib import Path

from flwr.app import Context

from tests.bench.peers.job import Job


def job_of(context: Context) -> Job:
    """The job as the driver gave it with `flwr run`."""
    config = context.run_config
    return Job(
        weights=int(config["weights"]),
        clients=int(config["clients"]),
        rounds=int(config["rounds"]),
        folder=Path(str(config["folder"])),
    )
