"""Measures NVIDIA FLARE as its "POC" deploys it: a server and sites as real processes, with certificates (mTLS).

build/peers/nvflare/bin/python -m tests.bench.peers.nvflare.drive --weights 10000 --clients 3 --rounds 3
"""

import os
import sys
from pathlib import Path
from typing import Any

from tests.bench.peers import processes
from tests.bench.peers.driving import drive, ports_to
from tests.bench.peers.job import Job

_BIN = Path(sys.executable).parent
_SERVER = ("server_train", "runner_process")
_LOGIN_SECONDS = 300


def project(port: int, ports: list[int]) -> dict[str, Any]:
    """FLARE's own example project with our server's port, and the port that each site finds it at."""
    import yaml
    from nvflare import lighter

    example = (Path(lighter.__file__).parent / "dummy_project.yml").read_text()
    described: dict[str, Any] = yaml.safe_load(example)
    admins = [each for each in described["participants"] if each["type"] == "admin"]
    server = {"name": "server", "type": "server", "org": "nvidia", "fed_learn_port": port, "admin_port": port}
    sites = [
        {"name": f"site-{number}", "type": "client", "org": "nvidia"}
        | ({} if by == port else {"connect_to": {"host": "localhost", "port": by}})
        for number, by in enumerate(ports, start=1)
    ]
    return described | {"participants": [server, *sites, *admins]}


def deploy(job: Job) -> None:
    """Provision, start all processes and submit the job."""
    # FLARE reads these when it is imported.
    os.environ.update(processes.environment(job.folder))
    os.environ.update(NVFLARE_POC_WORKSPACE=f"{job.folder}/poc", PATH=f"{_BIN}:/usr/bin:/bin")
    import yaml
    from nvflare.fuel.utils.constants import FrameworkType
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.script_runner import ScriptRunner
    from nvflare.recipe.poc_env import PocEnv

    from tests.bench.peers.nvflare.controller import NotedFedAvg

    description = job.folder / "project.yml"
    (port,) = processes.free_ports(1)
    description.write_text(yaml.safe_dump(project(port, ports_to(port, job))))
    asked = FedJob(name="bench", min_clients=job.clients)
    asked.to_server(NotedFedAvg(job.weights, job.clients, job.rounds, str(job.folder)))
    script = ScriptRunner(
        script=str(Path(__file__).with_name("client.py")),
        script_args=f"{job.weights} {job.clients} {job.folder}",
        framework=FrameworkType.NUMPY,
    )
    asked.to_clients(script)
    place = PocEnv(
        num_clients=job.clients,
        project_conf_path=str(description),
        extra={"login_timeout": _LOGIN_SECONDS},
    )
    place.deploy(asked)


if __name__ == "__main__":
    drive(package="nvflare", server=_SERVER, log="poc/*/prod_00/server/log.txt", deploy=deploy)
