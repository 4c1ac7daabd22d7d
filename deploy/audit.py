"""`make audit`: known vulnerabilities of what users install; what could not be looked up is not said to be sound."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

_SOUND, _FLAWED, _UNKNOWN = 0, 1, 3


@click.command()
@click.argument("lock", type=click.Path(path_type=Path, dir_okay=False, exists=True))
def main(lock: Path) -> None:
    """Look up each package of LOCK; exit with 0: none is known to be flawed, 1: one is, 3: nobody knows."""
    audited = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--disable-pip", "--format", "json", "--requirement", str(lock)],
        capture_output=True,
        text=True,
        check=False,
    )
    code, said = judge(audited.stdout)
    click.echo(said, err=code != _SOUND)
    if code == _UNKNOWN and audited.stderr.strip():
        click.echo(f"pip-audit's last word: {audited.stderr.strip().splitlines()[-1]}", err=True)
    sys.exit(code)


def judge(report: str) -> tuple[int, str]:
    """The exit code, and what it says, of pip-audit's report; which is empty where the database is out of reach."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError):
        return _UNKNOWN, "The database of vulnerabilities could not be reached: nothing was audited."
    flaws = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in "
        f"{', '.join(flaw['fix_versions']) or 'no version yet'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if flaws:
        return _FLAWED, "\n".join(flaws)
    if unknown or not packages:
        return _UNKNOWN, (
            f"The database of vulnerabilities could not be reached for {len(unknown)} of {len(packages)} packages: "
            "this is no audit. Try it where the registry of the packages answers."
        )
    return _SOUND, f"{len(packages)} packages, none with a known vulnerability"


if __name__ == "__main__":
    main()
