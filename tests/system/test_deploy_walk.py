"""deploy/README.md can be followed: its commands run as they stand, from a broker to a site that is gone."""

import os
import re
import subprocess
import sys
from pathlib import Path

from broker.hosting.private import free_ports
from tests.brokers import need_rabbitmq

ROOT = Path(__file__).parents[2]
_SECONDS = 540


def commands() -> list[str]:
    """The blocks of shell that need no root, in their order."""
    text = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if not block.startswith("# as root")]


def test_the_walk_of_deploy_s_readme_leads_from_nothing_to_a_site_that_is_gone(tmp_path: Path) -> None:
    """Broker, invitations, coordinator, hospitals, a run, backup, restore, another password, and no more of one site.

    Each command ends with 0; the ports are free ones by the variables that the commands read, and the home is empty.
    """
    need_rabbitmq()
    port, page_port = free_ports(2)
    amqp_url = f"amqp://guest:guest@localhost:{port}/%2F"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "AMQP_URL": amqp_url,
        "WARREN_COORDINATOR_SERVE_PORT": str(page_port),
    }
    script = "\n".join(
        ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null' EXIT", *commands(), "echo WALKED"]
    )
    try:
        walked = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
        logs = [path.read_text()[-3000:] for path in sorted(tmp_path.glob("*.log"))]
        said = "\n".join([walked.stdout, walked.stderr[-3000:], *logs])
        assert walked.stdout.endswith("WALKED\n"), said
        assert "hospital-2 is no longer invited" in walked.stdout, said
        last_status = walked.stdout.rpartition("hospital-2 is no longer invited")[2]
        assert not re.search(r"hospital-2 +(waiting|training|ready|yes)", last_status), last_status
        invited = [path.name for path in tmp_path.glob("*.toml")]
        assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in invited)
        status = subprocess.run(
            ["broker", "status", "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        assert "hospital-2" not in status.stdout
    finally:
        subprocess.run(
            ["broker", "down", "--all"], env=environment, cwd=tmp_path, capture_output=True, check=False
        )
